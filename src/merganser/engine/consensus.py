"""The fused loops for methods that return a :class:`~merganser.methods.Consensus`.

A block of the tile is widened, the changes ``d_i = x_i - x_0`` are formed, those that are kept are
scaled, the sign is elected, and the result is rounded, all in the first-level cache.

Magnitudes are compared as the bits of float32, which are ordered like the numbers; such a number is a
*key* here. A change is above a cut if its key is greater than the cut's, or equal and among the first
of these in the tensor: how many of them in each cell is counted beforehand.

numba keeps machine code by the time of the file that holds a loop, not by that of the files it calls
into: whoever changes :mod:`kernels` must touch this file, or remove the cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from merganser.engine.kernels import (
    BLOCK,
    _bits32,
    _draw,
    _inner,
    _narrow,
    _sum_of_sizes,
    _widen,
    survey_block,
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
NORMS = {"l1": L1, "l2": L2, "linf": LINF}
"""Norms that can be added up."""

ABSENT = np.uint32(0xFFFFFFFF)
"""A key above all others."""

LANES = 16
"""Elements that are looked at in one step, where vectors are written by hand."""


class Rules(NamedTuple):
    """Which changes of a tensor are kept.

    Attributes:
        kinds: int64 [k-1], or [k] for a rule by variance; see :data:`ALL` and the others.
        cuts: uint32 [kinds, 2], keys of the upper and the lower cut; ABSENT where there is none.
        allowed, present: int64 [kinds, 2, cells of the tensor], ties that are above the cut, and all.
        chances: uint64 [k-1], draws below are kept.
        seeds: uint64 [k-1], for the draws.
        masks: uint8 [k-1, bytes], bits of the whole tensor and room for a few more: what is kept by
            the rule MASKED, and written by DRAWN if there is room.
    """

    kinds: Any
    cuts: Any
    allowed: Any
    present: Any
    chances: Any
    seeds: Any
    masks: Any


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
def _between(keys, size, rules, m, cell, seen, keep):
    """Marks keys above the second cut and not above the first; ``seen`` counts ties in the cell."""
    cuts, allowed, present = rules.cuts[m], rules.allowed[m], rules.present[m]
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


@intrinsic
def _pack(_context, keep, at, mask, byte):
    """The truth of 16 bytes as 16 bits."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector, half = ir.VectorType(ir.IntType(8), LANES), ir.IntType(LANES)
        source = context.make_array(signature.args[0])(context, builder, args[0]).data
        target = context.make_array(signature.args[2])(context, builder, args[2]).data
        read = builder.bitcast(builder.gep(source, [args[1]]), vector.as_pointer())
        written = builder.bitcast(builder.gep(target, [args[3]]), half.as_pointer())
        found = builder.load(read, align=1)
        true = builder.icmp_unsigned("!=", found, ir.Constant(vector, [0] * LANES))
        builder.store(builder.bitcast(true, half), written, align=1)
        return context.get_dummy_value()

    return types.void(keep, types.intp, mask, types.intp), generate


@intrinsic
def _unpack(_context, mask, byte, keep, at):
    """Sixteen bits as bytes of 0 and 1."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector, half = ir.VectorType(ir.IntType(8), LANES), ir.IntType(LANES)
        bits = ir.VectorType(ir.IntType(1), LANES)
        source = context.make_array(signature.args[0])(context, builder, args[0]).data
        target = context.make_array(signature.args[2])(context, builder, args[2]).data
        read = builder.bitcast(builder.gep(source, [args[1]]), half.as_pointer())
        written = builder.bitcast(builder.gep(target, [args[3]]), vector.as_pointer())
        found = builder.bitcast(builder.load(read, align=1), bits)
        builder.store(builder.zext(found, vector), written, align=1)
        return context.get_dummy_value()

    return types.void(mask, types.intp, keep, types.intp), generate


@register_jitable
def _kept(change, size, rules, m, cell, seen, index, keys, keep, into, factor):
    """``factor`` times a model's changes where they are kept, else zero."""
    rule = rules.kinds[m]
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
        _between(keys, size, rules, m, cell, seen, keep)
    elif rule == DRAWN:
        seed, chance, mask = rules.seeds[m], rules.chances[m], rules.masks[m]
        for j in range(size):
            keep[j] = _draw(seed, index + j) < chance
        if mask.shape[0]:
            keep[size:] = 0
            for j in range(0, size, LANES):
                _pack(keep, j, mask, (index + j) >> 3)
    else:
        for j in range(0, size, LANES):
            _unpack(rules.masks[m], (index + j) >> 3, keep, j)
    for j in range(size):
        into[j] = factor * change[j] if keep[j] else nil


@register_jitable
def _select(scratch, k, size, rules, cell, seen, index, keys, keep, factors):
    """Rows 2k to 3k-1 of the scratch: the kept changes, times the factors. A rule more than there
    are models is for all of them, by the variance between them."""
    if rules.kinds.shape[0] == k:
        spread = scratch[3 * k]
        _spread(scratch, k, size, spread)
        _keys(spread, size, keys)
        _between(keys, size, rules, k - 1, cell, seen[k - 1], keep)
        for i in range(1, k):
            change, into = scratch[k + i], scratch[2 * k + i - 1]
            for j in range(size):
                into[j] = factors[i - 1] * change[j] if keep[j] else scratch.dtype.type(0)
        return
    for m in range(k - 1):
        change, into = scratch[k + m + 1], scratch[2 * k + m]
        _kept(change, size, rules, m, cell, seen[m], index, keys, keep, into, factors[m])


@intrinsic
def _scan(_context, keys, at, into, to, low, high, guess, other):
    """Store those of 16 keys that lie in a bracket, but for two guesses, side by side.

    Returns how many these are, how many equal each guess, and how many lie above the bracket, in 16
    bits each. One compressing store does what a loop over single keys takes ten times as long for.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word, vector = ir.IntType(32), ir.VectorType(ir.IntType(32), LANES)
        bits = ir.VectorType(ir.IntType(1), LANES)
        lanes = ir.Constant(ir.VectorType(word, LANES), [0] * LANES)
        source = context.make_array(signature.args[0])(context, builder, args[0]).data
        target = context.make_array(signature.args[2])(context, builder, args[2]).data
        read = builder.bitcast(builder.gep(source, [args[1]]), vector.as_pointer())
        found = builder.load(read, align=4)

        def spread(number: Any) -> Any:
            empty = ir.Constant(vector, ir.Undefined)
            return builder.shuffle_vector(
                builder.insert_element(empty, number, word(0)), empty, lanes
            )

        bottom, top, first, second = (spread(number) for number in args[4:8])
        above = builder.icmp_unsigned(">", found, top)
        one, two = (builder.icmp_unsigned("==", found, g) for g in (first, second))
        inside = builder.icmp_unsigned(">=", found, bottom)
        for outside in (above, one, two):
            inside = builder.and_(inside, builder.not_(outside))
        kind = ir.FunctionType(ir.VoidType(), [vector, word.as_pointer(), bits])
        store = cgutils.get_or_insert_function(
            builder.module, kind, "llvm.masked.compressstore.v16i32"
        )
        builder.call(store, [found, builder.gep(target, [args[3]]), inside])
        packed = ir.IntType(64)(0)
        for place, mask in enumerate((inside, one, two, above)):
            count = builder.zext(
                builder.ctpop(builder.bitcast(mask, ir.IntType(LANES))), ir.IntType(64)
            )
            packed = builder.or_(packed, builder.shl(count, ir.IntType(64)(16 * place)))
        return packed

    number = types.uint32
    arguments = (keys, types.intp, into, types.intp, number, number, number, number)
    return types.int64(*arguments), generate


@register_jitable
def _elect(kept, weights, size, elect, divide, total_weight, total, divisor, into):
    """The sum of the kept changes, or of those that have the sign of the sum, over its divisor."""
    nil = into.dtype.type(0)
    models = kept.shape[0]
    if elect and models == 2 and divide == COUNTED:  # as below, but each number is touched once
        one = into.dtype.type(1)
        first, second = kept[0], kept[1]
        weight, other = weights[0], weights[1]
        for j in range(size):
            x, y = first[j], second[j]
            up = x + y >= 0
            counts, too = (x != 0) & ((x > 0) == up), (y != 0) & ((y > 0) == up)
            mixed = (x if counts else nil) + (y if too else nil)
            share = (weight if counts else nil) + (other if too else nil)
            into[j] = mixed / (share if share != 0 else one)
        return
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
        rules: which changes are kept.
        factors: [k-1], in the dtype that is computed in: weight times rescaling.
        weights: [k-1], for the divisor.
        elect: whether a sign is elected.
        divide, total_weight: what the sum is divided by.
        scale: of the change.
        least, slack: how many must agree, and how well; 0 for none.
        out_code, rounding, seed: of the output.
        start: the tile's first element in its tensor; a multiple of CELL.
        scratch: [3 k + 3, BLOCK] in the dtype that is computed in.
        keys: uint32 [BLOCK]; keep: uint8 [BLOCK].
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
    seen = np.zeros((rules.kinds.shape[0], 2), np.int64)
    for low in range(0, count, BLOCK):
        size = min(BLOCK, count - low)
        cell = (start + low) // CELL
        here = low // CELL
        if low % CELL == 0:
            seen[:] = 0
        _changes(inputs, codes, low, size, scratch)
        if rules.kinds.shape[0] == k:
            first = scratch[3 * k + 2]
            for j in range(size):
                first[j] = scratch[0, j]
        else:
            first = scratch[0]
        _select(scratch, k, size, rules, cell, seen, start + low, keys, keep, factors)
        _elect(kept, weights, size, elect, divide, total_weight, total, divisor, exact)
        if least > 0:
            _agree(scratch, k, size, least, slack, total, exact)
        for j in range(size):
            exact[j] = first[j] + scale * exact[j]
        _narrow(exact, size, out_code, rounding, seed, start + low, out, low)
        if report:
            if rules.kinds.shape[0] == k:
                for j in range(size):
                    scratch[0, j] = first[j]
            _widen(out, out_code, low, size, stored)
            sums = gram[here], differ[here], ideal[here], cross[here], noise[here : here + 1]
            survey_block(scratch, k, exact, stored, size, *sums)


@register_jitable
def _add_up(numbers, norm):
    """The sum of |x|, or of x squared, or the largest |x|, of a whole block in a fixed order."""
    if norm == LINF:
        largest = 0.0
        for n in range(BLOCK):
            largest = max(largest, np.float64(abs(numbers[n])))
        return largest
    return _sum_of_sizes(numbers, BLOCK) if norm == L1 else _inner(numbers, numbers, BLOCK)


@njit(nogil=True, cache=True, error_model="numpy")
def norms(
    inputs,
    codes,
    count,
    rules,
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
        inputs, codes, count, rules, start, scratch, keys, keep: as in :func:`merge`.
        factors: [k-1], ones.
        norm: which; see :data:`L1` and the others.
        sums: float64 [cells of the tile, k-1, 2]: filled; sums (or for LINF the maximum) of all
            changes, and of the kept ones.
    """
    k = inputs.shape[0]
    seen = np.zeros((rules.kinds.shape[0], 2), np.int64)
    for low in range(0, count, BLOCK):
        size = min(BLOCK, count - low)
        cell = (start + low) // CELL
        here = low // CELL
        if low % CELL == 0:
            seen[:] = 0
        _changes(inputs, codes, low, size, scratch)
        _select(scratch, k, size, rules, cell, seen, start + low, keys, keep, factors)
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
        lows, highs: uint32 [m], the brackets, ends included.
        guesses: uint32 [m, 2], different keys in or below the bracket that are only counted.
        scratch: [3 k + 3, BLOCK]; keys: uint32 [BLOCK].
        above: int64 [m], to be added to: keys above the bracket.
        equal: int64 [m, 2, cells of the tile], to be added to: keys equal to the guesses.
        found: uint32 [m, room], room for all of the tile; keys in the bracket but for the guesses.
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
            bottom, top, guess, other = lows[m], highs[m], guesses[m, 0], guesses[m, 1]
            row = found[m]
            n: Any = fill[m]
            same = also = more = 0
            whole = size // LANES * LANES
            for j in range(0, whole, LANES):
                counts: Any = _scan(keys, j, row, n, bottom, top, guess, other)
                n += counts & 0xFFFF
                same += (counts >> 16) & 0xFFFF
                also += (counts >> 32) & 0xFFFF
                more += counts >> 48
            for j in range(whole, size):
                if keys[j] == guess:
                    same += 1
                elif keys[j] == other:
                    also += 1
                elif keys[j] > top:
                    more += 1
                elif keys[j] >= bottom:
                    row[n] = keys[j]
                    n += 1
            above[m] += more
            equal[m, 0, here] += same
            equal[m, 1, here] += also
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


SHIFT = np.uint32(19)
BINS = 256
"""Of a row's keys: 32 octaves below its greatest, by three bits of the mantissa."""


@register_jitable
def _threshold(chance):
    """Draws below it come with this probability."""
    if chance >= 1.0:
        return np.uint64(0xFFFFFFFFFFFFFFFF)
    return np.uint64(max(chance, 0.0) * 18446744073709551616.0)


@njit(nogil=True, cache=True)
def draw_by_rank(
    inputs,
    codes,
    rows,
    length,
    model,
    density,
    epsilon,
    seed,
    start,
    scratch,
    keys,
    draws,
    places,
    keep,
    mask,
):
    """Sets the bits of those changes that are kept by their rank in their row.

    The rank ``r`` of a change among those of its row, by ascending magnitude (equal ones share the
    mean of their ranks), gives it the probability ``density + epsilon (2 r / (length - 1) - 1)``. A
    histogram narrows the rank down; only where the draw falls between is it counted out.

    Args:
        inputs, codes: as in :func:`merge`; whole rows.
        rows, length: how many rows, and how long.
        model: which input's changes.
        density, epsilon: probabilities.
        seed: of the draws.
        start: first element in the tensor; a multiple of 8.
        scratch: [3 k + 3, BLOCK].
        keys: uint32 [length], draws: uint64 [length], places: int64 [length]: for a row.
        keep: uint8 [2, length]: for a row.
        mask: uint8, bits of the whole tensor, to be set.
    """
    bins = np.zeros((4, BINS), np.int32)
    sole = np.zeros(BINS, np.uint32)
    mixed = np.zeros(BINS, np.bool_)
    surely, hardly = np.zeros(BINS, np.uint64), np.zeros(BINS, np.uint64)
    first, change = scratch[0], scratch[1]
    step = 2.0 * epsilon / (length - 1) if length > 1 else 0.0
    lowest = density - epsilon if length > 1 else density
    kept, bin_of = keep[0], keep[1]
    for row in range(rows):
        begin = row * length
        place = start + begin
        greatest = np.uint32(0)
        for low in range(0, length, BLOCK):
            size = min(BLOCK, length - low)
            _widen(inputs[0], codes[0], begin + low, size, first)
            _widen(inputs[model], codes[model], begin + low, size, change)
            for j in range(size):
                key: Any = _bits32(np.float32(abs(change[j] - first[j])))
                keys[low + j] = key
                greatest = max(greatest, key)
            for j in range(size):
                draws[low + j] = _draw(seed, place + low + j)
        floor = np.int32(greatest >> SHIFT) - np.int32(BINS - 1)
        for n in range(length):
            bin_of[n] = (
                max(np.int32(0), np.int32(keys[n] >> SHIFT) - floor)
                if floor > 0
                else keys[n] >> SHIFT
            )
        bins[:] = 0
        mixed[:] = False
        for n in range(length):  # in four histograms, as most changes may be of one bin
            b = bin_of[n]
            bins[n & 3, b] += 1
            sole[b] = keys[n]
        for n in range(length):
            if keys[n] != sole[bin_of[n]]:
                mixed[bin_of[n]] = True
        below = 0.0
        for b in range(BINS):
            count = bins[0, b] + bins[1, b] + bins[2, b] + bins[3, b]
            if count == 0:
                continue
            last = below + count - 1.0
            if mixed[b]:
                surely[b] = _threshold(lowest + step * below)
                hardly[b] = _threshold(lowest + step * last)
            else:
                surely[b] = _threshold(lowest + step * 0.5 * (below + last))
                hardly[b] = surely[b]
            below = last + 1.0
        unsure = 0
        for n in range(length):
            b = bin_of[n]
            kept[n] = draws[n] < surely[b]
            places[unsure] = n
            unsure += (draws[n] >= surely[b]) & (draws[n] < hardly[b])
        for n in places[:unsure]:
            key = keys[n]
            less = 0
            equal = 0
            for other in range(length):
                less += keys[other] < key
                equal += keys[other] == key
            kept[n] = draws[n] < _threshold(lowest + step * (less + 0.5 * (equal - 1)))
        n = 0
        while n < length and (place + n) & 7:
            mask[(place + n) >> 3] |= kept[n] << np.uint8((place + n) & 7)
            n += 1
        while n + LANES <= length:
            _pack(kept, n, mask, (place + n) >> 3)
            n += LANES
        while n < length:
            mask[(place + n) >> 3] |= kept[n] << np.uint8((place + n) & 7)
            n += 1
