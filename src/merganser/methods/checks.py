"""Checks on what a method's function does, for methods that nobody has tested yet."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from merganser.errors import MerganserError
from merganser.methods.forms import Combination, MostVaried, SparseDeltas
from merganser.methods.registry import Method

if TYPE_CHECKING:
    from torch import Tensor

SAMPLE = 4096
"""Elements of a tile on which a method's claim to be elementwise is tried."""


def fault(method: Method, error: Exception) -> str | None:
    """What to say about an exception from a method's function; None for a fault of Merganser's.

    A ValueError is the method's own refusal. Any other exception is a fault in the code of a method
    that is not built in, and is named with its line.
    """
    if isinstance(error, MerganserError):
        return None
    if isinstance(error, ValueError):
        return str(error)
    if method.origin is None:
        return None
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == method.origin.source]
    place = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}{place}"


def check_coefficients(method: Method, result: object, inputs: int) -> None:
    """Refuse a combination that does not have one coefficient for each input.

    Raises:
        ValueError: when there are more or fewer, or the result is something else.
    """
    if not isinstance(result, Combination):
        raise ValueError(f"returned {type(result).__name__}, and not the Combination it declares")
    if len(result.coefficients) != inputs:
        what = "changes" if method.gram == "changes" else "inputs, the base included"
        if method.gram != "changes" and method.base == "none":
            what = "inputs"
        raise ValueError(f"returned {len(result.coefficients)} coefficients for {inputs} {what}")


def check_sparse_deltas(result: object, models: int) -> None:
    """Refuse sparse deltas that do not have one number for each model.

    Raises:
        ValueError: when there are more or fewer, or the result is something else.
    """
    if not isinstance(result, SparseDeltas):
        raise ValueError(f"returned {type(result).__name__}, and not the SparseDeltas it declares")
    lists: dict[str, Sequence[object]] = {
        "weights": result.weights or (),
        "keep": () if isinstance(result.keep, MostVaried) else result.keep,
        "factors": result.factors,
        "slack": result.slack,
    }
    for name, numbers in lists.items():
        if numbers and len(numbers) != models:
            raise ValueError(
                f"returned SparseDeltas with {len(numbers)} {name} for {models} models"
            )


def check_elementwise(
    method: Method, call: Callable[[list[Tensor]], Tensor], tensors: Sequence[Tensor]
) -> None:
    """Refuse a method that claims to be elementwise and is not, by a few thousand elements.

    An elementwise function gives the same for two parts of its inputs as for both together.

    Args:
        method: what claims it.
        call: the method's function, with all but the tensors settled.
        tensors: flat ones of one size.

    Raises:
        ValueError: when the two differ by more than rounding.
    """
    import torch

    sample = [tensor.reshape(-1)[:SAMPLE] for tensor in tensors]
    size = len(sample[0])
    if size < 2:
        return
    cut = max(1, size * 2 // 3)
    whole = call([tensor.clone() for tensor in sample])
    parts = [
        call([tensor[piece].clone() for tensor in sample])
        for piece in (slice(cut), slice(cut, size))
    ]
    shapes = [tuple(each.shape) for each in (whole, *parts)]
    if shapes == [(size,), (cut,), (size - cut,)]:
        together = torch.cat(parts)
        finite = whole[torch.isfinite(whole)]
        scale = float(finite.abs().max()) if len(finite) else 0.0
        if torch.allclose(whole, together, rtol=1e-5, atol=1e-6 * scale, equal_nan=True):
            return
    raise ValueError(
        f"{method.name} says elementwise=True, but gives other numbers for a part of a tensor than "
        "for all of it; without elementwise=True it is given whole tensors"
    )
