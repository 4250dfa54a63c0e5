"""The engine: the same bits whatever the threads, tiles, budget, shards and company; true reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

import merganser
from merganser import engine, methods
from merganser.checkpoints import Checkpoint
from merganser.checkpoints.state_dict import MemoryCheckpoint
from merganser.engine import buffer_bytes
from merganser.engine.digests import read_digest
from merganser.engine.events import Event, Finished, Merged, Started
from merganser.errors import InputError, MerganserError, ResourceError
from merganser.kernels import CELL
from merganser.methods import registry
from merganser.planning import Plan
from merganser.sinks import DigestSink, NullSink, Sink, StateDictSink
from merganser.tensors import TensorSpec

Models = dict[str, dict[str, torch.Tensor]]


def models(
    count: int = 3, seed: int = 0, dtype: torch.dtype = torch.bfloat16, step: float = 1.0
) -> Models:
    """State dicts with a tensor of several tiles, odd sizes, an empty one, a scalar and integers."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"big": (700, 911), "odd": (333,), "one": (1,), "scalar": (), "none": (0, 4)}
    base = {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes.items()}
    found: Models = {}
    for i in range(count):
        found[f"m{i}"] = {
            name: (tensor + step * torch.randn(tensor.shape, generator=generator)).to(dtype)
            for name, tensor in base.items()
        } | {"ids": torch.arange(5)}
    return found


def planned(found: Models, method: str = "linear", **recipe: Any) -> Plan:
    weights = recipe.pop("weights", [0.5, 0.3, 0.2])
    arithmetic = recipe.pop("arithmetic", "exact")
    with_weight = method in ("linear", "task_arithmetic")
    entries = [
        {"model": name, "parameters": {"weight": w} if with_weight else {}}
        for name, w in zip(found, weights, strict=False)
    ]
    data = {"merge_method": method, "models": entries, **recipe}
    if method in BASED:
        data["base_model"] = next(iter(found))
        entries[0].pop("parameters")
        data["parameters"] = BASED[method]
    if method == "slerp":
        data["models"], data["parameters"] = entries[:2], {"t": 0.3}
    return merganser.plan(data, checkpoints=in_memory(found), arithmetic=arithmetic)


BASED: dict[str, dict[str, float]] = {
    "task_arithmetic": {},
    "slerp": {},
    "ties": {"density": 0.3, "weight": 0.6},
    "della": {"density": 0.5, "epsilon": 0.1, "weight": 0.6},
    "sce": {"select_topk": 0.5},
    "ram": {},
}
"""Methods whose base is the first model, with their parameters."""

IN_MEMORY: dict[str, Checkpoint] = {}
"""The checkpoints of the test's plans, by their names in recipes."""


def in_memory(found: Models) -> dict[str, Checkpoint]:
    checkpoints: dict[str, Checkpoint] = {k: MemoryCheckpoint(v, k) for k, v in found.items()}
    IN_MEMORY.update(checkpoints)
    return checkpoints


def run(plans: Sequence[Plan], sinks: Sequence[Sink], **options: Any) -> list[engine.Outcome]:
    return engine.run(plans, sinks, checkpoints=IN_MEMORY, **options)


def merged(plan: Plan, **options: Any) -> dict[str, torch.Tensor]:
    sink = StateDictSink({job.name: job.spec for job in plan.jobs})
    run([plan], [sink], **options)
    return sink.tensors


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "slerp"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_threads_tiles_and_budget_do_not_change_a_bit(method: str, dtype: str) -> None:
    plan = planned(models(), method, dtype=dtype, rounding="stochastic")
    expected = merged(plan, threads=1, tile=16 * CELL)
    for options in ({"threads": 7}, {"threads": 3, "tile": CELL}, {"memory": 240 * 2**20}):
        assert same(merged(plan, **options), expected)


@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "della", "sce", "ram"])
def test_report_and_digests_do_not_depend_on_tiles(method: str) -> None:
    """For ``della`` rows of 96 make complete cells in the larger tiles alone."""
    found = models(step=1e-3)
    for state in found.values():
        state["narrow"] = state["big"].reshape(-1)[: 96 * 3000].reshape(3000, 96)
    plan = planned(found, method, dtype="bfloat16")
    outcomes = []
    for tile, threads in ((CELL, 5), (16 * CELL, 1)):
        options: dict[str, Any] = {"tile": tile, "threads": threads, "digest_inputs": True}
        [outcome] = run([plan], [DigestSink()], **options)
        assert outcome.report is not None
        digests = [(t.digest, t.inputs) for t in outcome.tensors]
        outcomes.append((outcome.report.as_dict(), digests))
    assert outcomes[0] == outcomes[1]
    tensors = merged(plan)
    for job, (digest, inputs) in zip(plan.jobs, outcomes[0][1], strict=True):
        assert digest == digest_of_bytes(job.spec, tensors[job.name])
        stored = [found[plan.sources[read.source].reference.text][job.name] for read in job.reads]
        spec = IN_MEMORY["m0"].specs[job.name]
        assert list(inputs) == [digest_of_bytes(spec, tensor) for tensor in stored]


def digest_of_bytes(spec: TensorSpec, tensor: torch.Tensor) -> str:
    """A tensor's digest from its bytes alone."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    def read(start: int, into: memoryview) -> None:
        into[:] = data[start : start + len(into)]

    return read_digest(spec, read)


def test_many_plans_in_one_pass_are_each_as_if_alone() -> None:
    """Also where they share only some inputs, differ in dtype, or need measuring."""
    found = models()
    pair = dict(list(found.items())[:2])
    plans = [planned(found, weights=[1 - w, w, 0.1], dtype="bfloat16") for w in (0.1, 0.5, 0.9)] + [
        planned(pair, weights=[0.2, 0.8], dtype="float32"),
        planned(found, "slerp"),
        planned(found, "task_arithmetic", rounding="stochastic"),
        planned(dict(reversed(found.items())), weights=[0.6, 0.3, 0.1]),
    ]
    sinks = [StateDictSink({job.name: job.spec for job in plan.jobs}) for plan in plans]
    outcomes = run(plans, sinks, threads=4)
    for plan, sink, outcome in zip(plans, sinks, outcomes, strict=True):
        assert same(sink.tensors, merged(plan, threads=1))
        [alone] = run([plan], [NullSink()])
        assert outcome.report is not None
        assert alone.report is not None
        assert outcome.report.as_dict() == alone.report.as_dict()


def test_shared_inputs_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = models(2)
    reads: list[tuple[str, int]] = []
    original = MemoryCheckpoint.read

    def counting(self: MemoryCheckpoint, name: str, start: int, into: memoryview) -> None:
        reads.append((f"{self.label}/{name}", start))
        original(self, name, start, into)

    monkeypatch.setattr(MemoryCheckpoint, "read", counting)
    plans = [planned(found, weights=[1 - w, w]) for w in (0.1, 0.2, 0.3, 0.4)]
    run(plans, [NullSink() for _ in plans])
    assert len(reads) == len(set(reads))


def test_the_report_tells_what_rounding_did() -> None:
    """Against least squares by hand, on experts that differ by about the rounding step."""
    found = models(2, step=3e-5)
    plan = planned(found, weights=[0.9, 0.1], dtype="bfloat16")
    [outcome] = run([plan], [sink := StateDictSink({j.name: j.spec for j in plan.jobs})])
    a, b = (
        torch.cat([t.double().flatten() for n, t in m.items() if n != "ids"])
        for m in found.values()
    )
    y = torch.cat([t.double().flatten() for n, t in sink.tensors.items() if n != "ids"])
    expected = float((y - a) @ (b - a) / ((b - a) @ (b - a)))
    report = outcome.report
    assert report is not None
    assert report.models[1].requested == pytest.approx(0.1, abs=1e-6)
    assert report.models[1].effective == pytest.approx(expected, rel=1e-4)
    assert report.models[0].effective == pytest.approx(1 - expected, rel=1e-4)
    assert report.models[1].differ == pytest.approx(float((a != b).double().mean()), rel=1e-6)
    assert abs(expected - 0.1) > 0.02
    assert any("rounding to bfloat16 moved" in warning for warning in report.warnings)
    assert report.worst


@pytest.mark.parametrize(
    "options", [{"dtype": "float32"}, {"dtype": "bfloat16", "rounding": "stochastic"}]
)
def test_float32_and_stochastic_rounding_keep_the_weight(options: dict[str, Any]) -> None:
    plan = planned(models(2, step=3e-5), weights=[0.9, 0.1], **options)
    [outcome] = run([plan], [NullSink()])
    assert outcome.report is not None
    assert outcome.report.models[1].effective == pytest.approx(0.1, abs=5e-3)
    assert outcome.report.warnings == ()


def test_a_report_of_equal_models_says_that_they_cannot_be_told_apart() -> None:
    found = models(1)
    plan = planned({"m0": found["m0"], "m1": found["m0"]}, weights=[0.5, 0.5])
    [outcome] = run([plan], [NullSink()])
    assert outcome.report is not None
    assert [m.effective for m in outcome.report.models] == [None, None]
    assert outcome.report.models[1].differ == 0


def test_integers_are_copied_if_equal_and_refused_if_not() -> None:
    found = models(2)
    assert torch.equal(merged(planned(found, weights=[0.5, 0.5]))["ids"], torch.arange(5))
    found["m1"]["ids"] = torch.arange(1, 6)
    with pytest.raises(
        InputError, match=r"'ids' \(int64\) cannot be averaged, and differs between m0 and m1"
    ):
        merged(planned(found, weights=[0.5, 0.5]))


def test_slerp_refuses_what_has_no_length() -> None:
    found = models(2)
    found["m1"]["big"][0, 0] = float("inf")
    with pytest.raises(MerganserError, match="'big' holds numbers that are not finite"):
        merged(planned(found, "slerp"))


def test_too_little_memory_is_said_before_anything_is_read() -> None:
    with pytest.raises(ResourceError, match="more than the 1 MB allowed"):
        merged(planned(models()), memory=10**6)


@pytest.mark.parametrize("arithmetic", ["exact", "mergekit"])
def test_less_memory_means_smaller_tiles(arithmetic: str) -> None:
    """For compiled kernels and for torch, down to a cell: a merge is not refused that would fit."""
    plan = planned(models(), "ram", base_model="m0", arithmetic=arithmetic)
    sizes = [buffer_bytes([plan], tile * CELL) for tile in (1, 2, 4, 8)]
    assert sizes[0] < sizes[1] <= sizes[2] <= sizes[3]
    assert (sizes[1] < sizes[2]) == (arithmetic == "exact")  # torch has small tiles anyway


def test_a_failing_sink_stops_everything_and_is_aborted() -> None:
    class Failing(NullSink):
        aborted = False

        def write(self, name: str, start: int, data: memoryview) -> None:
            raise ResourceError("full")

        def abort(self) -> None:
            self.aborted = True

    sink = Failing()
    with pytest.raises(ResourceError, match="full"):
        run([planned(models())], [sink], threads=4)
    assert sink.aborted


def test_events_add_up() -> None:
    events: list[Event] = []
    plan = planned(models())
    run([plan], [NullSink()], on_event=events.append)
    started, finished = events[0], events[-1]
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    last = [event for event in events if isinstance(event, Merged)][-1]
    assert last.done_bytes == started.total_bytes == sum(job.spec.nbytes for job in plan.jobs)


@pytest.fixture
def registered() -> Any:
    """Lets a test register methods, and takes them away afterwards."""
    methods.names()
    before = dict(registry._registry)
    yield
    registry._registry.clear()
    registry._registry.update(before)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("elementwise", [True, False])
def test_a_method_from_outside_the_package(elementwise: bool) -> None:
    """One typed function in torch: given tiles if it is elementwise, whole tensors if not."""
    seen: list[tuple[int, ...]] = []

    @merganser.merge_method("largest", base="required", elementwise=elementwise)
    def largest(
        tensors: list[torch.Tensor], base: torch.Tensor, *, scale: float = 1.0
    ) -> torch.Tensor:
        """The change of largest size."""
        seen.append(tuple(base.shape))
        deltas = torch.stack(tensors) - base
        return base + scale * deltas.gather(0, deltas.abs().argmax(0, keepdim=True))[0]

    found = models(3)
    data = {
        "merge_method": "largest",
        "base_model": "m0",
        "models": [{"model": "m1"}, {"model": "m2"}],
        "parameters": {"scale": 0.5},
        "dtype": "bfloat16",
    }
    plan = merganser.plan(data, checkpoints=in_memory(found))
    result = merged(plan, threads=4, tile=CELL)
    base = found["m0"]["big"].float()
    deltas = torch.stack([found["m1"]["big"].float(), found["m2"]["big"].float()]) - base
    expected = base + 0.5 * deltas.gather(0, deltas.abs().argmax(0, keepdim=True))[0]
    assert torch.equal(result["big"], expected.bfloat16())
    assert ((700, 911) in seen) is not elementwise


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda gram, weight: None, "takes"),
        (lambda tensors, other: None, "takes"),
    ],
)
def test_a_signature_that_is_no_methods_is_refused(
    function: Callable[..., Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        merganser.merge_method("wrong")(function)


def test_fused_and_torch_paths_agree_on_mixed_dtypes() -> None:
    """Inputs of three dtypes, against float64 by hand."""
    base = models(3, dtype=torch.float32)
    dtypes = [torch.bfloat16, torch.float16, torch.float32]
    found = {
        name: {k: t if k == "ids" else t.to(dtype) for k, t in state.items()}
        for (name, state), dtype in zip(base.items(), dtypes, strict=True)
    }
    result = merged(planned(found, weights=[0.5, 0.3, 0.2], parameters={"normalize": False}))
    exact = sum(w * s["big"].double() for w, s in zip([0.5, 0.3, 0.2], found.values(), strict=True))
    assert result["big"].dtype == torch.float32
    half_a_unit = 2.0 ** (torch.frexp(exact).exponent - 25)
    assert ((result["big"] - exact).abs() <= half_a_unit * (1 + 1e-6) + 1e-15).all()


def test_the_report_is_numpy_free_json() -> None:
    plan = planned(models())
    [outcome] = run([plan], [NullSink()])
    assert outcome.report is not None
    flat = repr(outcome.report.as_dict())
    assert "np." not in flat
    assert np.isfinite(outcome.seconds)
