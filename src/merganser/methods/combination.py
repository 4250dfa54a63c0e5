"""Methods whose result is a linear combination of their inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

from merganser.methods import (
    Array,
    Combination,
    Gram,
    PerModel,
    Range,
    Vectors,
    Weight,
    merge_method,
)

Shares = Annotated[Sequence[float], PerModel(normalized_by=True), Range(-2.0, 2.0)]

_PARALLEL = 0.9995
"""Cosine above which slerp equals linear interpolation up to rounding; MergeKit then interpolates
linearly."""

_OPPOSITE = 1e-6
"""Sine below which vectors at an obtuse angle count as opposite: rounding gives sines of about 1e-8."""


_FAR_FROM_ONE = 0.05
"""Distance of the sum of unnormalised weights from 1 above which a recipe gets a warning."""


def _sum_far_from_one(*, weight: Sequence[float], normalize: bool) -> str | None:
    total = math.fsum(weight)
    if normalize or abs(total - 1) <= _FAR_FROM_ONE:
        return None
    return (
        f"the weights add up to {total:g}, and normalize is false: the result is about {total:g} "
        "times as large as the models"
    )


def _check_sum(*, weight: Sequence[float], **flags: Any) -> None:
    """Check that weights that the method normalises do not add up to zero.

    Raises:
        ValueError: when they do.
    """
    flag = next((name for name in ("normalize", "normalize_weights") if name in flags), None)
    if math.fsum(weight) == 0 and (flag is None or flags[flag]):
        hint = f"; give {flag}: false" if flag else ""
        raise ValueError(f"the weights add up to 0, so they cannot be normalised{hint}")


def sum_is_zero(*, weight: Sequence[float], normalize: bool, **_: Any) -> str | None:
    """A warning that weights add up to zero and so are not normalised, as in MergeKit; or None."""
    if not normalize or not weight or abs(math.fsum(weight)) >= 1e-8:
        return None
    return "the weights add up to 0, so they are not normalised, as in MergeKit"


@merge_method(
    "linear",
    title="Linear",
    paper="2203.05482",
    idempotent=True,
    check=_check_sum,
    cautions=(_sum_far_from_one,),
)
def linear(*, weight: Weight, normalize: bool = True) -> Combination:
    """Weighted average: sum(w_i x_i), divided by sum(w_i) if normalize.

    The first method to try, for models of one family that were trained alike. Source: Wortsman et al. 2022,
    "Model soups", arXiv:2203.05482. With weights between reward experts it is a rewarded soup (Ramé et al.
    2023, arXiv:2306.04488).
    """
    total = math.fsum(weight) if normalize else 1.0
    return Combination(tuple(w / total for w in weight))


@merge_method("passthrough", title="Passthrough", models=(1, 1), idempotent=False)
def passthrough(
    *, scale: Annotated[Sequence[float], PerModel(default=1.0), Range(0.0, 2.0)]
) -> Combination:
    """The single input unchanged, or times scale: scale x_1.

    For stacking layers of one or several models with ``slices``, and for changing a model's dtype.
    """
    return Combination(tuple(scale))


@merge_method(
    "task_arithmetic",
    title="Task arithmetic",
    paper="2212.04089",
    base="required",
    models=(0, None),
    idempotent=True,
    ignored=("density", "rescale", "int8_mask"),
    cautions=(sum_is_zero,),
)
def task_arithmetic(
    *, weight: Weight, normalize: bool = False, lambda_: Annotated[float, Range(0.0, 2.0)] = 1.0
) -> Combination:
    """Base plus the weighted sum of the models' changes: x_0 + lambda sum(w_i (x_i - x_0)).

    Adds skills, or removes them with a negative weight. ``normalize`` divides by sum(w_i). Source: Ilharco
    et al. 2023, "Editing models with task arithmetic", arXiv:2212.04089.
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
)
def slerp(gram: Gram, *, t: Annotated[float, Range(0.0, 1.0, least=0.0, most=1.0)]) -> Combination:
    """The point t of the way from the base (t = 0) to the other model (t = 1) along the great circle.

    With the angle a between the two flattened tensors: sin((1-t) a) / sin(a) x_0 + sin(t a) / sin(a) x_1,
    or the straight line where they are parallel. For two models that are far from each other, whose average
    would be shorter than both. Near each other it is the average. Source: Shoemake 1985, "Animating
    rotation with quaternion curves".
    """
    return Combination(_along_circle(gram, t, parallel=_PARALLEL))


def _nuslerp_vectors(*, nuslerp_flatten: bool, nuslerp_row_wise: bool, **_: Any) -> Vectors:
    if nuslerp_flatten:
        return "tensor"
    return "rows" if nuslerp_row_wise else "columns"


def _no_way_between(*, weight: Sequence[float], **_: Any) -> str | None:
    if abs(math.fsum(weight)) >= 1e-6:
        return None
    return "the weights add up to 0; the result is half-way between the models, as in MergeKit"


@merge_method(
    "nuslerp",
    title="NuSLERP",
    paper="https://dl.acm.org/doi/10.1145/325334.325242",
    base="optional",
    models=(2, 2),
    idempotent=True,
    vectors=_nuslerp_vectors,
    cautions=(_no_way_between,),
)
def nuslerp(
    changes: Gram, *, weight: Shares, nuslerp_flatten: bool = True, nuslerp_row_wise: bool = False
) -> Combination:
    """Slerp between two models by weights: it goes w_2 / (w_1 + w_2) of the way along the circle.

    The coefficients are those of ``slerp`` at t = w_2 / (w_1 + w_2). With a base it interpolates the two
    models' changes, for two fine-tunes of one model. ``nuslerp_flatten: false`` interpolates the columns
    of a tensor one by one instead of the flattened tensor, with ``nuslerp_row_wise: true`` its rows.
    """
    total = math.fsum(weight)
    t = 0.5 if abs(total) < 1e-6 else weight[1] / total
    return Combination(_along_circle(changes, t, parallel=1.0 - 1e-12))


def _check_sum_of_several(*, weight: Sequence[float], **numbers: Any) -> None:
    if len(weight) > 1:  # a single model is returned as it is
        _check_sum(weight=weight, **numbers)


@merge_method("multislerp", title="Multi-SLERP", base="optional", check=_check_sum_of_several)
def multislerp(
    changes: Gram,
    *,
    weight: Annotated[
        Sequence[float], PerModel(normalized_by="normalize_weights"), Range(-2.0, 2.0)
    ],
    normalize_weights: bool = True,
    eps: Annotated[float, Range(0.0, 1e-3, least=0.0)] = 1e-8,
) -> Combination:
    """Weighted mean on the sphere: the direction of sum(w_i u_i), with the length sum(w_i |x_i|).

    u_i are the unit vectors of the inputs, or with a base those of the changes. The result is the
    projection of their mean onto the sphere; MergeKit takes one more step in the tangent space, whose
    length is zero. Where the directions cancel (``|sum(w_i u_i)| < eps``), it is the weighted sum. A
    single model is returned unchanged. For several fine-tunes whose changes should preserve their size.
    """
    import numpy as np

    if len(weight) == 1:
        return Combination((1.0,))
    total = math.fsum(weight) if normalize_weights else 1.0
    weights = np.array(weight) / total
    lengths = np.sqrt(np.diag(changes))
    along = np.divide(weights, lengths, out=np.zeros_like(weights), where=lengths > 0)
    resultant = math.sqrt(max(0.0, float(along @ changes @ along)))
    if resultant < eps:
        return Combination(tuple(weights.tolist()))
    return Combination(tuple((along * (weights @ lengths) / resultant).tolist()))


@merge_method("karcher", title="Karcher mean", models=(1, None), idempotent=True, check=_check_sum)
def karcher(
    gram: Gram,
    *,
    weight: Annotated[
        Sequence[float], PerModel(default=1.0, normalized_by=True), Range(0.0, 1.0, least=0.0)
    ],
    max_iter: Annotated[int, Range(1, 1000, least=0)] = 10,
    tol: Annotated[float, Range(0.0, 1e-2, least=0.0)] = 1e-5,
) -> Combination:
    """The point on the sphere with the smallest sum of squared angles to all models.

    It is the Riemannian centre of mass of the unit vectors (Karcher 1977), with the mean of their lengths.
    Gradient steps in the space that the inputs span compute it from inner products of the inputs.
    Weights are optional and normalised; MergeKit has none. Inputs whose directions cancel are averaged.
    For several models that are far from each other, as ``slerp`` for two.
    """
    import numpy as np

    total = math.fsum(weight)
    shares = np.array(weight) / total
    lengths = np.sqrt(np.diag(gram))
    length = float(shares @ lengths)
    valid = (lengths > 0) & (shares > 0)
    if not valid.any():
        return Combination((0.0,) * len(weight))
    scale = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    cosines = gram * np.outer(scale, scale)
    mean = _karcher_mean(cosines, np.where(valid, shares, 0.0) / shares[valid].sum(), max_iter, tol)
    if mean is None:
        return Combination(tuple(shares.tolist()))
    return Combination(tuple((mean * scale * length).tolist()))


def _karcher_mean(cosines: Array, shares: Array, max_iter: int, tol: float) -> Array | None:
    """Coefficients of the Karcher mean of unit vectors with these cosines; None if the vectors cancel."""
    import numpy as np

    def unit(coefficients: Array) -> Array | None:
        norm = math.sqrt(max(0.0, float(coefficients @ cosines @ coefficients)))
        return coefficients / norm if norm >= tol else None

    mean = unit(shares)
    if mean is None:
        return None
    for _ in range(max_iter):
        along = np.clip(cosines @ mean, -1.0, 1.0)
        angles = np.arccos(along)
        turns = np.sin(angles)
        apart = (angles >= tol) & (turns > _OPPOSITE)  # neither at the mean, nor opposite
        pull = np.divide(shares * angles, turns, out=np.zeros_like(angles), where=apart)
        tangent = pull - (pull @ along) * mean
        step = math.sqrt(max(0.0, float(tangent @ cosines @ tangent)))
        if step < tol:
            break
        turned = unit(math.cos(step) * mean + math.sin(step) / step * tangent)
        if turned is None:
            break
        mean = turned
    return mean


def _filter_vectors(*, filter_wise: bool, **_: Any) -> Vectors:
    return "rows" if filter_wise else "tensor"


@merge_method(
    "model_stock",
    title="Model Stock",
    paper="2403.19522",
    base="required",
    models=(2, None),
    idempotent=True,
    vectors=_filter_vectors,
)
def model_stock(changes: Gram, *, filter_wise: bool = False) -> Combination:
    """A point between the base and the mean of the models, nearer the mean the more their changes agree.

    With N models and the mean cosine c between their changes, the result is t = N c / (1 + (N - 1) c) of
    the way from the base to the mean. ``filter_wise`` does so row by row. For fine-tunes of one model on
    the same data with different seeds; there is nothing to tune. Source: Jang et al. 2024, "Model Stock:
    all we need is just a few fine-tuned models", arXiv:2403.19522.
    """
    import numpy as np

    count = changes.shape[-1]
    lengths = np.sqrt(np.diagonal(changes, axis1=-2, axis2=-1))
    products = lengths[..., :, None] * lengths[..., None, :]
    cosines = np.divide(changes, products, out=np.zeros_like(changes), where=products > 0)
    pairs = np.triu_indices(count, 1)
    cosine = np.clip(cosines[..., pairs[0], pairs[1]], -1.0, 1.0).mean(axis=-1)
    denominator = 1.0 + (count - 1) * cosine
    singular = np.abs(denominator) < 1e-6
    share = np.where(singular, 0.0, cosine / np.where(singular, 1.0, denominator))
    return Combination((share,) * count)


def _along_circle(gram: Gram, t: float, *, parallel: float) -> tuple[Array, Array]:
    """The two vectors' coefficients for the point t of the way along the great circle between them, or
    along the straight line where the magnitude of their cosine is above ``parallel``."""
    import numpy as np

    first, second = (np.sqrt(gram[..., i, i]) for i in (0, 1))
    lengths = np.where(first > 1e-8, first, 1.0) * np.where(second > 1e-8, second, 1.0)
    cosine = np.clip(gram[..., 0, 1] / lengths, -1.0, 1.0)
    straight = np.abs(cosine) > parallel
    angle = np.arccos(np.where(straight, 0.0, cosine))
    return (
        np.where(straight, 1.0 - t, np.sin((1.0 - t) * angle) / np.sin(angle)),
        np.where(straight, t, np.sin(t * angle) / np.sin(angle)),
    )
