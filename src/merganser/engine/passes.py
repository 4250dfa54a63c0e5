"""A pass of a measurement over the tiles of a tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, Protocol

from merganser.engine.running_plan import RunningPlan, Scratch
from merganser.kernels import CELL
from merganser.kernels.arguments import Inputs

BAND = 16 * CELL
"""Elements of a band, whose sums by column are added up before the next one's; never changed, since
another size gives other bits."""

Cut = Literal["cells", "bands", "rows", "rows of cells"]


class Pass(Protocol):
    """One pass over a tensor's tiles.

    Attributes:
        part: one of the parts that it serves; it determines the inputs to read.
        cut: the granularity of tiles: ``cells`` in multiples of cells, ``bands`` of a fixed
            number of cells, ``rows`` in complete rows, in multiples of eight, ``rows of cells`` the
            same in multiples of cells.
    """

    part: RunningPlan
    cut: Cut

    def add(self, inputs: Inputs, start: int, count: int, scratch: Scratch) -> None:
        """Process a tile: the stored bytes of the part's inputs, from element ``start`` on."""


Measurement = Iterator[Pass]


def numel(shape: tuple[int, ...]) -> int:
    """Number of elements of a tensor."""
    return math.prod(shape)


def rows_of_cells(length: int) -> int:
    """The fewest elements that are both complete rows, in multiples of eight, and complete cells."""
    return math.lcm(8 * length, CELL)


def cells_of(start: int, count: int) -> slice:
    """Cells of a range of elements that begins at a cell."""
    first = start // CELL
    return slice(first, first - (-count // CELL))
