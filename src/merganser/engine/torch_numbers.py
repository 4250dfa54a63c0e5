"""Convert stored bytes to torch tensors, and results to numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from merganser.tensors import DType

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def widen(stored: Bytes, dtype: DType, cast: DType | None, work: DType) -> torch.Tensor:
    """Stored bytes as numbers of the work dtype, rounded to ``cast`` first if given."""
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
    """torch's dtype object."""
    result: torch.dtype = getattr(torch, dtype.name)
    return result
