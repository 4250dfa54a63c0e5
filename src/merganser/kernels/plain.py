"""The kernels' steps in numpy: the fallback, and the reference for tests of the compiled kernels.

Every kernel checks its arguments and calls the compiled kernel, or these functions if there is
none. Outputs, Gram matrices, norms, digests and masks have the same bits either way; the
report's sums are added in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from merganser.kernels import CELL, CODES, LANES
from merganser.kernels.arguments import Array, Inputs, quietly
from merganser.kernels.rules import ALL, BETWEEN, DRAWN, MASKED, NOTHING, VARIANCE, Rules
from merganser.kernels.steps import Fusion, Given, Linear, Output, Sparse, Sums

_GOLDEN, _MIX1, _MIX2 = (
    np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
MEASURED, _STEP = 1024, 32


# -- numbers ---------------------------------------------------------------------------------------


@quietly
def widened(inputs: Inputs, i: int, count: int, dtype: Any) -> Array:
    """An input's numbers, in float32 or float64."""
    row, code = inputs.rows[i], int(inputs.codes[i])
    if code == CODES["bfloat16"]:
        words = row[: 2 * count].view(np.uint16).astype(np.uint32) << np.uint32(16)
        return words.view(np.float32).astype(dtype)
    kind = {1: np.float16, 2: np.float32, 3: np.float64}[code]
    return row[: count * np.dtype(kind).itemsize].view(kind).astype(dtype)


def draws(seed: int, start: int, count: int) -> Array:
    """64 random bits per element: splitmix64 of its index (Steele et al. 2014)."""
    z = np.uint64(seed) + np.arange(start + 1, start + count + 1, dtype=np.uint64) * _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    mixed: Array = z ^ (z >> np.uint64(31))
    return mixed


def _odd(near: Array, error: Array) -> Array:
    """float64 sums, rounded to odd: inexact sums take the odd neighbour."""
    even = (near.view(np.uint64) & np.uint64(1)) == 0
    move = even & (error != 0) & np.isfinite(near)
    return np.where(move, np.nextafter(near, np.where(error > 0, np.inf, -np.inf)), near)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """a + b, rounded, and the exact error (Knuth's two-sum)."""
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def _split(a: Array) -> tuple[Array, Array]:
    """float64 numbers as sums of two halves with short mantissas (Veltkamp)."""
    high = 134217729.0 * a
    high = high - (high - a)
    return high, a - high


def fma(a: Any, b: Array, c: Array) -> Array:
    """a * b + c, rounded once, by rounding to odd first (Boldo and Melquiond 2008)."""
    if b.dtype == np.float32:
        total, error = _two_sum(np.float64(a) * b.astype(np.float64), c.astype(np.float64))
        return _odd(total, error).astype(np.float32)
    a = np.broadcast_to(np.float64(a), b.shape)
    product = a * b
    (ah, al), (bh, bl) = _split(a), _split(b)
    below = al * bl - (((product - ah * bh) - al * bh) - ah * bl)
    high, low = _two_sum(c, below)
    total, rest = _two_sum(product, high)
    once = total + _odd(*_two_sum(low, rest))
    return np.where(np.isfinite(once), once, a * b + c)


def _single(numbers: Array) -> Array:
    """float32, or float64 rounded to odd, so that rounding it again equals rounding once."""
    near = numbers.astype(np.float32)
    if numbers.dtype == np.float32:
        return near
    back, bits = near.astype(np.float64), near.view(np.uint32)
    keep = (back == numbers) | np.isnan(numbers) | np.isinf(near) | (bits & np.uint32(1) == 1)
    step = np.where(abs(numbers) > abs(back), bits + np.uint32(1), bits - np.uint32(1))
    return np.where(keep, bits, step).astype(np.uint32).view(np.float32)


@quietly
def narrowed(numbers: Array, dtype: str, stochastic: bool, seed: int, start: int) -> Array:
    """Round numbers to a dtype; returns bytes."""
    if dtype == "float64" or (
        dtype == "float32" and (not stochastic or numbers.dtype == np.float32)
    ):
        wide = numbers.astype(dtype)
        return np.where(np.isnan(wide), wide.dtype.type(np.nan), wide).view(np.uint8)
    drawn = draws(seed, start, len(numbers))
    if dtype == "float32":
        mask = np.uint64(0x1FFFFFFF)
        cut = ((numbers.view(np.uint64) + (drawn & mask)) & ~mask).view(np.float64)
        as_is = ~np.isfinite(numbers) | (abs(numbers) < 1.2e-38)
        wide = np.where(as_is, numbers, cut).astype(np.float32)
        return np.where(np.isnan(wide), np.float32(np.nan), wide).view(np.uint8)
    singles = _single(numbers)
    bits, finite, word = singles.view(np.uint32), np.isfinite(singles), drawn.astype(np.uint32)
    if dtype == "float16":
        if stochastic:
            cut = ((bits + (word & np.uint32(0x1FFF))) & np.uint32(0xFFFFE000)).view(np.float32)
            steps = abs(singles.astype(np.float64)) * 2.0**24
            below = np.floor(steps)
            below += (drawn >> np.uint64(11)) * 2.0**-53 < steps - below
            small = np.where(singles < 0, -below, below) / 2.0**24
            small = np.where(abs(singles) < 2.0**-14, small.astype(np.float32), cut)
            singles = np.where(finite, small, singles)
        halves = singles.astype(np.float16)
        return np.where(np.isnan(halves), np.float16(np.nan), halves).view(np.uint8)
    near: Array = bits + ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)
    if stochastic:
        near = np.where(finite, bits + (word & np.uint32(0xFFFF)), near)
    half = np.where(np.isnan(singles), np.uint32(0x7FC0), near >> np.uint32(16))
    return half.astype(np.uint16).view(np.uint8)


# -- merging ---------------------------------------------------------------------------------------


def merge(
    inputs: Inputs,
    count: int,
    start: int,
    work: np.dtype[Any],
    dtype: str,
    stochastic: bool,
    outputs: Sequence[Output],
) -> None:
    """:func:`merganser.kernels.merging.merge`, for steps that have a numpy form.

    Raises:
        ValueError: for the others.
    """
    rows = [widened(inputs, i, count, work) for i in range(len(inputs.rows))]
    for output in outputs:
        how, models = output.how, rows
        match how:
            case Linear():
                exact = combined(rows, how)
            case Sparse():
                exact = agreed(rows, how, start)
            case Fusion():
                divergences = how.divergences[np.arange(start, start + count) // how.length]
                important = importances(rows[1] - rows[0], divergences) >= np.float32(how.bound)
                exact = np.where(important, rows[1], rows[0])
            case Given():
                models, exact = rows[:-1], rows[-1]
            case _:
                raise ValueError("without compiled kernels torch computes this step")
        made = narrowed(exact, dtype, stochastic, output.seed, start)
        output.data[: len(made)] = made
        if output.sums is not None:
            stored = widened(Inputs.of((made,), (CODES[dtype],)), 0, count, work)
            add_report(models, exact, stored, how.share, output.sums)


def combined(rows: Sequence[Array], how: Linear) -> Array:
    """Compute a linear combination."""
    result: Array = how.coefficients[0] * rows[0]
    for coefficient, row in zip(how.coefficients[1:], rows[1:], strict=True):
        result = fma(coefficient, row, result)
    dtype = result.dtype.type
    result = (result + dtype(how.plus)) / dtype(how.divisor)
    return result


def agreed(rows: Sequence[Array], how: Sparse, start: int) -> Array:
    """Sum sparse deltas."""
    base, dtype = rows[0], rows[0].dtype.type
    apart = [row - base for row in rows[1:]]
    if not apart:
        return base
    marks = marks_of(apart, how.rules, start)
    kept = [np.where(m, f * d, dtype(0)) for m, f, d in zip(marks, how.factors, apart, strict=True)]
    change = sum(kept[1:], kept[0])
    counts = [part != 0 for part in kept]
    if how.elect:
        up = change >= 0
        counts = [c & ((part > 0) == up) for c, part in zip(counts, kept, strict=True)]
        change = sum(
            (np.where(c, p, dtype(0)) for c, p in zip(counts, kept, strict=True)), dtype(0)
        )
    if how.divide == "counted":
        each = zip(counts, how.weights, strict=True)
        share = sum((np.where(c, w, dtype(0)) for c, w in each), dtype(0))
        change = change / np.where(share != 0, share, dtype(1))
    elif how.divide == "weights":
        change = change / dtype(how.total_weight)
    if how.least:
        assert how.slack is not None
        uses = [~(abs(d) < s * abs(change - d)) for d, s in zip(apart, how.slack, strict=True)]
        change = np.where(sum(use.astype(np.int64) for use in uses) >= how.least, change, dtype(0))
    result: Array = base + dtype(how.scale) * change
    return result


def add_report(
    rows: Sequence[Array], exact: Array, stored: Array, share: float, sums: Sums
) -> None:
    """Add an output's figures to the sums of its cells."""
    base = rows[0].astype(np.float64)
    apart = [row - rows[0] for row in rows[1:]]
    moved, ideal = stored - rows[0].dtype.type(share) * base, exact - rows[0]
    for cell in range(-(-len(exact) // CELL)):
        here = slice(cell * CELL, (cell + 1) * CELL)
        for i, x in enumerate(apart):
            if sums.gram is not None and sums.differ is not None:
                for j in range(i + 1):
                    sums.gram[cell, i, j] += _dot(x[here], apart[j][here])
                sums.differ[cell, i] += np.count_nonzero(x[here])
            if sums.ideal is not None:
                sums.ideal[cell, i] += _dot(ideal[here], x[here])
            sums.cross[cell, i] += _dot(moved[here], x[here])
        sums.noise[cell] += _dot((stored - exact)[here], (stored - exact)[here])


def _dot(a: Array, b: Array) -> float:
    return float((a.astype(np.float64) * b).sum())


# -- which deltas are kept -------------------------------------------------------------------------


def keys_of(numbers: Array) -> Array:
    """Keys of numbers: their magnitudes as the bits of float32."""
    return abs(numbers).astype(np.float32).view(np.uint32)


def _variance(apart: Sequence[Array]) -> Array:
    """The variance of the deltas between models, at each position."""
    count = apart[0].dtype.type(len(apart))
    mean = sum(apart[1:], apart[0]) / count
    squares = [(d - mean) * (d - mean) for d in apart]
    variance: Array = sum(squares[1:], squares[0]) / count
    return variance


def marks_of(apart: Sequence[Array], rules: Rules, start: int) -> list[Array]:
    """Masks of the kept deltas, one per model."""
    models = len(apart)
    if len(rules.kinds) == models + 1:
        return [_between(keys_of(_variance(apart)), rules, models, start)] * models
    return [_mark(d, rules, m, start) for m, d in enumerate(apart)]


def _mark(change: Array, rules: Rules, m: int, start: int) -> Array:
    rule, count = rules.kinds[m], len(change)
    if rule in (ALL, NOTHING):
        return np.full(count, rule == ALL)
    if rule == BETWEEN:
        return _between(keys_of(change), rules, m, start)
    here = slice(start >> 3, (start + count + 7) >> 3)
    if rule == MASKED:
        return np.unpackbits(rules.masks[m, here], bitorder="little", count=count).astype(bool)
    assert rule == DRAWN
    kept: Array = draws(rules.seeds[m], start, count) < rules.chances[m]
    if rules.masks.shape[1]:
        rules.masks[m, here] = np.packbits(kept, bitorder="little")
    return kept


def _between(keys: Array, rules: Rules, m: int, start: int) -> Array:
    """The mask of the keys between the cuts of rule m."""
    if rules.kinds[m] in (ALL, NOTHING):
        return np.full(len(keys), rules.kinds[m] == ALL)
    cell = np.arange(start, start + len(keys)) // CELL
    over = []
    for cut, allowed, present in zip(
        rules.cuts[m], rules.allowed[m], rules.present[m], strict=True
    ):
        equal = keys == cut
        before = np.cumsum(equal) - equal
        first = np.arange(len(keys)) // CELL * CELL
        ordinal = before - before[first] if len(keys) else before
        all_are = allowed >= present
        over.append((keys > cut) | (equal & (all_are[cell] | (ordinal < allowed[cell]))))
    between: Array = over[1] & ~over[0]
    return between


def add_blocks(terms: Array, size: int, into: Array) -> None:
    """Add float64 numbers to the sums of their cells, by blocks in the kernels' order."""
    blocks = -(-len(terms) // size)
    padded = np.zeros(blocks * size)
    padded[: len(terms)] = terms
    steps = padded.reshape(blocks, size // _STEP, 4, _STEP // 4)
    chains = np.zeros((blocks, 4, _STEP // 4))
    for n in range(steps.shape[1]):
        chains += steps[:, n]
    lanes = (chains[:, 0] + chains[:, 1]) + (chains[:, 2] + chains[:, 3])
    while lanes.shape[1] > 1:
        lanes = lanes[:, 0::2] + lanes[:, 1::2]
    for block, total in enumerate(lanes[:, 0]):
        into[block * size // CELL] += total


@quietly
def change_keys(inputs: Inputs, count: int, work: np.dtype[Any], model: int) -> Array:
    """Keys of a model's deltas, or of the variance between models."""
    base, *rows = (widened(inputs, i, count, work) for i in range(len(inputs.rows)))
    if model == VARIANCE:
        return keys_of(_variance([row - base for row in rows]))
    return keys_of(rows[model] - base)


# -- importances of arcee_fusion -------------------------------------------------------------------


def _polynomial(x: Array, *terms: str) -> Array:
    """A polynomial by Horner's rule; the coefficients are the kernels', in hexadecimal."""
    result = np.full(x.shape, float.fromhex(terms[0]))
    for term in terms[1:]:
        result = result * x + float.fromhex(term)
    return result


_LOG2 = float.fromhex("0x1.62e42fefa38p-1"), float.fromhex("0x1.ef35793c7673p-45")


def power(x: Array) -> Array:
    """e**x for x <= 0."""
    shift = float.fromhex("0x1.8p52")
    t = x * float.fromhex("0x1.71547652b82fep0") + shift
    n = t - shift
    # fmt: off
    near = _polynomial(
        (x - n * _LOG2[0]) - n * _LOG2[1], "0x1.af38a9b0ec855p-26",
        "0x1.289185613a3d6p-22", "0x1.71de0dae63bb3p-19", "0x1.a019b90d2ae7ap-16", "0x1.a01a01a7c41d5p-13",
        "0x1.6c16c1788bd90p-10", "0x1.11111111109b3p-7", "0x1.5555555553d63p-5", "0x1.5555555555556p-3",
        "0x1.0000000000001p-1", "0x1p0", "0x1p0",
    )
    # fmt: on
    made = (near.view(np.uint64) + (t.view(np.uint64) << np.uint64(52))).view(np.float64)
    return np.where(x < -708.0, 0.0, made)


def log_ratio(p: Array, q: Array) -> Array:
    """log(p / q) for numbers that are neither zero nor subnormal."""
    n = (p.view(np.int64) - q.view(np.int64) + (1 << 51)) >> 52
    near = (p.view(np.int64) - (n << 52)).view(np.float64)
    f = (near - q) / (near + q)
    s = f * f
    # fmt: off
    series = _polynomial(
        s, "0x1.35b99f3a4cd26p-4", "0x1.38ffd7ff2ea9cp-4", "0x1.746bd7ec3f49dp-4", "0x1.c71c3c49cff06p-4",
        "0x1.249249529dd5cp-3", "0x1.999999997bed9p-3", "0x1.555555555556ep-2",
    )
    # fmt: on
    k, twice = n.astype(np.float64), f + f
    return k * _LOG2[0] + (k * _LOG2[1] + (twice + twice * (series * s)))


def lane_sums(rows: Array) -> Array:
    """Sums of rows [rows, steps, LANES] in the kernels' order."""
    sums = np.zeros((len(rows), LANES))
    for n in range(rows.shape[1]):
        sums += rows[:, n]
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    return sums[:, 0]


def importances(change: Array, divergences: Array) -> Array:
    """Magnitudes of deltas times the divergences of their rows."""
    return (abs(change).astype(np.float64) * divergences).astype(np.float32)


# -- Gram matrices ---------------------------------------------------------------------------------


@quietly
def vectors_of(inputs: Inputs, count: int, changes: bool) -> list[Array]:
    """The inputs, or their deltas to the first, in float64."""
    rows = [widened(inputs, i, count, np.float64) for i in range(len(inputs.rows))]
    return [row - rows[0] for row in rows[1:]] if changes else rows


# -- stored numbers --------------------------------------------------------------------------------


@quietly
def digest(data: Array, sums: Array) -> None:
    """See :func:`merganser.kernels.storage.digest`."""
    for cell in range(len(sums)):
        piece = data[cell * CELL : (cell + 1) * CELL]
        words = piece[: len(piece) // 8 * 8].view(np.uint64)
        rest = piece[len(words) * 8 :]
        if len(rest):
            words = np.append(words, np.uint64(int.from_bytes(rest.tobytes(), "big")))
        z = words + np.arange(1, len(words) + 1, dtype=np.uint64) * _GOLDEN
        z = (z ^ (z >> np.uint64(32))) * _MIX1
        sums[cell] = np.uint64(len(piece)) + (z ^ (z >> np.uint64(29))).sum(dtype=np.uint64)


def distances_of(inputs: Inputs, count: int) -> Array:
    """Distances in units in the last place, at most 0xFFFF."""
    codes = inputs.codes[:2].tolist()
    if codes[0] == codes[1] and codes[0] <= CODES["float16"]:
        bits = [row[: 2 * count].view(np.uint16).astype(np.int64) for row in inputs.rows[:2]]
        x, y = (np.where(b >> 15, -(b & 0x7FFF), b) for b in bits)
    elif CODES["float64"] in codes:
        bits = [widened(inputs, i, count, np.float64).view(np.int64) for i in (0, 1)]
        x, y = (np.where(b < 0, -(b & np.int64(2**63 - 1)), b) for b in bits)
    else:
        wide = [
            widened(inputs, i, count, np.float32).view(np.int32).astype(np.int64) for i in (0, 1)
        ]
        x, y = (np.where(b < 0, -(b & 0x7FFFFFFF), b) for b in wide)
    far = abs(x.astype(np.float64) - y) >= 1e15
    return np.where(far, 0xFFFF, np.minimum(abs(x - y), 0xFFFF))
