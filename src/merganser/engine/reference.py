"""Methods in torch, tile by tile: for those that no fused kernel serves, and as their reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from merganser.engine.parts import Part
from merganser.errors import MerganserError
from merganser.methods import Combination
from merganser.tensors import DType

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def compute(part: Part, inputs: Sequence[Bytes], shape: tuple[int, ...]) -> torch.Tensor:
    """The result of a job for a tile (or the whole) of its inputs, before it is rounded.

    Args:
        part: the job, its method, and what is known of the tensor.
        inputs: stored bytes, one row an input, base first if there is one.
        shape: of the tile.

    Returns:
        A tensor of the work dtype, or of the cast dtype if MergeKit's rounding asks for that.
    """
    tensors = _widened(part, inputs, shape)
    told = part.combination
    result = _called(part, tensors) if told is None else combine(tensors, told)
    if tuple(result.shape) != shape:
        raise ValueError(
            f"{part.method.name} made a tensor of shape {list(result.shape)} from {list(shape)}"
        )
    if part.job.cast is None or part.method.widens:
        return result
    return result.to(torch_dtype(part.job.cast))


def _called(part: Part, tensors: list[torch.Tensor]) -> torch.Tensor:
    """What the method makes of its inputs.

    Raises:
        MerganserError: when it refuses them.
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
    except ValueError as error:
        raise MerganserError(f"{part.method.name}, tensor {part.job.name!r}: {error}") from None
    return result


def measure(part: Part, inputs: Bytes, count: int) -> torch.Tensor:
    """What a method's ``measure`` counts in a tile."""
    assert part.method.measure is not None
    stored = [row[: count * t.itemsize] for row, t in zip(inputs, part.dtypes, strict=True)]
    tensors = _widened(part, stored, (count,))
    found: torch.Tensor = part.method.measure(*_positional(part, tensors), **part.job.numbers)
    return found


def _widened(part: Part, inputs: Sequence[Bytes], shape: tuple[int, ...]) -> list[torch.Tensor]:
    return [
        widen(stored, dtype, part.job.cast, part.job.work).reshape(shape)
        for stored, dtype in zip(inputs, part.dtypes, strict=True)
    ]


def _positional(part: Part, tensors: list[torch.Tensor]) -> tuple[Any, ...]:
    """A method's positional arguments: the models, and the base if it knows one."""
    if part.method.base == "none":
        return (tensors,)
    return (tensors[1:], tensors[0]) if part.based else (tensors, None)


def combine(tensors: Sequence[torch.Tensor], combination: Combination) -> torch.Tensor:
    """The combination with fused multiply-adds in the order of the inputs."""
    coefficients = [float(c) for c in combination.coefficients]
    result: torch.Tensor = tensors[0] * coefficients[0]
    for tensor, coefficient in zip(tensors[1:], coefficients[1:], strict=True):
        result.add_(tensor, alpha=coefficient)
    if combination.from_zero:
        result = result + 0.0
    if not combination.divide:
        return result
    return result / torch.tensor(coefficients, dtype=result.dtype).sum()


def widen(stored: Bytes, dtype: DType, cast: DType | None, work: DType) -> torch.Tensor:
    """Stored bytes as numbers of the work dtype, by way of ``cast`` if there is one."""
    tensor = torch.from_numpy(stored).view(torch_dtype(dtype))
    if cast is not None:
        tensor = tensor.to(torch_dtype(cast))
    return tensor.to(torch_dtype(work), copy=True)


def numbers(result: torch.Tensor, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """A result as a flat numpy array of float32 or float64, ready to be rounded."""
    wide = torch.float64 if dtype == np.float64 else torch.float32
    array: np.ndarray[Any, Any] = result.detach().to(wide).contiguous().reshape(-1).numpy()
    return array


def torch_dtype(dtype: DType) -> torch.dtype:
    """torch's object for a dtype."""
    found: torch.dtype = getattr(torch, dtype.name)
    return found
