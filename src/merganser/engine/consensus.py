"""The fused loops for methods that return a :class:`~merganser.methods.Consensus`.

A block of the tile is widened, the changes ``d_i = x_i - x_0`` are formed, those that are kept are
scaled, the sign is elected, and the result is rounded, all in the first-level cache.

Magnitudes are compared as the bits of float32, which are ordered like the numbers; such a number is a
*key* here. A change is above a cut if its key is greater than the cut's, or equal and among the first
of these in the tensor: how many of them in each cell is counted beforehand.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numba.extending import register_jitable

from merganser.engine.kernels import (
    BLOCK,
    _along,
    _bits32,
    _compare,
    _distance,
    _draw,
    _narrow,
    _widen,
)
from merganser.planning import CELL

ALL, NOTHING, BETWEEN, DRAWN, MASKED = range(5)
"""Rules for one model's changes: all or none are kept, those between two cuts, those whose draw is low
enough, those whose bit is set."""

VARIANCE = -1
"""In place of a model: the variance between all models."""

NO, WEIGHTS, COUNTED = range(3)
DIVISORS = {"no": NO, "weights": WEIGHTS, "counted": COUNTED}
"""What the sum is divided by."""

L1, L2, LINF = range(3)
"""Norms that can be added up."""

ABSENT = np.uint32(0xFFFFFFFF)
"""A key above all others."""


@register_jitable
def _changes(inputs, codes, low, size, scratch):
    """Rows 0 to k of the scratch: the inputs; rows k+1 to 2k: their changes to the first."""
    k = inputs.shape[0]
    first = scratch[0]
    for i in range(k):
        _widen(inputs[i], codes[i], low, size, scratch[i])
    for i in range(1, k):
        row, change = scratch[i], scratch[k + i]
        for j in range(size):
            change[j] = row[j] - first[j]


@register_jitable
def _spread(scratch, k, size, into):
    """Variance of the changes between the models, position by position."""
    count = scratch.dtype.type(k - 1)
    mean = scratch[0]  # the inputs are not needed any more
    for j in range(size):
        mean[j] = scratch[k + 1, j]
    for i in range(2, k):
        for j in range(size):
            mean[j] += scratch[k + i, j]
    for j in range(size):
        mean[j] /= count
        into[j] = 0
    for i in range(1, k):
        for j in range(size):
            off = scratch[k + i, j] - mean[j]
            into[j] += off * off
    for j in range(size):
        into[j] /= count


@register_jitable
def _keys(numbers, size, keys):
    for j in range(size):
        keys[j] = _bits32(np.float32(abs(numbers[j])))


@register_jitable
def _cut(cut, allowed, present):
    """The least key above a cut in a cell; ABSENT if its ties must be counted one by one."""
    if allowed >= present:
        return np.uint32(cut)
    if allowed == 0:
        return np.uint32(cut + np.uint32(1))
    return np.uint32(ABSENT)


@register_jitable
def _between(keys, size, cuts, allowed, present, cell, seen, keep):
    """Marks keys above the second cut and not above the first; ``seen`` counts ties in the cell."""
    high = _cut(cuts[0], allowed[0, cell], present[0, cell])
    low = _cut(cuts[1], allowed[1, cell], present[1, cell])
    slow_high = high == ABSENT and cuts[0] != ABSENT
    slow_low = low == ABSENT and cuts[1] != ABSENT
    if not slow_high and not slow_low:
        for j in range(size):
            keep[j] = (keys[j] >= low) & (keys[j] < high)
        return
    for j in range(size):
        key = keys[j]
        above_high = key >= high
        if slow_high:
            above_high = key > cuts[0]
            if key == cuts[0]:
                above_high = seen[0] < allowed[0, cell]
                seen[0] += 1
        above_low = key >= low
        if slow_low:
            above_low = key > cuts[1]
            if key == cuts[1]:
                above_low = seen[1] < allowed[1, cell]
                seen[1] += 1
        keep[j] = above_low & (not above_high)


@register_jitable
def _kept(
    change,
    size,
    rule,
    cuts,
    allowed,
    present,
    cell,
    seen,
    chance,
    seed,
    index,
    mask,
    keys,
    keep,
    into,
    factor,
):
    """``factor`` times a model's changes where they are kept, else zero."""
    nil = into.dtype.type(0)
    if rule == ALL:
        for j in range(size):
            into[j] = factor * change[j]
        return
    if rule == NOTHING:
        for j in range(size):
            into[j] = nil
        return
    if rule == BETWEEN:
        _keys(change, size, keys)
        _between(keys, size, cuts, allowed, present, cell, seen, keep)
    elif rule == DRAWN:
        for j in range(size):
            keep[j] = _draw(seed, index + j) < chance
    else:
        for j in range(size):
            place = index + j
            keep[j] = (mask[place >> 3] >> np.uint8(place & 7)) & np.uint8(1)
    for j in range(size):
        into[j] = factor * change[j] if keep[j] else nil


@register_jitable
def _select(
    scratch,
    k,
    size,
    rules,
    cuts,
    allowed,
    present,
    cell,
    seen,
    chances,
    seeds,
    index,
    masks,
    keys,
    keep,
    factors,
):
    """Rows 2k to 3k-1 of the scratch: the kept changes, times the factors. A rule more than there
    are models is for all of them, by the variance between them."""
    if rules.shape[0] == k:
        spread = scratch[3 * k]
        _spread(scratch, k, size, spread)
        _keys(spread, size, keys)
        _between(keys, size, cuts[k - 1], allowed[k - 1], present[k - 1], cell, seen[k - 1], keep)
        for i in range(1, k):
            change, into = scratch[k + i], scratch[2 * k + i - 1]
            for j in range(size):
                into[j] = factors[i - 1] * change[j] if keep[j] else scratch.dtype.type(0)
        return
    for i in range(1, k):
        m = i - 1
        _kept(
            scratch[k + i],
            size,
            rules[m],
            cuts[m],
            allowed[m],
            present[m],
            cell,
            seen[m],
            chances[m],
            seeds[m],
            index,
            masks[m],
            keys,
            keep,
            scratch[2 * k + i - 1],
            factors[m],
        )


@register_jitable
def _elect(kept, weights, size, elect, divide, total_weight, total, divisor, into):
    """The sum of the kept changes, or of those that have the sign of the sum, over its divisor."""
    nil = into.dtype.type(0)
    models = kept.shape[0]
    for j in range(size):
        total[j] = kept[0, j]
    for i in range(1, models):
        for j in range(size):
            total[j] += kept[i, j]
    if not elect:
        for j in range(size):
            into[j] = total[j]
        if divide == COUNTED:
            for j in range(size):
                divisor[j] = nil
            for i in range(models):
                for j in range(size):
                    divisor[j] += weights[i] if kept[i, j] != 0 else nil
    else:
        for j in range(size):
            into[j] = nil
            divisor[j] = nil
        for i in range(models):
            weight = weights[i]
            row = kept[i]
            for j in range(size):
                counts = (row[j] != 0) & ((row[j] > 0) == (total[j] >= 0))
                into[j] += row[j] if counts else nil
                divisor[j] += weight if counts else nil
    if divide == COUNTED:
        for j in range(size):
            into[j] = into[j] / divisor[j] if divisor[j] != 0 else into[j]
    elif divide == WEIGHTS:
        for j in range(size):
            into[j] = into[j] / total_weight


@register_jitable
def _agree(scratch, k, size, least, slack, agreed, into):
    """Sets the sum to zero where too few models have a use for it."""
    for j in range(size):
        agreed[j] = 0
    for i in range(1, k):
        change = scratch[k + i]
        for j in range(size):
            agreed[j] += not (abs(change[j]) < slack[i - 1] * abs(into[j] - change[j]))
    for j in range(size):
        into[j] = into[j] if agreed[j] >= least else into.dtype.type(0)


@njit(nogil=True, cache=True, error_model="numpy")
def merge(
    inputs,
    codes,
    count,
    rules,
    cuts,
    allowed,
    present,
    chances,
    seeds,
    masks,
    factors,
    weights,
    elect,
    divide,
    total_weight,
    scale,
    least,
    slack,
    out_code,
    rounding,
    seed,
    start,
    scratch,
    keys,
    keep,
    out,
    report,
    gram,
    differ,
    ideal,
    cross,
    noise,
):
    """A tile of a consensus, rounded once.

    Args:
        inputs: uint8 [k, bytes], the stored bytes of a tile of each input, the base first.
        codes: int64 [k], their dtypes.
        count: elements in the tile.
        rules: int64 [k-1], or [k] for a rule by variance; see :data:`ALL` and the others.
        cuts: uint32 [rules, 2], keys of the upper and the lower cut; ABSENT where there is none.
        allowed, present: int64 [rules, 2, cells of the tensor], ties that are above the cut, and all.
        chances: uint64 [k-1], draws below are kept.
        seeds: uint64 [k-1], for the draws.
        masks: uint8 [k-1, bytes], bits of the whole tensor.
        factors: [k-1], in the dtype that is computed in: weight times rescaling.
        weights: [k-1], for the divisor.
        elect: whether a sign is elected.
        divide, total_weight: what the sum is divided by.
        scale: of the change.
        least, slack: how many must agree, and how well; 0 for none.
        out_code, rounding, seed: of the output.
        start: the tile's first element in its tensor; a multiple of CELL.
        scratch: [3 k + 3, BLOCK] in the dtype that is computed in.
        keys: uint32 [BLOCK]; keep: bool [BLOCK].
        out: uint8 [bytes], filled.
        report, gram, differ, ideal, cross, noise: as in :func:`kernels.survey`.
    """
    k = inputs.shape[0]
    kept = scratch[2 * k : 3 * k - 1]
    total, divisor, exact, stored = (
        scratch[3 * k - 1],
        scratch[3 * k],
        scratch[3 * k + 1],
        scratch[3 * k],
    )
    one = scratch.dtype.type(1)
    seen = np.zeros((rules.shape[0], 2), np.int64)
    for low in range(0, count, BLOCK):
        size = min(BLOCK, count - low)
        cell = (start + low) // CELL
        here = low // CELL
        if low % CELL == 0:
            seen[:] = 0
        _changes(inputs, codes, low, size, scratch)
        if rules.shape[0] == k:
            first = scratch[3 * k + 2]
            for j in range(size):
                first[j] = scratch[0, j]
        else:
            first = scratch[0]
        _select(
            scratch,
            k,
            size,
            rules,
            cuts,
            allowed,
            present,
            cell,
            seen,
            chances,
            seeds,
            start + low,
            masks,
            keys,
            keep,
            factors,
        )
        _elect(kept, weights, size, elect, divide, total_weight, total, divisor, exact)
        if least > 0:
            _agree(scratch, k, size, least, slack, total, exact)
        for j in range(size):
            exact[j] = first[j] + scale * exact[j]
        _narrow(exact, size, out_code, rounding, seed, start + low, out, low)
        if report:
            if rules.shape[0] == k:
                for j in range(size):
                    scratch[0, j] = first[j]
            _compare(scratch, k, size, gram[here], differ[here])
            _widen(out, out_code, low, size, stored)
            for i in range(1, k):
                cross[here, i - 1] += _along(stored, one, first, scratch[k + i], size)
                ideal[here, i - 1] += _along(exact, one, first, scratch[k + i], size)
            noise[here] += _distance(stored, exact, size)


@register_jitable
def _add_up(numbers, norm):
    """The sum of |x|, or of x squared, or the largest |x|, of a whole block in a fixed order."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
    if norm == LINF:
        for n in range(BLOCK):
            s0 = max(s0, np.float64(abs(numbers[n])))
        return s0
    for n in range(0, BLOCK, 8):
        x0, x1 = np.float64(numbers[n]), np.float64(numbers[n + 1])
        x2, x3 = np.float64(numbers[n + 2]), np.float64(numbers[n + 3])
        x4, x5 = np.float64(numbers[n + 4]), np.float64(numbers[n + 5])
        x6, x7 = np.float64(numbers[n + 6]), np.float64(numbers[n + 7])
        if norm == L1:
            s0 += abs(x0)
            s1 += abs(x1)
            s2 += abs(x2)
            s3 += abs(x3)
            s4 += abs(x4)
            s5 += abs(x5)
            s6 += abs(x6)
            s7 += abs(x7)
        else:
            s0 += x0 * x0
            s1 += x1 * x1
            s2 += x2 * x2
            s3 += x3 * x3
            s4 += x4 * x4
            s5 += x5 * x5
            s6 += x6 * x6
            s7 += x7 * x7
    return ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))


@njit(nogil=True, cache=True, error_model="numpy")
def norms(
    inputs,
    codes,
    count,
    rules,
    cuts,
    allowed,
    present,
    chances,
    seeds,
    masks,
    factors,
    norm,
    start,
    scratch,
    keys,
    keep,
    sums,
):
    """Norms of all changes and of the kept ones, cell by cell.

    Args:
        inputs, codes, count, rules, cuts, allowed, present, chances, seeds, masks, start, scratch,
            keys, keep: as in :func:`merge`.
        factors: [k-1], ones.
        norm: which; see :data:`L1` and the others.
        sums: float64 [cells of the tile, k-1, 2]: filled; sums (or for LINF the maximum) of all
            changes, and of the kept ones.
    """
    k = inputs.shape[0]
    seen = np.zeros((rules.shape[0], 2), np.int64)
    for low in range(0, count, BLOCK):
        size = min(BLOCK, count - low)
        cell = (start + low) // CELL
        here = low // CELL
        if low % CELL == 0:
            seen[:] = 0
        _changes(inputs, codes, low, size, scratch)
        _select(
            scratch,
            k,
            size,
            rules,
            cuts,
            allowed,
            present,
            cell,
            seen,
            chances,
            seeds,
            start + low,
            masks,
            keys,
            keep,
            factors,
        )
        for i in range(1, k):
            scratch[k + i, size:] = 0
            scratch[2 * k + i - 1, size:] = 0
            whole, kept = _add_up(scratch[k + i], norm), _add_up(scratch[2 * k + i - 1], norm)
            if norm == LINF:
                sums[here, i - 1, 0] = max(sums[here, i - 1, 0], whole)
                sums[here, i - 1, 1] = max(sums[here, i - 1, 1], kept)
            else:
                sums[here, i - 1, 0] += whole
                sums[here, i - 1, 1] += kept


@njit(nogil=True, cache=True, error_model="numpy")
def tally(
    inputs, codes, count, what, lows, highs, guesses, scratch, keys, above, equal, found, fill
):
    """Counts for a selection: how many keys lie above a bracket, and which lie in it.

    Args:
        inputs, codes, count: as in :func:`merge`.
        what: int64 [m], of which input the changes are meant, or VARIANCE.
        lows, highs, guesses: uint32 [m], the brackets, ends included, and a key that is only counted.
        scratch: [3 k + 3, BLOCK]; keys: uint32 [BLOCK].
        above: int64 [m], to be added to: keys above the bracket.
        equal: int64 [m, cells of the tile], to be added to: keys equal to the guess.
        found: uint32 [m, room]; keys in the bracket but for the guess.
        fill: int64 [m], how many of them.
    """
    k = inputs.shape[0]
    for low in range(0, count, BLOCK):
        size = min(BLOCK, count - low)
        here = low // CELL
        _changes(inputs, codes, low, size, scratch)
        for m in range(what.shape[0]):
            if what[m] == VARIANCE:
                _spread(scratch, k, size, scratch[3 * k])
                _keys(scratch[3 * k], size, keys)
            else:
                _keys(scratch[k + what[m]], size, keys)
            bottom, top, guess = lows[m], highs[m], guesses[m]
            more = 0
            same = 0
            inside = 0
            for j in range(size):
                more += keys[j] > top
                same += keys[j] == guess
                inside += (keys[j] >= bottom) & (keys[j] <= top)
            above[m] += more
            equal[m, here] += same
            if inside > same:
                n: Any = fill[m]
                row = found[m]
                for j in range(size):
                    row[n] = keys[j]
                    n += (keys[j] >= bottom) & (keys[j] <= top) & (keys[j] != guess)
                fill[m] = n


@njit(nogil=True, cache=True)
def sample_keys(inputs, codes, count, what, scratch, into):
    """The keys of a few elements: uint32 [m, count]."""
    k = inputs.shape[0]
    keys = np.empty(BLOCK, np.uint32)
    for low in range(0, count, BLOCK):
        size = min(BLOCK, count - low)
        _changes(inputs, codes, low, size, scratch)
        for m in range(what.shape[0]):
            if what[m] == VARIANCE:
                _spread(scratch, k, size, scratch[3 * k])
                _keys(scratch[3 * k], size, keys)
            else:
                _keys(scratch[k + what[m]], size, keys)
            into[m, low : low + size] = keys[:size]


SHIFT = np.uint32(20)
BINS = 2048
"""Of a row's keys by their upper bits: the exponent and three bits of the mantissa."""


@njit(nogil=True, cache=True)
def draw_by_rank(
    inputs, codes, rows, length, model, density, epsilon, seed, start, scratch, keys, mask
):
    """Sets the bits of those changes that are kept by their rank in their row.

    The place ``r`` of a change among those of its row, by ascending magnitude and then position,
    gives it the probability ``density + epsilon (2 r / (length - 1) - 1)``. A histogram narrows the
    place down; only where the draw falls between, and the bin's keys differ, is it counted out.

    Args:
        inputs, codes: as in :func:`merge`; whole rows.
        rows, length: how many rows, and how long.
        model: which input's changes.
        density, epsilon: probabilities.
        seed: of the draws.
        start: first element in the tensor; a multiple of 8.
        scratch: [3 k + 3, BLOCK].
        keys: uint32 [length].
        mask: uint8, bits of the whole tensor, to be set.
    """
    bins = np.zeros(BINS + 1, np.int64)
    seen = np.zeros(BINS, np.int64)
    sole = np.zeros(BINS, np.uint32)
    mixed = np.zeros(BINS, np.bool_)
    first, change = scratch[0], scratch[1]
    step = 2.0 * epsilon / (length - 1) if length > 1 else 0.0
    lowest = density - epsilon if length > 1 else density
    unit = 1.0 / 9007199254740992.0
    for row in range(rows):
        begin = row * length
        for low in range(0, length, BLOCK):
            size = min(BLOCK, length - low)
            _widen(inputs[0], codes[0], begin + low, size, first)
            _widen(inputs[model], codes[model], begin + low, size, change)
            for j in range(size):
                keys[low + j] = _bits32(np.float32(abs(change[j] - first[j])))
        bins[:] = 0
        mixed[:] = False
        for n in range(length):
            b = keys[n] >> SHIFT
            mixed[b] = mixed[b] | ((bins[b + np.uint32(1)] > 0) & (sole[b] != keys[n]))
            sole[b] = keys[n]
            bins[b + np.uint32(1)] += 1
        for b in range(BINS):
            bins[b + 1] += bins[b]
            seen[b] = bins[b]
        for n in range(length):
            place = start + begin + n
            draw = (_draw(seed, place) >> np.uint64(11)) * unit
            key = keys[n]
            b = key >> SHIFT
            rank = seen[b]  # right if the bin holds equal keys only
            seen[b] += 1
            keep = draw < lowest + step * bins[b]
            if not keep and draw < lowest + step * (bins[b + np.uint32(1)] - 1):
                if mixed[b]:
                    rank = bins[b]
                    for other in range(length):
                        before = (keys[other] < key) | ((keys[other] == key) & (other < n))
                        rank += (keys[other] >> SHIFT == b) & before
                keep = draw < lowest + step * rank
            if keep:
                mask[place >> 3] |= np.uint8(1) << np.uint8(place & 7)
