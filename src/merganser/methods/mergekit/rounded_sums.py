"""Sums of tensors in MergeKit's order, each step rounded to the dtype of the tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

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


def added(numbers: Numbers, dtype: str) -> float:
    """The sum of a few numbers in float32 or float64, bit for bit as torch adds them on a CPU: in
    vectors of 32 bytes, with four running sums each."""
    import numpy as np

    row = np.array(numbers, dtype)
    lanes = 32 // row.itemsize
    whole = len(row) // lanes * lanes
    if not whole:
        return float(_row_sum(row))
    total = row.dtype.type(0)
    for number in (*row[whole:], *_row_sum(row[:whole].reshape(-1, lanes))):
        total += number
    return float(total)


def _row_sum(numbers: Any) -> Any:
    """Sum over the first axis in four running sums; the first one gets the remainder."""
    import numpy as np

    unrolled = len(numbers) // 4 * 4
    sums = np.zeros((4, *numbers.shape[1:]), numbers.dtype)
    for i in range(0, unrolled, 4):
        sums += numbers[i : i + 4]
    for number in numbers[unrolled:]:
        sums[0] += number
    return ((sums[0] + sums[1]) + sums[2]) + sums[3]


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
