"""The kernels of arcee_fusion: divergences of rows, and quartiles of the deltas' importances.

The importance of a delta is its magnitude times the divergence of its row, rounded to float32.
Its *key* is the bits of that number, which have the same order. Two counts find a key by rank:
one of all upper bits, then one of the lower bits for the selected upper bits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from merganser.kernels import LANES
from merganser.kernels.arguments import Array, Inputs, checked, quietly
from merganser.kernels.library import kernels_for

LOW = 15
"""Bits of a key for the second count."""


@quietly
def diverge(
    inputs: Inputs, work: np.dtype[Any], length: int, divergences: Array, counts: Array
) -> None:
    """Compute the divergences of rows, and count the upper bits of the deltas' keys.

    Args:
        inputs: the rows, the base first, then the other model.
        work: float32 or float64, the dtype of the deltas.
        length: elements per row.
        divergences: float64 [rows], output.
        counts: int64 [2, 1 << 16], incremented; the sum of both rows is the histogram.
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
    """Count the lower bits of keys with given upper bits, except for keys of zero.

    Args:
        inputs, count, start: the tile, the base first.
        work: float32 or float64, the dtype of the deltas.
        divergences, length: divergences of all rows of the tensor, and elements per row.
        upper: uint32 [3], the upper bits of the keys to count.
        counts: int64 [3, 1 << LOW], incremented.
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
    """The bins of ascending ranks in a histogram, int64 [bins], and the ranks within these bins."""
    through = np.cumsum(counts)
    bins = np.searchsorted(through, ranks, side="right")
    return bins, [int(rank - through[b] + counts[b]) for rank, b in zip(ranks, bins, strict=True)]
