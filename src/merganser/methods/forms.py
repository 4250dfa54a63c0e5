"""Types of methods' arguments and results."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]
else:
    Array = Any  # looking up a method does not import numpy

Gram = Array
"""Inner products ``gram[..., i, j]`` in float64. The base, if there is one, is input 0. Leading axes
count the vectors (rows or columns); there are none if a tensor is one vector."""

Generators = Callable[[int], Any]
"""Returns the ``torch.Generator`` for one model's draws, which depend on the seed, the tensor's name
and the model's number only."""

Vectors = Literal["tensor", "rows", "columns"]
"""The vectors of a tensor: the flattened tensor, its rows (last axis), or its columns (first axis)."""


class Finish(NamedTuple):
    """The last step of a combination, in the dtype of the computation: ``(sum + plus) / divisor``. The
    defaults change no bit.

    Attributes:
        positive_zeros: whether ``plus`` is 0.0, which makes negative zeros positive; otherwise it is
            -0.0, which changes nothing.
        divisors: the divisors for computations in float32 and in float64.
    """

    positive_zeros: bool = False
    divisors: tuple[float, float] = (1.0, 1.0)

    @property
    def plus(self) -> float:
        """The zero that is added to the sum."""
        return 0.0 if self.positive_zeros else -0.0


class Combination(NamedTuple):
    """``sum(c * x for c, x in zip(coefficients, inputs))``, the base first if there is one.

    Attributes:
        coefficients: one per input; for rows or columns, each an array with one per vector.
        finish: what follows the sum, to reproduce the rounding of another program.
    """

    coefficients: tuple[float | Array, ...]
    finish: Finish = Finish()

    @property
    def shares(self) -> tuple[float | Array, ...]:
        """The inputs' coefficients in the result, after the division, in float64."""
        return tuple(c / self.finish.divisors[1] for c in self.coefficients)


class Largest(NamedTuple):
    """Keep the deltas of largest magnitude, optionally without the very largest.

    Magnitudes are compared in float32; of equal ones at a threshold, the first elements are kept.

    Attributes:
        density: kept share of the tensor.
        without: share of the largest deltas to drop; None to drop none and keep at least one.
    """

    density: float
    without: float | None = None

    def ranks(self, size: int) -> tuple[int, int]:
        """The half-open range of kept ranks, by descending magnitude, among ``size`` elements."""
        if self.without is None:
            return 0, max(1, int(self.density * size)) if self.density > 0 and size else 0
        kept, dropped = int(self.density * size), int(self.without * size)
        smallest = max(0, size - kept - dropped)
        return size - smallest - kept, size - smallest


class Random(NamedTuple):
    """Keep each delta with probability ``density``, drawn independently."""

    density: float


class Ranked(NamedTuple):
    """Keep each delta with a probability that grows with the rank of its magnitude in its row, from
    ``density - epsilon`` for the smallest to ``density + epsilon`` for the largest."""

    density: float
    epsilon: float


class MostVaried(NamedTuple):
    """Keep, in all models, the positions where the deltas vary most between models: a share of the
    positions where they vary at all."""

    share: float


Keep = Largest | Random | Ranked | None
"""Which of a model's deltas are kept; None for all."""


class SparseDeltas(NamedTuple):
    """The base plus a weighted sum of sparse deltas.

    With the deltas ``d_i = x_i - x_0``, at every position: ``D_i = w_i f_i d_i`` if d_i is kept, else
    0. With ``elect`` only those D_i count that have the sign of sum(D_i). The result is ``x_0 + scale
    * sum(D_i) / divisor``.

    Attributes:
        weights: w_i; None for each model's share of the squares of all kept deltas.
        keep: rule for the kept deltas, one per model, or one rule for all models together.
        factors: f_i, if they are known beforehand.
        rescale: the norm that f_i restores: the kept deltas of a tensor get the norm of all its
            deltas. None for no rescaling.
        elect: whether to elect the sign of the majority.
        divide: the divisor: 1, the sum of the weights, or the sum of the weights that count at this
            position; 1 where the sum is zero.
        scale: factor of the sum.
        agree: number of models that must agree with the quotient m at a position, that is
            ``|d_i| >= slack_i |m - d_i|``; None to keep all positions.
        slack: slack_i of each model.
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
