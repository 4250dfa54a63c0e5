"""The product of an adapter's factors with a weight, computed for any range of it.

A weight W [out, in] becomes W + s * B A, with A [rank, in], B [out, rank] and s = alpha / rank, or
alpha / sqrt(rank) for rsLoRA (arXiv:2312.03732). DoRA (arXiv:2402.09353) then scales each of its
rows to the length m: (m / |row|) * row. Weights that are stored as [in, out] (GPT-2's Conv1D), and
embeddings, are changed by the transpose. Full tensors in an adapter replace the model's.

An element of the product is summed over the ranks in order, in float64, and rounded once to float32
(float64 for float64 weights), so its bits do not depend on the range. No merged weight is stored. DoRA's
lengths require complete rows, and are computed when the first tile of a tensor is read.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.checkpoints.computed.derived import cached, read_numbers
from merganser.checkpoints.protocol import Checkpoint
from merganser.kernels import storage
from merganser.tensors import FLOAT64

if TYPE_CHECKING:
    from merganser.checkpoints.computed.derived import Array

KEPT_FACTORS = 4
"""Number of right factors to cache."""

CHUNK = 2**18
"""Elements per step of computing DoRA's lengths."""


@dataclass(frozen=True, slots=True)
class Product:
    """W + s * B A of one tensor.

    Attributes:
        source, name: the checkpoint that contains W, and the name of W there.
        shape: the shape of W, as stored.
        factors: the adapter's factors.
        left, right: names of the factors whose product, left times right, has W's stored shape.
        transposed: whether that holds for the transposes of the stored factors.
        scale: s.
        magnitude: name of DoRA's lengths, or None.
        lengths: m / length of every row of W + s * B A, or of every column if ``transposed``; computed
            on first use.
    """

    source: Checkpoint
    name: str
    shape: tuple[int, int]
    factors: Factors
    left: str
    right: str
    transposed: bool
    scale: float
    magnitude: str | None
    lengths: list[Array] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Factors:
    """An adapter's factors, in float32. Rows of left factors are read on demand.

    Attributes:
        weights: the adapter's tensors.
        right: returns a right factor by name and ``transposed``; results are cached.
    """

    def __init__(self, weights: Checkpoint) -> None:
        self.weights = weights
        self.right = cached(partial(_right_factor, weights), KEPT_FACTORS)

    def rows(self, name: str, first: int, count: int, transposed: bool) -> Array:
        """Rows of a left factor, or columns of its transpose: float32 [count, rank]."""
        rows, columns = self.weights.specs[name].shape
        if not transposed:
            read = _read_single(self.weights, name, first * columns, count * columns)
            return read.reshape(count, columns)
        lines = [_read_single(self.weights, name, k * columns + first, count) for k in range(rows)]
        return np.ascontiguousarray(np.stack(lines, axis=1))


def _right_factor(weights: Checkpoint, name: str, transposed: bool) -> Array:
    """A right factor: float32 [rank, columns]."""
    spec = weights.specs[name]
    read = _read_single(weights, name, 0, spec.numel).reshape(spec.shape)
    return np.ascontiguousarray(read.T) if transposed else read


def _read_single(weights: Checkpoint, name: str, start: int, count: int) -> Array:
    return read_numbers(weights, name, start, count).astype(np.float32, copy=False)


def fill_whole(source: Checkpoint, name: str, start: int, into: Array) -> None:
    """Read a range of a tensor as stored."""
    source.read(name, start * source.specs[name].dtype.itemsize, into.data)


def fill_bias(
    source: Checkpoint,
    name: str,
    weights: Checkpoint,
    bias: str,
    scale: float,
    start: int,
    into: Array,
) -> None:
    """Compute a range of a bias plus the adapter's bias."""
    numbers = read_numbers(source, name, start, len(into) // _number_type(source, name).itemsize)
    added = read_numbers(weights, bias, start, len(numbers)).astype(np.float64)
    into.view(numbers.dtype)[:] = numbers + scale * added


def _number_type(source: Checkpoint, name: str) -> np.dtype[Any]:
    return np.dtype(np.float64 if source.specs[name].dtype == FLOAT64 else np.float32)


def fill_product(product: Product, start: int, into: Array) -> None:
    """Compute a range of W + s * B A, scaled with DoRA's lengths if present."""
    out = into.view(_number_type(product.source, product.name))
    columns = product.shape[1]
    first, last = start // columns, (start + len(out) - 1) // columns
    by_row, by_column = np.ones(last + 1 - first), np.ones(columns)
    if product.magnitude is not None:
        factors = _dora_factors(product)
        by_row, by_column = (
            (by_row, factors) if product.transposed else (factors[first : last + 1], by_column)
        )
    _compute(product, start, out, by_row, by_column)


def _compute(product: Product, start: int, out: Array, by_row: Array, by_column: Array) -> None:
    """Compute a range of W + s * B A, scaled by rows and columns, into an array of any float dtype."""
    columns = product.shape[1]
    first, last = start // columns, (start + len(out) - 1) // columns
    weights = read_numbers(product.source, product.name, start, len(out))
    left = product.factors.rows(product.left, first, last + 1 - first, product.transposed)
    right = product.factors.right(product.right, product.transposed)
    storage.add_product(
        weights, left, right, product.scale, start - first * columns, by_row, by_column, out
    )


def _dora_factors(product: Product) -> Array:
    """m / |row| of every row, or of every column if transposed: float64, computed once."""
    assert product.magnitude is not None
    with product.lock:
        if not product.lengths:
            rows, columns = product.shape
            step = max(1, CHUNK // columns)
            squares = np.zeros(columns if product.transposed else rows)
            for first in range(0, rows, step):
                count = min(step, rows - first)
                values = np.empty((count, columns))
                _compute(
                    product,
                    first * columns,
                    values.reshape(-1),
                    np.ones(count),
                    np.ones(columns),
                )
                storage.add_squares(
                    values,
                    product.transposed,
                    squares if product.transposed else squares[first : first + count],
                )
            size = len(squares)
            wanted = read_numbers(product.factors.weights, product.magnitude, 0, size)
            with np.errstate(divide="ignore", invalid="ignore"):
                product.lengths.append(wanted.astype(np.float64) / np.sqrt(squares))
        return product.lengths[0]
