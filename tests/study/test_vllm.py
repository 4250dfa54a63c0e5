"""vLLM with swapped weights says what a fresh engine on the written folder says, and what transformers does."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import merganser
from merganser.errors import InputError, MerganserError, RecipeError
from merganser.evaluation.engines import VllmOptions
from merganser.evaluation.generation import Request, Sampling
from merganser.planning import make_plan
from merganser.study import evaluate
from merganser.study.live_model import LiveModel
from merganser.study.progress import Scored
from merganser.study.vllm_model import VllmModel
from vllm_models import SHAPES, linear, make_models

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.filterwarnings("default"),  # vLLM's own
]

QUESTIONS = [f"what is {a} + {b} =" for a in range(6) for b in range(2)]
GREEDY = Sampling(max_tokens=10)
DRAWN = Sampling(1.0, 0.9, max_tokens=10, seed=3)


def chats(samples: int = 1) -> list[Request]:
    return [
        Request([{"role": "user", "content": question}], sample)
        for question in QUESTIONS
        for sample in range(samples)
    ]


@pytest.fixture
def live() -> Iterator[VllmModel]:
    model = VllmModel(dtype="float32")
    yield model
    model.close()


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("qwen"), "qwen2")


def answers_of_a_fresh_engine(folder: Path, prompts: list[list[int]], dtype: str) -> list[Any]:
    """What vLLM itself says when it loads a folder from the disk, without any of our code."""
    import vllm

    engine = vllm.LLM(
        str(folder),
        dtype=dtype,
        max_model_len=256,
        enforce_eager=True,
        kv_cache_memory_bytes=2**26,
        disable_log_stats=True,
    )
    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=10, stop_token_ids=[2])
    found = engine.generate(
        [{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False
    )
    engine.llm_engine.engine_core.shutdown()
    return [tuple(each.outputs[0].token_ids) for each in found]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_swapped_weights_are_those_of_a_fresh_engine(
    family: str, dtype: str, tmp_path: Path
) -> None:
    """After five swaps and back to the first."""
    make_models(tmp_path, family)
    live = VllmModel(dtype="float32" if dtype == "float32" else "bfloat16")
    told: dict[float, list[Any]] = {}
    weights = (0.0, 0.3, 0.5, 0.7, 1.0, 0.0)
    for weight in weights:
        live.become(make_plan(linear(tmp_path, weight)))
        prompts = live.codec.encode_all([request.prompt for request in chats()])
        assert live._running is not None
        found = dict(live._running._run(prompts, chats(), GREEDY))
        tokens = [tuple(found[index]) for index in range(len(prompts))]
        assert told.setdefault(weight, tokens) == tokens
    live.close()
    assert told[0.0] != told[1.0]
    for weight in (0.0, 0.7):
        merganser.merge(linear(tmp_path, weight), tmp_path / f"m{weight}")
        assert answers_of_a_fresh_engine(tmp_path / f"m{weight}", prompts, dtype) == told[weight], (
            weight
        )


@pytest.mark.parametrize("family", list(SHAPES))
def test_both_engines_say_the_same(family: str, live: VllmModel, tmp_path: Path) -> None:
    """Greedily and drawn, of conversations and of plain texts, and as a stream."""
    make_models(tmp_path, family)
    other = LiveModel(dtype="float32")
    requests = [*chats(2), *(Request(question) for question in QUESTIONS)]
    counted = 0

    def count(tokens: int) -> None:
        nonlocal counted
        counted += tokens

    for weight in (0.2, 0.8):
        plan = make_plan(linear(tmp_path, weight))
        for sampling in (GREEDY, DRAWN):
            counted = 0
            found = dict(live.backend_of(plan, on_tokens=count)(requests, sampling))
            assert found == dict(other.backend_of(plan)(requests, sampling))
            assert counted == sum(each.tokens for each in found.values())
            assert "".join(live.backend.stream(requests[0].prompt, sampling)) == found[0].text


def test_a_longer_answer_starts_a_longer_engine(live: VllmModel, qwen: Path) -> None:
    plan = make_plan(linear(qwen, 0.5))
    live.become(plan)
    first, before = live._running, live._length
    assert first is not None
    longer = Sampling(max_tokens=before + 1)
    request = [Request([{"role": "user", "content": "1"}])]
    [(_, completion)] = live.backend_of(plan)(request, longer)
    assert live._running is not first
    assert completion.tokens <= before + 1
    fixed = VllmModel(options=VllmOptions(max_model_len=64))
    with pytest.raises(RecipeError, match=r"max_model_len: .* 64 are allowed"):
        list(fixed.backend_of(plan)(request, longer))


def test_an_engine_that_dies_is_started_anew_once(
    live: VllmModel, qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(linear(qwen, 0.5))
    wanted = dict(live.backend_of(plan)(chats(), GREEDY))
    first: Any = live._running
    steps = first._engine.step

    def die() -> Any:
        found = steps()
        if any(each.finished for each in found):
            raise RuntimeError("the device is gone")
        return found

    first._engine.step = die
    assert dict(live.backend_of(plan)(chats(), GREEDY)) == wanted
    assert live._running is not None
    assert live._running is not first

    from vllm.v1.engine.llm_engine import LLMEngine

    with monkeypatch.context() as patch:

        def gone(_self: object) -> Any:
            raise RuntimeError("the device is gone")

        patch.setattr(LLMEngine, "step", gone)
        with pytest.raises(MerganserError) as raised:
            list(live.backend_of(plan)(chats(), GREEDY))
    told = str(raised.value)
    assert "vLLM failed (RuntimeError: the device is gone), 2 times" in told
    assert "engine: transformers" in told
    assert "\n" not in told
    assert dict(live.backend_of(plan)(chats(), GREEDY)) == wanted


def test_weights_that_are_missing_are_named_and_heal(live: VllmModel, tmp_path: Path) -> None:
    make_models(tmp_path, "qwen2")
    whole = make_plan(alone(tmp_path / "a"))
    wanted = dict(live.backend_of(whole)(chats(), GREEDY))
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    (tmp_path / "torn").mkdir()
    for file in (tmp_path / "a").iterdir():
        os.link(file, tmp_path / "torn" / file.name)
    (tmp_path / "torn" / "model.safetensors").unlink()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "torn" / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\..*vLLM's model needs"):
        list(live.backend_of(make_plan(alone(tmp_path / "torn")))(chats(), GREEDY))
    assert dict(live.backend_of(whole)(chats(), GREEDY)) == wanted


def alone(folder: Path) -> dict[str, Any]:
    return {"merge_method": "passthrough", "models": [{"model": str(folder)}]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architectures": ["StrangeForCausalLM"]}, "does not know StrangeForCausalLM"),
        ({"num_experts": 4}, "models with experts are not tested"),
        (
            {
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                "max_window_layers": 28,
            },
            "cannot run this model",
        ),
    ],
)
def test_a_model_that_vllm_does_not_take_names_the_other_engine(
    changes: dict[str, Any], reason: str, live: VllmModel, tmp_path: Path
) -> None:
    make_models(tmp_path, "qwen2")
    file = tmp_path / "a" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    plan = make_plan(alone(tmp_path / "a"))
    with pytest.raises(MerganserError) as raised:
        list(live.backend_of(plan)(chats(), GREEDY))
    assert reason in str(raised.value)
    assert "engine: transformers" in str(raised.value)
    assert "\n" not in str(raised.value)


def study(folder: Path, **block: Any) -> Path:
    lines = [json.dumps({"problem": q, "answer": "3"}) + "\n" for q in QUESTIONS]
    (folder / "sums.jsonl").write_text("".join(lines))
    task = {"problems": "sums.jsonl", "scorers": ["exact", "tokens"], "max_tokens": 8}
    data = {
        "name": "m_w{{ w }}",
        "sweep": {"w": [0.3, 0.7]},
        **linear(folder, 0.0),
        "evaluate": {"keep": "none", "dtype": "float32", "tasks": [task], **block},
    }
    data["models"][0]["parameters"]["weight"] = "{{ w }}"
    data["models"][1]["parameters"]["weight"] = "{{ 1 - w }}"
    (folder / "study.yml").write_text(json.dumps(data))
    return folder / "study.yml"


def test_a_study_through_vllm_is_resumed_and_names_its_engine(tmp_path: Path) -> None:
    make_models(tmp_path, "qwen2")
    generated: list[int] = []

    def listen(event: object) -> None:
        if isinstance(event, Scored):
            generated.append(event.generated)

    file = study(tmp_path, engine="vllm")
    out = tmp_path / "out"
    first = evaluate.evaluate_sweep(file, out, on_progress=listen)
    assert str(first.settings["engine"]).startswith("vllm 0.")
    assert all(count == len(QUESTIONS) for count in generated)
    assert len(generated) == 4
    kept = out / "samples" / "m_w0.3.jsonl"
    lines = kept.read_text().splitlines(keepends=True)
    kept.write_text("".join(lines[:5]) + lines[5][:20])  # cut off while it was written
    generated.clear()
    again = evaluate.evaluate_sweep(file, out, on_progress=listen)
    assert sorted(generated) == [0, 0, 0, len(QUESTIONS) - 5]
    assert again.entries == first.entries
    warnings: list[str] = []
    other = evaluate.evaluate_sweep(file, out, engine="transformers", on_warning=warnings.append)
    assert any("the engine changed" in line for line in warnings)
    assert [e.scores for e in other.entries] == [e.scores for e in first.entries]


def test_two_workers_say_what_one_says(live: VllmModel, tmp_path: Path) -> None:
    make_models(tmp_path, "llama")
    parallel = VllmModel(dtype="float32", options=VllmOptions(tensor_parallel_size=2))
    for weight in (0.3, 0.7):
        plan = make_plan(linear(tmp_path, weight))
        found = dict(parallel.backend_of(plan)(chats(), GREEDY))
        assert found == dict(live.backend_of(plan)(chats(), GREEDY))
    parallel.close()


def test_a_device_that_this_build_has_not_is_refused() -> None:
    with pytest.raises(RecipeError, match="computes on"):
        VllmModel(device="mps")
