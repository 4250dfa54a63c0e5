"""The loop that compares two models' tensors, element by element, by cells of :data:`CELL` elements."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from merganser.compiled import compiled
from merganser.engine.kernels import BLOCK, _bits32, _bits64, _in_vectors, _widen
from merganser.planning import CELL

BUCKETS = 18
"""Of distances in units in the last place: 0, 1, 2, 3–4, 5–8 … up to 2**15, and all beyond."""

FIGURES = 10
"""Sums for each cell, in the order of :class:`merganser.study.diff.TensorDiff`."""


MOST = np.int64(0xFFFF)
"""Distances from here on are one: all lie in the last bucket."""


# -- how many numbers of the dtype lie between two, both zeros being one -------------------------


@register_jitable
def _place32(number):
    """Floats as whole numbers in their order: neighbours are one apart, both zeros are 0."""
    whole = np.int64(_bits32(number))
    sign = -(whole >> 31)
    return ((whole & 0x7FFFFFFF) ^ sign) - sign


@register_jitable
def _place64(number):
    bits: Any = _bits64(number)
    whole = np.int64(bits & np.uint64(0x7FFFFFFFFFFFFFFF))
    return -whole if bits >> np.uint64(63) else whole


@_in_vectors
def _apart16(a, b, count, into):
    """Of the bits of numbers of 16 bits. They are cut to 32 at every step: eight of them are one vector."""
    for j in range(count):
        x, y = np.int32(a[j]), np.int32(b[j])
        left, right = np.int32(-(x >> 15)), np.int32(-(y >> 15))
        x = np.int32(((x & 0x7FFF) ^ left) - left)
        y = np.int32(((y & 0x7FFF) ^ right) - right)
        into[j] = np.uint16(np.int32(abs(np.int32(x - y))))


@_in_vectors
def _apart32(a, b, count, into):
    for j in range(count):
        into[j] = np.uint16(min(abs(_place32(a[j]) - _place32(b[j])), MOST))


@_in_vectors
def _apart64(a, b, count, into):
    for j in range(count):
        x, y = _place64(a[j]), _place64(b[j])
        near = abs(np.float64(x) - np.float64(y)) < 1e15  # of two signs it may not fit 64 bits
        into[j] = np.uint16(min(abs(x - y), MOST)) if near else np.uint16(MOST)


@_in_vectors
def _beyond(distances, count, bound):
    """How many distances are larger. The sum has 16 bits too, so that a vector holds sixteen."""
    found = np.uint16(0)
    for j in range(count):
        found = np.uint16(found + np.uint16(distances[j] > bound))
    return np.int64(found)


@register_jitable
def _keep(distances, count, bound):
    """Move the larger distances to the front, without branches; returns how many there are."""
    kept = 0
    for j in range(count):
        distance = distances[j]
        distances[kept] = distance
        kept += distance > bound
    return kept


@register_jitable
def _count(distances, count, histogram):
    """Add distances to their buckets, which uses them up: one pass for each bound.

    Most differ little, and a few by much, such as numbers near zero: further passes see only those.
    """
    left = np.int64(count)
    for bucket in range(BUCKETS - 1):
        bound = np.uint16(0 if bucket == 0 else 1 << (bucket - 1))
        larger = _beyond(distances, count, bound)
        histogram[bucket] += left - larger
        left = larger
        if left == 0:
            return
        if 8 * left <= count:
            count = _keep(distances, count, bound)
    histogram[BUCKETS - 1] += left


# -- sums, in float64 ----------------------------------------------------------------------------


@_in_vectors
def _lengths(a, b, count):
    """Squared lengths of a - b and a."""
    apart = own = 0.0
    for j in range(count):
        x = np.float64(a[j])
        difference = x - np.float64(b[j])
        apart += difference * difference
        own += x * x
    return apart, own


@_in_vectors
def _changes(a, b, base, count):
    """Squared lengths of both changes and of the base, and the changes' inner product."""
    first = second = inner = whole = 0.0
    for j in range(count):
        z = np.float64(base[j])
        x, y = np.float64(a[j]) - z, np.float64(b[j]) - z
        first += x * x
        second += y * y
        inner += x * y
        whole += z * z
    return first, second, inner, whole


@_in_vectors
def _sides(a, b, base, count):
    """Elements changed to the same side, and in both; L1 norms of the changes' sum, and of both."""
    agree = both = joint = sides = 0.0
    for j in range(count):
        z = np.float64(base[j])
        x, y = np.float64(a[j]) - z, np.float64(b[j]) - z
        product = x * y
        agree += np.float64(product > 0)
        both += np.float64(product != 0)
        joint += abs(x + y)
        sides += abs(x) + abs(y)
    return agree, both, joint, sides


@compiled(error_model="numpy")
def compare(a, b, base, codes, count, based, singles, doubles, apart, sums, histogram):
    """Add a tile of two tensors, and of their base, to the sums of its cells.

    Args:
        a, b, base: uint8, stored bytes; base is not looked at unless ``based``.
        codes: int64 [3], their dtypes.
        count: elements in the tile, which begins at a multiple of CELL.
        based: whether there is a base.
        singles, doubles: float32 and float64 [3, BLOCK], scratch.
        apart: uint16 [BLOCK], scratch.
        sums: float64 [cells, FIGURES], added to.
        histogram: int64 [cells, BUCKETS], added to.
    """
    halves = codes[0] == codes[1] and codes[0] <= 1
    wide = codes[0] == 3 or codes[1] == 3
    doubled = wide or (based and codes[2] == 3)
    for low in range(0, count, BLOCK):
        size = min(BLOCK, count - low)
        cell = low // CELL
        if doubled:
            _add(a, b, base, codes, low, size, based, doubles, sums[cell])
        else:
            _add(a, b, base, codes, low, size, based, singles, sums[cell])
        if halves:
            first = a[2 * low : 2 * (low + size)].view(np.uint16)
            second = b[2 * low : 2 * (low + size)].view(np.uint16)
            _apart16(first, second, size, apart)
        elif wide:
            _apart64(doubles[0], doubles[1], size, apart)
        else:
            _widen(a, codes[0], low, size, singles[0])
            _widen(b, codes[1], low, size, singles[1])
            _apart32(singles[0], singles[1], size, apart)
        _count(apart, size, histogram[cell])


@register_jitable
def _add(a, b, base, codes, low, size, based, rows, sums):
    """Widen a block, and add its sums."""
    _widen(a, codes[0], low, size, rows[0])
    _widen(b, codes[1], low, size, rows[1])
    apart, own = _lengths(rows[0], rows[1], size)
    sums[0] += apart
    sums[1] += own
    if based:
        _widen(base, codes[2], low, size, rows[2])
        first, second, inner, whole = _changes(rows[0], rows[1], rows[2], size)
        agree, both, joint, sides = _sides(rows[0], rows[1], rows[2], size)
        sums[2] += first
        sums[3] += second
        sums[4] += inner
        sums[5] += agree
        sums[6] += both
        sums[7] += joint
        sums[8] += sides
        sums[9] += whole
