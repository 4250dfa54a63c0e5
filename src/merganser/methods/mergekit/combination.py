"""Linear combinations as MergeKit computes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from merganser.methods import Combination, Finish, combination, variant_of
from merganser.methods.mergekit.rounded_sums import Numbers, added, column, signed_sum, stacked

if TYPE_CHECKING:
    from torch import Tensor


@variant_of(combination.linear, casts_up=True)
def linear(*, weight: Numbers, normalize: bool) -> Combination:
    """The weighted sum, in float32 and from zero on, divided by the float32 sum of the weights."""
    divisors = (added(weight, "float32"), added(weight, "float64")) if normalize else (1.0, 1.0)
    return Combination(tuple(weight), Finish(positive_zeros=True, divisors=divisors))


@variant_of(combination.linear, "mergekit-0.1.4", elementwise=True)
def linear_014(tensors: Sequence[Tensor], *, weight: Numbers, normalize: bool) -> Tensor:
    """The weighted mean of MergeKit 0.1.4: in the inputs' dtype, including the weights and their sum."""
    import torch

    stack = torch.stack(list(tensors))
    weights = column(weight, stack)
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
    """Task arithmetic with every difference, product and sum rounded to the inputs' dtype."""
    return signed_sum(tensors, base, weight, normalize, lambda_, elect=False)


@variant_of(combination.slerp, casts_up=True)
def slerp(tensors: Sequence[Tensor], base: Tensor, *, t: float) -> Tensor:
    """Slerp in float32, with lengths and the cosine summed over pieces of a million elements."""
    (other,) = tensors
    lengths = []
    for tensor in (base, other):
        length = stacked([piece.norm() for piece in _pieces(tensor)]).norm()
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
    """Slerp by weights; MergeKit's row-wise mode rotates columns, and vice versa."""
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
    """The mean on the sphere, by one step in the tangent space at the mean of the directions.

    Raises:
        ValueError: when the directions of more than two models cancel.
    """
    if len(tensors) == 1:
        return tensors[0].clone()
    stack = stacked(tensors if base is None else [tensor - base for tensor in tensors])
    stack = stack.reshape(len(tensors), -1)
    weights = column(weight, stack)
    if normalize_weights:
        weights = weights / weights.sum()
    lengths = stack.norm(dim=-1, keepdim=True)
    units = stack / (lengths + eps)
    mean = (units * weights).sum(dim=0)
    length = mean.norm()
    if length < eps:
        if len(tensors) > 2:
            raise ValueError(
                "the models' directions cancel out, or no model changes the base's tensor"
            )
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
    """The Karcher mean; inputs no longer than ``tol`` count for the length but not for the direction.

    MergeKit has no weights; here they are each input's share, equal by default.
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
    """Model Stock; products of lengths below 1e-6 count as 1e-6, so that small deltas seem less alike."""
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
    cosine = stacked(cosines).mean(dim=0).unsqueeze(-1)
    denominator = 1 + (count - 1) * cosine
    singular = denominator.abs() < 1e-6
    share = count * cosine / torch.where(singular, torch.ones_like(denominator), denominator)
    share = torch.where(singular, torch.zeros_like(share), share)
    mean = sum(tensors[1:], tensors[0]) / count
    if not filter_wise or not base.dim():
        share = share.reshape(())
    return share * mean + (1 - share) * base
