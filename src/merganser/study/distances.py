"""The loop that compares two models' tensors, element by element, by cells of :data:`CELL` elements."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numba.extending import register_jitable

from merganser.engine.kernels import BLOCK, _bits32, _bits64, _widen
from merganser.planning import CELL

BUCKETS = 18
"""Of distances in units in the last place: 0, 1, 2, 3–4, 5–8 … up to 2**15, and all beyond."""

FIGURES = 10
"""Sums for each cell, in the order of :class:`merganser.study.diff.TensorDiff`."""


@register_jitable
def _bucket(distance):
    """0 for 0, else one more than the exponent of the power of two that the distance reaches."""
    found = 0
    reach = np.int64(1)
    if distance == 0:
        return found
    while found < BUCKETS - 2 and distance > reach:
        reach *= 2
        found += 1
    return found + 1 if distance <= reach else BUCKETS - 1


@register_jitable
def _place16(bits):
    """Floats as whole numbers in their order: neighbours are one apart, both zeros are 0."""
    whole = np.int64(bits)
    return np.int64(0x8000) - whole if whole >= 0x8000 else whole


@register_jitable
def _place32(number):
    whole = np.int64(_bits32(number))
    return np.int64(0x80000000) - whole if whole >= 0x80000000 else whole


@register_jitable
def _place64(number):
    bits: Any = _bits64(number)
    whole = np.int64(bits & np.uint64(0x7FFFFFFFFFFFFFFF))
    return -whole if bits >> np.uint64(63) else whole


@njit(nogil=True, cache=True, error_model="numpy")
def compare(a, b, base, codes, count, based, singles, doubles, sums, histogram):
    """Add a tile of two tensors, and of their base, to the sums of its cells.

    Args:
        a, b, base: uint8, stored bytes; base is not looked at unless ``based``.
        codes: int64 [3], their dtypes.
        count: elements in the tile, which begins at a multiple of CELL.
        based: whether there is a base.
        singles, doubles: float32 and float64 [3, BLOCK], scratch.
        sums: float64 [cells, FIGURES], added to.
        histogram: int64 [cells, BUCKETS], added to.
    """
    halves = codes[0] == codes[1] and codes[0] <= 1
    wide = codes[0] == 3 or codes[1] == 3
    for low in range(0, count, BLOCK):
        size = min(BLOCK, count - low)
        cell = low // CELL
        _widen(a, codes[0], low, size, doubles[0])
        _widen(b, codes[1], low, size, doubles[1])
        if halves:
            first = a[2 * low : 2 * (low + size)].view(np.uint16)
            second = b[2 * low : 2 * (low + size)].view(np.uint16)
            for j in range(size):
                histogram[cell, _bucket(abs(_place16(first[j]) - _place16(second[j])))] += 1
        elif wide:
            for j in range(size):
                x, y = _place64(doubles[0, j]), _place64(doubles[1, j])
                apart = np.float64(x) - np.float64(y)  # would not fit, of numbers of two signs
                near = abs(apart) < 1e15
                histogram[cell, _bucket(abs(x - y)) if near else BUCKETS - 1] += 1
        else:
            _widen(a, codes[0], low, size, singles[0])
            _widen(b, codes[1], low, size, singles[1])
            for j in range(size):
                apart32 = abs(_place32(singles[0, j]) - _place32(singles[1, j]))
                histogram[cell, _bucket(apart32)] += 1
        for j in range(size):
            x, y = doubles[0, j], doubles[1, j]
            sums[cell, 0] += (x - y) * (x - y)
            sums[cell, 1] += x * x
        if based:
            _widen(base, codes[2], low, size, doubles[2])
            for j in range(size):
                x, y = doubles[0, j] - doubles[2, j], doubles[1, j] - doubles[2, j]
                sums[cell, 2] += x * x
                sums[cell, 3] += y * y
                sums[cell, 4] += x * y
                sums[cell, 5] += x * y > 0
                sums[cell, 6] += x != 0 and y != 0
                sums[cell, 7] += abs(x + y)
                sums[cell, 8] += abs(x) + abs(y)
                sums[cell, 9] += doubles[2, j] * doubles[2, j]
