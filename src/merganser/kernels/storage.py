"""The kernels for stored numbers: digests, counts, widening, comparisons, adapters."""

from __future__ import annotations

import ctypes

import numpy as np

from merganser.kernels import CELL, CODES, WIDTHS
from merganser.kernels.arguments import Array, Inputs, InputsStruct, cells_of, checked, quietly
from merganser.kernels.library import kernels

_I64, _F64, _PTR = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p

BUCKETS = 18
"""Buckets of distances in units in the last place: 0, 1, 2, 3–4, 5–8 … up to 2**15, and above."""

FIGURES = 10
"""Sums of a comparison per cell, in the order of :class:`merganser.differences.diff.TensorDiff`."""


class _ProductStruct(ctypes.Structure):
    _fields_ = (
        ("inputs", InputsStruct),
        ("count", _I64),
        ("skipped", _I64),
        ("left", _PTR),
        ("right", _PTR),
        ("rows", _I64),
        ("rank", _I64),
        ("columns", _I64),
        ("scale", _F64),
        ("by_row", _PTR),
        ("by_column", _PTR),
        ("wide", _I64),
        ("out", _PTR),
    )


def digest(data: Array, sums: Array) -> None:
    """Compute a 64-bit digest of every CELL bytes of ``data``, uint8, into uint64 ``sums``.

    Each 8-byte word is mixed with its index, and the results are added modulo 2**64. A change of
    one word always changes the sum; other changes do, except with probability 2**-64. The digest
    detects damage, not forgery.
    """
    place = checked(data, np.uint8, len(data))
    if len(data) and len(sums) != cells_of(len(data)):
        raise ValueError(f"{len(sums)} digests for {len(data)} bytes")
    into = checked(sums, np.uint64, len(sums))
    if library := kernels():
        library.digest(place, len(data), into, len(sums))
        return
    from merganser.kernels import plain

    plain.digest(data, sums)


def count_nonfinite(data: Array, code: int) -> int:
    """Count the infinite and NaN numbers of a tile, uint8, by their bits."""
    place, count = checked(data, np.uint8, len(data)), len(data) // WIDTHS[code]
    if library := kernels():
        return int(library.count_nonfinite(place, code, count))

    kinds = (np.uint16, np.uint16, np.uint32, np.uint64)
    exponents = (0x7F80, 0x7C00, 0x7F800000, 0x7FF0000000000000)
    bits: Array = data[: len(data) // WIDTHS[code] * WIDTHS[code]].view(kinds[code])
    exponent = bits.dtype.type(exponents[code])
    return int(np.count_nonzero((bits & exponent) == exponent))


def widen(data: Array, code: int, count: int, into: Array) -> None:
    """Widen stored bytes, uint8, to ``count`` float32 or float64 numbers."""
    inputs = Inputs.of((data,), (code,))
    place = checked(into, np.dtype(into.dtype), count)
    if into.dtype.name not in ("float32", "float64"):
        raise ValueError(f"numbers are not widened to {into.dtype}")
    struct = ctypes.byref(inputs.struct(count))
    if library := kernels():
        library.widen_all(struct, count, into.dtype == np.float64, place)
    else:
        from merganser.kernels import plain

        into[:count] = plain.widened(inputs, 0, count, into.dtype)


@quietly
def compare(inputs: Inputs, count: int, sums: Array, histogram: Array) -> None:
    """Add the comparison of a tile of two tensors, and of a third as their base, to the sums of the
    tile's cells.

    Args:
        inputs: the two tensors' tile, and optionally the base's; it begins at a multiple of CELL.
        count: elements in the tile.
        sums: float64 [cells, FIGURES], incremented.
        histogram: int64 [cells, BUCKETS], incremented.
    """
    if not 2 <= len(inputs.rows) <= 3:
        raise ValueError(f"{len(inputs.rows)} tensors are not compared")
    cells = cells_of(count)
    places = (
        checked(sums, np.float64, cells, FIGURES),
        checked(histogram, np.int64, cells, BUCKETS),
    )
    struct = ctypes.byref(inputs.struct(count))
    if library := kernels():
        library.compare(struct, count, *places)
        return
    from merganser.kernels import plain

    x, y, *base = (plain.widened(inputs, i, count, np.float64) for i in range(len(inputs.rows)))
    figures = [(x - y) ** 2, x * x]
    if base:
        (z,) = base
        a, b = x - z, y - z
        figures += [a * a, b * b, a * b, a * b > 0, a * b != 0, abs(a + b), abs(a) + abs(b), z * z]
    distances = plain.distances_of(inputs, count)
    bounds = np.array([0, *(1 << n for n in range(16))])
    buckets = np.searchsorted(bounds, distances)
    for cell in range(-(-count // CELL)):
        here = slice(cell * CELL, (cell + 1) * CELL)
        for n, figure in enumerate(figures):
            sums[cell, n] += figure[here].sum(dtype=np.float64)
        histogram[cell] += np.bincount(buckets[here], minlength=histogram.shape[1])


@quietly
def add_product(
    weights: Array,
    left: Array,
    right: Array,
    scale: float,
    skipped: int,
    by_row: Array,
    by_column: Array,
    out: Array,
) -> None:
    """out = (weights + scale * left @ right) * by_row * by_column, for a range of elements.

    Each element's sum runs over the ranks in order, in float64, independently of the range.

    Args:
        weights: float [count], the range in row-major order.
        left: float [rows, rank], the rows that the range touches.
        right: float [rank, columns].
        scale: factor of the product.
        skipped: elements of the first row before the range.
        by_row, by_column: float64 [rows] and [columns].
        out: float [count].
    """
    (rows, rank), columns, count = left.shape, right.shape[1], len(out)
    if skipped < 0 or skipped + count > rows * columns or weights.shape != out.shape:
        raise ValueError(f"{skipped} + {count} elements of {rows} x {columns}")
    left, right = (np.ascontiguousarray(factor, np.float64) for factor in (left, right))
    inputs = Inputs.of((weights.view(np.uint8),), (CODES[weights.dtype.name],))
    struct = _ProductStruct(
        inputs.struct(count),
        count,
        skipped,
        checked(left, np.float64, rows, rank),
        checked(right, np.float64, rank, columns),
        rows,
        rank,
        columns,
        scale,
        checked(by_row, np.float64, rows),
        checked(by_column, np.float64, columns),
        out.dtype == np.float64,
        checked(out, np.float64 if out.dtype == np.float64 else np.float32, count),
    )
    if library := kernels():
        library.add_product(ctypes.byref(struct))
        return

    sums = np.zeros((len(left), right.shape[1]))
    for rank in range(len(right)):
        sums += left[:, rank, None].astype(np.float64) * right[rank]
    here = slice(skipped, skipped + len(out))
    factors = np.repeat(by_row, right.shape[1])[here], np.tile(by_column, len(left))[here]
    number = weights.astype(np.float64) + scale * sums.reshape(-1)[here]
    out[:] = number * factors[0] * factors[1]


def add_squares(values: Array, by_column: bool, squares: Array) -> None:
    """Add the squares of float64 [rows, columns] to the sums of rows or columns, in order."""
    rows, columns = values.shape
    place = checked(values, np.float64, rows, columns)
    into = checked(squares, np.float64, columns if by_column else rows)
    if library := kernels():
        library.add_squares(place, rows, columns, by_column, into)
        return

    for line in values if by_column else values.T:
        squares[: len(line)] += line * line


@quietly
def look_up(
    codes: Array,
    table: Array,
    scales: Array,
    lines: Array,
    width: int,
    columns: int,
    skipped: int,
    into: Array,
) -> None:
    """Dequantise 8-bit codes: numbers times the scales of their blocks.

    Args:
        codes: uint8 [count], a range of the elements in row-major order.
        table: float32 [256], the number of each code.
        scales: float32 [lines, blocks per line].
        lines: int64 [rows that the range touches], each row's line of scales.
        width: columns that share a scale.
        columns: elements per row.
        skipped: elements of the first row before the range.
        into: float32 [count], output.
    """
    count, across = len(codes), scales.shape[1]
    if width < 1 or not 0 <= skipped < columns or across * width < columns:
        raise ValueError(f"{across} scales of {width} for element {skipped} of {columns}")
    if count and (lines.min() < 0 or lines.max() >= len(scales)):
        raise ValueError(f"no lines of scales: {lines.min()} to {lines.max()}, of {len(scales)}")
    places = (
        checked(table, np.float32, 256),
        checked(scales, np.float32, len(scales), across),
        checked(lines, np.int64, -(-(skipped + count) // columns)),
    )
    begin, out = checked(codes, np.uint8, count), checked(into, np.float32, count)
    if library := kernels():
        library.look_up(begin, count, *places, across, width, columns, skipped, out)
        return
    spread = np.repeat(scales[lines], width, axis=1)[:, :columns].reshape(-1)
    np.multiply(table[codes], spread[skipped : skipped + count], out=into[:count])
