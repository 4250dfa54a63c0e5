"""Methods whose result is a linear combination of their inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from merganser.methods import Combination, Gram, PerModel, Range, Weight, merge_method

_PARALLEL = 0.9995
"""Above this cosine slerp and lerp agree to rounding, and MergeKit takes lerp."""


@merge_method("linear", title="Linear", paper="2203.05482", idempotent=True, casts_up=True)
def linear(*, weight: Weight, normalize: bool = True) -> Combination:
    """Weighted average: sum(w_i x_i), divided by sum(w_i) if normalize.

    Source: Wortsman et al. 2022, "Model soups", arXiv:2203.05482; with weights between reward
    experts it is a rewarded soup (Ramé et al. 2023, arXiv:2306.04488).

    Raises:
        ValueError: when the weights are to be normalised and add up to zero.
    """
    total = math.fsum(weight) if normalize else 1.0
    if total == 0:
        raise ValueError(
            "the weights add up to 0, so they cannot be normalised; give normalize: false"
        )
    return Combination(tuple(w / total for w in weight))


@merge_method("passthrough", title="Passthrough", models=(1, 1), idempotent=False)
def passthrough(
    *, scale: Annotated[Sequence[float], PerModel(default=1.0), Range(0.0, 2.0)]
) -> Combination:
    """The single input as it is, or times scale: for stacking layers of different models."""
    return Combination(tuple(scale))


@merge_method(
    "task_arithmetic",
    title="Task arithmetic",
    paper="2212.04089",
    base="required",
    models=(0, None),
    idempotent=True,
    ignored=("density", "rescale", "int8_mask"),
)
def task_arithmetic(
    *, weight: Weight, normalize: bool = False, lambda_: Annotated[float, Range(0.0, 2.0)] = 1.0
) -> Combination:
    """Base plus the weighted sum of what each model changed in it: x_0 + lambda sum(w_i (x_i - x_0)).

    Source: Ilharco et al. 2023, "Editing models with task arithmetic", arXiv:2212.04089.
    """
    total = math.fsum(weight)
    scale = lambda_ / (total if normalize and abs(total) >= 1e-8 else 1.0)
    return Combination((1.0 - scale * total, *(scale * w for w in weight)))


@merge_method(
    "slerp",
    title="SLERP",
    paper="https://dl.acm.org/doi/10.1145/325334.325242",
    base="required",
    models=(1, 1),
    symmetric=False,
    idempotent=True,
    casts_up=True,
)
def slerp(gram: Gram, *, t: Annotated[float, Range(0.0, 1.0)]) -> Combination:
    """From the base (t = 0) to the other model (t = 1) along the great circle between them.

    With the angle a between the two flattened tensors: sin((1-t) a) / sin(a) x_0 + sin(t a) / sin(a)
    x_1; the straight line where they are parallel. Source: Shoemake 1985, "Animating rotation with
    quaternion curves".
    """
    norms = [math.sqrt(gram[i][i]) for i in (0, 1)]
    lengths = [norm if norm > 1e-8 else 1.0 for norm in norms]
    cosine = max(-1.0, min(1.0, gram[0][1] / (lengths[0] * lengths[1])))
    if abs(cosine) > _PARALLEL:
        return Combination((1.0 - t, t))
    angle = math.acos(cosine)
    return Combination(
        (math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle))
    )
