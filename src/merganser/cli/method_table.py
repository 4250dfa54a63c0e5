"""The list of merge methods, and the description of one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from merganser.cli.columns import GAP, Column, print_columns, stdout
from merganser.methods import Method

PROSE = 100
"""Most characters of a line of prose."""


WIDE = 120
"""Width of the terminal from which on each method takes one line."""


def show_methods(methods: Sequence[Method], *, full: bool = False) -> None:
    """Print merge methods, one line each, or with ``full`` one method and its parameters."""
    console = stdout()
    if not full:
        _list_methods(console, methods)
        return
    for method in methods:
        console.print(
            f"[bold]{method.name}[/] ({escape(method.title)}): {_count(method)}, base {method.base}"
        )
        for paragraph in (inspect.getdoc(method.function) or "").split("\n\n"):
            text = Text(without_backticks(" ".join(paragraph.split())) + "\n")
            console.print(text, width=min(console.width, PROSE), highlight=False)
        console.print(f"Costs: {method.cost}.", highlight=False)
        if method.origin is not None:
            source = method.origin.package or method.origin.source
            console.print(f"From {escape(source)}, sha256 {method.origin.digest}.", highlight=False)
        console.print()
        parameters = method.parameters
        columns = [
            Column("parameter", [p.name for p in parameters]),
            Column("type", [p.kind for p in parameters]),
            Column(
                "default",
                ["must be given" if p.required else str(p.default).lower() for p in parameters],
            ),
            Column("usual values", [p.range.usual_text if p.range else "" for p in parameters]),
            Column("valid values", [p.range.valid_text if p.range else "" for p in parameters]),
        ]
        print_columns(console, columns)


def without_backticks(text: str) -> str:
    """A docstring's text without its double backticks."""
    return re.sub(r"``(.+?)``", r"\1", text)


def _list_methods(console: Console, methods: Sequence[Method]) -> None:
    """Print one line per method; on a narrow terminal two, the second with its inputs."""
    rows = [
        (
            method.base,
            _count(method),
            ", ".join(p.name + ("*" if p.required else "") for p in method.parameters),
            without_backticks(method.summary),
        )
        for method in methods
    ]
    names = Column("method", [method.name for method in methods])
    if console.width >= WIDE:
        titles = ("base", "takes", "parameters", "what it does")
        cells = zip(*rows, strict=True)
        print_columns(console, [names, *map(Column, titles, cells)])
    else:
        texts = [
            f"{summary}\nbase {base}, {count}" + (f"; {parameters}" if parameters else "")
            for base, count, parameters, summary in rows
        ]
        table = Table.grid(padding=(0, GAP, 0, 0))
        table.add_column(min_width=names.width)
        table.add_column(overflow="fold")
        for name, text in zip(names.cells, texts, strict=True):
            table.add_row(Text(str(name)), Text(text))
        console.print(table)
    console.print("[dim]* must be given. More: merganser methods NAME[/]")


def _count(method: Method) -> str:
    """The number of models that a method takes, as text."""
    least, most = method.models
    if (least, most) == (0, None):
        return "any number of models"
    count = str(least) if least == most else f"{least}+" if most is None else f"{least}–{most}"
    return f"{count} model{'' if count == '1' else 's'}"
