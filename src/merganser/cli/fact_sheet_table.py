"""The fact sheet of a model as a table."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from merganser import number_format
from merganser.cli.columns import stdout

MANY = 8
"""Number of shards that are listed; of more, only the number is printed."""


def show_facts(sheet: dict[str, Any]) -> None:
    """Print a model's fact sheet."""
    console = stdout()
    table = Table.grid(padding=(0, 2))
    for name, value in sheet.items():
        if value is None or value == {} or value == []:
            continue
        if name == "shards" and len(value) > MANY:
            value = f"{len(value)} files, {min(value)} to {max(value)}"
        elif isinstance(value, dict):
            value = ", ".join(
                f"{key} {number_format.grouped(entry)}" for key, entry in value.items()
            )
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        elif name == "size":
            value = number_format.size(value)
        table.add_row(f"[bold]{name.replace('_', ' ')}", escape(number_format.grouped(value)))
    console.print(table)
