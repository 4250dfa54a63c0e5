"""Gram matrices of tensors, rows or columns, and the coefficients that methods compute from
them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from merganser.engine.passes import BAND, Cut, Measurement, cells_of, numel
from merganser.engine.running_plan import RunningPlan, Scratch
from merganser.errors import MerganserError
from merganser.kernels import CELL, measuring
from merganser.kernels.arguments import Array, Inputs
from merganser.methods import Combination
from merganser.methods.checks import check_coefficients, fault


def measure_grams(
    parts: Sequence[RunningPlan], shape: tuple[int, ...], vectors: str
) -> Measurement:
    """Measure the inputs' Gram matrix, and set the parts' coefficients.

    Raises:
        MerganserError: when an inner product is not finite, or a method rejects the matrix.
    """
    if vectors == "tensor" or (vectors == "rows" and len(shape) < 2):
        measurement = _WholeGram(parts[0], shape)
        yield measurement
        gram = measurement.cells.sum(axis=0)
    elif vectors == "rows":
        rows = _RowGrams(parts[0], shape)
        yield rows
        gram = rows.joined()
    else:
        columns = _ColumnGrams(parts[0], shape)
        yield columns
        gram = columns.total
    gram = gram + np.tril(gram, -1).swapaxes(-1, -2)
    if not np.all(np.isfinite(gram)):
        raise MerganserError(
            f"tensor {parts[0].job.name!r} holds numbers that are not finite (or too "
            f"large to be squared), and {parts[0].method.name} needs their lengths"
        )
    for part in parts:
        try:
            combination = part.method.function(gram, **part.job.numbers)
            check_coefficients(part.method, combination, gram.shape[-1])
        except Exception as error:
            message = fault(part.method, error)
            if message is None:
                raise
            raise MerganserError(
                f"{part.method.name}, tensor {part.job.name!r}: {message}"
            ) from error
        part.combination = (
            _on_base(combination, part) if part.method.gram == "changes" else combination
        )
        if gram.ndim == 2:
            numbers = tuple(float(c) for c in part.combination.coefficients)
            part.combination = part.combination._replace(coefficients=numbers)
        else:
            part.each = np.array(
                np.broadcast_arrays(*part.combination.coefficients), dtype=part.wide
            )
            part.each_rows = vectors == "rows"


def _on_base(combination: Combination, part: RunningPlan) -> Combination:
    """Convert coefficients of the deltas to coefficients of the inputs, base first."""
    if not part.based:
        return combination
    changes = combination.coefficients
    rest: Any = 1.0 - sum(changes[1:], changes[0])
    return combination._replace(coefficients=(rest, *changes))


class _WholeGram:
    """A pass for the Gram matrix of the flattened tensor, by cells."""

    cut: Cut = "cells"

    def __init__(self, part: RunningPlan, shape: tuple[int, ...]) -> None:
        self.part = part
        self.changes = part.method.gram == "changes" and part.based
        m = len(part.rows) - self.changes
        self.cells = np.zeros((-(-numel(shape) // CELL), m, m))

    def add(self, inputs: Inputs, start: int, count: int, scratch: Scratch) -> None:
        cells = self.cells[cells_of(start, count)]
        measuring.measure(self.part.stored(inputs), count, self.changes, cells)


class _RowGrams(_WholeGram):
    """A pass for the Gram matrix of each row."""

    def __init__(self, part: RunningPlan, shape: tuple[int, ...]) -> None:
        super().__init__(part, shape)
        self.length = max(1, shape[-1])
        self.grams = np.zeros((numel(shape) // self.length, *self.cells.shape[1:]))

    def add(self, inputs: Inputs, start: int, count: int, scratch: Scratch) -> None:
        heads = self.cells[cells_of(start, count)]
        inputs = self.part.stored(inputs)
        measuring.measure_rows(inputs, count, self.changes, self.length, start, self.grams, heads)

    def joined(self) -> Array:
        """float64 [rows, m, m]; the parts of a row in several cells are added in order."""
        for cell in range(len(self.cells)):
            row = cell * CELL // self.length
            if row * self.length < cell * CELL:
                self.grams[row] += self.cells[cell]
        return self.grams


class _ColumnGrams:
    """A pass for the Gram matrix of each column: sums of bands of fixed size, added in their order."""

    cut: Cut = "bands"

    def __init__(self, part: RunningPlan, shape: tuple[int, ...]) -> None:
        self.part = part
        self.changes = part.method.gram == "changes" and part.based
        m = len(part.rows) - self.changes
        self.length = max(1, numel(shape) // max(1, shape[0])) if shape else 1
        self.total = np.zeros((self.length, m, m))
        self._waiting: dict[int, Array] = {}
        self._next = 0
        self._lock = threading.Lock()

    def add(self, inputs: Inputs, start: int, count: int, scratch: Scratch) -> None:
        sums = np.zeros_like(self.total)
        inputs = self.part.stored(inputs)
        measuring.measure_columns(inputs, count, self.changes, self.length, start, sums)
        with self._lock:
            self._waiting[start // BAND] = sums
            while self._next in self._waiting:
                self.total += self._waiting.pop(self._next)
                self._next += 1
