"""The fused loops for methods that return a :class:`~merganser.methods.SparseDeltas`.

A block of the tile is widened, the changes ``d_i = x_i - x_0`` are formed, those that are kept are
scaled, the sign is elected, and the result is rounded, all in the first-level cache.

Magnitudes are compared as the bits of float32, which are ordered like the numbers; such a number is a
*key* here. A change is above a cut if its key is greater than the cut's, or equal and among the first
of these in the tensor: how many of them in each cell is counted beforehand.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

from merganser.compiled import compiled
from merganser.engine.few import (
    count_words,
    draw_bits,
    draw_words,
    keys_few,
    merge_few,
    norms_few,
    scan_few,
    scan_keys,
)
from merganser.engine.kernels import (
    BLOCK,
    _bits32,
    _draw,
    _inner,
    _narrow,
    _sum_of_sizes,
    _tell_all,
    _widen,
    bytes_of,
    survey_block,
)
from merganser.engine.vectors import WIDE
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

MOST = 3
"""Inputs that the loops of :mod:`few` are made for."""

ABSENT = np.uint32(0xFFFFFFFF)
"""A key above all others."""


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
        _widen(bytes_of(inputs, i), codes[i], low, size, scratch[i])
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
        vector, half = ir.VectorType(ir.IntType(8), WIDE), ir.IntType(WIDE)
        source = context.make_array(signature.args[0])(context, builder, args[0]).data
        target = context.make_array(signature.args[2])(context, builder, args[2]).data
        read = builder.bitcast(builder.gep(source, [args[1]]), vector.as_pointer())
        written = builder.bitcast(builder.gep(target, [args[3]]), half.as_pointer())
        found = builder.load(read, align=1)
        true = builder.icmp_unsigned("!=", found, ir.Constant(vector, [0] * WIDE))
        builder.store(builder.bitcast(true, half), written, align=1)
        return context.get_dummy_value()

    return types.void(keep, types.intp, mask, types.intp), generate


@intrinsic
def _unpack(_context, mask, byte, keep, at):
    """Sixteen bits as bytes of 0 and 1."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector, half = ir.VectorType(ir.IntType(8), WIDE), ir.IntType(WIDE)
        bits = ir.VectorType(ir.IntType(1), WIDE)
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
            for j in range(0, size, WIDE):
                _pack(keep, j, mask, (index + j) >> 3)
    else:
        for j in range(0, size, WIDE):
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


@register_jitable
def _are_few(inputs, codes, rules, itemsize):
    """Whether the loops of :mod:`few` can do it: for bfloat16 (1), for float32 (2), or not at all (0)."""
    k = inputs.shape[0]
    if not 2 <= k <= MOST or rules.kinds.shape[0] != k - 1 or itemsize != 4:
        return 0
    for code in codes:
        if code != codes[0]:
            return 0
    if codes[0] == 0:
        return 1
    return 2 if codes[0] == 2 else 0


@register_jitable
def _keep_block(rules, cell, index, size, cuts, bits):
    """What is kept of a block, as :mod:`few` takes it; or False, where ties must be counted one by one."""
    first, count = index >> 3, size >> 3
    for m in range(rules.kinds.shape[0]):
        rule = rules.kinds[m]
        cuts[m, 0], cuts[m, 1] = 0, ABSENT
        if rule == MASKED:
            for n in range(count):
                bits[m, n] = rules.masks[m, first + n]
            continue
        if rule == DRAWN:
            draw_bits(rules.seeds[m], rules.chances[m], index, size, bits, m)
            if rules.masks.shape[1]:
                for n in range(count):
                    rules.masks[m, first + n] = bits[m, n]
            continue
        for n in range(count):
            bits[m, n] = 0xFF
        if rule == NOTHING:
            cuts[m, 0] = ABSENT
        elif rule == BETWEEN:
            high = _cut(rules.cuts[m, 0], rules.allowed[m, 0, cell], rules.present[m, 0, cell])
            low = _cut(rules.cuts[m, 1], rules.allowed[m, 1, cell], rules.present[m, 1, cell])
            if high == ABSENT and rules.cuts[m, 0] != ABSENT:
                return False
            if low == ABSENT and rules.cuts[m, 1] != ABSENT:
                return False
            cuts[m, 0], cuts[m, 1] = low, high
    return True


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


# Blocks of :func:`merge` and of :func:`norms` in registers, for two and three inputs, in bfloat16 and in
# float32. They must not be closures of one function: numba gives these names that only a process knows
# apart, and code of other processes comes from the cache.


@register_jitable
def _merge_two(inputs, low, size, cuts, bits, numbers, how, out, report, told):
    a, w, t, c = numbers
    elect, weighted, counted = how
    n, s = low, size
    found: Any = merge_few(
        2, 2, inputs, n, s, cuts, bits, a, w, t, c, elect, weighted, counted, out, report
    )
    if report:
        _tell_all(found, 2, *told)


@register_jitable
def _merge_two_wide(inputs, low, size, cuts, bits, numbers, how, out, report, told):
    a, w, t, c = numbers
    elect, weighted, counted = how
    n, s = low, size
    found: Any = merge_few(
        2, 4, inputs, n, s, cuts, bits, a, w, t, c, elect, weighted, counted, out, report
    )
    if report:
        _tell_all(found, 2, *told)


@register_jitable
def _merge_three(inputs, low, size, cuts, bits, numbers, how, out, report, told):
    a, w, t, c = numbers
    elect, weighted, counted = how
    n, s = low, size
    found: Any = merge_few(
        3, 2, inputs, n, s, cuts, bits, a, w, t, c, elect, weighted, counted, out, report
    )
    if report:
        _tell_all(found, 3, *told)


@register_jitable
def _merge_three_wide(inputs, low, size, cuts, bits, numbers, how, out, report, told):
    a, w, t, c = numbers
    elect, weighted, counted = how
    n, s = low, size
    found: Any = merge_few(
        3, 4, inputs, n, s, cuts, bits, a, w, t, c, elect, weighted, counted, out, report
    )
    if report:
        _tell_all(found, 3, *told)


@register_jitable
def _put_norms(found, k, sums):
    for m in range(k - 1):
        sums[m, 0] += found[2 * m]
        sums[m, 1] += found[2 * m + 1]


@register_jitable
def _norms_two(inputs, low, cuts, bits, squares, sums):
    _put_norms(norms_few(2, 2, inputs, low, BLOCK, cuts, bits, squares), 2, sums)


@register_jitable
def _norms_two_wide(inputs, low, cuts, bits, squares, sums):
    _put_norms(norms_few(2, 4, inputs, low, BLOCK, cuts, bits, squares), 2, sums)


@register_jitable
def _norms_three(inputs, low, cuts, bits, squares, sums):
    _put_norms(norms_few(3, 2, inputs, low, BLOCK, cuts, bits, squares), 3, sums)


@register_jitable
def _norms_three_wide(inputs, low, cuts, bits, squares, sums):
    _put_norms(norms_few(3, 4, inputs, low, BLOCK, cuts, bits, squares), 3, sums)


@compiled(error_model="numpy")
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
        inputs: intp [k], where the stored bytes of a tile of each input lie, the base first.
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
    few = _are_few(inputs, codes, rules, scratch.itemsize)
    if out_code != 0 or rounding != 0 or least > 0:
        few = 0
    cuts, bits = np.empty((k - 1, 2), np.uint32), np.empty((k - 1, BLOCK // 8), np.uint8)
    numbers = (
        factors.astype(np.float32),
        weights.astype(np.float32),
        np.float32(total_weight),
        np.float32(scale),
    )
    how = elect, divide == WEIGHTS, divide == COUNTED
    for low in range(0, count, BLOCK):
        size = min(BLOCK, count - low)
        cell = (start + low) // CELL
        here = low // CELL
        if low % CELL == 0:
            seen[:] = 0
        if few and size % WIDE == 0 and _keep_block(rules, cell, start + low, size, cuts, bits):
            here = here if report else 0
            told = gram[here], differ[here], ideal[here], cross[here], noise[here : here + 1]
            block = inputs, low, size, cuts, bits, numbers, how, out, report, told
            if k == 2:
                _merge_two(*block) if few == 1 else _merge_two_wide(*block)
            else:
                _merge_three(*block) if few == 1 else _merge_three_wide(*block)
            continue
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


@compiled(error_model="numpy")
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
    few = _are_few(inputs, codes, rules, scratch.itemsize) if norm != LINF else 0
    cuts, bits = np.empty((k - 1, 2), np.uint32), np.empty((k - 1, BLOCK // 8), np.uint8)
    for low in range(0, count, BLOCK):
        size = min(BLOCK, count - low)
        cell = (start + low) // CELL
        here = low // CELL
        if low % CELL == 0:
            seen[:] = 0
        if few and size == BLOCK and _keep_block(rules, cell, start + low, size, cuts, bits):
            block = inputs, low, cuts, bits, norm == L2, sums[here]
            if k == 2:
                _norms_two(*block) if few == 1 else _norms_two_wide(*block)
            else:
                _norms_three(*block) if few == 1 else _norms_three_wide(*block)
            continue
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


@compiled(error_model="numpy")
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
    halves, singles = np.all(codes == 0), np.all(codes == 2)
    few = scratch.itemsize == 4 and (halves or singles)
    for low in range(0, count, BLOCK):
        size = min(BLOCK, count - low)
        here = low // CELL
        whole = -(-size // WIDE) * WIDE
        wide = not few or size < whole or np.any(what == VARIANCE)
        if wide:
            _changes(inputs, codes, low, size, scratch)
        for m in range(what.shape[0]):
            bottom, top, guess, other = lows[m], highs[m], guesses[m, 0], guesses[m, 1]
            row, n = found[m], fill[m]
            if wide:
                if what[m] == VARIANCE:
                    _spread(scratch, k, size, scratch[3 * k])
                    _keys(scratch[3 * k], size, keys)
                else:
                    _keys(scratch[k + what[m]], size, keys)
                keys[size:whole] = guess  # these are counted too
                counts: Any = scan_keys(keys, whole, bottom, top, guess, other, row, n)
            elif halves:
                counts = scan_few(2, inputs, low, size, what[m], bottom, top, guess, other, row, n)
            else:
                counts = scan_few(4, inputs, low, size, what[m], bottom, top, guess, other, row, n)
            fill[m] += counts[0]
            equal[m, 0, here] += counts[1] - (whole - size)
            equal[m, 1, here] += counts[2]
            above[m] += counts[3]


@compiled()
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

FEW = 16
"""Keys that are not like the others of their bin are few if they are at most this part of a row."""


ROW = {
    "keys": np.uint32,
    "draws": np.uint32,
    "bins": np.uint8,
    "kept": np.uint8,
    "near": np.uint8,
    "ordered": np.uint32,
    "places": np.int32,
}


class Row(NamedTuple):
    """Room for a row whose changes are ranked, as much as :func:`room_of` says; its dtypes are ROW.

    Attributes:
        keys: of the changes.
        draws: their upper halves.
        bins: which bin a key is in.
        kept: the result.
        near: where a draw may lie between the thresholds of its bin.
        ordered: the keys by their bins.
        places: of keys that are not alone in their bin.
    """

    keys: Any
    draws: Any
    bins: Any
    kept: Any
    near: Any
    ordered: Any
    places: Any


def room_of(length: int) -> int:
    """Elements of a row, and some more, for whole vectors from any place on."""
    return (-(-length // WIDE) + 1) * WIDE


@register_jitable
def _row_keys(inputs, codes, model, begin, length, scratch, keys):
    """The keys of a row's changes; returns the greatest."""
    if length % WIDE == 0 and scratch.itemsize == 4:
        if codes[0] == 0 and codes[model] == 0:
            return keys_few(2, inputs, begin, length, model, keys)
        if codes[0] == 2 and codes[model] == 2:
            return keys_few(4, inputs, begin, length, model, keys)
    greatest = np.uint32(0)
    first, change = scratch[0], scratch[1]
    for low in range(0, length, BLOCK):
        size = min(BLOCK, length - low)
        _widen(bytes_of(inputs, 0), codes[0], begin + low, size, first)
        _widen(bytes_of(inputs, model), codes[model], begin + low, size, change)
        for j in range(size):
            key: Any = _bits32(np.float32(abs(change[j] - first[j])))
            keys[low + j] = key
            greatest = max(greatest, key)
    return greatest


class Bins(NamedTuple):
    """The keys of a row by their leading bits: arrays of BINS.

    Attributes:
        counts: int32 [4, BINS], in the first row how many keys there are in each.
        begins: int64, how many there are in the bins before.
        sole: uint32, one of a bin's keys.
        others: int32 [2, BINS], how many differ from that, and how many of these are less; if there are
            not few of them in the row, only whether there are any.
        surely, hardly: uint64, draws below are kept, or are not, whatever the key in the bin.
        upper: uint32, the upper halves of ``surely``.
    """

    counts: Any
    begins: Any
    sole: Any
    others: Any
    surely: Any
    hardly: Any
    upper: Any


@register_jitable
def _histogram(row, length, greatest, bins):
    """Sorts keys into bins; returns how many differ from the sole key of their bin, and puts their
    places into ``row.places``."""
    keys, bin_of = row.keys, row.bins
    floor = np.int32(greatest >> SHIFT) - np.int32(BINS - 1)
    floor = max(np.int32(0), floor)
    for n in range(length):
        bin_of[n] = max(np.int32(0), np.int32(keys[n] >> SHIFT) - floor)
    bins.counts[:] = 0
    bins.others[:] = 0
    for n in range(length):  # in four histograms, as most changes may be of one bin
        b = bin_of[n]
        bins.counts[n & 3, b] += 1
        bins.sole[b] = keys[n]
    others = 0
    for n in range(length):
        row.places[others] = n
        others += keys[n] != bins.sole[bin_of[n]]
    few = others <= length // FEW
    for n in row.places[:others]:
        b = bin_of[n]
        if few:
            bins.others[0, b] += 1
            bins.others[1, b] += keys[n] < bins.sole[b]
        else:
            bins.others[0, b] = 1
    for b in range(BINS):
        bins.counts[0, b] += bins.counts[1, b] + bins.counts[2, b] + bins.counts[3, b]
    return others


@register_jitable
def _set_thresholds(bins, few, lowest, step):
    """The chances of each bin's keys; of its sole key if there are ``few`` others, which are then
    looked at one by one. Returns the greatest distance between the two, in upper halves."""
    below = 0
    widest = np.uint64(0)
    for b in range(BINS):
        count = bins.counts[0, b]
        bins.begins[b] = below
        if count == 0:
            continue
        if few or bins.others[0, b] == 0:
            alike = count - bins.others[0, b]
            rank = below + bins.others[1, b] + 0.5 * (alike - 1)
            bins.surely[b] = bins.hardly[b] = _threshold(lowest + step * rank)
        else:
            bins.surely[b] = _threshold(lowest + step * below)
            bins.hardly[b] = _threshold(lowest + step * (below + count - 1))
            widest = max(widest, bins.hardly[b] - bins.surely[b])
        below += count
    for b in range(BINS):
        bins.upper[b] = bins.surely[b] >> np.uint64(32)
    return np.uint32(min(np.uint64(0xFFFFFFFF), (widest >> np.uint64(32)) + np.uint64(few == 0)))


@register_jitable
def _keep_others(row, bins, others, lowest, step, seed, place):
    """Decides on the few keys that differ from the sole one of their bin."""
    for i in range(others):
        row.ordered[i] = row.keys[row.places[i]]
    before = 0
    for b in range(BINS):  # from here on: others in the bins before
        before, bins.others[1, b] = before + bins.others[0, b], before
    for n in row.places[:others]:
        b, key = row.bins[n], row.keys[n]
        found: Any = count_words(row.ordered, 0, others, key)
        less = bins.begins[b] + found[0] - bins.others[1, b]
        if bins.sole[b] < key:
            less += bins.counts[0, b] - bins.others[0, b]
        drawn = _draw(seed, place + n)
        row.kept[n] = drawn < _threshold(lowest + step * (less + 0.5 * (found[1] - 1)))


@register_jitable
def _threshold(chance):
    """Draws below it come with this probability."""
    if chance >= 1.0:
        return np.uint64(0xFFFFFFFFFFFFFFFF)
    return np.uint64(max(chance, 0.0) * 18446744073709551616.0)


@register_jitable
def _sort_by_bin(row, length, bins, ends):
    """Orders a row's keys by their bins; ``ends`` of which are then known."""
    ends[:] = bins.begins
    for n in range(length):
        b = row.bins[n]
        row.ordered[ends[b]] = row.keys[n]
        ends[b] += 1


@register_jitable
def _keep_near(row, length, bins, ends, lowest, step, seed, place):
    """Decides where a draw may lie between the thresholds of its bin."""
    ordered = False
    words = row.near.view(np.uint64)
    for word in range(len(words)):
        if words[word] == 0:
            continue
        for n in range(8 * word, min(8 * word + 8, length)):
            if not row.near[n]:
                continue
            b = row.bins[n]
            drawn = _draw(seed, place + n)
            row.kept[n] = drawn < bins.surely[b]
            if row.kept[n] or drawn >= bins.hardly[b]:
                continue
            if not ordered:
                _sort_by_bin(row, length, bins, ends)
                ordered = True
            found: Any = count_words(row.ordered, bins.begins[b], ends[b], row.keys[n])
            less, equal = bins.begins[b] + found[0], found[1]
            row.kept[n] = drawn < _threshold(lowest + step * (less + 0.5 * (equal - 1)))


@compiled()
def draw_by_rank(
    inputs, codes, rows, length, model, density, epsilon, seed, start, scratch, row, mask
):
    """Sets the bits of those changes that are kept by their rank in their row.

    The rank ``r`` of a change among those of its row, by ascending magnitude (equal ones share the
    mean of their ranks), gives it the probability ``density + epsilon (2 r / (length - 1) - 1)``. A
    histogram tells the ranks where the keys of a bin are all the same, or nearly all; elsewhere it
    narrows them down, and only where the draw falls between is the rank counted out.

    Args:
        inputs, codes: as in :func:`merge`; whole rows.
        rows, length: how many rows, and how long.
        model: which input's changes.
        density, epsilon: probabilities.
        seed: of the draws.
        start: first element in the tensor; a multiple of 8.
        scratch: [3 k + 3, BLOCK].
        row: see :class:`Row`.
        mask: uint8, bits of the whole tensor, to be set.
    """
    bins = Bins(
        np.zeros((4, BINS), np.int32),
        np.zeros(BINS, np.int64),
        np.zeros(BINS, np.uint32),
        np.zeros((2, BINS), np.int32),
        np.zeros(BINS, np.uint64),
        np.zeros(BINS, np.uint64),
        np.zeros(BINS, np.uint32),
    )
    ends = np.zeros(BINS, np.int64)
    step = 2.0 * epsilon / (length - 1) if length > 1 else 0.0
    lowest = density - epsilon if length > 1 else density
    draws, kept, near = row.draws, row.kept, row.near
    for index in range(rows):
        place = start + index * length
        greatest = _row_keys(inputs, codes, model, index * length, length, scratch, row.keys)
        draw_words(seed, place, len(draws) - WIDE, draws)
        others = _histogram(row, length, greatest, bins)
        few = others <= length // FEW
        span = _set_thresholds(bins, few, lowest, step)
        for n in range(length):
            sure = bins.upper[row.bins[n]]
            kept[n] = draws[n] < sure
            near[n] = np.uint32(draws[n] - sure) <= span
        _keep_near(row, length, bins, ends, lowest, step, seed, place)
        if few:
            _keep_others(row, bins, others, lowest, step, seed, place)
        n = 0
        while n < length and (place + n) & 7:
            mask[(place + n) >> 3] |= kept[n] << np.uint8((place + n) & 7)
            n += 1
        while n + WIDE <= length:
            _pack(kept, n, mask, (place + n) >> 3)
            n += WIDE
        while n < length:
            mask[(place + n) >> 3] |= kept[n] << np.uint8((place + n) & 7)
            n += 1
