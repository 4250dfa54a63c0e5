"""Methods that add some of each model's changes to a base, and resolve conflicts between the models.

All of them are task arithmetic, ``x_0 + lambda sum(w_i d_i)`` with the changes ``d_i = x_i - x_0``,
with two steps before the sum: they make the changes sparse, and resolve conflicting signs. In all of
them ``normalize`` divides by the weights that take part, ``lambda`` scales the sum, and ``rescale``
gives the kept changes of a tensor the norm of all its changes (``true`` is ``l1``,
MergeKit's rule), or divides them by the density (``dare``, the rule of the paper of that name).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from merganser.methods import (
    Density,
    Keep,
    Largest,
    MostVaried,
    PerModel,
    Random,
    Range,
    Ranked,
    Rescale,
    SparseDeltas,
    Weight,
    merge_method,
)
from merganser.methods.combination import sum_is_zero

Scale = Annotated[float, Range(0.0, 2.0)]
Gamma = Annotated[Sequence[float], PerModel(default=0.01), Range(0.0, 0.5, least=0.0, most=1.0)]
Epsilon = Annotated[Sequence[float], PerModel(default=0.15), Range(0.0, 0.5, least=0.0, most=0.5)]
Agreeing = Annotated[int, Range(1, 16, least=0)]


_of_the_family = partial(merge_method, models=(0, None), ignored=("int8_mask",))


def _sparse(
    weight: Sequence[float],
    keep: Sequence[Keep],
    rescale: Rescale,
    normalize: bool,
    lambda_: float,
    *,
    elect: bool,
) -> SparseDeltas:
    """The rule that the methods share: a sum of sparse changes, with or without an election of signs."""
    factors: tuple[float, ...] = ()
    norm = {True: "l1", False: None, "dare": None}.get(rescale, rescale)
    if rescale == "dare":
        factors = tuple(1.0 / k.density if k is not None and k.density > 0 else 1.0 for k in keep)
    divide = "no" if not normalize else "counted" if elect else "weights"
    return SparseDeltas(
        tuple(weight),
        tuple(keep),
        factors,
        norm,  # type: ignore[arg-type]
        elect,
        divide,  # type: ignore[arg-type]
        lambda_,
    )


def _largest(density: Sequence[float]) -> list[Keep]:
    return [Largest(d) if d < 1 else None for d in density]


def _random(density: Sequence[float]) -> list[Keep]:
    return [Random(d) if d < 1 else None for d in density]


def _ranked(density: Sequence[float], epsilon: Sequence[float]) -> list[Keep]:
    """Rules by rank; epsilon is reduced where density +- epsilon leaves [0, 1], which keeps the mean."""
    return [
        None if d >= 1 else Ranked(d, min(e, d, 1 - d))
        for d, e in zip(density, epsilon, strict=True)
    ]


def _band(density: Sequence[float], gamma: Sequence[float]) -> list[Keep]:
    return [Largest(d, g) if d < 1 else None for d, g in zip(density, gamma, strict=True)]


def _spread_narrowed(*, density: Sequence[float], epsilon: Sequence[float], **_: Any) -> str | None:
    for d, e in zip(density, epsilon, strict=True):
        if 0 < d < 1 and e > min(d, 1 - d) + 1e-12:
            return (
                f"epsilon {e:g} is narrowed to {min(d, 1 - d):g}, since density {d:g} - epsilon and "
                "density + epsilon must be between 0 and 1; MergeKit refuses it"
            )
    return None


def _outliers_kept(*, density: Sequence[float], gamma: Sequence[float], **_: Any) -> str | None:
    for d, g in zip(density, gamma, strict=True):
        if d < 1 < d + g - 1e-12:
            return (
                f"density {d:g} and gamma {g:g} are more than a tensor has: the share of outliers "
                f"that is dropped is {1 - d:g}"
            )
    return None


def _too_few_to_agree(*, weight: Sequence[float], k: int, **_: Any) -> str | None:
    if k <= len(weight):
        return None
    return f"k is {k}, but there are {len(weight)} models, so nothing of them is merged"


@_of_the_family("ties", title="TIES", paper="2306.01708")
def ties(
    *,
    weight: Weight,
    density: Density,
    normalize: bool = True,
    rescale: Rescale = False,
    lambda_: Scale = 1.0,
) -> SparseDeltas:
    """Base plus the mean of the largest changes that have the elected sign at their position.

    Of each model's tensor the largest changes stay, the share ``density``; the others become zero. At each
    position the result is x_0 + lambda sum(w_i d_i) / sum(w_i) over the models whose change stayed and has
    the elected sign, which is that of sum(w_i d_i) over all models. For
    several fine-tunes of one model that disturb each other. Source: Yadav et al. 2023, "TIES-Merging:
    resolving interference when merging models", arXiv:2306.01708.
    """
    return _sparse(weight, _largest(density), rescale, normalize, lambda_, elect=True)


@_of_the_family("dare_linear", title="DARE", paper="2311.03099", cautions=(sum_is_zero,))
def dare_linear(
    *,
    weight: Weight,
    density: Density,
    normalize: bool = False,
    rescale: Rescale = True,
    lambda_: Scale = 1.0,
) -> SparseDeltas:
    """Base plus the weighted sum of randomly chosen, rescaled changes.

    x_0 + lambda sum(w_i f_i d_i); each change survives with the probability density. For many fine-tunes
    with many small changes. The draws depend on the recipe's ``seed``, which is worth varying. Source: Yu
    et al. 2023, "Language models are super Mario", arXiv:2311.03099. The paper's factor f_i is
    1 / density, ``rescale: dare``; MergeKit's, ``rescale: true``, restores the L1 norm.
    """
    return _sparse(weight, _random(density), rescale, normalize, lambda_, elect=False)


@_of_the_family("dare_ties", title="DARE-TIES", paper="2311.03099")
def dare_ties(
    *,
    weight: Weight,
    density: Density,
    normalize: bool = False,
    rescale: Rescale = True,
    lambda_: Scale = 1.0,
) -> SparseDeltas:
    """DARE's random changes with TIES' election of signs.

    As ``dare_linear``, but each position adds up only the changes that have the sign of their sum. For
    several fine-tunes that pull in different directions.
    """
    return _sparse(weight, _random(density), rescale, normalize, lambda_, elect=True)


@_of_the_family(
    "breadcrumbs",
    title="Model Breadcrumbs",
    paper="2312.06795",
    cautions=(_outliers_kept, sum_is_zero),
)
def breadcrumbs(
    *,
    weight: Weight,
    density: Density,
    gamma: Gamma,
    normalize: bool = False,
    rescale: Rescale = False,
    lambda_: Scale = 1.0,
) -> SparseDeltas:
    """Base plus the weighted sum of changes without each model's smallest and very largest ones.

    The share density of each tensor survives, below the share gamma of outliers. If both do not fit,
    fewer outliers are dropped. For many fine-tunes, some of them extreme in a few weights. Source: Davari
    and Belilovsky 2023, "Model Breadcrumbs", arXiv:2312.06795.
    """
    return _sparse(weight, _band(density, gamma), rescale, normalize, lambda_, elect=False)


@_of_the_family(
    "breadcrumbs_ties",
    title="Model Breadcrumbs with TIES",
    paper="2312.06795",
    cautions=(_outliers_kept,),
)
def breadcrumbs_ties(
    *,
    weight: Weight,
    density: Density,
    gamma: Gamma,
    normalize: bool = False,
    rescale: Rescale = False,
    lambda_: Scale = 1.0,
) -> SparseDeltas:
    """Breadcrumbs with TIES' election of signs.

    As ``breadcrumbs``, but each position adds up only the changes that have the sign of their sum.
    """
    return _sparse(weight, _band(density, gamma), rescale, normalize, lambda_, elect=True)


@_of_the_family("della", title="DELLA", paper="2406.11617", cautions=(_spread_narrowed,))
def della(
    *,
    weight: Weight,
    density: Density,
    epsilon: Epsilon,
    normalize: bool = True,
    rescale: Rescale = True,
    lambda_: Scale = 1.0,
) -> SparseDeltas:
    """Base plus random changes, large ones of a row more likely than small ones, with elected signs.

    A change survives with a probability from density - epsilon (the smallest of its row) to density +
    epsilon (the largest). Where density +- epsilon leaves [0, 1], epsilon is reduced; MergeKit refuses.
    For models of which ``dare_ties`` drops too much. Source: Deep et al. 2024, "DELLA-Merging",
    arXiv:2406.11617.
    """
    return _sparse(weight, _ranked(density, epsilon), rescale, normalize, lambda_, elect=True)


@_of_the_family(
    "della_linear",
    title="DELLA without election",
    paper="2406.11617",
    cautions=(_spread_narrowed, sum_is_zero),
)
def della_linear(
    *,
    weight: Weight,
    density: Density,
    epsilon: Epsilon,
    normalize: bool = False,
    rescale: Rescale = True,
    lambda_: Scale = 1.0,
) -> SparseDeltas:
    """Base plus the weighted sum of DELLA's random changes: x_0 + lambda sum(w_i f_i d_i).

    As ``della``, but without election of signs or normalised weights. For models of which ``dare_linear``
    drops too much.
    """
    return _sparse(weight, _ranked(density, epsilon), rescale, normalize, lambda_, elect=False)


@_of_the_family("sce", title="SCE", paper="2408.07990")
def sce(
    *, select_topk: Annotated[float, Range(0.01, 1.0, least=0.0, most=1.0)] = 1.0
) -> SparseDeltas:
    """Base plus the changes where models vary most, weighted by their energies.

    Only changes with the elected sign at their position count. The variance of the changes between the
    models selects positions. The weights are each model's share of the squares of the selected changes.
    For fine-tunes of one model whose weights you do not know. Source: Wan et al. 2024, "FuseChat:
    knowledge fusion of chat models", arXiv:2408.07990. Where the squares' means add up to less than
    1e-6, which is always so after a light fine-tune, MergeKit uses equal weights instead.
    """
    keep = MostVaried(select_topk) if select_topk < 1 else ()
    return SparseDeltas(None, keep, elect=True, divide="counted")


WeightOrOne = Annotated[
    Sequence[float], PerModel(default=1.0, normalized_by="normalize"), Range(-2.0, 2.0)
]
Slack = Annotated[Sequence[float], PerModel(default=0.4), Range(0.0, 1.0, least=0.0)]


@merge_method(
    "consensus_ta",
    title="Consensus task arithmetic",
    paper="2405.07813",
    models=(1, None),
    cautions=(_too_few_to_agree, sum_is_zero),
)
def consensus_ta(
    *,
    weight: WeightOrOne,
    slack: Slack,
    k: Agreeing = 2,
    normalize: bool = False,
    lambda_: Scale = 1.0,
) -> SparseDeltas:
    """Task arithmetic, but only where at least k models benefit from the sum.

    A model benefits where ``|d_i| >= slack_i |m - d_i|``, where m is the sum of all changes. For many
    tasks in one model: changes that only one of them needs are left out. Source: Wang et al. 2024,
    "Localizing task information for improved model merging and compression", arXiv:2405.07813; its
    lambda_t is ``slack``.
    """
    keep: tuple[Keep, ...] = (None,) * len(weight)
    divide = "weights" if normalize else "no"
    return SparseDeltas(
        tuple(weight),
        keep,
        divide=divide,  # type: ignore[arg-type]
        scale=lambda_,
        agree=k,
        slack=tuple(slack),
    )


@merge_method(
    "consensus_ties",
    title="Consensus TIES",
    paper="2405.07813",
    models=(1, None),
    cautions=(_too_few_to_agree,),
)
def consensus_ties(
    *,
    weight: WeightOrOne,
    density: Density,
    slack: Slack,
    k: Agreeing = 2,
    normalize: bool = True,
    lambda_: Scale = 1.0,
) -> SparseDeltas:
    """TIES, but only where at least k models benefit from the elected change; see ``consensus_ta``.

    For many tasks that disturb each other. Source: Wang et al. 2024, arXiv:2405.07813.
    """
    divide = "counted" if normalize else "no"
    return SparseDeltas(
        tuple(weight),
        tuple(_largest(density)),
        elect=True,
        divide=divide,  # type: ignore[arg-type]
        scale=lambda_,
        agree=k,
        slack=tuple(slack),
    )
