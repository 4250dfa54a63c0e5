"""The fused loops of the engine: stored bytes in, stored bytes out, everything between in cache.

A tile is worked on in blocks that stay in the first-level cache: the inputs are widened to the
dtype that is computed in, combined, rounded once, and compared with the inputs for the report.
numba compiles these functions at their first call and keeps the machine code on disk.

All sums are over *cells* of :data:`CELL` elements counted from the start of the tensor, and each
cell is summed by itself, so they do not depend on how a tensor is cut into tiles.

Dtypes are told apart by :data:`CODES`; rounding is 0 (to nearest, ties to even) or 1 (stochastic).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload, register_jitable
from numba.np.numpy_support import carray

from merganser.compiled import compiled
from merganser.engine.vectors import DOUBLES, WIDE, Vectors, summations
from merganser.planning import CELL

BLOCK = 4096
"""Elements that are worked on at once: a few rows of float32 fit the first-level cache."""

CODES = {"bfloat16": 0, "float16": 1, "float32": 2, "float64": 3}

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


# -- conversions of one number -----------------------------------------------------------------


@intrinsic
def _fma(_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once: the same on every machine, unlike what a compiler may contract."""
    return a(a, a, a), lambda _ctx, builder, _sig, args: builder.fma(*args)


@intrinsic
def _from_bfloat16(_context, bits):
    def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        wide = builder.zext(args[0], ir.IntType(32))
        return builder.bitcast(builder.shl(wide, ir.IntType(32)(16)), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def _to_bfloat16(_context: Any, number: Any) -> Any:
    """To nearest, ties to even: add half a unit, and one more if the result would be odd."""

    def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.bitcast(args[0], word)
        odd = builder.and_(builder.lshr(bits, word(16)), word(1))
        rounded = builder.lshr(builder.add(builder.add(bits, odd), word(0x7FFF)), word(16))
        quiet = builder.or_(builder.lshr(bits, word(16)), word(0x40))
        chosen = builder.select(builder.fcmp_unordered("uno", args[0], args[0]), quiet, rounded)
        return builder.trunc(chosen, ir.IntType(16))

    return types.uint16(types.float32), generate


@intrinsic
def _from_float16(_context: Any, bits: Any) -> Any:
    def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def _to_float16(_context: Any, number: Any) -> Any:
    def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate


@intrinsic
def _bits32(_context: Any, number: Any) -> Any:
    return types.uint32(types.float32), lambda _c, b, _s, args: b.bitcast(args[0], ir.IntType(32))


@intrinsic
def _float32(_context: Any, bits: Any) -> Any:
    return types.float32(types.uint32), lambda _c, b, _s, args: b.bitcast(args[0], ir.FloatType())


@intrinsic
def _bits64(_context: Any, number: Any) -> Any:
    return types.uint64(types.float64), lambda _c, b, _s, args: b.bitcast(args[0], ir.IntType(64))


@intrinsic
def _float64(_context: Any, bits: Any) -> Any:
    return types.float64(types.uint64), lambda _c, b, _s, args: b.bitcast(args[0], ir.DoubleType())


@register_jitable
def _to_odd(number):
    """float64 to float32, an inexact result made odd: rounding it again then rounds as if once.

    Source: Boldo and Melquiond 2008, "Emulation of a FMA and correctly rounded sums".
    """
    near = np.float32(number)
    if np.float64(near) == number or number != number or np.isinf(near):
        return near
    bits: Any = _bits32(near)
    if bits & np.uint32(1):
        return near
    if abs(number) > abs(np.float64(near)):
        return _float32(np.uint32(bits + np.uint32(1)))
    return _float32(np.uint32(bits - np.uint32(1)))


@register_jitable
def _draw(seed, index):
    """64 random bits, a function of seed and element alone (splitmix64, Steele et al. 2014)."""
    z = np.uint64(seed) + (np.uint64(index) + np.uint64(1)) * _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    return z ^ (z >> np.uint64(31))


@register_jitable
def _stochastic_bfloat16(number, draw):
    """Up with the probability of the part that is cut off: unbiased."""
    if not np.isfinite(number):
        return _to_bfloat16(number)
    bits: Any = _bits32(number)
    return np.uint16((np.uint64(bits) + (draw & np.uint64(0xFFFF))) >> np.uint64(16))


@register_jitable
def _stochastic_float16(number, draw):
    if not np.isfinite(number):
        return _to_float16(number)
    if abs(number) < np.float32(6.103515625e-05):  # subnormal: steps of 2**-24
        steps = abs(np.float64(number)) * 16777216.0
        below = np.floor(steps)
        if (draw >> np.uint64(11)) * (1.0 / 9007199254740992.0) < steps - below:
            below += 1.0
        small = np.float32(below / 16777216.0)
        return _to_float16(-small if number < 0 else small)
    bits = (np.uint64(_bits32(number)) + (draw & np.uint64(0x1FFF))) & np.uint64(0xFFFFE000)
    return _to_float16(_float32(np.uint32(bits)))


@register_jitable
def _stochastic_float32(number, draw):
    if not np.isfinite(number) or abs(number) < 1.2e-38:
        return np.float32(number)
    mask = np.uint64(0x1FFFFFFF)
    return np.float32(_float64((_bits64(number) + (draw & mask)) & ~mask))


# -- conversions of a block --------------------------------------------------------------------

_ENDLESS = 1 << 60


@intrinsic
def _at(_context: Any, address: Any) -> Any:
    def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.CPointer(types.uint8)(address), generate


@register_jitable
def bytes_of(inputs, i):
    """The stored bytes of an input, from its address on; how many there are only the caller knows."""
    return carray(_at(inputs[i]), _ENDLESS)


@register_jitable
def _widen(source, code, low, count, into):
    """Numbers ``low`` to ``low + count`` of stored bytes, in the dtype of ``into``."""
    if code == 0:
        halves = source[2 * low : 2 * (low + count)].view(np.uint16)
        for j in range(count):
            into[j] = _from_bfloat16(halves[j])
    elif code == 1:
        halves = source[2 * low : 2 * (low + count)].view(np.uint16)
        for j in range(count):
            into[j] = _from_float16(halves[j])
    elif code == 2:
        singles = source[4 * low : 4 * (low + count)].view(np.float32)
        for j in range(count):
            into[j] = singles[j]
    else:
        doubles = source[8 * low : 8 * (low + count)].view(np.float64)
        for j in range(count):
            into[j] = doubles[j]


def _as_single(number):
    """A number on its way to 16 bits: float32 as it is, float64 rounded to odd."""


@overload(_as_single)
def _as_single_overload(number):
    if number == types.float32:
        return lambda number: number
    return lambda number: _to_odd(number)


@register_jitable
def _narrow(numbers, count, code, rounding, seed, index, into, low):
    """Round a block into stored bytes, from number ``low`` of ``into`` on. ``index`` is the place of
    the block's first element in its tensor, for the draws."""
    if code <= 1:
        halves = into[2 * low : 2 * (low + count)].view(np.uint16)
        if rounding == 0 and code == 0:
            for j in range(count):
                halves[j] = _to_bfloat16(_as_single(numbers[j]))
        elif rounding == 0:
            for j in range(count):
                halves[j] = _to_float16(_as_single(numbers[j]))
        elif code == 0:
            for j in range(count):
                halves[j] = _stochastic_bfloat16(_as_single(numbers[j]), _draw(seed, index + j))
        else:
            for j in range(count):
                halves[j] = _stochastic_float16(_as_single(numbers[j]), _draw(seed, index + j))
    elif code == 2:
        singles = into[4 * low : 4 * (low + count)].view(np.float32)
        if rounding == 0:
            for j in range(count):
                singles[j] = np.float32(numbers[j])
        else:
            for j in range(count):
                singles[j] = _stochastic_float32(np.float64(numbers[j]), _draw(seed, index + j))
    else:
        doubles = into[8 * low : 8 * (low + count)].view(np.float64)
        for j in range(count):
            doubles[j] = numbers[j]


# -- what is kept of a merge for its report ------------------------------------------------------


# Sums over a block may be reordered, so that they run in vectors; over cells they are in order.
_in_vectors = njit(nogil=True, fastmath={"reassoc", "nsz", "contract"})


@_in_vectors
def _dot(a, b, count):
    total = a.dtype.type(0)
    for j in range(count):
        total += a[j] * b[j]
    return total


@_in_vectors
def _difference(a, b, count, into):
    """a - b; returns its squared length, and in how many elements it is not zero."""
    square = a.dtype.type(0)
    unequal = a.dtype.type(0)
    for j in range(count):
        difference = a[j] - b[j]
        into[j] = difference
        square += difference * difference
        unequal += a.dtype.type(difference != 0)  # no branch: it would be taken at random
    return square, unequal


@_in_vectors
def _along(stored, share, first, difference, count):
    """Inner product of ``stored - share * first`` with one of the inputs' differences."""
    total = stored.dtype.type(0)
    for j in range(count):
        total += (stored[j] - share * first[j]) * difference[j]
    return total


@_in_vectors
def _distance(a, b, count):
    """Squared length of a - b."""
    total = a.dtype.type(0)
    for j in range(count):
        difference = a[j] - b[j]
        total += difference * difference
    return total


@register_jitable
def _sum(rows, coefficients, divisor, from_zero, k, size, exact):
    """Linear combination of the rows, by fused multiply-adds in their order."""
    first, second = rows[0], rows[min(1, k - 1)]
    a, b = coefficients[0], coefficients[min(1, k - 1)]
    if k == 1:
        for j in range(size):
            exact[j] = a * first[j]
    else:
        for j in range(size):
            exact[j] = _fma(b, second[j], a * first[j])
    for i in range(2, k):
        row = rows[i]
        a = coefficients[i]
        for j in range(size):
            exact[j] = _fma(a, row[j], exact[j])
    if from_zero:
        for j in range(size):
            exact[j] = exact[j] + rows.dtype.type(0)
    if divisor != 1:
        for j in range(size):
            exact[j] = exact[j] / divisor


@register_jitable
def _compare(rows, k, size, gram, differ):
    """Differences of the inputs (rows 0 to k) to the first, into the rows from k on, and their sums."""
    for i in range(1, k):
        square, unequal = _difference(rows[i], rows[0], size, rows[k + i])
        gram[i - 1, i - 1] += square
        differ[i - 1] += unequal
        for j in range(1, i):
            gram[i - 1, j - 1] += _dot(rows[k + i], rows[k + j], size)


# -- one merge of few models, to bfloat16 ----------------------------------------------------------


@intrinsic
def _fuse(_context, inputs, coefficients, divisor, plus, share, count, out):
    """What :func:`combine` does for one combination to bfloat16, with every number read once.

    Args:
        inputs: a tuple of k arrays, float32 or (bfloat16) uint16.
        coefficients: a tuple of k float32.
        divisor: float32, or None for not at all.
        plus: 0.0, which makes negative zeros positive, or -0.0, which does nothing.
        share: of the first input in the report.
        count: a multiple of WIDE.
        out: uint16 [count], filled.

    Returns:
        A tuple of float32: for i, j = 1 … k-1 with j <= i the inner products of the differences to the first
        input; in how many elements each is not zero; their inner products with the output's difference; the
        squared distance of the rounded output from the exact one.
    """
    k = len(inputs)
    halves = inputs.dtype.dtype == types.uint16
    sums = k * (k - 1) // 2 + 2 * (k - 1) + 1

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = Vectors(builder)
        arrays = cgutils.unpack_tuple(builder, args[0])
        rows = [context.make_array(inputs.dtype)(context, builder, a).data for a in arrays]
        factors = [v.spread(each) for each in cgutils.unpack_tuple(builder, args[1])]
        divide = None if signature.args[2] == types.none else v.spread(args[2])
        zero, part = v.spread(args[3]), v.spread(args[4])
        target = context.make_array(out)(context, builder, args[6]).data
        places = v.zeros(sums)
        size = args[5].type
        with cgutils.for_range(builder, builder.udiv(args[5], size(WIDE))) as loop:
            at = builder.mul(loop.index, size(WIDE))
            found = [v.load(row, at, halves) for row in rows]
            exact = builder.fmul(factors[0], found[0])
            for factor, numbers in zip(factors[1:], found[1:], strict=True):
                exact = v.fma(factor, numbers, exact)
            exact = builder.fadd(exact, zero)
            if divide is not None:
                exact = builder.fdiv(exact, divide)
            rounded = v.narrow(exact)
            v.store(rounded, target, at)
            v.add(v.told(found, exact, v.widen(rounded), part), places)
        return cgutils.pack_array(builder, v.totals(places))

    found = types.UniTuple(types.float32, sums)
    return found(inputs, coefficients, divisor, plus, share, count, out), generate


@register_jitable
def _few(rows, coefficients, divisor, from_zero, out, report, new, gram, differ, cross, noise):
    """:func:`combine` for a block of one combination; ``new`` if it is the first of these inputs."""
    k = len(rows)
    plus = np.float32(0.0 if from_zero else -0.0)
    share = np.float32(0)
    for i in range(k):
        share += coefficients[i]
    share /= divisor
    if divisor == 1:
        sums: Any = _fuse(rows, coefficients, None, plus, share, len(out), out)
    else:
        sums = _fuse(rows, coefficients, divisor, plus, share, len(out), out)
    if report:
        _tell(sums, k, new, gram, differ, cross, noise)


@intrinsic
def _survey_few(_context, rows, exact, stored, count):
    """The sums of :func:`_fuse` for an output that was computed elsewhere, all float32, and behind
    them the inner products of the differences with the exact output's."""
    k = len(rows)
    sums = k * (k - 1) // 2 + 2 * (k - 1) + 1

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = Vectors(builder)
        arrays = [*cgutils.unpack_tuple(builder, args[0]), args[1], args[2]]
        kinds = [rows.dtype] * k + [exact, stored]
        data = [
            context.make_array(kind)(context, builder, array).data
            for kind, array in zip(kinds, arrays, strict=True)
        ]
        places, size = v.zeros(sums + k - 1), args[3].type
        one = v.constant(1.0)
        with cgutils.for_range(builder, builder.udiv(args[3], size(WIDE))) as loop:
            at = builder.mul(loop.index, size(WIDE))
            *found, wanted, kept = (v.load(each, at, False) for each in data)
            moved = builder.fsub(wanted, found[0])
            ideal = [(moved, builder.fsub(numbers, found[0])) for numbers in found[1:]]
            v.add([*v.told(found, wanted, kept, one), *ideal], places)
        return cgutils.pack_array(builder, v.totals(places))

    found = types.UniTuple(types.float32, sums + k - 1)
    return found(rows, exact, stored, count), generate


@register_jitable
def _tell(sums, k, new, gram, differ, cross, noise):
    """Add what :func:`_fuse` found; of the inputs only if ``new``. Returns how many sums that were."""
    n = 0
    for i in range(k - 1):
        for j in range(i + 1):
            gram[i, j] += sums[n] if new else np.float32(0)
            n += 1
    for i in range(k - 1):
        differ[i] += sums[n + i] if new else np.float32(0)
        cross[i] += sums[n + k - 1 + i]
    n += 2 * (k - 1)
    noise[0] += sums[n]
    return n + 1


@register_jitable
def _tell_all(sums, k, gram, differ, ideal, cross, noise):
    n = _tell(sums, k, True, gram, differ, cross, noise)
    for i in range(k - 1):
        ideal[i] += sums[n + i]


def survey_block(scratch, k, exact, stored, size, gram, differ, ideal, cross, noise):
    """What is reported of a block: rows 0 to k of the scratch are the inputs, those from k on are
    overwritten; ``exact`` and ``stored`` are the output before and after rounding."""


@register_jitable
def _survey_any(scratch, k, exact, stored, size, gram, differ, ideal, cross, noise):
    one = scratch.dtype.type(1)
    _compare(scratch, k, size, gram, differ)
    for i in range(1, k):
        cross[i - 1] += _along(stored, one, scratch[0], scratch[k + i], size)
        ideal[i - 1] += _along(exact, one, scratch[0], scratch[k + i], size)
    noise[0] += _distance(stored, exact, size)


@overload(survey_block)
def _survey_block(scratch, k, exact, stored, size, gram, differ, ideal, cross, noise):
    if scratch.dtype != types.float32:
        return _survey_any

    def survey_block(scratch, k, exact, stored, size, gram, differ, ideal, cross, noise):
        if size % WIDE or not 2 <= k <= 3:
            _survey_any(scratch, k, exact, stored, size, gram, differ, ideal, cross, noise)
        elif k == 2:
            pair = scratch[0], scratch[1]
            _tell_all(_survey_few(pair, exact, stored, size), 2, gram, differ, ideal, cross, noise)
        else:
            rows = scratch[0], scratch[1], scratch[2]
            _tell_all(_survey_few(rows, exact, stored, size), 3, gram, differ, ideal, cross, noise)

    return survey_block


@register_jitable
def _few_of(inputs, kind, size, low, high, numbers, divisor, from_zero, out, told):
    """:func:`_few` for elements ``low`` to ``high`` of two or three inputs stored as ``kind``."""
    begin, end = size * low, size * high
    a, b = (
        bytes_of(inputs, 0)[begin:end].view(kind),
        bytes_of(inputs, 1)[begin:end].view(kind),
    )
    first, second = np.float32(numbers[0]), np.float32(numbers[1])
    if inputs.shape[0] == 2:
        _few((a, b), (first, second), divisor, from_zero, out, *told)
    else:
        c, third = bytes_of(inputs, 2)[begin:end].view(kind), np.float32(numbers[2])
        _few((a, b, c), (first, second, third), divisor, from_zero, out, *told)


# -- the kernels ---------------------------------------------------------------------------------


@compiled(error_model="numpy")
def combine(
    inputs,
    codes,
    count,
    coefficients,
    divisors,
    from_zero,
    out_code,
    rounding,
    seeds,
    start,
    scratch,
    outs,
    report,
    gram,
    differ,
    cross,
    noise,
):
    """Several linear combinations of the same inputs, each rounded once.

    Args:
        inputs: intp [k], where the stored bytes of a tile of each input lie.
        codes: int64 [k], their dtypes.
        count: elements in the tile.
        coefficients: [p, k] in the dtype that is computed in, one row a combination.
        divisors: [p], what each sum is divided by; 1 for not at all.
        from_zero: whether sums begin with zero, which makes negative zeros positive.
        out_code, rounding: of all outputs.
        seeds: uint64 [p], for stochastic rounding.
        start: the tile's first element in its tensor; a multiple of CELL.
        scratch: [2 k + 2, BLOCK] in the dtype that is computed in.
        outs: uint8 [p, bytes], filled.
        report: whether to add to the following, whose first axis is the tile's cells:
        gram: float64 [cells, k-1, k-1], inner products of the inputs' differences to the first.
        differ: float64 [cells, k-1], elements in which each input differs from the first.
        cross: float64 [p, cells, k-1], inner products of those with the output's difference.
        noise: float64 [p, cells], squared distance of the rounded output from the exact one.
    """
    k = inputs.shape[0]
    first = scratch[0]
    exact = scratch[2 * k]
    stored = scratch[2 * k + 1]
    halves, singles = np.all(codes == 0), np.all(codes == 2)
    few = 2 <= k <= 3 and coefficients.itemsize == 4 and out_code == 0 and rounding == 0
    done = count // WIDE * WIDE if few and (halves or singles) else 0
    for low in range(0, done, BLOCK):
        high = min(low + BLOCK, done)
        cell = low // CELL if report else 0
        for p in range(coefficients.shape[0]):
            sums = gram[cell], differ[cell], cross[p, cell], noise[p, cell : cell + 1]
            told = report, p == 0, *sums
            out = outs[p, 2 * low : 2 * high].view(np.uint16)
            numbers, divisor = coefficients[p], np.float32(divisors[p])
            if halves:
                _few_of(inputs, np.uint16, 2, low, high, numbers, divisor, from_zero, out, told)
            else:
                _few_of(inputs, np.float32, 4, low, high, numbers, divisor, from_zero, out, told)
    for low in range(done, count, BLOCK):
        size = min(BLOCK, count - low)
        cell = low // CELL
        for i in range(k):
            _widen(bytes_of(inputs, i), codes[i], low, size, scratch[i])
        if report:
            _compare(scratch, k, size, gram[cell], differ[cell])
        for p in range(coefficients.shape[0]):
            _sum(scratch, coefficients[p], divisors[p], from_zero, k, size, exact)
            share = scratch.dtype.type(0)
            for i in range(k):
                share += coefficients[p, i]
            share /= divisors[p]
            _narrow(exact, size, out_code, rounding, seeds[p], start + low, outs[p], low)
            if report:
                _widen(outs[p], out_code, low, size, stored)
                for i in range(1, k):
                    cross[p, cell, i - 1] += _along(stored, share, first, scratch[k + i], size)
                noise[p, cell] += _distance(stored, exact, size)


@compiled(error_model="numpy")
def survey(inputs, codes, count, exact, out, out_code, scratch, gram, differ, ideal, cross, noise):
    """What :func:`combine` reports, for an output that was computed elsewhere.

    Args:
        inputs, codes, count, out_code: as in :func:`combine`.
        exact: [count], the result before rounding, in the dtype of ``scratch``.
        out: uint8 [bytes], the result after rounding.
        scratch: [2 k + 2, BLOCK].
        gram, differ: as in :func:`combine`.
        ideal, cross: float64 [cells, k-1], inner products with the exact and the rounded result.
        noise: float64 [cells].
    """
    k = inputs.shape[0]
    stored = scratch[2 * k + 1]
    for low in range(0, count, BLOCK):
        size = min(BLOCK, count - low)
        cell = low // CELL
        block = exact[low : low + size]
        for i in range(k):
            _widen(bytes_of(inputs, i), codes[i], low, size, scratch[i])
        _widen(out, out_code, low, size, stored)
        sums = gram[cell], differ[cell], ideal[cell], cross[cell], noise[cell : cell + 1]
        survey_block(scratch, k, block, stored, size, *sums)


MEASURED = 1024
"""Elements that are measured at once, a multiple of DOUBLES * CHAINS."""

MEASURE_WIDTH = MEASURED + 64
"""Of the rows of scratch for that: were they a page apart, they would evict each other."""


def _load(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """A function that gives the DOUBLES numbers of an array from a place on, as float64. Arrays of
    uint16 hold bfloat16."""
    data = context.make_array(kind)(context, builder, value).data
    bits = {types.uint16: 16, types.float32: 32, types.float64: 64}[kind.dtype]
    stored = {16: ir.IntType(16), 32: ir.FloatType(), 64: ir.DoubleType()}[bits]

    def vector(element: Any) -> Any:
        return ir.VectorType(element, DOUBLES)

    def load(place: Any) -> Any:
        pointer = builder.bitcast(builder.gep(data, [place]), vector(stored).as_pointer())
        found = builder.load(pointer, align=bits // 8)
        if bits == 16:
            word = ir.IntType(32)
            high = ir.Constant(vector(word), [16] * DOUBLES)
            found = builder.shl(builder.zext(found, vector(word)), high)
            found = builder.bitcast(found, vector(ir.FloatType()))
        return found if bits == 64 else builder.fpext(found, vector(ir.DoubleType()))

    return load


@intrinsic
def _inner(_context, a, b, count):
    """The inner product of ``count`` elements in float64, in a fixed order."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, y = (_load(context, builder, signature.args[n], args[n]) for n in (0, 1))
        [total] = summations(builder, args[2], 1, lambda p: [builder.fmul(x(p), y(p))])
        return total

    return types.float64(a, b, types.intp), generate


@intrinsic
def _inner_of_pair(_context, a, b, base, count):
    """a·a, b·b and a·b, each in the order of :func:`_inner`, with every number read once; of the
    differences to ``base``, unless that is None."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        based = signature.args[2] != types.none
        x, y, *origin = (
            _load(context, builder, signature.args[n], args[n]) for n in range(3 if based else 2)
        )

        def terms(place: Any) -> list[Any]:
            left, right = x(place), y(place)
            for load in origin:
                left, right = (builder.fsub(each, load(place)) for each in (left, right))
            return [builder.fmul(*pair) for pair in ((left, left), (right, right), (left, right))]

        return cgutils.pack_array(builder, summations(builder, args[3], 3, terms))

    return types.UniTuple(types.float64, 3)(a, b, base, count), generate


@intrinsic
def _sum_of_sizes(_context, a, count):
    """The sum of the absolute values of ``count`` elements in float64, in a fixed order."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x = _load(context, builder, signature.args[0], args[0])
        vector = ir.VectorType(ir.DoubleType(), DOUBLES)
        kind = ir.FunctionType(vector, [vector])
        size = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fabs.v{DOUBLES}f64")
        [total] = summations(builder, args[1], 1, lambda p: [builder.call(size, [x(p)])])
        return total

    return types.float64(a, types.intp), generate


@register_jitable
def _widen_vectors(inputs, codes, low, size, changes, scratch):
    """Blocks of the vectors to be measured, zeros behind them: the inputs, or the changes of all but
    the first, whose row is then not a vector but the base. Returns the first vector's row."""
    k = inputs.shape[0]
    for i in range(k):
        _widen(bytes_of(inputs, i), codes[i], low, size, scratch[i])
        scratch[i, size:] = 0.0
    if not changes:
        return 0
    for i in range(1, k):
        for n in range(size):
            scratch[i, n] -= scratch[0, n]
    return 1


@register_jitable
def _measure_pair(inputs, low, high, kind, changes, gram):
    """:func:`measure` of bytes ``low`` to ``high`` of two vectors stored as ``kind``."""
    k = len(inputs)
    a, b = (
        bytes_of(inputs, k - 2)[low:high].view(kind),
        bytes_of(inputs, k - 1)[low:high].view(kind),
    )
    if changes:
        base = bytes_of(inputs, 0)[low:high].view(kind)
        sums: Any = _inner_of_pair(a, b, base, MEASURED)
    else:
        sums = _inner_of_pair(a, b, None, MEASURED)
    gram[0, 0] += sums[0]
    gram[1, 1] += sums[1]
    gram[1, 0] += sums[2]


@compiled()
def measure(inputs, codes, count, changes, scratch, gram):
    """Add a tile's inner products to ``gram``, float64 [cells, m, m] (lower triangle).

    They decide coefficients, so they are the same on every processor. ``changes`` measures the
    differences of the inputs to the first, which are m = k - 1. ``scratch`` is float64
    [k, MEASURE_WIDTH].
    """
    halves = gram.shape[1] == 2 and np.all(codes == 0)
    singles = gram.shape[1] == 2 and np.all(codes == 2)
    for low in range(0, count, MEASURED):
        size = min(MEASURED, count - low)
        cell = low // CELL
        end = low + size
        if halves and size == MEASURED:
            _measure_pair(inputs, 2 * low, 2 * end, np.uint16, changes, gram[cell])
            continue
        if singles and size == MEASURED:
            _measure_pair(inputs, 4 * low, 4 * end, np.float32, changes, gram[cell])
            continue
        first = _widen_vectors(inputs, codes, low, size, changes, scratch)
        for i in range(gram.shape[1]):
            for j in range(i + 1):
                gram[cell, i, j] += _inner(scratch[first + i], scratch[first + j], MEASURED)


@compiled()
def measure_rows(inputs, codes, count, changes, length, start, scratch, rows, heads):
    """:func:`measure`, row by row.

    Args:
        inputs, codes, count, changes, scratch: as in :func:`measure`.
        length: of a row.
        start: the tile's first element in its tensor.
        rows: float64 [rows of the tensor, m, m], to be added to where a row begins in the cell.
        heads: float64 [cells of the tile, m, m], to be added to where it began in an earlier one: no
            two tiles then ever add to the same place.
    """
    for low in range(0, count, MEASURED):
        size = min(MEASURED, count - low)
        cell = low // CELL
        first = _widen_vectors(inputs, codes, low, size, changes, scratch)
        begin = start + low // CELL * CELL
        n = 0
        while n < size:
            row = (start + low + n) // length
            end = min(size, (row + 1) * length - start - low)
            for i in range(rows.shape[1]):
                for j in range(i + 1):
                    total = 0.0
                    for e in range(n, end):
                        total += scratch[first + i, e] * scratch[first + j, e]
                    if row * length >= begin:
                        rows[row, i, j] += total
                    else:
                        heads[cell, i, j] += total
            n = end


@compiled()
def measure_columns(inputs, codes, count, changes, length, start, scratch, columns):
    """:func:`measure`, column by column, into float64 [length, m, m]."""
    for low in range(0, count, MEASURED):
        size = min(MEASURED, count - low)
        first = _widen_vectors(inputs, codes, low, size, changes, scratch)
        column = (start + low) % length
        for e in range(size):
            for i in range(columns.shape[1]):
                for j in range(i + 1):
                    columns[column, i, j] += scratch[first + i, e] * scratch[first + j, e]
            column = column + 1 if column + 1 < length else 0


@compiled(error_model="numpy")
def combine_each(inputs, codes, count, coefficients, length, by_rows, start, scratch, exact):
    """A linear combination whose coefficients change from row to row, or from column to column.

    Args:
        inputs, codes, count, start: as in :func:`combine`.
        coefficients: [rows or columns, k] in the dtype that is computed in.
        length: of a row.
        by_rows: whether they belong to rows.
        scratch: [k, BLOCK] in the same dtype.
        exact: [count], filled.
    """
    k = inputs.shape[0]
    for low in range(0, count, BLOCK):
        size = min(BLOCK, count - low)
        for i in range(k):
            _widen(bytes_of(inputs, i), codes[i], low, size, scratch[i])
        row = (start + low) // length
        column = (start + low) % length
        for e in range(size):
            vector = row if by_rows else column
            total = coefficients[vector, 0] * scratch[0, e]
            for i in range(1, k):
                total = _fma(coefficients[vector, i], scratch[i, e], total)
            exact[low + e] = total
            column += 1
            if column == length:
                column = 0
                row += 1


@compiled()
def widen(stored, code, count, into):
    """Stored bytes as ``count`` float32 or float64 numbers."""
    _widen(stored, code, 0, count, into)


@compiled()
def narrow(numbers, count, code, rounding, seed, start, into):
    """Round ``count`` float32 or float64 numbers into stored bytes."""
    _narrow(numbers, count, code, rounding, seed, start, into, 0)


@compiled()
def count_nonfinite(data, code):
    """How many of a tile's numbers are infinite or not a number, by their bits."""
    found = 0
    if code == 3:
        for bits in data.view(np.uint64):
            found += (bits & np.uint64(0x7FF0000000000000)) == np.uint64(0x7FF0000000000000)
    elif code == 2:
        for bits in data.view(np.uint32):
            found += (bits & np.uint32(0x7F800000)) == np.uint32(0x7F800000)
    else:
        exponent = np.uint16(0x7F80 if code == 0 else 0x7C00)
        for bits in data.view(np.uint16):
            found += (bits & exponent) == exponent
    return found


@register_jitable
def _mix(word):
    """A permutation of the 64-bit words in which every bit reaches many."""
    word = (word ^ (word >> np.uint64(32))) * _MIX1
    return word ^ (word >> np.uint64(29))


@compiled()
def digest(data, sums):
    """A 64-bit digest of every CELL bytes of ``data``, a tile's output, into uint64 ``sums``.

    Each 8-byte word is mixed with its place and added up (modulo 2**64), so that any single
    changed word changes the sum, and all others but for one chance in 2**64. It guards against
    damage, not against forgery.
    """
    size = data.shape[0]
    for cell in range(sums.shape[0]):
        low = cell * CELL
        high = min(low + CELL, size)
        whole = (high - low) // 8
        words = data[low : low + 8 * whole].view(np.uint64)
        total = np.uint64(high - low)
        place = np.uint64(0)
        for n in range(whole):
            place += _GOLDEN
            total += _mix(words[n] + place)
        last = np.uint64(0)
        for n in range(low + 8 * whole, high):
            last = (last << np.uint64(8)) | np.uint64(data[n])
        if low + 8 * whole < high:
            total += _mix(last + place + _GOLDEN)
        sums[cell] = total
