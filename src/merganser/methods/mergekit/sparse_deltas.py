"""Sparse deltas as MergeKit computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from merganser.methods import Generators, Rescale, sparse_deltas, variant_of
from merganser.methods.mergekit.rounded_sums import Numbers, Sparsify, signed_sum, stacked

if TYPE_CHECKING:
    from torch import Tensor


def _rescaled(change: Tensor, mask: Tensor, rescale: Rescale, density: float) -> Tensor:
    """The masked deltas, rescaled by 1 / density (DARE) or to the norm of all deltas."""
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
    """Mark the deltas at these ranks by magnitude. Equal ones are in the order of torch's sort."""
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
    """Raise ValueError where MergeKit refuses density +- epsilon."""
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
    """TIES; equal magnitudes at the cut are kept in the order of torch's sort."""
    keep = _largest(density, rescale)
    return signed_sum(tensors, base, weight, normalize, lambda_, elect=True, sparsify=keep)


def _dare(*, elect: bool) -> Callable[..., Tensor]:
    def dare(
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
        """DARE; for bfloat16 inputs the density is rounded to bfloat16."""
        keep = _at_random(density, rescale, generators)
        return signed_sum(tensors, base, weight, normalize, lambda_, elect=elect, sparsify=keep)

    return dare


variant_of(sparse_deltas.dare_linear)(_dare(elect=False))
variant_of(sparse_deltas.dare_ties)(_dare(elect=True))


def _breadcrumbs(*, elect: bool) -> Callable[..., Tensor]:
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
        """Breadcrumbs; equal magnitudes at the cuts are kept in the order of torch's sort."""
        keep = _without_outliers(density, gamma, rescale)
        return signed_sum(tensors, base, weight, normalize, lambda_, elect=elect, sparsify=keep)

    return breadcrumbs


variant_of(sparse_deltas.breadcrumbs)(_breadcrumbs(elect=False))
variant_of(sparse_deltas.breadcrumbs_ties)(_breadcrumbs(elect=True))


def _della(*, elect: bool) -> Callable[..., Tensor]:
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
        """DELLA; ranks are rounded to the inputs' dtype, and rows of one element have none."""
        keep = _by_rank(density, epsilon, rescale, generators)
        return signed_sum(tensors, base, weight, normalize, lambda_, elect=elect, sparsify=keep)

    return della


variant_of(sparse_deltas.della, check=_chances_fit)(_della(elect=True))
variant_of(sparse_deltas.della_linear, check=_chances_fit)(_della(elect=False))


@variant_of(sparse_deltas.sce)
def sce(tensors: Sequence[Tensor], base: Tensor, *, select_topk: float) -> Tensor:
    """SCE; with a total energy below 1e-6 all models have equal weights."""
    import torch

    if not tensors:
        return base.clone()
    changes = stacked([tensor - base for tensor in tensors])
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
