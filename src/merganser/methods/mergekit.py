"""The arithmetic of MergeKit's releases, for those who must reproduce a merge that was made with one.

Every method as MergeKit 0.1.5 computes it: in the dtype of its inputs, each step rounded to it, with
that release's thresholds, orders and refusals. What differs from the exact methods on purpose, and by
how much, is measured in ``docs/differences.md``. Random methods draw from generators of their own, so
their results have MergeKit's distribution but not its bits. All formulas are written down from what
the release computes; ``tests/parity/test_parity_methods.py`` holds them against it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from merganser.methods import (
    Combination,
    Generators,
    Rescale,
    combination,
    selection,
    sparse_deltas,
    variant_of,
)

if TYPE_CHECKING:
    from torch import Tensor

Numbers = Sequence[float]
Sparsify = Callable[["Tensor", int], "Tensor"]
"""From the changes of a model, and its number, to those that are kept."""


# -- linear combinations ---------------------------------------------------------------------------


@variant_of(combination.linear, casts_up=True)
def linear(*, weight: Numbers, normalize: bool) -> Combination:
    """A float32 sum of products, divided by the float32 sum of the weights."""
    return Combination(tuple(weight), divide=normalize, from_zero=True)


@variant_of(combination.linear, "mergekit-0.1.4", elementwise=True)
def linear_014(tensors: Sequence[Tensor], *, weight: Numbers, normalize: bool) -> Tensor:
    """Everything in the inputs' dtype, the weights and their sum included."""
    import torch

    stack = torch.stack(list(tensors))
    weights = _column(weight, stack)
    result = (weights * stack).sum(dim=0)
    return result / weights.sum(dim=0) if normalize else result


@variant_of(combination.task_arithmetic, elementwise=True)
def task_arithmetic(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weight: Numbers,
    normalize: bool,
    lambda_: float,
) -> Tensor:
    """Differences, products and sums each rounded."""
    return _arithmetic(tensors, base, weight, normalize, lambda_, elect=False)


@variant_of(combination.slerp, casts_up=True)
def slerp(tensors: Sequence[Tensor], base: Tensor, *, t: float) -> Tensor:
    """In float32, lengths and the cosine added up from pieces of a million elements."""
    (other,) = tensors
    lengths = []
    for tensor in (base, other):
        length = _stack([piece.norm() for piece in _pieces(tensor)]).norm()
        lengths.append(length if length > 1e-8 else length.new_ones(()))
    cosine = base.new_zeros(())
    for a, b in zip(_pieces(base), _pieces(other), strict=True):
        cosine = cosine + ((a / lengths[0]) * (b / lengths[1])).sum()
    cosine = cosine.clamp(-1.0, 1.0)
    share = base.new_tensor(t)
    if abs(float(cosine)) > 0.9995:
        return (1.0 - share) * base + share * other
    angle = cosine.acos()
    sine = angle.sin()
    return ((1.0 - share) * angle).sin() / sine * base + (share * angle).sin() / sine * other


def _pieces(tensor: Tensor) -> list[Tensor]:
    flat = tensor.reshape(-1)
    return [flat[low : low + 2**20] for low in range(0, max(1, len(flat)), 2**20)]


@variant_of(combination.nuslerp)
def nuslerp(
    tensors: Sequence[Tensor],
    base: Tensor | None,
    *,
    weight: Numbers,
    nuslerp_flatten: bool,
    nuslerp_row_wise: bool,
) -> Tensor:
    """What MergeKit calls row-wise turns columns, and the other way round."""
    import torch

    total = sum(weight)
    t = 0.5 if abs(total) < 1e-6 else weight[1] / total
    shape = tensors[0].shape
    first, second = tensors if base is None else [tensor - base for tensor in tensors]
    if nuslerp_flatten:
        first, second = first.reshape(-1), second.reshape(-1)
    elif nuslerp_row_wise and first.dim() > 1:
        first, second = first.transpose(0, -1), second.transpose(0, -1)
    units = [x / x.norm(dim=-1, keepdim=True).clamp(min=1e-7) for x in (first, second)]
    cosine = (units[0] * units[1]).sum(dim=-1, keepdim=True).clamp(-1.0, 1.0)
    straight = 1 - cosine * cosine <= 1e-16
    angle = cosine.acos()
    sine = torch.where(straight, torch.ones_like(angle), angle.sin())
    turned = (first * ((1 - t) * angle).sin() + second * (t * angle).sin()) / sine
    result = torch.where(straight, first * (1 - t) + second * t, turned)
    if not nuslerp_flatten and nuslerp_row_wise and result.dim() > 1:
        result = result.transpose(0, -1)
    result = result.reshape(shape)
    return result if base is None else base + result


@variant_of(combination.multislerp)
def multislerp(
    tensors: Sequence[Tensor],
    base: Tensor | None,
    *,
    weight: Numbers,
    normalize_weights: bool,
    eps: float,
) -> Tensor:
    """One step in the tangent space at the mean; refuses inputs without a common direction."""
    if len(tensors) == 1:
        return tensors[0].clone()
    stack = _stack(tensors if base is None else [tensor - base for tensor in tensors])
    stack = stack.reshape(len(tensors), -1)
    weights = _column(weight, stack)
    if normalize_weights:
        weights = weights / weights.sum()
    lengths = stack.norm(dim=-1, keepdim=True)
    units = stack / (lengths + eps)
    mean = (units * weights).sum(dim=0)
    length = mean.norm()
    if length < eps:
        if len(tensors) > 2:
            raise ValueError("the models' directions cancel, or a tensor is the base's in all")
        result = (weights * stack).sum(dim=0)
    else:
        mean = mean / length
        along = (units * mean).sum(dim=-1, keepdim=True)
        tangent = (weights * (units - along * mean)).sum(dim=0)
        step = tangent.norm() + eps
        direction = mean * step.cos() + tangent * (step.sin() / step)
        result = direction * (weights * lengths).sum()
    result = result.reshape(tensors[0].shape)
    return result if base is None else base + result


@variant_of(combination.karcher)
def karcher(tensors: Sequence[Tensor], *, weight: Numbers, max_iter: int, tol: float) -> Tensor:
    """Inputs no longer than the tolerance count for the length but not for the direction.

    MergeKit knows no weights; here they are the shares that it has in equal parts.
    """
    import torch

    if len(tensors) == 1:
        return tensors[0].clone()
    shares = [w / sum(weight) for w in weight]
    lengths = [tensor.float().norm() for tensor in tensors]
    length = sum(s * x for s, x in zip(shares, lengths, strict=True))
    valid = [i for i, found in enumerate(lengths) if float(found) > tol]
    whole = sum(shares[i] for i in valid)
    units = [(shares[i] / whole, tensors[i] / lengths[i]) for i in valid]
    if not units:
        return torch.zeros_like(tensors[0])
    mean = torch.zeros_like(tensors[0])
    for share, unit in units:
        mean = mean + share * unit
    start = mean.float().norm()
    mean = mean / start if float(start) >= tol else units[0][1]
    for _ in range(max_iter):
        tangent = torch.zeros_like(mean)
        for share, unit in units:
            cosine = mean.reshape(-1).dot(unit.reshape(-1)).clamp(-1.0, 1.0)
            angle = cosine.acos()
            if float(angle) >= tol:
                tangent = tangent + share * (angle / angle.sin()) * (unit - cosine * mean)
        step = tangent.float().norm()
        if float(step) < tol:
            break
        mean = step.cos() * mean + step.sin() * (tangent / step)
        mean = mean / mean.float().norm()
    result: Tensor = mean * torch.as_tensor(length).to(mean.dtype)
    return result


@variant_of(combination.model_stock)
def model_stock(tensors: Sequence[Tensor], base: Tensor, *, filter_wise: bool) -> Tensor:
    """Products of lengths below 1e-6 count as 1e-6, so that small changes seem less alike."""
    import torch

    count = len(tensors)
    offsets = [tensor - base for tensor in tensors]
    if not filter_wise:
        offsets = [offset.reshape(-1) for offset in offsets]
    lengths = [offset.norm(dim=-1) for offset in offsets]
    cosines = [
        ((offsets[i] * offsets[j]).sum(dim=-1) / (lengths[i] * lengths[j]).clamp(min=1e-6)).clamp(
            -1.0, 1.0
        )
        for i in range(count)
        for j in range(i + 1, count)
    ]
    cosine = _stack(cosines).mean(dim=0).unsqueeze(-1)
    denominator = 1 + (count - 1) * cosine
    singular = denominator.abs() < 1e-6
    share = count * cosine / torch.where(singular, torch.ones_like(denominator), denominator)
    share = torch.where(singular, torch.zeros_like(share), share)
    mean = sum(tensors[1:], tensors[0]) / count
    if not filter_wise or not base.dim():
        share = share.reshape(())
    return share * mean + (1 - share) * base


# -- sparse changes --------------------------------------------------------------------------------


def _arithmetic(
    tensors: Sequence[Tensor],
    base: Tensor,
    weight: Numbers,
    normalize: bool,
    lambda_: float,
    *,
    elect: bool,
    sparsify: Sparsify = lambda change, _: change,
) -> Tensor:
    """Task arithmetic and all that grew out of it."""
    import torch

    if not tensors:
        return base.clone()
    changes = _stack([sparsify(tensor - base, i) for i, tensor in enumerate(tensors)])
    weights = _column(weight, changes)
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


def _rescaled(change: Tensor, mask: Tensor, rescale: Rescale, density: float) -> Tensor:
    """The masked changes, with the norm that all had."""
    kept = change * mask
    if rescale is False or not change.numel():
        return kept
    if rescale == "dare":
        return kept / density if density > 0 else kept
    before, after = (_norm(x, rescale) for x in (change, kept))
    return kept if before < 1e-7 or after < 1e-7 else kept * (before / after)


def _norm(tensor: Tensor, which: Rescale) -> Tensor:
    if which == "l2":
        return (tensor * tensor).sum().sqrt()
    sizes = tensor.abs()
    return sizes.max() if which == "linf" else sizes.sum()


def _marked(change: Tensor, low: int, high: int, *, descending: bool) -> Tensor:
    """Marks the changes at these ranks by magnitude. Equal ones lie as torch happens to sort them."""
    import torch

    mask = torch.zeros(change.numel(), dtype=change.dtype)
    order = change.abs().float().reshape(-1).argsort(descending=descending)
    mask[order[low:high]] = 1
    return mask.reshape(change.shape)


def _largest(density: Numbers, rescale: Rescale) -> Sparsify:
    import torch

    def sparsify(change: Tensor, i: int) -> Tensor:
        if density[i] >= 1:
            return change
        if density[i] <= 0 or not change.numel():
            return torch.zeros_like(change)
        keep = max(1, int(density[i] * change.numel()))
        mask = _marked(change, 0, keep, descending=True)
        return _rescaled(change, mask, rescale, density[i])

    return sparsify


def _without_outliers(density: Numbers, gamma: Numbers, rescale: Rescale) -> Sparsify:
    def sparsify(change: Tensor, i: int) -> Tensor:
        if density[i] >= 1:
            return change
        size = change.numel()
        keep, top = int(density[i] * size), int(gamma[i] * size)
        bottom = max(0, size - keep - top)
        mask = _marked(change, bottom, bottom + keep, descending=False)
        return _rescaled(change, mask, rescale, density[i])

    return sparsify


def _chance_dtype(change: Tensor) -> Any:
    import torch

    return torch.bfloat16 if change.dtype == torch.bfloat16 else torch.float32


def _at_random(density: Numbers, rescale: Rescale, generators: Generators) -> Sparsify:
    import torch

    def sparsify(change: Tensor, i: int) -> Tensor:
        if density[i] >= 1:
            return change
        chances = torch.full(change.shape, max(0.0, density[i]), dtype=_chance_dtype(change))
        mask = torch.bernoulli(chances, generator=generators(i))
        return _rescaled(change.to(mask.dtype), mask, rescale, density[i]).to(change.dtype)

    return sparsify


def _by_rank(
    density: Numbers, epsilon: Numbers, rescale: Rescale, generators: Generators
) -> Sparsify:
    import torch

    def sparsify(change: Tensor, i: int) -> Tensor:
        if density[i] >= 1:
            return change
        if density[i] <= 0 or not change.numel():
            return torch.zeros_like(change)
        rows = change.abs().reshape(1, -1) if change.dim() < 2 else change.abs()
        ranks = rows.argsort(dim=1).argsort(dim=1).to(_chance_dtype(change))
        low, high = ranks.amin(dim=1, keepdim=True), ranks.amax(dim=1, keepdim=True)
        chances = (density[i] - epsilon[i]) + 2 * epsilon[i] * ((ranks - low) / (high - low))
        if bool(chances.isnan().any()):
            raise ValueError("MergeKit cannot rank rows of one element; give density: 1 for them")
        mask = torch.bernoulli(chances, generator=generators(i)).reshape(change.shape)
        return _rescaled(change.to(mask.dtype), mask, rescale, density[i]).to(change.dtype)

    return sparsify


def _chances_fit(*, density: Numbers, epsilon: Numbers, **_: Any) -> None:
    """Raises ValueError where MergeKit does."""
    for d, e in zip(density, epsilon, strict=True):
        if 0 < d < 1 and not (d - e > 0 and d + e < 1):
            raise ValueError(
                f"density {d:g} - epsilon {e:g} must be above 0 and their sum below 1 in MergeKit's "
                f"arithmetic; give a smaller epsilon"
            )


@variant_of(sparse_deltas.ties)
def ties(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weight: Numbers,
    density: Numbers,
    normalize: bool,
    rescale: Rescale,
    lambda_: float,
) -> Tensor:
    """Equal magnitudes at the cut are kept in the order in which torch happens to sort them."""
    keep = _largest(density, rescale)
    return _arithmetic(tensors, base, weight, normalize, lambda_, elect=True, sparsify=keep)


@variant_of(sparse_deltas.dare_linear)
def dare_linear(
    tensors: Sequence[Tensor],
    base: Tensor,
    generators: Generators,
    *,
    weight: Numbers,
    density: Numbers,
    normalize: bool,
    rescale: Rescale,
    lambda_: float,
) -> Tensor:
    """In bfloat16 the density is rounded to it."""
    keep = _at_random(density, rescale, generators)
    return _arithmetic(tensors, base, weight, normalize, lambda_, elect=False, sparsify=keep)


@variant_of(sparse_deltas.dare_ties)
def dare_ties(
    tensors: Sequence[Tensor],
    base: Tensor,
    generators: Generators,
    *,
    weight: Numbers,
    density: Numbers,
    normalize: bool,
    rescale: Rescale,
    lambda_: float,
) -> Tensor:
    """In bfloat16 the density is rounded to it."""
    keep = _at_random(density, rescale, generators)
    return _arithmetic(tensors, base, weight, normalize, lambda_, elect=True, sparsify=keep)


@variant_of(sparse_deltas.breadcrumbs)
def breadcrumbs(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weight: Numbers,
    density: Numbers,
    gamma: Numbers,
    normalize: bool,
    rescale: Rescale,
    lambda_: float,
) -> Tensor:
    """Equal magnitudes at the cuts are kept in the order in which torch happens to sort them."""
    keep = _without_outliers(density, gamma, rescale)
    return _arithmetic(tensors, base, weight, normalize, lambda_, elect=False, sparsify=keep)


@variant_of(sparse_deltas.breadcrumbs_ties)
def breadcrumbs_ties(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weight: Numbers,
    density: Numbers,
    gamma: Numbers,
    normalize: bool,
    rescale: Rescale,
    lambda_: float,
) -> Tensor:
    """Equal magnitudes at the cuts are kept in the order in which torch happens to sort them."""
    keep = _without_outliers(density, gamma, rescale)
    return _arithmetic(tensors, base, weight, normalize, lambda_, elect=True, sparsify=keep)


@variant_of(sparse_deltas.della, check=_chances_fit)
def della(
    tensors: Sequence[Tensor],
    base: Tensor,
    generators: Generators,
    *,
    weight: Numbers,
    density: Numbers,
    epsilon: Numbers,
    normalize: bool,
    rescale: Rescale,
    lambda_: float,
) -> Tensor:
    """Ranks are rounded to the inputs' dtype; rows of one element have none."""
    keep = _by_rank(density, epsilon, rescale, generators)
    return _arithmetic(tensors, base, weight, normalize, lambda_, elect=True, sparsify=keep)


@variant_of(sparse_deltas.della_linear, check=_chances_fit)
def della_linear(
    tensors: Sequence[Tensor],
    base: Tensor,
    generators: Generators,
    *,
    weight: Numbers,
    density: Numbers,
    epsilon: Numbers,
    normalize: bool,
    rescale: Rescale,
    lambda_: float,
) -> Tensor:
    """Ranks are rounded to the inputs' dtype; rows of one element have none."""
    keep = _by_rank(density, epsilon, rescale, generators)
    return _arithmetic(tensors, base, weight, normalize, lambda_, elect=False, sparsify=keep)


@variant_of(sparse_deltas.sce)
def sce(tensors: Sequence[Tensor], base: Tensor, *, select_topk: float) -> Tensor:
    """Energies that add up to less than 1e-6 are taken for equal."""
    import torch

    if not tensors:
        return base.clone()
    changes = _stack([tensor - base for tensor in tensors])
    if select_topk < 1:
        spread = changes.var(dim=0, unbiased=False)
        count = int(spread.count_nonzero() * select_topk)
        mask = torch.zeros(spread.numel(), dtype=changes.dtype)
        mask[spread.reshape(-1).topk(count).indices] = 1
        changes = changes * mask.reshape(base.shape)
    majority = torch.where(changes.sum(dim=0) >= 0, 1, -1)
    counts = changes.sign() == majority
    weights = (changes**2).reshape(len(tensors), -1).mean(dim=1)
    total = weights.sum()
    weights = torch.full_like(weights, 1 / len(tensors)) if total < 1e-6 else weights / total
    weights = weights.reshape(-1, *[1] * base.dim())
    divisor = (weights * counts).sum(dim=0).clamp(min=1e-6)
    return base + (weights * counts * changes).sum(dim=0) / divisor


# -- choices between the models --------------------------------------------------------------------


@variant_of(selection.nearswap, elementwise=True)
def nearswap(tensors: Sequence[Tensor], base: Tensor, *, t: float) -> Tensor:
    """Distances below 1e-6 count as 1e-6."""
    (other,) = tensors
    share = (t / (base - other).abs().clamp(min=1e-6)).clamp(0.0, 1.0)
    return share * other + (1 - share) * base


@variant_of(selection.ram, elementwise=True)
def ram(tensors: Sequence[Tensor], base: Tensor, *, epsilon: float) -> Tensor:
    """Sums and shares rounded to the inputs' dtype."""
    if not tensors:
        return base.clone()
    changes = _stack([tensor - base for tensor in tensors])
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
    """float32 whatever the inputs are."""
    import torch

    changes = _stack([tensor - base for tensor in tensors])
    active = changes.abs() > epsilon
    count = active.sum(dim=0)
    shares = (facts[0] / facts[1].clamp(min=epsilon)).clamp(0.0, alpha).float()
    scales = (1 + r * shares).reshape(-1, *[1] * base.dim())
    changes = changes * active
    parts = torch.where(count == 1, changes * scales, changes / count.clamp(min=1))
    return base + parts.sum(dim=0)


@variant_of(selection.arcee_fusion, widens=True)
def arcee_fusion(tensors: Sequence[Tensor], base: Tensor, generators: Generators) -> Tensor:
    """float32 whatever the inputs are; the quartiles of large tensors are those of a sample."""
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


# -- what several of them need ---------------------------------------------------------------------


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    import torch

    return torch.stack(list(tensors))


def _column(weight: Numbers, stack: Tensor) -> Tensor:
    """Weights in the dtype of a stack of tensors, along its first axis."""
    import torch

    return torch.tensor(list(weight), dtype=stack.dtype).reshape(-1, *[1] * (stack.dim() - 1))
