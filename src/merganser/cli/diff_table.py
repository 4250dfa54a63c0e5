"""How two models differ, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from merganser import number_format
from merganser.cli.columns import GAP, Column, print_columns, stdout

if TYPE_CHECKING:
    from merganser.differences.diff import Diff


MOST_DIFFERENT = 10
"""Tensors that a comparison names."""


def show_diff(found: Diff) -> None:
    """Print how two models differ: by layers, by roles, and the most different tensors."""
    from merganser.differences import diff

    console = stdout()
    ranked = sorted(found.tensors, key=lambda t: -(found.figures([t])["relative"] or 0))
    parts = {
        "layer": found.groups("layer"),
        "role": found.groups("role"),
        "most different": {t.name: [t] for t in ranked[:MOST_DIFFERENT]},
        "all": {"": list(found.tensors)},
    }
    for title, groups in parts.items():
        rows = [found.figures(tensors) for tensors in groups.values()]
        columns = [
            Column(
                key.replace("_", " "), [number_format.significant(row[key]) for row in rows], True
            )
            for key in found.figures(found.tensors)
        ]
        print_columns(console, [Column(title, list(groups)), *columns])
        console.print()
    total = sum(t.elements for t in found.tensors)
    counts = {name: n for name, n in diff.histogram(found.tensors).items() if n}
    units = "units in the last place" + (f" of {found.ulp}" if found.ulp else "")
    shares = [f"{count / max(total, 1):.3%}" for count in counts.values()]
    print_columns(console, [Column(units, list(counts)), Column("share", shares, True)])
    console.print()
    _print_legend(console, found)
    for name, reason in found.skipped.items():
        console.print(f"not compared: {name} ({reason})", markup=False, highlight=False)


LEGEND = {
    "changed": "share of the elements that differ",
    "distance": "L2 norm of B - A",
    "relative": "distance over the L2 norm of A",
    "relative_a": "L2 norm of A - base over that of the base",
    "relative_b": "L2 norm of B - base over that of the base",
    "cosine": "of the angle between A - base and B - base",
    "same_sign": "share, of the elements that both changed, that both moved to the same side",
    "interference": "share of both changes' L1 norms that cancels when they are added up",
    "effective_rank": "of B - A, the mean over the matrices",
}
"""What the figures of a comparison are."""


def _print_legend(console: Console, found: Diff) -> None:
    """Print what the columns of a comparison are."""
    rounded = f", both rounded to {found.ulp}" if found.ulp else ""
    wider = "" if found.ulp else ", in the wider of both dtypes"
    facts = {key.replace("_", " "): LEGEND[key] for key in found.figures(found.tensors)}
    facts["changed"] += rounded
    facts["units"] = f"representable numbers from A's to B's{wider}{rounded}"
    table = Table.grid(padding=(0, GAP, 0, 0))
    for name, text in facts.items():
        table.add_row(Text(name, style="bold"), Text(text))
    console.print(table)
