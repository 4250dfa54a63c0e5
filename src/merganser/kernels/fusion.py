"""The kernels of arcee_fusion: divergences of rows, and the quartiles of what they make of changes.

The importance of a change is its size times the divergence of its row, rounded to float32; its *key* is that number's
bits, which are ordered like it. Two counts find a key by its rank: of all upper bits first, then of the lower bits
behind those upper ones that are sought.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from merganser.kernels import LANES
from merganser.kernels.arguments import Array, Inputs, checked, kernels_for, quietly

LOW = 15
"""Bits of a key that the first count leaves to the second."""


@quietly
def diverge(
    inputs: Inputs, work: np.dtype[Any], length: int, divergences: Array, counts: Array
) -> None:
    """The divergences of whole rows, and how often their changes' keys have which upper bits.

    Args:
        inputs: of the rows, the base first, then the other model.
        work: float32 or float64, what changes are computed in.
        length: of a row.
        divergences: float64 [rows], filled.
        counts: int64 [2, 1 << 16], added to; the count of all is the sum of both rows.
    """
    rows = len(divergences)
    if length < 1 or len(inputs.rows) != 2:
        raise ValueError(f"no rows of two models: {len(inputs.rows)} of {length}")
    places = (
        checked(divergences, np.float64, rows),
        checked(counts, np.int64, 2, 1 << 16),
    )
    struct = ctypes.byref(inputs.struct(rows * length))
    if library := kernels_for(inputs):
        library.diverge(struct, work == np.float64, rows, length, *places)
        return
    from merganser.kernels import plain

    rows, steps = len(divergences), -(-length // LANES)
    shares, finite = [], np.full(rows, True)
    for i in range(2):
        numbers = np.full((rows, steps * LANES), -np.inf)
        numbers[:, :length] = plain.widened(inputs, i, rows * length, np.float64).reshape(
            rows, length
        )
        numbers -= np.fmax.reduce(numbers, axis=1, keepdims=True)
        finite &= (numbers <= 0).all(axis=1)
        powers = plain.power(numbers).reshape(rows, steps, LANES)
        shares.append(powers * (1.0 / plain.lane_sums(powers))[:, None, None] + 1e-8)
    q, p = shares
    sums = plain.lane_sums(p * plain.log_ratio(p, q))
    divergences[:] = np.where(finite, np.where(sums > 0, sums, 0.0), np.nan)
    base, other = (plain.widened(inputs, i, rows * length, work) for i in range(2))
    keys = plain.keys_of(plain.importances(other - base, np.repeat(divergences, length)))
    counts[0] += np.bincount(keys >> np.uint32(LOW), minlength=1 << 16)


@quietly
def count_keys(
    inputs: Inputs,
    count: int,
    work: np.dtype[Any],
    start: int,
    divergences: Array,
    length: int,
    upper: Array,
    counts: Array,
) -> None:
    """How often keys have which lower bits behind given upper ones; those of zeros are left out.

    Args:
        inputs, count, start: the tile, the base first.
        work: float32 or float64, what changes are computed in.
        divergences, length: of all rows of the tensor.
        upper: uint32 [3].
        counts: int64 [3, 1 << LOW], added to.
    """
    if length < 1 or len(inputs.rows) != 2 or start < 0:
        raise ValueError(f"no rows of two models: {len(inputs.rows)} of {length} from {start}")
    places = (
        checked(divergences, np.float64, -(-(start + count) // length)),
        length,
        checked(upper, np.uint32, 3),
        checked(counts, np.int64, 3, 1 << LOW),
    )
    struct = ctypes.byref(inputs.struct(count))
    if library := kernels_for(inputs):
        library.count_keys(struct, count, work == np.float64, start, *places)
        return
    from merganser.kernels import plain

    base, other = (plain.widened(inputs, i, count, work) for i in range(2))
    each = divergences[np.arange(start, start + count) // length]
    keys = plain.keys_of(plain.importances(other - base, each))
    keys = keys[keys != 0]
    for into, bits in zip(counts, upper, strict=True):
        below = keys[keys >> np.uint32(LOW) == bits] & np.uint32((1 << LOW) - 1)
        into += np.bincount(below, minlength=1 << LOW)


def at_ranks(counts: Array, ranks: Sequence[int]) -> tuple[Array, list[int]]:
    """Where ranks of ascending order lie in a histogram, int64 [bins]: the bin, and the rank in it."""
    through = np.cumsum(counts)
    bins = np.searchsorted(through, ranks, side="right")
    return bins, [int(rank - through[b] + counts[b]) for rank, b in zip(ranks, bins, strict=True)]
