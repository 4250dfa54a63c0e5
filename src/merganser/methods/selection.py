"""Methods that choose between the models position by position, in torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from merganser.methods import Range, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    "nearswap",
    title="NearSwap",
    models=(1, 1),
    elementwise=True,
    symmetric=False,
    idempotent=True,
    fused="nearswap",
)
def nearswap(
    tensors: Sequence[Tensor], base: Tensor, *, t: Annotated[float, Range(0.0, 1.0, least=0.0)]
) -> Tensor:
    """The base, moved towards the other model where the two are near: by min(1, t / |x_1 - x_0|).

    Takes over small differences of the other model and leaves out its large ones. Where a difference is at
    most t, the result is the other model's value.
    """
    (other,) = tensors
    distance = (other - base).abs()
    share = (t / distance.clamp(min=1e-30)).clamp(0.0, 1.0)
    return base + share * (other - base)


@merge_method(
    "ram", title="RAM", paper="2601.13572", models=(0, None), elementwise=True, fused="ram"
)
def ram(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    epsilon: Annotated[float, Range(0.0, 1e-3, least=0.0)] = 1e-5,
) -> Tensor:
    """Base plus the mean, at every position, of those changes that are larger than epsilon.

    A change of one model alone stays complete, changes of several are averaged. For experts from
    reinforcement learning, which changes few weights: plain averages would dilute them. Source:
    arXiv:2601.13572.
    """
    import torch

    total, count = torch.zeros_like(base), torch.zeros_like(base)
    for tensor in tensors:
        change = tensor - base
        active = ~(change.abs() <= epsilon)  # NaN is active
        total += torch.where(active, change, 0.0)
        count += active
    return base + total / count.clamp(min=1.0)


def count_shared(tensors: Sequence[Tensor], base: Tensor, *, epsilon: float, **_: Any) -> Tensor:
    """How many elements each model changes by more than epsilon, with other models and alone: float64
    [2, models]."""
    import torch

    active = torch.stack([~((tensor - base).abs() <= epsilon) for tensor in tensors])
    alone = active.sum(dim=0) == 1
    unique = (active & alone).reshape(len(active), -1).sum(dim=1, dtype=torch.float64)
    total = active.reshape(len(active), -1).sum(dim=1, dtype=torch.float64)
    return torch.stack([total - unique, unique])


def boosts(
    shared: Sequence[float], unique: Sequence[float], *, r: float, alpha: float, epsilon: float
) -> list[float]:
    """Each model's factor for the changes that it alone has, from the counts of :func:`count_shared`:
    1 + r min(shared / unique, alpha)."""
    factors = []
    for beside, alone in zip(shared, unique, strict=True):
        least = max(alone, epsilon)
        overlap = beside / least if least > 0 else math.inf if beside > 0 else 0.0
        factors.append(1.0 + r * min(overlap, alpha))
    return factors


@merge_method(
    "ramplus_tl",
    title="RAM+",
    paper="2601.13572",
    models=(1, None),
    elementwise=True,
    measure=count_shared,
    fused="ramplus_tl",
)
def ramplus_tl(
    tensors: Sequence[Tensor],
    base: Tensor,
    facts: Tensor,
    *,
    r: Annotated[float, Range(0.0, 1.0, least=0.0)] = 0.1,
    alpha: Annotated[float, Range(0.0, 1.0, least=0.0)] = 0.2,
    epsilon: Annotated[float, Range(0.0, 1e-3, least=0.0)] = 1e-5,
) -> Tensor:
    """RAM that amplifies what a model alone changed, the more of its changes it shares.

    The factor is 1 + r min(shared_i / unique_i, alpha), counted over the tensor. For experts whose changes
    overlap much, where averaging has weakened the shared ones. Source: arXiv:2601.13572.
    """
    import torch

    total, count = torch.zeros_like(base), torch.zeros_like(base)
    alone = torch.zeros_like(base)
    shared, unique = facts.tolist()
    factors = boosts(shared, unique, r=r, alpha=alpha, epsilon=epsilon)
    for tensor, factor in zip(tensors, factors, strict=True):
        change = tensor - base
        active = ~(change.abs() <= epsilon)
        change = torch.where(active, change, 0.0)
        total += change
        count += active
        alone += factor * change
    return base + torch.where(count == 1, alone, total / count.clamp(min=1.0))


@merge_method(
    "arcee_fusion",
    title="Arcee Fusion",
    models=(1, 1),
    symmetric=False,
    idempotent=True,
    fused="arcee_fusion",
)
def arcee_fusion(tensors: Sequence[Tensor], base: Tensor) -> Tensor:
    """The base, with those elements of the other model whose change stands out.

    An element's importance is the size of its change times the divergence of its row, sum(p log(p / q))
    of the rows' softmaxes. It stands out if it exceeds the median by 1.5 times the interquartile range.
    For a base that should change in few places only. Divergences are computed in float64 and
    importances compared in float32. Quartiles are exact; MergeKit estimates those of large tensors from a
    random sample.
    """
    import torch

    (other,) = tensors
    if not other.numel():
        return base.clone()
    p, q = (torch.softmax(x.double(), dim=-1) + 1e-8 for x in (other, base))
    divergence = (p * (p / q).log()).sum(dim=-1, keepdim=True).clamp(min=0.0)
    importance = ((other - base).abs().double() * divergence).float()
    places = [int(share * (importance.numel() - 1)) for share in (0.25, 0.5, 0.75)]
    first, median, third = importance.flatten().sort().values[places]
    return torch.where(importance >= median + 1.5 * (third - first), other, base)
