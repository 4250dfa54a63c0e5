"""Checkpoints with other vocabulary rows: embeddings and heads gathered for a new tokenizer.

Rows are read on demand, in runs of neighbours; no tensor is loaded completely.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from merganser.architecture import vocabulary_axis
from merganser.checkpoints.computed.derived import Derived, DerivedCheckpoint, read_numbers
from merganser.checkpoints.locators import Gathered, GatheredRows, TensorAt, after
from merganser.checkpoints.protocol import Checkpoint
from merganser.errors import InputError
from merganser.tensors import FLOAT32, FLOAT64, TensorSpec

if TYPE_CHECKING:
    from merganser.checkpoints.computed.derived import Array

ZERO, MEAN, FILL = -1, -2, -3
"""Origins of rows that no donor has: zeros, a mean over donors, and the mean of all other rows."""

BLOCK = 2**20
"""Number of elements summed in one step of a mean; the result's rounding depends on it."""


@dataclass(frozen=True, slots=True)
class RowMap:
    """The origin of every row of a vocabulary.

    Attributes:
        origin: int32 [rows]: index of a donor, or ``ZERO``, ``MEAN`` or ``FILL``.
        row: int32 [rows]: index of the row in the donor; for ``MEAN``, in ``means``.
        means: int32 [m, donors]: index of the row of each donor to average; -1 to skip a donor.
    """

    origin: Array
    row: Array
    means: Array

    def __len__(self) -> int:
        return len(self.origin)

    def is_identity(self, donor: int, rows: int) -> bool:
        """Whether it maps all ``rows`` rows of a donor to themselves."""
        return (
            len(self) == rows
            and bool((self.origin == donor).all())
            and bool((self.row == np.arange(rows)).all())
        )

    def digest(self) -> str:
        """A digest of everything that determines the rows."""
        parts = (self.origin, self.row, self.means)
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


@dataclass(frozen=True, slots=True)
class Donor:
    """A stored tensor that provides rows."""

    checkpoint: Checkpoint
    name: str

    @property
    def spec(self) -> TensorSpec:
        """Its dtype and shape."""
        return self.checkpoint.specs[self.name]

    @property
    def axis(self) -> int:
        """The axis of its rows."""
        return vocabulary_axis(self.name, self.spec)

    @property
    def row(self) -> tuple[int, ...]:
        """The shape of one row."""
        return self.spec.shape[self.axis + 1 :]


class GatheredTensor:
    """A tensor whose rows, along its vocabulary axis, come from stored tensors.

    Rows are copied if all donors have one dtype and there are no means. Otherwise all rows are float32
    (float64 if a donor has that), and ``spec.narrow`` is the default dtype of results.

    Args:
        donors: the stored tensors, indexed by the map's origins; None for a model without one.
        output: index of the donor that the tensor replaces.
        rows: the row map, which all gathered tensors of a checkpoint share.

    Raises:
        InputError: when donors have rows of different sizes.
    """

    def __init__(self, donors: Sequence[Donor | None], output: int, rows: RowMap) -> None:
        self._donors = donors
        self._own = output
        self.rows = rows
        mine = self._donor(output)
        used = [self._donor(i) for i in sorted(self._used())]
        for donor in used:
            if donor.row != mine.row:
                raise InputError(
                    f"{donor.checkpoint.label}: a row of {donor.name!r} is "
                    f"{list(donor.row)}, but one of {mine.checkpoint.label} is "
                    f"{list(mine.row)}; tokens' rows cannot be taken from it"
                )
        dtypes = {donor.spec.dtype for donor in used} or {mine.spec.dtype}
        self._wide = len(dtypes) > 1 or bool((rows.origin <= MEAN).any())
        shape = (*mine.spec.shape[: mine.axis], len(rows), *mine.row)
        if self._wide:
            wide = FLOAT64 if FLOAT64 in dtypes else FLOAT32
            self.spec = TensorSpec(wide, shape, mine.spec.natural)
            self._numbers = np.dtype(wide.name)
        else:
            self.spec = TensorSpec(next(iter(dtypes)), shape, mine.spec.narrow)
            self._numbers = np.dtype(f"u{self.spec.dtype.itemsize}")
        self._width = self.spec.numel // max(1, len(rows))
        jump = np.ones(len(rows), bool)
        jump[1:] = (rows.origin[1:] != rows.origin[:-1]) | (rows.row[1:] != rows.row[:-1] + 1)
        self._starts = np.append(np.flatnonzero(jump), len(rows))
        self._lock = threading.Lock()
        self._average: Array | None = None

    def _used(self) -> set[int]:
        """Donors that provide any row."""
        copied = set(np.unique(self.rows.origin).tolist()) - {ZERO, MEAN, FILL}
        averaged = self.rows.means[self.rows.row[self.rows.origin == MEAN]]
        return copied | set(np.flatnonzero((averaged >= 0).any(axis=0)).tolist())

    def digest(self) -> str:
        """A digest of the origins of its rows, including donors' headers."""
        donors = [(i, self._donor(i)) for i in sorted(self._used())]
        facts = [(i, donor.name, donor.checkpoint.header_digest) for i, donor in donors]
        return hashlib.sha256(f"{self.rows.digest()} {facts}".encode()).hexdigest()

    def located(self, name: str) -> GatheredRows:
        """The origins of its rows as picklable data, with the tensor's name."""
        donors = (
            None if d is None else after(TensorAt, d.checkpoint.locator, d.name)
            for d in self._donors
        )
        return GatheredRows(name, tuple(donors), self._own)

    def _donor(self, index: int) -> Donor:
        donor = self._donors[index]
        if donor is None:
            raise InputError(
                "a model whose tokens are used has no embedding (or head) to take their rows from"
            )
        return donor

    def fill(self, first: int, out: Array) -> None:
        """Write the bytes of the elements from ``first`` on to a uint8 array; see
        :class:`Derived`."""
        self._fill(first, out.view(self._numbers))

    def _fill(self, first: int, out: Array) -> None:
        """The elements from ``first`` on."""
        width = self._width
        for start, stop, origin, element in self._runs(first, first + len(out)):
            target = out[start - first : stop - first]
            if origin >= 0:
                self._take(origin, element, target)
            elif origin == ZERO:
                target[:] = 0
            elif origin == MEAN:
                rows = self._means(element // width, -(-(element + len(target)) // width))
                target[:] = rows[element % width : element % width + len(target)]
            else:
                target[:] = self._mean_row()[np.arange(start, stop) % width]

    def _runs(self, first: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """Runs of neighbouring rows between two elements, as (first element, end, origin,
        element there)."""
        if first == stop:
            return iter(())
        low = np.searchsorted(self._starts, first // self._width, "right") - 1
        high = np.searchsorted(self._starts, (stop - 1) // self._width, "right")
        starts = self._starts[low : high + 1]
        edges = (starts * self._width).clip(first, stop)
        origins = self.rows.origin[starts[:-1]]
        there = (self.rows.row[starts[:-1]] - starts[:-1]) * self._width + edges[:-1]
        columns = (edges[:-1], edges[1:], origins, there)
        return zip(*(column.tolist() for column in columns), strict=True)

    def _take(self, index: int, element: int, target: Array) -> None:
        """Consecutive elements of a donor, widened if necessary."""
        donor = self._donor(index)
        if self._wide:
            target[:] = read_numbers(donor.checkpoint, donor.name, element, len(target))
        else:
            donor.checkpoint.read(donor.name, element * target.itemsize, target.data.cast("B"))

    def _means(self, first: int, stop: int) -> Array:
        """Means of the donors' rows that the given rows of ``means`` list, flattened."""
        table = self.rows.means[first:stop]
        total = np.zeros((len(table), self._width))
        row = np.empty(self._width, self._numbers)
        for index, rows in enumerate(table.T):
            for i in np.flatnonzero(rows >= 0):
                self._take(index, int(rows[i]) * self._width, row)
                total[i] += row
        total /= (table >= 0).sum(axis=1)[:, None]
        return total.astype(self._numbers).reshape(-1)

    def _mean_row(self) -> Array:
        """The mean of all rows except those with origin ``FILL``."""
        with self._lock:
            if self._average is None:
                width, total = self._width, np.zeros(self._width)
                step = max(1, BLOCK // width)
                given = self.rows.origin != FILL
                edges = np.flatnonzero(np.diff(given, prepend=False, append=False)).tolist()
                for begin, end in zip(edges[::2], edges[1::2], strict=True):
                    for row in range(begin, end, step):
                        block = np.empty((min(step, end - row), width), self._numbers)
                        self._fill(row * width, block.reshape(-1))
                        total += block.sum(axis=0, dtype=np.float64)
                self._average = (total / max(1, int(given.sum()))).astype(self._numbers)
            return self._average


def gathered(checkpoint: Checkpoint, tensors: Mapping[str, GatheredTensor]) -> Checkpoint:
    """A checkpoint with some tensors gathered, possibly including some that it does not store.

    Closing it leaves the donors open; their owners close them.
    """
    derived: dict[str, Derived | str] = {name: name for name in checkpoint.specs}
    derived |= {name: Derived(tensor.spec, tensor.fill) for name, tensor in tensors.items()}
    depends_on = "gathered " + " ".join(tensor.digest() for tensor in tensors.values())
    [rows] = {id(tensor.rows): tensor.rows for tensor in tensors.values()}.values()
    located = tuple(tensor.located(name) for name, tensor in tensors.items())
    return DerivedCheckpoint(
        checkpoint,
        derived,
        checkpoint.config,
        depends_on,
        format=checkpoint.format,
        locator=after(Gathered, checkpoint.locator, located, rows),
    )
