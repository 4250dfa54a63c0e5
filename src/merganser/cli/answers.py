"""Print the answers of one or several models while they are generated."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text


class AnswerColumns:
    """Prints the answers of one or several models on stdout while they are generated.

    On a terminal several answers stand side by side, elsewhere one after the other under their names.
    """

    def __init__(self, names: Sequence[str], *, silent: bool = False) -> None:
        self.names = names
        self.silent = silent
        self.texts = [""] * len(names)
        self.notes: list[str] = []
        self.current: int | None = None
        self.live: Live | None = None

    def __enter__(self) -> AnswerColumns:
        console = Console()
        if len(self.names) > 1 and console.is_terminal and not self.silent:
            self.live = Live(console=console, get_renderable=self._side_by_side)
            self.live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self.live is not None:
            self.live.stop()
        elif self.current is not None:
            sys.stdout.write("\n")
            sys.stdout.flush()
        for note in self.notes:
            click.echo(note, err=True)

    def add(self, index: int, text: str) -> None:
        """Print more text of an answer."""
        self.texts[index] += text
        if self.silent or self.live is not None:
            return
        if index != self.current:
            if len(self.names) > 1:
                sys.stdout.write("\n\n" if self.current is not None else "")
                sys.stdout.write(f"== {self.names[index]} ==\n")
            self.current = index
        sys.stdout.write(text)
        sys.stdout.flush()

    def mark(self, index: int, text: str) -> None:
        """Print a note on an answer: below it if answers are side by side, else at the end on stderr."""
        if self.live is not None:
            self.texts[index] += f"\n[{text}]"
        elif not self.silent:
            self.notes.append(f"[{self.names[index]}: {text}]")

    def _side_by_side(self) -> Table:
        grid = Table.grid(expand=True, padding=(0, 1))
        for _ in self.names:
            grid.add_column(ratio=1, overflow="fold")
        grid.add_row(
            *(
                Panel(Text(text), title=escape(name), title_align="left")
                for name, text in zip(self.names, self.texts, strict=True)
            )
        )
        return grid
