"""Merge methods as a table, or all about one of them."""

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
"""Characters of a line of prose, on wide terminals too."""


WIDE = 120
"""From this width on a list of methods has a line for each."""


def show_methods(methods: Sequence[Method], *, full: bool = False) -> None:
    """Print merge methods: a line each, or everything about one."""
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
        own = method.parameters
        columns = [
            Column("parameter", [p.name for p in own]),
            Column("type", [p.kind for p in own]),
            Column(
                "default", ["must be given" if p.required else str(p.default).lower() for p in own]
            ),
            Column("usual values", [p.range.usual_text if p.range else "" for p in own]),
            Column("valid values", [p.range.valid_text if p.range else "" for p in own]),
        ]
        print_columns(console, columns)


def without_backticks(text: str) -> str:
    """Names in a docstring without the double backticks around them."""
    return re.sub(r"``(.+?)``", r"\1", text)


def _list_methods(console: Console, methods: Sequence[Method]) -> None:
    """A line for each; on a narrow terminal what one takes below what it does."""
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
    """How many models a method takes."""
    least, most = method.models
    count = str(least) if least == most else f"{least}+" if most is None else f"{least}–{most}"
    return f"{count} model{'' if count == '1' else 's'}"
