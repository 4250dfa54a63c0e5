"""Methods in torch: for those without a fused kernel, and as the reference for those with one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from merganser.engine.running_plan import RunningPlan
from merganser.engine.torch_numbers import Bytes, torch_dtype, widen
from merganser.errors import MerganserError
from merganser.methods import Combination, Keep, Largest, MostVaried, Random, Ranked, SparseDeltas
from merganser.methods.checks import SAMPLE, check_elementwise, fault


def compute(part: RunningPlan, inputs: Sequence[Bytes], shape: tuple[int, ...]) -> torch.Tensor:
    """The result of a job for a tile of its inputs, or the entire tensors, before it is rounded.

    Args:
        part: the job, its method, and the tensor's measurements.
        inputs: stored bytes, one row per input, base first if there is one.
        shape: of the tile.

    Returns:
        A tensor of the work dtype, or of the cast dtype for MergeKit's rounding.

    Raises:
        MerganserError: when the method rejects the inputs.
    """
    tensors = _widened(part, inputs, shape)
    combination = part.combination
    result = _called(part, tensors) if combination is None else combine(tensors, combination)
    if tuple(result.shape) != shape:
        raise MerganserError(
            f"{part.method.name}, tensor {part.job.name!r}: returned a tensor of shape "
            f"{list(result.shape)} for inputs of shape {list(shape)}"
        )
    if part.job.cast is None or part.method.widens:
        return result
    return result.to(torch_dtype(part.job.cast))


def _called(part: RunningPlan, tensors: list[torch.Tensor]) -> torch.Tensor:
    """The method's result for its inputs.

    Raises:
        MerganserError: when the method rejects them.
    """
    extra: dict[str, Any] = {}
    if part.counted is not None:
        extra["facts"] = part.counted
    if part.method.draws:
        extra["generators"] = lambda model: torch.Generator().manual_seed(part.seed_of_draws(model))
    try:
        result: torch.Tensor = part.method.function(
            *_positional(part, tensors), **extra, **part.job.numbers
        )
        if not isinstance(result, torch.Tensor):
            raise ValueError(f"returned {type(result).__name__}, and not a tensor")
    except Exception as error:
        raise _refusal(part, error) from error
    return result


def _refusal(part: RunningPlan, error: Exception) -> Exception:
    """A MerganserError for an exception in a method's code; a MerganserError is returned unchanged."""
    message = fault(part.method, error)
    if message is None:
        return error
    return MerganserError(f"{part.method.name}, tensor {part.job.name!r}: {message}")


def try_elementwise(part: RunningPlan, inputs: Sequence[Bytes]) -> None:
    """Check on the first elements of a tile that a method is elementwise, as declared.

    Raises:
        MerganserError: when it is not.
    """
    sizes = [dtype.itemsize for dtype in part.dtypes]
    rows = [row[: SAMPLE * size] for row, size in zip(inputs, sizes, strict=True)]
    count = len(rows[0]) // sizes[0]
    try:
        check_elementwise(
            part.method, lambda tensors: _called(part, tensors), _widened(part, rows, (count,))
        )
    except ValueError as error:
        raise _refusal(part, error) from None


def measure(part: RunningPlan, inputs: Sequence[Bytes], count: int) -> torch.Tensor:
    """The result of the method's ``measure`` for a tile."""
    assert part.method.measure is not None
    tensors = _widened(part, inputs, (count,))
    try:
        facts: torch.Tensor = part.method.measure(*_positional(part, tensors), **part.job.numbers)
    except Exception as error:
        raise _refusal(part, error) from error
    return facts


def _widened(
    part: RunningPlan, inputs: Sequence[Bytes], shape: tuple[int, ...]
) -> list[torch.Tensor]:
    return [
        widen(stored, dtype, part.job.cast, part.job.work).reshape(shape)
        for stored, dtype in zip(inputs, part.dtypes, strict=True)
    ]


def _positional(part: RunningPlan, tensors: list[torch.Tensor]) -> tuple[Any, ...]:
    """A method's positional arguments: the models, and the base if it takes one."""
    if part.method.base == "none":
        return (tensors,)
    return (tensors[1:], tensors[0]) if part.based else (tensors, None)


def combine(tensors: Sequence[torch.Tensor], combination: Combination) -> torch.Tensor:
    """The combination, by fused multiply-adds in the order of the inputs."""
    coefficients = [float(c) for c in combination.coefficients]
    result: torch.Tensor = tensors[0] * coefficients[0]
    for tensor, coefficient in zip(tensors[1:], coefficients[1:], strict=True):
        result.add_(tensor, alpha=coefficient)
    divisor = combination.finish.divisors[result.dtype == torch.float64]
    return result.add_(combination.finish.plus).div_(torch.tensor(divisor, dtype=result.dtype))


def agree(
    tensors: Sequence[torch.Tensor], sparse_deltas: SparseDeltas, seeds: Sequence[int]
) -> torch.Tensor:
    """Merge sparse deltas of whole tensors, like the fused loops of
    :mod:`merganser.kernels.steps`.

    Multiplications and additions have the kernels' order, so the bits are the same. The exceptions
    are norms for rescaling and the energies of sce: float64 sums over a tensor, added in another
    order.

    Args:
        tensors: the base and the models, in the dtype of the computation.
        sparse_deltas: the method's rule.
        seeds: for each model's draws.
    """
    base, *models = tensors
    changes = [tensor - base for tensor in models]
    nothing = torch.zeros_like(base)
    if isinstance(sparse_deltas.keep, MostVaried):
        marks = [_most_varied(changes, sparse_deltas.keep)] * len(models)
    else:
        rules = sparse_deltas.keep or (None,) * len(models)
        marks = [_kept(c, rule, s) for c, rule, s in zip(changes, rules, seeds, strict=True)]
    kept = [torch.where(mark, c, nothing) for mark, c in zip(marks, changes, strict=True)]
    weights, factors = _weighed(sparse_deltas, changes, kept)

    def rounded(numbers: Sequence[float]) -> torch.Tensor:
        return torch.tensor(list(numbers), dtype=torch.float64).to(base.dtype)

    factor = rounded([w * f for w, f in zip(weights, factors, strict=True)])
    parts = [
        torch.where(mark, f * c, nothing) for mark, f, c in zip(marks, factor, changes, strict=True)
    ]
    change = sum(parts[1:], parts[0])
    counts = [part != 0 for part in parts]
    if sparse_deltas.elect:
        up = change >= 0
        counts = [(part != 0) & ((part > 0) == up) for part in parts]
        agreeing = (torch.where(c, p, nothing) for c, p in zip(counts, parts, strict=True))
        change = sum(agreeing, nothing)
    if sparse_deltas.divide == "counted":
        there = zip(counts, rounded(weights), strict=True)
        divisor = sum((torch.where(c, w, nothing) for c, w in there), nothing)
        change = torch.where(divisor != 0, change / divisor, change)
    elif sparse_deltas.divide == "weights" and abs(sum(weights)) >= 1e-8:
        change = change / rounded([sum(weights)])
    if sparse_deltas.agree:
        slacks = zip(changes, rounded(sparse_deltas.slack), strict=True)
        uses = [~(c.abs() < slack * (change - c).abs()) for c, slack in slacks]
        change = torch.where(sum(uses[1:], uses[0].int()) >= sparse_deltas.agree, change, nothing)
    return base + rounded([sparse_deltas.scale]) * change


def _kept(change: torch.Tensor, rule: Keep, seed: int) -> torch.Tensor:
    """The mask of the deltas of a model that a rule keeps."""
    if rule is None:
        return torch.ones_like(change, dtype=torch.bool)
    if isinstance(rule, Largest):
        return _at_ranks(change, *rule.ranks(change.numel()))
    draws = _draws(seed, change.numel())
    if isinstance(rule, Random):
        chance = np.uint64(min(2**64 - 1, int(rule.density * 2.0**64)))
        return torch.from_numpy(draws < chance).reshape(change.shape)
    assert isinstance(rule, Ranked)
    rows = change.abs().float().reshape(-1, change.shape[-1] if change.dim() else 1)
    ordered = rows.sort(dim=1).values
    before = torch.searchsorted(ordered, rows)  # equal magnitudes share the mean of their ranks
    through = torch.searchsorted(ordered, rows, right=True)
    ranks = before + 0.5 * (through - before - 1).double()
    length = rows.shape[1]
    step = 2.0 * rule.epsilon / (length - 1) if length > 1 else 0.0
    lowest = rule.density - rule.epsilon if length > 1 else rule.density
    chances = (lowest + step * ranks).clamp(0.0, 1.0).reshape(-1).numpy()
    sure = chances >= 1.0
    bounds = np.where(sure, 0.0, chances * 2.0**64).astype(np.uint64)
    return torch.from_numpy(sure | (draws < bounds)).reshape(change.shape)


def _at_ranks(numbers: torch.Tensor, begin: int, end: int) -> torch.Tensor:
    """The mask of the elements of ranks ``begin`` to ``end`` by descending float32 magnitude; equal
    ones rank in the tensor's order."""
    marks = torch.zeros(numbers.numel(), dtype=torch.bool)
    order = numbers.abs().float().reshape(-1).argsort(descending=True, stable=True)
    marks[order[begin:end]] = True
    return marks.reshape(numbers.shape)


def _most_varied(changes: Sequence[torch.Tensor], rule: MostVaried) -> torch.Tensor:
    mean = sum(changes[1:], changes[0]) / len(changes)
    variance = sum((c - mean) * (c - mean) for c in changes) / len(changes)
    assert isinstance(variance, torch.Tensor)
    return _at_ranks(variance, 0, int(int((variance.float() > 0).sum()) * rule.share))


def _weighed(
    sparse_deltas: SparseDeltas, changes: Sequence[torch.Tensor], kept: Sequence[torch.Tensor]
) -> tuple[list[float], list[float]]:
    """The models' weights, and the factors that rescale their kept deltas."""
    weights = list(sparse_deltas.weights or ())
    if sparse_deltas.weights is None:
        energies = [float((change.double() ** 2).sum()) for change in kept]
        total = sum(energies)
        weights = [e / total if total > 0 else 1 / len(kept) for e in energies]
    factors = list(sparse_deltas.factors or (1.0,) * len(kept))
    if sparse_deltas.rescale is not None:
        order = {"l1": 1.0, "l2": 2.0, "linf": float("inf")}[sparse_deltas.rescale]
        for i, (change, part) in enumerate(zip(changes, kept, strict=True)):
            before, after = (float(x.double().flatten().norm(p=order)) for x in (change, part))
            factors[i] = before / after if before > 0 and after > 0 else 1.0
    return weights, factors


def _draws(seed: int, count: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """64 random bits per element: splitmix64 of its index (Steele et al. 2014)."""
    z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray[Any, np.dtype[np.uint64]] = z ^ (z >> np.uint64(31))
    return mixed
