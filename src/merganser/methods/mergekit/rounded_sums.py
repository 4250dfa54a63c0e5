"""Sums of tensors in MergeKit's order, each step rounded to the dtype of the tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Numbers = Sequence[float]
Sparsify = Callable[["Tensor", int], "Tensor"]
"""Maps a model's deltas and its number to the kept deltas."""


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors along a new first axis."""
    import torch

    return torch.stack(list(tensors))


def column(weight: Numbers, stack: Tensor) -> Tensor:
    """Weights in the dtype of a stack of tensors, along its first axis."""
    import torch

    return torch.tensor(list(weight), dtype=stack.dtype).reshape(-1, *[1] * (stack.dim() - 1))


def signed_sum(
    tensors: Sequence[Tensor],
    base: Tensor,
    weight: Numbers,
    normalize: bool,
    lambda_: float,
    *,
    elect: bool,
    sparsify: Sparsify = lambda change, _: change,
) -> Tensor:
    """Task arithmetic and the methods derived from it."""
    import torch

    if not tensors:
        return base.clone()
    changes = stacked([sparsify(tensor - base, i) for i, tensor in enumerate(tensors)])
    weights = column(weight, changes)
    weighed = weights * changes
    if elect:
        majority = torch.where(weighed.sum(dim=0) >= 0, 1, -1)
        counts = weighed.sign() == majority
        mixed = (weighed * counts).sum(dim=0)
        divisor = (weights * counts).sum(dim=0)
        divisor = torch.where(divisor == 0, torch.ones_like(divisor), divisor)
    else:
        mixed = weighed.sum(dim=0)
        divisor = weights.sum(dim=0)
        divisor = torch.where(divisor.abs() < 1e-8, torch.ones_like(divisor), divisor)
    if normalize:
        mixed = mixed / divisor
    if lambda_ != 1.0:
        mixed = mixed * lambda_
    return (base + mixed).to(base.dtype)
