"""Methods in torch, tile by tile: for those that no fused kernel serves, and as their reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from merganser.methods import Combination, Method
from merganser.planning import TensorJob
from merganser.tensors import DType

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def compute(
    job: TensorJob,
    method: Method,
    inputs: Sequence[Bytes],
    dtypes: Sequence[DType],
    shape: tuple[int, ...],
    combination: Combination | None,
) -> torch.Tensor:
    """The result of a job for a tile (or the whole) of its inputs, before it is rounded.

    Args:
        job: the job; its ``work`` and ``cast`` say what is computed in.
        method: its method.
        inputs: stored bytes, one row an input, base first if the method has one.
        dtypes: what they are stored as.
        shape: of the tile.
        combination: the coefficients, if the method is a linear combination.

    Returns:
        A tensor of the work dtype, or of the cast dtype if MergeKit's rounding asks for that.
    """
    tensors = [
        widen(stored, dtype, job.cast, job.work).reshape(shape)
        for stored, dtype in zip(inputs, dtypes, strict=True)
    ]
    if combination is not None:
        result = combine(tensors, combination)
    elif method.base == "none":
        result = method.function(tensors, **job.numbers)
    elif method.base == "optional" and len(tensors) == 1:
        result = method.function(tensors, None, **job.numbers)
    else:
        result = method.function(tensors[1:], tensors[0], **job.numbers)
    if tuple(result.shape) != shape:
        raise ValueError(
            f"{method.name} made a tensor of shape {list(result.shape)} from {list(shape)}"
        )
    return result if job.cast is None else result.to(torch_dtype(job.cast))


def combine(tensors: Sequence[torch.Tensor], combination: Combination) -> torch.Tensor:
    """The combination with fused multiply-adds in the order of the inputs."""
    result = tensors[0] * combination.coefficients[0]
    for tensor, coefficient in zip(tensors[1:], combination.coefficients[1:], strict=True):
        result.add_(tensor, alpha=coefficient)
    if combination.from_zero:
        result = result + 0.0
    if not combination.divide:
        return result
    return result / torch.tensor(combination.coefficients, dtype=result.dtype).sum()


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
