"""The kernels that measure: Gram matrices and norms, which decide coefficients and have the same bits everywhere."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from merganser.kernels.arguments import Array, Inputs, cells_of, checked, kernels_for
from merganser.kernels.rules import Rules, struct_of

_I64 = ctypes.c_int64


def measure(inputs: Inputs, count: int, changes: bool, gram: Array) -> None:
    """Add a tile's inner products to ``gram``, float64 [cells, m, m] (lower triangle).

    ``changes`` measures the differences of the inputs to the first, which are m = k - 1.
    """
    m = len(inputs.rows) - changes
    place = checked(gram, np.float64, cells_of(count), m, m)
    struct = ctypes.byref(inputs.struct(count))
    if library := kernels_for(inputs):
        library.measure(struct, _I64(count), _I64(changes), ctypes.c_void_p(place))
    else:
        from merganser.kernels import plain

        plain.measure(inputs, count, changes, gram)


def measure_rows(
    inputs: Inputs, count: int, changes: bool, length: int, start: int, rows: Array, heads: Array
) -> None:
    """:func:`measure`, row by row.

    Args:
        inputs, count, changes: as there.
        length: of a row.
        start: the tile's first element in its tensor, a multiple of CELL.
        rows: float64 [rows of the tensor, m, m], added to where a row begins in the cell.
        heads: float64 [cells of the tile, m, m], added to where it began in an earlier one: no two tiles
            then ever add to the same place.
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
        numbers = (_I64(n) for n in (count, changes, length, start))
        library.measure_rows(struct, *numbers, *(ctypes.c_void_p(place) for place in places))
    else:
        from merganser.kernels import plain

        plain.measure_rows(inputs, count, changes, length, start, rows, heads)


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
        numbers = (_I64(n) for n in (count, changes, length, start))
        library.measure_columns(struct, *numbers, ctypes.c_void_p(place))
    else:
        from merganser.kernels import plain

        plain.measure_columns(inputs, count, changes, length, start, columns)


def combine_each(
    inputs: Inputs,
    count: int,
    coefficients: Array,
    length: int,
    by_rows: bool,
    start: int,
    exact: Array,
) -> None:
    """A linear combination whose coefficients change from row to row, or from column to column.

    Args:
        inputs, count: of the tile.
        coefficients: [k, rows or columns] in the dtype that is computed in.
        length: of a row.
        by_rows: whether they belong to rows.
        start: the tile's first element in its tensor.
        exact: [count] in the same dtype, filled.
    """
    vectors, work = coefficients.shape[1], coefficients.dtype
    needed = -(-(start + count) // length) if by_rows else length
    if length < 1 or vectors < needed or work.name not in ("float32", "float64"):
        raise ValueError(f"coefficients {work} of {vectors} vectors, not {needed}")
    place = checked(coefficients, work, len(inputs.rows), vectors)
    into = checked(exact, work, count)
    struct = ctypes.byref(inputs.struct(count))
    if library := kernels_for(inputs):
        numbers = (_I64(n) for n in (vectors, length, by_rows, start))
        wide = _I64(work == np.float64)
        library.combine_each(
            struct, _I64(count), wide, ctypes.c_void_p(place), *numbers, ctypes.c_void_p(into)
        )
    else:
        from merganser.kernels import plain

        plain.combine_each(inputs, count, coefficients, length, by_rows, start, exact)


def norms(
    inputs: Inputs,
    count: int,
    work: np.dtype[Any],
    rules: Rules,
    norm: int,
    start: int,
    sums: Array,
) -> None:
    """Norms of all changes and of the kept ones, cell by cell.

    Args:
        inputs, count, start: the tile, the base first; ``start`` is a multiple of CELL.
        work: float32 or float64, what changes are computed in.
        rules: which are kept.
        norm: which; see :data:`merganser.kernels.rules.L1` and the others.
        sums: float64 [cells of the tile, models, 2], added to: sums of absolute values or of squares (or
            the maximum) of all changes, and of the kept ones.
    """
    models = len(inputs.rows) - 1
    place = checked(sums, np.float64, cells_of(count), models, 2)
    told = struct_of(rules, models, start + count, cells_of(start + count))
    struct = ctypes.byref(inputs.struct(count))
    if library := kernels_for(inputs):
        library.norms(
            struct,
            _I64(count),
            _I64(work == np.float64),
            ctypes.byref(told),
            _I64(norm),
            _I64(start),
            ctypes.c_void_p(place),
        )
    else:
        from merganser.kernels import plain

        plain.norms(inputs, count, work, rules, norm, start, sums)
