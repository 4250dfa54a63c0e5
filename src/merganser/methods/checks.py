"""Run-time checks of methods' results, for methods from outside the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from merganser.errors import MerganserError
from merganser.methods.forms import Combination, MostVaried, SparseDeltas
from merganser.methods.registry import Method

if TYPE_CHECKING:
    from torch import Tensor

SAMPLE = 4096
"""Number of elements on which ``elementwise=True`` is checked."""


def fault(method: Method, error: Exception) -> str | None:
    """The message for an exception from a method's function; None for a bug of Merganser.

    A ValueError is the method's refusal of its inputs. Any other exception is a bug in the code of a
    method from outside the package; the message names its line.
    """
    if isinstance(error, MerganserError):
        return None
    if isinstance(error, ValueError):
        return str(error)
    if method.origin is None:
        return None
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == method.origin.source]
    place = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}{place}"


def check_coefficients(method: Method, result: object, inputs: int) -> None:
    """Check that a result is a combination with one coefficient per input.

    Raises:
        ValueError: when it is not.
    """
    if not isinstance(result, Combination):
        raise ValueError(f"returned {type(result).__name__}, and not the Combination it declares")
    if len(result.coefficients) != inputs:
        what = "changes" if method.gram == "changes" else "inputs, the base included"
        if method.gram != "changes" and method.base == "none":
            what = "inputs"
        raise ValueError(f"returned {len(result.coefficients)} coefficients for {inputs} {what}")


def check_sparse_deltas(result: object, models: int) -> None:
    """Check that a result is sparse deltas with one number of each kind per model.

    Raises:
        ValueError: when it is not.
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
    """Check on a few thousand elements that a method with ``elementwise=True`` is elementwise.

    An elementwise function gives the same result for two parts of its inputs as for both at once.

    Args:
        method: the method.
        call: the method's function of the tensors alone.
        tensors: flat tensors of one size.

    Raises:
        ValueError: when the results differ by more than rounding.
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
        "for all of it; leave elementwise=True out, and it gets whole tensors"
    )
