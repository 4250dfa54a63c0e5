"""Tables that fit the terminal: wide ones continue below, constant columns become one line."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from merganser.recipe.sweep_file import Point
    from merganser.results.scores import Entry


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table that may be too wide.

    Attributes:
        title: its heading.
        cells: one for each row.
        right: whether the cells are aligned to the right, as numbers are.
        shared: if all cells are equal, the column becomes one line below the table: this text, then the
            cell. None keeps the column in any case.
    """

    title: str
    cells: Sequence[str | Text]
    right: bool = False
    shared: str | None = None

    @property
    def width(self) -> int:
        """The width in characters."""
        return max(map(cell_len, [self.title, *map(str, self.cells)]))

    @property
    def is_constant(self) -> bool:
        """Whether all cells are equal, so that the column can become one line below the table."""
        return self.shared is not None and len(set(map(str, self.cells))) == 1


GAP = 2
"""Spaces between columns."""


MOST_NAMES = 40
"""Characters of models' names in a column's title; longer ones go into its cells."""

NAMES_WORK = "; `SWEEP.yml#NAME` and `--only NAME` take both"
"""Says where the short name of a point can be used."""


def print_columns(console: Console, columns: Sequence[Column], alike: str = "all") -> None:
    """Print a table; on a narrow terminal split it into several, all with the first column.

    The first column gets half of the terminal, or what the others leave; longer names are wrapped. In a
    table of several rows, constant columns become one line below it that begins with ``alike``.
    """
    constant = [column for column in columns if column.is_constant and len(column.cells) > 1]
    first, *others = [column for column in columns if column not in constant]
    most = max(console.width // 2, console.width - sum(GAP + other.width for other in others))
    while True:
        room, count = console.width - min(first.width, most), 0
        while count < len(others) and (room := room - GAP - others[count].width) >= 0:
            count += 1
        count = max(1, count)
        table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
        shown = [first, *others[:count]]
        for column in shown:
            justify: Literal["left", "right"] = "right" if column.right else "left"
            table.add_column(
                escape(column.title),
                justify=justify,
                overflow="fold",
                max_width=most if column is first else None,
            )
        for row in zip(*(column.cells for column in shown), strict=True):
            table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
        console.print(table)
        others = others[count:]
        if not others:
            break
        console.print()
    print_shared(console, constant, alike)


def print_shared(console: Console, columns: Sequence[Column], alike: str) -> None:
    """Print constant columns on one line."""
    cells = [f"{column.shared}{column.cells[0]}" for column in columns if str(column.cells[0])]
    if cells:
        console.print(escape(f"{alike}: {'; '.join(cells)}"), highlight=False)


def print_points(console: Console, names: Sequence[str], columns: Sequence[Column]) -> None:
    """Print a table of points, with short names if the full ones do not fit."""
    from merganser.recipe.short_names import POINTS, shorten

    point = Column("point", names)
    room = console.width - sum(GAP + column.width for column in columns if not column.is_constant)
    if point.width <= room or len(names) == 1:
        print_columns(console, [point, *columns], "all points")
        return
    short = shorten(names, POINTS)
    print_columns(console, [Column("point", short), *columns], "all points")
    say_shortened(console, dict(zip(names, short, strict=True)))


def say_shortened(console: Console, short: Mapping[str, str], where: str = NAMES_WORK) -> None:
    """Print that names in a table are shortened, with one example in full."""
    example = next(
        ((name, short_name) for name, short_name in short.items() if name != short_name), None
    )
    if example is not None:
        text = f"names are shortened: {example[1]} is {example[0]}{where}"
        console.print(escape(text), highlight=False)


def letter(place: int) -> str:
    """Return the letter that replaces a long model name: A, B … Z, AA, AB …"""
    before, last = divmod(place, len(ascii_uppercase))
    return (letter(before - 1) if before else "") + ascii_uppercase[last]


def value_text(point: Point | Entry, key: str) -> str:
    """A point's value of a sweep key, as text."""
    from merganser.recipe.expressions import text

    value = point.values.get(key)
    if isinstance(value, list):
        return f"[{', '.join(map(text, value))}]"
    return "–" if value is None else text(value)


def weights_column(title: str, rows: Sequence[Mapping[str, float | None] | None]) -> Column:
    """A column of the weights of each row's models, which its title or its cells name.

    Args:
        title: the heading.
        rows: the weights of each row by model; None for unknown ones.
    """
    from merganser import number_format
    from merganser.recipe.short_names import shorten

    models = list(dict.fromkeys(model for row in rows for model in row or ()))
    short = dict(zip(models, shorten(models), strict=True)) if models else {}
    names = ", ".join(short.values())
    is_alike = all(list(row) == models for row in rows if row)
    if models and is_alike and len(names) <= MOST_NAMES:
        short, title = dict.fromkeys(models, ""), f"{title} ({names})"

    def cell(row: Mapping[str, float | None]) -> str:
        texts = [f"{short[model]} {number_format.decimal(row[model])}" for model in row]
        return ", ".join(text.strip() for text in texts)

    return Column(title, [number_format.MISSING if row is None else cell(row) for row in rows])


class _Unpadded:
    """A stream that removes trailing spaces, with which rich fills the last column of tables."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write text without the trailing spaces of its lines."""
        return self.stream.write(re.sub(r" +(?=\n)", "", text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


UNBROKEN = 10_000
"""Characters of a line when stdout is not a terminal: nothing is wrapped unless COLUMNS is set."""


def stdout() -> Console:
    """The console that prints results on stdout."""
    if sys.stdout.isatty():
        return Console()
    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdecimal() and int(columns) else UNBROKEN
    return Console(file=cast("TextIO", _Unpadded(sys.stdout)), width=width)
