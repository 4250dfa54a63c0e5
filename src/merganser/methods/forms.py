"""What a method returns, and what the engine gives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]
else:
    Array = Any  # so that looking methods up loads nothing

Gram = Array
"""Inner products ``gram[..., i, j]``, float64; of the inputs the base comes first where there is one.
The leading axes are those of the vectors that the method works on: none for whole tensors."""

Generators = Callable[[int], Any]
"""Makes the ``torch.Generator`` for the draws of one of the models: they depend on the seed, the
tensor's name and the model's number alone."""

Vectors = Literal["tensor", "rows", "columns"]
"""What a method takes for one vector: the flattened tensor, or what lies along its last or its
first axis."""


class Combination(NamedTuple):
    """``sum(c * x for c, x in zip(coefficients, inputs))``, the base first if there is one.

    Attributes:
        coefficients: one an input; where the method works on rows or columns, an array of one a
            vector.
        divide: divide the sum by the coefficients' sum afterwards, both in the dtype that is
            computed in, as MergeKit 0.1.5 does; otherwise methods normalise beforehand, exactly.
        from_zero: begin the sum with zero, as MergeKit does; it makes a sum of negative zeros positive.
    """

    coefficients: tuple[float | Array, ...]
    divide: bool = False
    from_zero: bool = False


class Largest(NamedTuple):
    """Keep the greatest changes of a tensor, or those below the very greatest.

    Magnitudes are compared as float32; equal ones at a cut are kept in the order of the tensor.

    Attributes:
        density: share of the tensor that is kept.
        without: share of the greatest that is dropped first; None for a rule without it, which
            keeps at least one.
    """

    density: float
    without: float | None = None

    def ranks(self, size: int) -> tuple[int, int]:
        """The ranks by descending magnitude that are kept of so many elements, half-open."""
        if self.without is None:
            return 0, max(1, int(self.density * size)) if self.density > 0 and size else 0
        kept, dropped = int(self.density * size), int(self.without * size)
        smallest = max(0, size - kept - dropped)
        return size - smallest - kept, size - smallest


class Random(NamedTuple):
    """Keep each change with a probability of its own draw."""

    density: float


class Ranked(NamedTuple):
    """Keep each change with a probability that grows with its rank in its row, by magnitude: from
    ``density - epsilon`` for the smallest to ``density + epsilon`` for the greatest."""

    density: float
    epsilon: float


class MostVaried(NamedTuple):
    """Keep, in all models, the positions at which the changes vary most between the models: this
    share of those where they vary at all."""

    share: float


Keep = Largest | Random | Ranked | None
"""Which of a model's changes are kept; None for all."""


class SparseDeltas(NamedTuple):
    """The base plus some of what each model changed in it.

    With the differences ``d_i = x_i - x_0``, at every position: ``D_i = w_i f_i d_i`` where d_i is
    kept, else 0; with ``elect`` those D_i count whose sign is that of their sum. The result is
    ``x_0 + scale * sum(D_i) / divisor``.

    Attributes:
        weights: w_i; None for each model's share of the squares of all kept changes.
        keep: which changes are kept, model by model; or one rule for all of them.
        factors: f_i that are known beforehand.
        rescale: the norm of a tensor's changes that f_i makes the kept ones have again, or None.
        elect: whether the sign of the majority is elected.
        divide: by nothing, by the sum of the weights, or by that of the weights which count at this
            position; by 1 where the sum is zero.
        scale: of the whole change.
        agree: positions are kept only where so many models agree with the quotient m, that is
            ``|d_i| >= slack_i |m - d_i|``; None for all positions.
        slack: of each model.
    """

    weights: tuple[float, ...] | None
    keep: tuple[Keep, ...] | MostVaried
    factors: tuple[float, ...] = ()
    rescale: Literal["l1", "l2", "linf"] | None = None
    elect: bool = False
    divide: Literal["no", "weights", "counted"] = "no"
    scale: float = 1.0
    agree: int | None = None
    slack: tuple[float, ...] = ()
