"""Compute the numbers of quantised weights, for any range of a tensor: fp8 with scales, and mxfp4.

:mod:`quantised` says how they are stored.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.checkpoints.computed.derived import cached, read_numbers, read_stored
from merganser.checkpoints.protocol import Checkpoint
from merganser.kernels import storage
from merganser.tensors import TensorSpec

if TYPE_CHECKING:
    from merganser.checkpoints.computed.derived import Array

KEPT_MATRICES = 4
"""Number of experts' mxfp4 matrices to cache."""

POWERS = np.append(np.ldexp(1.0, np.arange(255) - 127), np.nan).astype(np.float32)
"""Values of a byte as an exponent (e8m0)."""

NIBBLES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


@functools.cache
def codes_of(name: str) -> Array:
    """The numbers of the 256 codes of an fp8 type: float32 [256]."""
    codes = np.arange(256, dtype=np.uint16)
    if name == "float8_e5m2":  # the upper half of a float16
        return np.array((codes << 8).view(np.float16), np.float32)
    exponent, mantissa = (codes >> 3 & 15).astype(np.int32), (codes & 7).astype(np.float32)
    size = np.ldexp(np.where(exponent > 0, 8 + mantissa, mantissa), np.maximum(exponent, 1) - 10)
    size[codes & 127 == 127] = np.nan
    return np.array(np.where(codes < 128, size, -size), np.float32)


@dataclass(frozen=True, slots=True)
class Grid:
    """Maps elements of a matrix [rows, columns], or of a stack of them, to scales.

    Attributes:
        rows, columns: the shape of one matrix.
        height, width: size of the block that shares a scale.
        down, across: number of scales by rows and by columns of a matrix.
    """

    rows: int
    columns: int
    height: int
    width: int
    down: int
    across: int

    def scale_row(self, row: Any) -> Any:
        """The row of scales for a row of the stack of matrices."""
        return row // self.rows * self.down + row % self.rows // self.height


def grid_of(spec: TensorSpec, scale: TensorSpec, blocks: list[tuple[int, int]]) -> Grid | None:
    """The grid of a tensor's scale; None if the shapes do not fit."""
    *stack, rows, columns = (1, 1, *spec.shape) if len(spec.shape) < 2 else spec.shape
    if scale.numel == 1:
        lines = math.prod(stack) * rows
        return Grid(max(lines, 1), columns, max(lines, 1), columns, 1, 1)
    if scale.shape in ((*stack,), (*stack, 1, 1)):
        return Grid(rows, columns, rows, columns, 1, 1)
    if scale.shape in ((*stack, rows), (*stack, rows, 1)):
        return Grid(rows, columns, 1, columns, rows, 1)
    for height, width in blocks:
        down, across = -(-rows // height), -(-columns // width)
        if scale.shape == (*stack, down, across):
            return Grid(rows, columns, height, width, down, across)
    return None


def fill_eights(
    checkpoint: Checkpoint,
    name: str,
    scale: str | None,
    grid: Grid | None,
    start: int,
    into: Array,
) -> None:
    """Write a range of an fp8 tensor as float32; ``grid`` maps its elements to those of ``scale``."""
    numbers = into.view(np.float32)
    codes = read_stored(checkpoint, name, start, len(numbers))
    table = codes_of(checkpoint.specs[name].dtype.name)
    if scale is None or grid is None:
        np.take(table, codes, out=numbers, mode="clip")
        return
    first, last = start // grid.columns, (start + len(numbers) - 1) // grid.columns
    top, bottom = grid.scale_row(first), grid.scale_row(last)
    scales = _scales(checkpoint, scale, top * grid.across, (bottom - top + 1) * grid.across)
    storage.look_up(
        codes,
        table,
        scales.reshape(-1, grid.across),
        grid.scale_row(np.arange(first, last + 1)) - top,
        grid.width,
        grid.columns,
        start - first * grid.columns,
        numbers,
    )


def _scales(checkpoint: Checkpoint, name: str, start: int, count: int) -> Array:
    """A range of scales, float32 [count]."""
    if checkpoint.specs[name].dtype.name in ("uint8", "float8_e8m0fnu"):
        return POWERS[read_stored(checkpoint, name, start, count)]
    return read_numbers(checkpoint, name, start, count).astype(np.float32, copy=False)


def filler_of_fours(
    checkpoint: Checkpoint, blocks: str, scales: str
) -> Callable[[int, Array], None]:
    """A function that writes a range of an mxfp4 tensor as float32."""
    _, rows, groups, _ = checkpoint.specs[blocks].shape
    matrix = cached(functools.partial(_read_matrix, checkpoint, blocks, scales), KEPT_MATRICES)
    return functools.partial(_fill_fours, matrix, 32 * groups * rows)


def _read_matrix(
    checkpoint: Checkpoint, blocks: str, scales: str, expert: int
) -> tuple[Array, Array]:
    """An expert's matrix as stored: pairs of 4-bit numbers uint8 [rows, 16 * groups], and exponents
    uint8 [rows, groups]. A tile of the transpose needs part of every row."""
    _, rows, groups, _ = checkpoint.specs[blocks].shape
    count = rows * groups
    pairs = read_stored(checkpoint, blocks, expert * count * 16, count * 16)
    powers = read_stored(checkpoint, scales, expert * count, count)
    return pairs.reshape(rows, 16 * groups), powers.reshape(rows, groups)


def _fill_fours(
    matrix: Callable[[int], tuple[Array, Array]], size: int, start: int, into: Array
) -> None:
    """A range of the experts' transposes, of ``size`` numbers each."""
    numbers = into.view(np.float32)
    done = 0
    while done < len(numbers):
        expert, within = divmod(start + done, size)
        count = min(len(numbers) - done, size - within)
        _fill_of_matrix(*matrix(expert), within, numbers[done : done + count])
        done += count


def _fill_of_matrix(pairs: Array, powers: Array, start: int, numbers: Array) -> None:
    """A range of the transpose of one matrix: pairs uint8 [rows, 16 g], powers uint8 [rows, g]."""
    rows = len(pairs)
    first, last = start // rows // 2, (start + len(numbers) - 1) // rows // 2  # columns of pairs
    columns = np.ascontiguousarray(pairs[:, first : last + 1].T)
    block = np.empty((last + 1 - first, 2, rows), np.float32)
    block[:, 0] = NIBBLES[columns & 15]
    block[:, 1] = NIBBLES[columns >> 4]
    group = np.arange(first, last + 1) // 16
    scales = POWERS[powers[:, group[0] : group[-1] + 1].T]
    block *= scales[group - group[0]][:, None]
    skipped = start - 2 * first * rows
    numbers[:] = block.reshape(-1)[skipped : skipped + len(numbers)]
