"""Methods for the steps of one training run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from merganser.methods import Array, Combination, Gram, PerModel, Range, merge_method

Step = Annotated[Sequence[float], PerModel(), Range(0.0, 1e9, least=0.0, most=1e9)]


@merge_method("relex", title="RELEX", paper="2605.21468", base="required", models=(2, None))
def relex(
    changes: Gram,
    *,
    step: Step,
    target: Annotated[float, Range(0.0, 1e9, least=0.0, most=1e9)],
    explained: Annotated[float, Range(0.0, 1.0, least=0.0, most=1.0)] = 0.9,
) -> Combination:
    """The run's state at the step ``target``, extrapolated along a straight line through its steps.

    The base is the model from which training began. The method computes the leading direction
    (rank one) of the steps' deltas, each step's coordinate along it, and a straight line through
    the coordinates over the steps' numbers. The result is the base plus the direction times the
    line's value at ``target``. If the direction explains less than the share ``explained`` of
    the squared deltas, the result is the last step. Source: RELEX 2026, arXiv:2605.21468; its
    code counts rows instead of steps, which is equivalent only for equally spaced steps.
    """
    import numpy as np

    numbers = np.array(step, np.float64)
    last = int(numbers.argmax())
    values, vectors = np.linalg.eigh(changes)
    leading = float(values[-1])
    if leading <= 0.0:
        return Combination((0.0,) * len(numbers))
    if leading < explained * float(np.trace(changes)):
        return Combination(tuple(float(i == last) for i in range(len(numbers))))
    direction: Array = vectors[:, -1]
    shifted = numbers - numbers.mean()
    spread = float(shifted @ shifted)
    slope = float(shifted @ direction) / spread if spread > 0 else 0.0
    ahead = float(direction.mean()) + slope * (target - float(numbers.mean()))
    return Combination(tuple((ahead * direction).tolist()))
