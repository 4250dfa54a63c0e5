"""Tensors outside the layers with one block per layer along an axis, rebuilt for stacked layers.

Gemma 3n has a second token embedding for every layer, all in one matrix [vocabulary, layers *
size].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from merganser.checkpoints.computed.derived import (
    Derived,
    DerivedCheckpoint,
    read_numbers,
    read_stored,
)
from merganser.checkpoints.locators import Joined, JoinedLayers, TensorAt, after
from merganser.checkpoints.protocol import Checkpoint
from merganser.errors import InputError
from merganser.tensors import FLOAT32, FLOAT64, TensorSpec

if TYPE_CHECKING:
    from merganser.checkpoints.computed.derived import Array


@dataclass(frozen=True, slots=True)
class Blocks:
    """A stored tensor with one block per layer along an axis, for ``depth`` layers."""

    checkpoint: Checkpoint
    name: str
    axis: int
    depth: int

    @property
    def spec(self) -> TensorSpec:
        """Its dtype and shape."""
        return self.checkpoint.specs[self.name]

    def shape(self, layers: int) -> tuple[int, ...]:
        """Its shape for another number of layers."""
        shape = list(self.spec.shape)
        shape[self.axis] = shape[self.axis] // self.depth * layers
        return tuple(shape)


class JoinedBlocks:
    """A tensor assembled from the blocks of stored tensors.

    It has the dtype of the stored tensors; if these differ, float32, or float64 if one of them has that.

    Args:
        donors: the stored tensors; the result takes name and dtype from the first.
        layers: for each block of the result, the index of its donor and the layer there.

    Raises:
        InputError: when blocks of different donors have different shapes.
    """

    def __init__(self, donors: Sequence[Blocks], layers: Sequence[tuple[int, int]]) -> None:
        first = donors[0]
        for donor in donors:
            if donor.axis != first.axis or donor.shape(1) != first.shape(1):
                raise InputError(
                    f"{donor.checkpoint.label}: {donor.name!r} has blocks of {list(donor.shape(1))} for "
                    f"its layers, but those of {first.checkpoint.label} are {list(first.shape(1))}; "
                    "they cannot be joined"
                )
        dtypes = {donors[donor].spec.dtype for donor, _ in layers} or {first.spec.dtype}
        self._wide = len(dtypes) > 1
        dtype = FLOAT64 if FLOAT64 in dtypes else FLOAT32
        shape = first.shape(len(layers))
        if self._wide:
            self.spec = TensorSpec(dtype, shape, first.spec.natural)
            self._numbers = np.dtype(dtype.name)
        else:
            self.spec = TensorSpec(next(iter(dtypes)), shape, first.spec.narrow)
            self._numbers = np.dtype(f"u{self.spec.dtype.itemsize}")
        self._donors = donors
        self._layers = layers
        self._block = math.prod(first.shape(1)[first.axis :])
        self._runs = [
            [(i, donor, layer) for i, (donor, layer) in run]
            for _, run in groupby(enumerate(layers), lambda e: (e[1][0], e[1][1] - e[0]))
        ]

    def digest(self) -> str:
        """A digest of everything that determines the origins of its blocks."""
        donors = [(donor.checkpoint.header_digest, donor.name) for donor in self._donors]
        return repr((donors, list(self._layers)))

    def located(self, name: str) -> JoinedLayers:
        """The origins of its blocks as picklable data, with the tensor's name."""
        donors = (after(TensorAt, donor.checkpoint.locator, donor.name) for donor in self._donors)
        return JoinedLayers(
            name,
            tuple(donor for donor in donors if donor is not None),
            tuple(donor.axis for donor in self._donors),
            tuple(donor.depth for donor in self._donors),
            tuple(self._layers),
        )

    def fill(self, first: int, out: Array) -> None:
        """The bytes of the elements from ``first`` on; see :class:`derived.Derived`."""
        numbers = out.view(self._numbers)
        width = self._block * len(self._layers)
        while len(numbers):
            row, start = divmod(first, width)
            rows = len(numbers) // width if start == 0 else 0
            count = rows * width or min(width - start, len(numbers))
            if rows:
                self._fill_rows(row, numbers[:count].reshape(rows, len(self._layers), -1))
            else:
                self._fill_part(row, start, numbers[:count])
            numbers = numbers[count:]
            first += count

    def _fill_rows(self, row: int, out: Array) -> None:
        """Rows [rows, layers, block] of all blocks along the axis."""
        for index, donor in enumerate(self._donors):
            mine = [(i, layer) for i, (d, layer) in enumerate(self._layers) if d == index]
            if not mine:
                continue
            output, layers = (list(numbers) for numbers in zip(*mine, strict=True))
            step = max(1, out.size // (donor.depth * self._block))
            for begin in range(0, len(out), step):
                part = out[begin : begin + step]
                start = (row + begin) * donor.depth * self._block
                stored = self._read(donor, start, len(part) * donor.depth * self._block)
                part[:, output] = stored.reshape(len(part), donor.depth, self._block)[:, layers]

    def _fill_part(self, row: int, start: int, out: Array) -> None:
        """Elements of one row, from ``start`` on."""
        for run in self._runs:
            i, index, layer = run[0]
            low = max(start, i * self._block)
            high = min(start + len(out), (i + len(run)) * self._block)
            if low < high:
                donor = self._donors[index]
                there = (row * donor.depth + layer - i) * self._block + low
                out[low - start : high - start] = self._read(donor, there, high - low)

    def _read(self, donor: Blocks, start: int, count: int) -> Array:
        if self._wide:
            return read_numbers(donor.checkpoint, donor.name, start, count)
        return read_stored(donor.checkpoint, donor.name, start, count).view(self._numbers)


def joined(checkpoint: Checkpoint, tensors: Mapping[str, JoinedBlocks]) -> Checkpoint:
    """A checkpoint with some tensors rebuilt from blocks. Closing it leaves their donors open."""
    derived: dict[str, Derived | str] = {name: name for name in checkpoint.specs}
    derived |= {name: Derived(tensor.spec, tensor.fill) for name, tensor in tensors.items()}
    return DerivedCheckpoint(
        checkpoint,
        derived,
        checkpoint.config,
        f"blocks {[tensor.digest() for tensor in tensors.values()]}",
        format=checkpoint.format,
        locator=after(
            Joined,
            checkpoint.locator,
            tuple(tensor.located(name) for name, tensor in tensors.items()),
        ),
    )
