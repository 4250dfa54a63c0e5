"""The compiled loops of adapters: a weight plus a product of two thin matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from merganser.compiled import compiled

BLOCK = 256
"""Columns that are summed at once: their part of the right factor stays in the second-level cache."""


@compiled()
def add_product(
    weights: Any,
    left: Any,
    right: Any,
    scale: float,
    skipped: int,
    by_row: Any,
    by_column: Any,
    out: Any,
) -> None:
    """out = (weights + scale * left @ right) * by_row * by_column, for a range of the elements.

    Each element's sum runs over the ranks in order, in float64, whatever the range is.

    Args:
        weights: float [count], the range in row-major order.
        left: float [rows, rank], the rows that the range touches.
        right: float [rank, columns].
        scale: of the product.
        skipped: elements of the first row that lie before the range.
        by_row, by_column: float64 [rows] and [columns].
        out: float [count].
    """
    rows, (rank, columns) = left.shape[0], right.shape
    even = rank + rank % 2
    narrow, wide = np.zeros((rows + rows % 2, even)), np.zeros((even, BLOCK))
    narrow[:rows, :rank] = left
    sums = np.empty((2, BLOCK))
    for low in range(0, columns, BLOCK):
        width = min(BLOCK, columns - low)
        wide[:rank, :width] = right[:, low : low + width]
        for i in range(0, rows, 2):
            sums[:] = 0.0
            _add_rows(narrow[i : i + 2], wide, sums)
            for row in range(i, min(i + 2, rows)):
                begin = max(row * columns + low - skipped, 0)
                end = min(row * columns + low + width - skipped, len(out))
                first = begin + skipped - row * columns - low
                if begin < end:
                    _finish(
                        weights[begin:end],
                        scale,
                        sums[row - i, first:],
                        by_row[row],
                        by_column[low + first :],
                        out[begin:end],
                    )


@compiled(fastmath={"contract"})
def _add_rows(left: Any, right: Any, sums: Any) -> None:
    """Add two rows' products with a block: left [2, rank], right [rank, columns], sums [2, columns].

    Two ranks at a time, first one, then the other. Products of float32 numbers are exact in float64,
    so that it makes no difference to the bits whether a machine fuses them with the additions.
    """
    one, two = sums[0], sums[1]
    for k in range(0, left.shape[1], 2):
        a, b, c, d = left[0, k], left[1, k], left[0, k + 1], left[1, k + 1]
        row, next_row = right[k], right[k + 1]
        for j in range(len(one)):
            x, y = row[j], next_row[j]
            total = one[j] + a * x
            one[j] = total + c * y
            total = two[j] + b * x
            two[j] = total + d * y


@compiled()
def _finish(weights: Any, scale: float, sums: Any, by_row: float, by_column: Any, out: Any) -> None:
    for j in range(len(out)):
        number = np.float64(weights[j]) + scale * sums[j]
        out[j] = number * by_row * by_column[j]


@compiled()
def add_squares(values: Any, by_column: bool, squares: Any) -> None:
    """Add the squares of float64 [rows, columns] to sums of rows, or of columns, in order."""
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            squares[j if by_column else i] += values[i, j] * values[i, j]
