"""The compiled steps of methods that are written in torch: same bits, one pass over the inputs.

A method names its step (``fused`` of :func:`merganser.methods.merge_method`). Without compiled
kernels, and with casts of ``--arithmetic mergekit``, torch computes it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from merganser.engine.running_plan import RunningPlan
from merganser.kernels import MOST, library, selecting
from merganser.kernels.arguments import Array, Inputs
from merganser.kernels.steps import Fusion, How, NearSwap, Ram
from merganser.methods.selection import boosts


def step_of(part: RunningPlan) -> How | None:
    """The compiled step of a part, with its parameters; None to use torch."""
    if isinstance(part.counted, Fusion):
        return part.counted
    return STEPS[part.method.fused](part) if part.method.fused and _may_run(part) else None


def counts_of(part: RunningPlan, inputs: Inputs, count: int) -> Array | None:
    """The result of the method's ``measure`` for a tile, float64; None to use torch."""
    if part.method.fused != "ramplus_tl" or not _may_run(part):
        return None
    counts = np.zeros((2, len(part.rows) - 1), np.int64)
    selecting.count_shared(inputs, count, part.wide, part.job.numbers["epsilon"], counts)
    return counts.astype(np.float64)


def _may_run(part: RunningPlan) -> bool:
    return part.job.cast is None and len(part.rows) <= MOST and library.kernels() is not None


def _ramplus(part: RunningPlan) -> How:
    shared, unique = part.counted.tolist()
    factors = boosts(shared, unique, **part.job.numbers)
    return Ram(part.job.numbers["epsilon"], np.array(factors, part.wide))


STEPS: dict[str, Callable[[RunningPlan], How]] = {
    "nearswap": lambda part: NearSwap(part.job.numbers["t"]),
    "ram": lambda part: Ram(part.job.numbers["epsilon"]),
    "ramplus_tl": _ramplus,
}
"""Steps by name, for parts with known counts."""
