"""Choices between the models as MergeKit computes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from merganser.methods import (
    Generators,
    selection,
    variant_of,
)
from merganser.methods.mergekit.rounded_sums import stacked

if TYPE_CHECKING:
    from torch import Tensor


@variant_of(selection.nearswap, elementwise=True)
def nearswap(tensors: Sequence[Tensor], base: Tensor, *, t: float) -> Tensor:
    """NearSwap; distances below 1e-6 count as 1e-6."""
    (other,) = tensors
    share = (t / (base - other).abs().clamp(min=1e-6)).clamp(0.0, 1.0)
    return share * other + (1 - share) * base


@variant_of(selection.ram, elementwise=True)
def ram(tensors: Sequence[Tensor], base: Tensor, *, epsilon: float) -> Tensor:
    """RAM with quotients and sums rounded to the inputs' dtype."""
    if not tensors:
        return base.clone()
    changes = stacked([tensor - base for tensor in tensors])
    active = changes.abs() > epsilon
    count = active.sum(dim=0)
    return base + (changes * active / count.clamp(min=1)).sum(dim=0)


@variant_of(selection.ramplus_tl, elementwise=True, widens=True, measure=selection.count_shared)
def ramplus_tl(
    tensors: Sequence[Tensor],
    base: Tensor,
    facts: Tensor,
    *,
    r: float,
    alpha: float,
    epsilon: float,
) -> Tensor:
    """RAM+ in float32 for inputs of any dtype."""
    import torch

    changes = stacked([tensor - base for tensor in tensors])
    active = changes.abs() > epsilon
    count = active.sum(dim=0)
    shares = (facts[0] / facts[1].clamp(min=epsilon)).clamp(0.0, alpha).float()
    scales = (1 + r * shares).reshape(-1, *[1] * base.dim())
    changes = changes * active
    parts = torch.where(count == 1, changes * scales, changes / count.clamp(min=1))
    return base + parts.sum(dim=0)


@variant_of(selection.arcee_fusion, widens=True)
def arcee_fusion(tensors: Sequence[Tensor], base: Tensor, generators: Generators) -> Tensor:
    """Arcee Fusion in float32 for inputs of any dtype; a sample gives the quartiles of large tensors."""
    import torch

    (other,) = tensors
    if not other.numel():
        return base.float()
    p = torch.softmax(other, dim=-1) + 1e-8
    q = torch.softmax(base, dim=-1) + 1e-8
    divergence = (p * (p / q).log()).sum(dim=-1, keepdim=True)
    importance = (other - base).abs() * divergence
    flat = importance.reshape(-1)
    if flat.numel() > _SAMPLE:
        flat = flat[torch.randint(flat.numel(), (_SAMPLE,), generator=generators(0))]
    ordered = flat.sort().values
    first, median, third = (
        ordered[math.floor(share * (len(ordered) - 1))] for share in (0.25, 0.5, 0.75)
    )
    mask = (importance >= median + 1.5 * (third - first)).float()
    return base + (other - base) * mask


_SAMPLE = 1_000_000
