"""Exact arithmetic: float64 references written from the formulas, selections, and draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import merganser
from merganser import methods
from merganser.checkpoints.state_dict import MemoryCheckpoint
from merganser.engine import reference
from merganser.engine.running_plan import seed_of
from merganser.kernels import CELL
from merganser.methods import SparseDeltas
from merganser.sinks import StateDictSink
from peers import unit

Tensor = torch.Tensor
Numbers = dict[str, Any]

OUTPUTS = ["bfloat16", "float16", "float32"]
WEIGHTS = [0.3, 0.7, -0.45]
SHAPE = (48, 80)


def inputs(count: int, shape: tuple[int, ...] = SHAPE, step: float = 1e-3) -> list[Tensor]:
    """The base, and models a step from it: in float32, so that no two magnitudes are equal."""
    generator = torch.Generator().manual_seed(count)
    base = 0.02 * torch.randn(shape, generator=generator)
    changes = [step * torch.randn(shape, generator=generator) for _ in range(count)]
    return [base, *(base + change for change in changes)]


def exact(
    name: str, base: Tensor | None, models: list[Tensor], given: Numbers, **options: Any
) -> Tensor:
    return merganser.merge_tensors(models, name, base=base, parameters=given, **options)


# -- float64 references ----------------------------------------------------------------------------


def between(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Along the circle between the vectors of the last axis."""
    cosine = torch.cosine_similarity(a, b, dim=-1, eps=0.0).unsqueeze(-1)
    angle = cosine.clamp(-1, 1).acos()
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / angle.sin()


def slerp(x: list[Tensor], *, t: float) -> Tensor:
    return between(x[0].flatten(), x[1].flatten(), t).reshape(SHAPE)


def nuslerp(x: list[Tensor], *, weight: Sequence[float], **how: bool) -> Tensor:
    first, second = x[1] - x[0], x[2] - x[0]
    t = weight[1] / (weight[0] + weight[1])
    if how.get("nuslerp_flatten", True):
        turned = between(first.flatten(), second.flatten(), t).reshape(SHAPE)
    elif how.get("nuslerp_row_wise", False):
        turned = between(first, second, t)
    else:
        turned = between(first.T, second.T, t).T
    return x[0] + turned


def multislerp(x: list[Tensor], *, weight: Sequence[float]) -> Tensor:
    changes = [model - x[0] for model in x[1:]]
    shares = [w / sum(weight) for w in weight]
    direction = sum(s * c / c.norm() for s, c in zip(shares, changes, strict=True))
    assert isinstance(direction, Tensor)
    return x[0] + direction / direction.norm() * sum(
        s * float(c.norm()) for s, c in zip(shares, changes, strict=True)
    )


def karcher(x: list[Tensor], *, weight: Sequence[float] = ()) -> Tensor:
    """By many small steps instead of the method's few large ones."""
    models = [tensor.flatten() for tensor in x[1:]]
    shares = [w / sum(weight) for w in weight] or [1 / len(models)] * len(models)
    units = [model / model.norm() for model in models]
    mean = sum(units[1:], units[0])
    for _ in range(300):
        mean = mean / mean.norm()
        pulls = []
        for unit_, share in zip(units, shares, strict=True):
            cosine = (unit_ @ mean).clamp(-1, 1)
            apart = unit_ - cosine * mean
            pulls.append(share * cosine.acos() * apart / apart.norm())
        mean = mean + 0.5 * sum(pulls[1:], pulls[0])
    mean = mean / mean.norm()
    return (mean * sum(s * float(m.norm()) for s, m in zip(shares, models, strict=True))).reshape(
        SHAPE
    )


def model_stock(x: list[Tensor], *, filter_wise: bool = False) -> Tensor:
    changes = torch.stack([model - x[0] for model in x[1:]])
    vectors = changes if filter_wise else changes.reshape(len(changes), 1, -1)
    units = vectors / vectors.norm(dim=-1, keepdim=True)
    n = len(units)
    together = sum((units[i] * units[j]).sum(-1) for i in range(n) for j in range(i))
    cosine = together / (n * (n - 1) / 2)
    assert isinstance(cosine, Tensor)
    t = (n * cosine / (1 + (n - 1) * cosine)).reshape(-1, 1)
    return x[0] + t * changes.mean(dim=0)


def nearswap(x: list[Tensor], *, t: float) -> Tensor:
    apart = x[1] - x[0]
    return x[0] + torch.clamp(t / apart.abs(), max=1.0) * apart


def ram(x: list[Tensor], *, epsilon: float = 1e-5) -> Tensor:
    changes = torch.stack([model - x[0] for model in x[1:]])
    active = changes.abs() > epsilon
    return x[0] + (changes * active).sum(0) / active.sum(0).clamp(min=1)


def ramplus_tl(x: list[Tensor], *, r: float, alpha: float, epsilon: float) -> Tensor:
    changes = torch.stack([model - x[0] for model in x[1:]])
    active = changes.abs() > epsilon
    count = active.sum(0)
    result = x[0] + (changes * active).sum(0) / count.clamp(min=1)
    for change, mine in zip(changes, active, strict=True):
        alone = mine & (count == 1)
        ratio = float((mine & (count > 1)).sum()) / max(float(alone.sum()), epsilon)
        result[alone] = x[0][alone] + (1 + r * min(ratio, alpha)) * change[alone]
    return result


def arcee_fusion(x: list[Tensor]) -> Tensor:
    p, q = (torch.softmax(t, dim=-1) + 1e-8 for t in (x[1], x[0]))
    importance = (x[1] - x[0]).abs() * (p * (p.log() - q.log())).sum(-1, keepdim=True)
    ordered = importance.flatten().sort().values
    first, median, third = (ordered[int(s * (len(ordered) - 1))] for s in (0.25, 0.5, 0.75))
    return torch.where(importance >= median + 1.5 * (third - first), x[1], x[0])


def sparse(
    x: list[Tensor],
    *,
    weight: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float] = (),
    normalize: bool = False,
    rescale: Any = False,
    elect: bool = False,
    lambda_: float = 1.0,
) -> Tensor:
    """The family of ties and breadcrumbs, position by position where there is an election."""
    parts = []
    for i, model in enumerate(x[1:]):
        change = model - x[0]
        size = change.numel()
        ordered = change.abs().flatten().sort(descending=True).values
        kept = int(density[i] * size)
        begin = min(int(gamma[i] * size), size - kept) if gamma else 0
        low, high = ordered[begin + kept - 1], ordered[begin]
        part = torch.where((change.abs() >= low) & (change.abs() <= high), change, 0.0)
        order = {True: 1, "l1": 1, "l2": 2, "linf": math.inf}.get(rescale)
        if order:
            part = part * (change.flatten().norm(order) / part.flatten().norm(order))
        parts.append(weight[i] * part)
    stack, weights = torch.stack(parts), torch.tensor(weight, dtype=torch.float64)
    if not elect:
        return x[0] + lambda_ * stack.sum(0) / (sum(weight) if normalize else 1.0)
    sign = torch.where(stack.sum(0) >= 0, 1.0, -1.0)
    agree = (stack * sign) > 0
    divisor = (agree * weights[:, None, None]).sum(0)
    divisor = torch.where(divisor == 0, 1.0, divisor) if normalize else 1.0
    return x[0] + lambda_ * (stack * agree).sum(0) / divisor


def sce(x: list[Tensor], *, select_topk: float = 1.0) -> Tensor:
    changes = torch.stack([model - x[0] for model in x[1:]])
    if select_topk < 1:
        variance = changes.var(dim=0, correction=0)
        kept = int(select_topk * int((variance > 0).sum()))
        changes = changes * (variance >= variance.flatten().sort(descending=True).values[kept - 1])
    weights = (changes**2).sum(dim=(1, 2), keepdim=True)
    weights = weights / weights.sum()
    sign = torch.where((weights * changes).sum(0) >= 0, 1.0, -1.0)
    agree = (changes * sign) > 0
    divisor = (weights * agree).sum(0)
    return x[0] + (weights * agree * changes).sum(0) / torch.where(divisor == 0, 1.0, divisor)


def consensus_ta(x: list[Tensor], *, slack: Sequence[float], k: int) -> Tensor:
    changes = torch.stack([model - x[0] for model in x[1:]])
    mixed = changes.sum(0)
    slacks = torch.tensor(slack, dtype=torch.float64)[:, None, None]
    uses = (changes.abs() >= slacks * (mixed - changes).abs()).sum(0)
    return x[0] + torch.where(uses >= k, mixed, 0.0)


TRIMMED: Numbers = {"weight": WEIGHTS, "density": [0.5, 0.23, 0.81]}
BANDS: Numbers = TRIMMED | {"gamma": [0.01, 0.1, 0.3]}

Reference = Callable[..., Tensor]

CASES: list[tuple[str, int, bool, Numbers, Reference, Numbers]] = [
    # method, models, with the base, parameters, reference, its own names of them where they differ
    ("slerp", 1, True, {"t": 0.35}, slerp, {}),
    ("nuslerp", 2, True, {"weight": [0.3, 0.9]}, nuslerp, {}),
    *(
        ("nuslerp", 2, True, {"weight": [0.3, 0.9], "nuslerp_flatten": False} | how, nuslerp, {})
        for how in ({}, {"nuslerp_row_wise": True})
    ),
    ("multislerp", 3, True, {"weight": [0.3, 0.7, 1.1]}, multislerp, {}),
    (
        "karcher",
        3,
        False,
        {"max_iter": 100, "tol": 1e-12},
        karcher,
        {"max_iter": None, "tol": None},
    ),
    (
        "karcher",
        3,
        False,
        {"max_iter": 100, "tol": 1e-12, "weight": [0.2, 0.5, 1.1]},
        karcher,
        {"max_iter": None, "tol": None},
    ),
    ("model_stock", 3, True, {}, model_stock, {}),
    ("model_stock", 4, True, {"filter_wise": True}, model_stock, {}),
    ("nearswap", 1, True, {"t": 5e-4}, nearswap, {}),
    ("ram", 3, True, {"epsilon": 5e-4}, ram, {}),
    ("ramplus_tl", 3, True, {"epsilon": 1e-3, "r": 0.7, "alpha": 0.6}, ramplus_tl, {}),
    ("arcee_fusion", 1, True, {}, arcee_fusion, {}),
    ("ties", 3, True, TRIMMED | {"normalize": True}, sparse, {"elect": True}),
    ("ties", 3, True, TRIMMED | {"normalize": False, "rescale": "l2"}, sparse, {"elect": True}),
    ("breadcrumbs", 3, True, BANDS, sparse, {}),
    ("breadcrumbs", 3, True, BANDS | {"rescale": True, "normalize": True}, sparse, {}),
    ("breadcrumbs", 3, True, BANDS | {"rescale": "linf"}, sparse, {}),
    ("breadcrumbs_ties", 3, True, BANDS | {"normalize": True}, sparse, {"elect": True}),
    ("sce", 3, True, {}, sce, {}),
    ("sce", 4, True, {"select_topk": 0.4}, sce, {}),
    ("consensus_ta", 3, True, {"slack": [0.4, 0.5, 0.9], "k": 2}, consensus_ta, {}),
]


@pytest.mark.parametrize("out", OUTPUTS)
@pytest.mark.parametrize(
    "case", range(len(CASES)), ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)]
)
def test_it_is_the_float64_result_rounded_once(case: int, out: str) -> None:
    name, count, based, given, formula, names = CASES[case]
    base, *models = inputs(count, step=0.02 if name in ("slerp", "karcher") else 1e-3)
    mine = exact(name, base if based else None, models, given, dtype=out)
    told = {key: value for key, value in (given | names).items() if value is not None}
    wanted = formula([tensor.double() for tensor in (base, *models)], **told)
    terms = sum(tensor.double().abs() for tensor in (base, *models)) * 4
    allowed = 0.5 * unit(wanted, mine.dtype) + terms * (2.0**-23 if out != "float32" else 2.0**-42)
    wrong = (mine.double() - wanted).abs() > allowed
    assert not wrong.any(), (int(wrong.sum()), float((mine.double() - wanted).abs().max()))


# -- selections --------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.001, 0.3, 0.5, 0.999])
def test_of_equal_magnitudes_the_first_are_kept(density: float) -> None:
    """Over several cells; half of the changes are alike in magnitude, the rest is zero."""
    size = 3 * CELL + 777
    generator = torch.Generator().manual_seed(1)
    signs = torch.randint(0, 3, (size,), generator=generator).float() - 1
    merged = exact(
        "ties", torch.zeros(size), [signs], {"weight": 1.0, "density": density, "normalize": False}
    )
    keep = max(1, int(density * size))
    places = signs.nonzero().flatten()[:keep]
    wanted = torch.zeros(size)
    wanted[places] = signs[places]
    assert torch.equal(merged, wanted)


@given(
    levels=st.integers(1, 6),
    density=st.floats(0.01, 0.99),
    gamma=st.floats(0.0, 0.5),
    seed=st.integers(0, 99),
)
@settings(max_examples=20, deadline=None)
def test_as_many_are_kept_as_asked_for(
    levels: int, density: float, gamma: float, seed: int
) -> None:
    """Among few different magnitudes, none of them zero."""
    generator = torch.Generator().manual_seed(seed)
    size = CELL + 1234
    other = (1.0 + torch.randint(0, levels, (size,), generator=generator)).bfloat16()
    base = torch.zeros_like(other)
    ties = exact("ties", base, [other], {"weight": 1.0, "density": density})
    assert int(ties.count_nonzero()) == max(1, int(density * size))
    bands = exact("breadcrumbs", base, [other], {"weight": 1.0, "density": density, "gamma": gamma})
    assert int(bands.count_nonzero()) == int(density * size)


# -- the kernels and their reference -----------------------------------------------------------------


def references() -> list[tuple[str, Numbers]]:
    sums: list[Numbers] = [{}, {"normalize": True, "lambda": 0.7}, {"normalize": False}]
    ranked: Numbers = {"weight": WEIGHTS, "density": [0.5, 0.3, 0.9], "epsilon": [0.2, 0.1, 0.05]}
    tables: dict[str, Numbers] = {
        "ties": TRIMMED,
        "breadcrumbs": BANDS,
        "breadcrumbs_ties": BANDS,
        "dare_linear": TRIMMED | {"rescale": "dare"},
        "dare_ties": TRIMMED | {"rescale": False},
        "della": ranked | {"rescale": False},
        "della_linear": ranked | {"rescale": False},
        "consensus_ta": {"weight": WEIGHTS, "slack": [0.4, 0.5, 0.9]},
        "consensus_ties": TRIMMED | {"slack": [0.4, 0.5, 0.9]},
    }
    return [(name, given | more) for name, given in tables.items() for more in sums]


@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
@pytest.mark.parametrize(("name", "given"), references())
def test_the_kernel_has_the_bits_of_its_reference(name: str, given: Numbers, stored: str) -> None:
    """Stored coarsely, most magnitudes are equal to others."""
    base, *models = inputs(3, (37, 2500))
    if stored == "bfloat16":
        base, *models = (tensor.bfloat16() for tensor in (base, *models))
    method = methods.get(name)
    assert method is not None
    arguments = {p.name: p.argument for p in method.parameters}
    defaults = {
        p.argument: (p.default,) * 3 if p.per_model else p.default for p in method.parameters
    }
    told = method.function(**defaults | {arguments[key]: value for key, value in given.items()})
    assert isinstance(told, SparseDeltas)
    seeds = [seed_of(5, f"tensor/{i}/keep") for i in range(3)]
    for out, work in (("bfloat16", torch.float32), ("float64", torch.float64)):
        wide = [tensor.to(work) for tensor in (base, *models)]
        wanted = reference.agree(wide, told, seeds).to(getattr(torch, out))
        mine = exact(name, base, models, given, dtype=out, seed=5)
        assert torch.equal(mine, wanted), int((mine != wanted).sum())


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_sce_is_its_reference_but_for_the_order_of_sums(share: float) -> None:
    base, *models = inputs(3, (37, 2500))
    told = methods.get("sce").function(select_topk=share)  # type: ignore[union-attr]
    wanted = reference.agree([t.double() for t in (base, *models)], told, [0, 0, 0])
    mine = exact("sce", base, models, {"select_topk": share}, dtype="float64")
    torch.testing.assert_close(mine, wanted, rtol=1e-12, atol=1e-15)


# -- draws -------------------------------------------------------------------------------------------

DRAWN: dict[str, Numbers] = {
    "dare_linear": {"weight": 1.0, "density": 0.3},
    "dare_ties": {"weight": 1.0, "density": 0.3},
    "della": {"weight": 1.0, "density": 0.3, "epsilon": 0.1},
    "della_linear": {"weight": 1.0, "density": 0.3, "epsilon": 0.1},
}


@pytest.mark.parametrize("name", list(DRAWN))
def test_draws_do_not_depend_on_threads_and_tiles(name: str) -> None:
    shape = (300, 1000)
    models = {n: {"tensor": t.bfloat16()} for n, t in zip("bxy", inputs(2, shape), strict=True)}
    config = {
        "merge_method": name,
        "base_model": "b",
        "models": [{"model": n} for n in "xy"],
        "parameters": DRAWN[name],
    }
    checkpoints = {n: MemoryCheckpoint(model, n) for n, model in models.items()}
    plan = merganser.plan(config, checkpoints=checkpoints, seed=3)

    def run(threads: int, tile: int) -> Tensor:
        sink = StateDictSink({job.name: job.spec for job in plan.jobs})
        merganser.run([plan], [sink], threads=threads, tile=tile, checkpoints=checkpoints)
        return sink.tensors["tensor"]

    first = run(1, CELL)
    assert torch.equal(first, run(3, CELL))
    assert torch.equal(first, run(3, 4 * CELL))


@pytest.mark.parametrize("name", list(DRAWN))
def test_draws_depend_on_seed_tensor_model_and_element(name: str) -> None:
    ones, zeros = torch.ones(40, 100), torch.zeros(40, 100)
    given = DRAWN[name] | {"rescale": False, "normalize": False}

    def kept(tensor: str = "a", model: int = 0, seed: int = 0) -> Tensor:
        models = [{tensor: ones if i == model else zeros} for i in range(2)]
        return merganser.merge_state_dicts(
            models, name, base={tensor: zeros}, parameters=given, seed=seed
        )[tensor]

    first = kept()
    assert torch.equal(first, kept())
    for other in (kept(seed=1), kept(tensor="b"), kept(model=1)):
        alike = float((first == other).double().mean())  # of independent draws
        assert alike == pytest.approx(0.3**2 + 0.7**2, abs=0.05)
    rows = (first[:20] == first[20:]).double().mean()
    assert float(rows) == pytest.approx(0.3**2 + 0.7**2, abs=0.06)


@pytest.mark.parametrize(
    ("name", "density"), [("dare_linear", 0.1), ("dare_linear", 0.9), ("dare_ties", 0.5)]
)
def test_dare_keeps_its_density_and_its_expectation(name: str, density: float) -> None:
    base, other = inputs(1, (20, 30))
    change = (other - base).double()
    given = {"weight": 1.0, "density": density, "rescale": "dare"}
    draws = 250
    total, kept = torch.zeros_like(change), torch.zeros_like(change)
    for seed in range(draws):
        moved = exact(name, base, [other], given, seed=seed, dtype="float64") - base.double()
        total += moved
        kept += moved != 0
    noise = math.sqrt(density * (1 - density) / draws)
    assert float((kept / draws - density).abs().max()) < 5 * noise
    assert float((total / draws / change - 1).abs().max()) < 5 * noise / density
    assert float(kept.sum() / draws / kept.numel()) == pytest.approx(density, abs=0.005)


@pytest.mark.parametrize("name", ["della", "della_linear"])
@pytest.mark.parametrize("equal", [False, True])
def test_della_keeps_by_rank_in_the_row(name: str, equal: bool) -> None:
    """From density - epsilon to density + epsilon, along a line; equal changes share the mean of their ranks."""
    density, epsilon, length = 0.5, 0.3, 50
    change = torch.ones(400, length)
    if not equal:
        change = torch.arange(length).expand(400, length) + 1.0
        change = torch.where(torch.arange(400)[:, None] % 2 == 0, change, -change)
    given = {"weight": 1.0, "density": density, "epsilon": epsilon, "rescale": False}
    kept = torch.zeros(length, dtype=torch.float64)
    seeds = 10
    for seed in range(seeds):
        kept += (exact(name, torch.zeros_like(change), [change], given, seed=seed) != 0).sum(0)
    share = kept / (400 * seeds)
    line = density - epsilon + 2 * epsilon * torch.arange(length).double() / (length - 1)
    if equal:
        line = torch.full_like(line, density)
    chi = ((share - line) ** 2 / (line * (1 - line) / (400 * seeds))).sum()
    assert float(chi) < length + 5 * math.sqrt(2 * length)


def test_della_keeps_the_density_where_epsilon_does_not_fit() -> None:
    """The spread is narrowed, and the mean stays: here MergeKit refuses."""
    ones = torch.ones(500, 64)
    given = {"weight": 1.0, "density": 0.95, "rescale": False, "normalize": False}
    kept = exact("della", torch.zeros_like(ones), [ones], given)
    assert float(kept.mean()) == pytest.approx(0.95, abs=0.005)
    column = exact("della", torch.zeros(5000, 1), [torch.ones(5000, 1)], given)
    assert float(column.mean()) == pytest.approx(0.95, abs=0.01)


# -- corners -----------------------------------------------------------------------------------------


def test_karcher_leaves_opposite_inputs_alone() -> None:
    ones = torch.ones(3)
    merged = exact("karcher", None, [ones, ones, -ones], {})
    assert torch.allclose(merged, ones)
    assert torch.equal(merged, exact("karcher", None, [-ones, ones, ones], {}))
