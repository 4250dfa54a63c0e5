"""The kernels that measure: Gram matrices and norms. They decide coefficients, so their bits are
the same everywhere."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from merganser.kernels import BLOCK, CELL
from merganser.kernels.arguments import Array, Inputs, cells_of, checked, quietly
from merganser.kernels.library import kernels_for
from merganser.kernels.rules import L1, LINF, Rules, struct_of


@quietly
def measure(inputs: Inputs, count: int, changes: bool, gram: Array) -> None:
    """Add a tile's inner products to ``gram``, float64 [cells, m, m] (lower triangle).

    With ``changes``, measure the inputs' deltas to the first input; then m = k - 1.
    """
    m = len(inputs.rows) - changes
    place = checked(gram, np.float64, cells_of(count), m, m)
    struct = ctypes.byref(inputs.struct(count))
    if library := kernels_for(inputs):
        library.measure(struct, count, changes, place)
        return
    from merganser.kernels import plain

    vectors = plain.vectors_of(inputs, count, changes)
    for i, x in enumerate(vectors):
        for j in range(i + 1):
            plain.add_blocks(x * vectors[j], plain.MEASURED, gram[:, i, j])


@quietly
def measure_rows(
    inputs: Inputs, count: int, changes: bool, length: int, start: int, rows: Array, heads: Array
) -> None:
    """:func:`measure`, row by row.

    Args:
        inputs, count, changes: as in :func:`measure`.
        length: elements per row.
        start: the tile's first element in its tensor, a multiple of CELL.
        rows: float64 [rows of the tensor, m, m], incremented by each row's part in the
            cell where the row begins.
        heads: float64 [cells of the tile, m, m], incremented by the part of a row that began in
            an earlier cell; thus no two tiles add to the same place.
    """
    m = len(inputs.rows) - changes
    if length < 1:
        raise ValueError("rows have a length")
    places = (
        checked(rows, np.float64, -(-(start + count) // length), m, m),
        checked(heads, np.float64, cells_of(count), m, m),
    )
    struct = ctypes.byref(inputs.struct(count))
    if library := kernels_for(inputs):
        library.measure_rows(struct, count, changes, length, start, *places)
        return
    from merganser.kernels import plain

    vectors = plain.vectors_of(inputs, count, changes)
    at = 0
    while at < count:
        row, cell = (start + at) // length, at // CELL
        end = min(count, (row + 1) * length - start, (at // plain.MEASURED + 1) * plain.MEASURED)
        into = rows[row] if row * length >= start + cell * CELL else heads[cell]
        for i, x in enumerate(vectors):
            for j in range(i + 1):  # cumsum adds in order
                into[i, j] += np.cumsum(x[at:end] * vectors[j][at:end])[-1]
        at = end


@quietly
def measure_columns(
    inputs: Inputs, count: int, changes: bool, length: int, start: int, columns: Array
) -> None:
    """:func:`measure`, column by column, into float64 [length, m, m]."""
    m = len(inputs.rows) - changes
    if length < 1:
        raise ValueError("rows have a length")
    place = checked(columns, np.float64, length, m, m)
    struct = ctypes.byref(inputs.struct(count))
    if library := kernels_for(inputs):
        library.measure_columns(struct, count, changes, length, start, place)
        return
    from merganser.kernels import plain

    vectors = plain.vectors_of(inputs, count, changes)
    at = 0
    while at < count:
        column = (start + at) % length
        end = min(count, at + length - column)
        for i, x in enumerate(vectors):
            for j in range(i + 1):
                columns[column : column + end - at, i, j] += x[at:end] * vectors[j][at:end]
        at = end


@quietly
def combine_each(
    inputs: Inputs,
    count: int,
    coefficients: Array,
    length: int,
    by_rows: bool,
    start: int,
    exact: Array,
) -> None:
    """Compute a linear combination with coefficients per row or column.

    Args:
        inputs, count: the tile.
        coefficients: [k, rows or columns] in the dtype of the computation.
        length: elements per row.
        by_rows: whether coefficients are per row.
        start: the tile's first element in its tensor.
        exact: [count] in the same dtype, output.
    """
    vectors, work = coefficients.shape[1], coefficients.dtype
    needed = -(-(start + count) // length) if by_rows else length
    if length < 1 or vectors < needed or work.name not in ("float32", "float64"):
        raise ValueError(f"coefficients {work} of {vectors} vectors, not {needed}")
    place = checked(coefficients, work, len(inputs.rows), vectors)
    into = checked(exact, work, count)
    struct = ctypes.byref(inputs.struct(count))
    if library := kernels_for(inputs):
        wide = work == np.float64
        library.combine_each(struct, count, wide, place, vectors, length, by_rows, start, into)
        return
    from merganser.kernels import plain

    places = np.arange(start, start + count)
    vector = places // length if by_rows else places % length
    rows = [plain.widened(inputs, i, count, coefficients.dtype) for i in range(len(inputs.rows))]
    exact[:count] = coefficients[0, vector] * rows[0]
    for factors, row in zip(coefficients[1:], rows[1:], strict=True):
        exact[:count] = plain.fma(factors[vector], row, exact[:count])


@quietly
def norms(
    inputs: Inputs,
    count: int,
    work: np.dtype[Any],
    rules: Rules,
    norm: int,
    start: int,
    sums: Array,
) -> None:
    """Sum norms of all deltas and of the kept deltas, by cells.

    Args:
        inputs, count, start: the tile, the base first; ``start`` is a multiple of CELL.
        work: float32 or float64, the dtype of the deltas.
        rules: which deltas are kept.
        norm: the norm; see :data:`merganser.kernels.rules.L1` and the others.
        sums: float64 [cells of the tile, models, 2], incremented: sums of absolute values or
            squares (or the maximum) of all deltas, and of the kept deltas.
    """
    models = len(inputs.rows) - 1
    place = checked(sums, np.float64, cells_of(count), models, 2)
    told = struct_of(rules, models, start + count, cells_of(start + count))
    struct = ctypes.byref(inputs.struct(count))
    if library := kernels_for(inputs):
        wide = work == np.float64
        library.norms(struct, count, wide, ctypes.byref(told), norm, start, place)
        return
    from merganser.kernels import plain

    base, *rows = (plain.widened(inputs, i, count, work) for i in range(len(inputs.rows)))
    apart = [row - base for row in rows]
    for m, (change, mark) in enumerate(
        zip(apart, plain.marks_of(apart, rules, start), strict=True)
    ):
        numbers = change.astype(np.float64)
        terms = numbers * numbers if norm not in (L1, LINF) else abs(numbers)
        for n, part in enumerate([terms, np.where(mark, terms, 0.0)]):
            if norm == LINF:
                for cell in range(len(sums)):
                    most = np.fmax.reduce(part[cell * CELL : (cell + 1) * CELL], initial=0.0)
                    sums[cell, m, n] = max(sums[cell, m, n], most)
            else:
                plain.add_blocks(part, BLOCK, sums[:, m, n])
