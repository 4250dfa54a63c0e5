"""The arithmetic of MergeKit's releases, for those who must reproduce a merge that was made with one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from merganser.methods import Combination, Weight, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method("linear", title="Linear", paper="2203.05482", arithmetic="mergekit", casts_up=True)
def linear_mergekit(*, weight: Weight, normalize: bool = True) -> Combination:
    """MergeKit 0.1.5: a float32 sum of products, divided by the float32 sum of the weights."""
    return Combination(tuple(weight), divide=normalize, from_zero=True)


@merge_method("linear", title="Linear", paper="2203.05482", arithmetic="mergekit-0.1.4")
def linear_mergekit_014(
    tensors: Sequence[Tensor], *, weight: Weight, normalize: bool = True
) -> Tensor:
    """MergeKit 0.1.4: everything in the inputs' dtype, the weights and their sum included."""
    import torch

    stack = torch.stack(list(tensors))
    weights = torch.tensor(list(weight), dtype=stack.dtype).reshape(-1, *[1] * (stack.dim() - 1))
    result = (weights * stack).sum(dim=0)
    return result / weights.sum(dim=0) if normalize else result


@merge_method(
    "task_arithmetic",
    title="Task arithmetic",
    paper="2212.04089",
    base="required",
    models=(0, None),
    arithmetic="mergekit",
    ignored=("density", "rescale", "int8_mask"),
)
def task_arithmetic_mergekit(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weight: Weight,
    normalize: bool = False,
    lambda_: float = 1.0,
) -> Tensor:
    """MergeKit 0.1.5: differences, products and sums each rounded to the inputs' dtype."""
    import torch

    if not tensors:
        return base.clone()
    deltas = torch.stack([tensor - base for tensor in tensors])
    weights = torch.tensor(list(weight), dtype=deltas.dtype).reshape(-1, *[1] * (deltas.dim() - 1))
    mixed = (weights * deltas).sum(dim=0)
    if normalize:
        total = weights.sum(dim=0)
        mixed = mixed / torch.where(total.abs() < 1e-8, torch.ones_like(total), total)
    if lambda_ != 1.0:
        mixed = mixed * lambda_
    return (base + mixed).to(base.dtype)
