"""Tables that show how two models differ."""

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
"""Number of most different tensors that are listed."""


def show_diff(difference: Diff) -> None:
    """Print how two models differ: by layers, by roles, and the most different tensors."""
    from merganser.differences import diff

    console = stdout()
    ranked = sorted(difference.tensors, key=lambda t: -(difference.figures([t])["relative"] or 0))
    parts = {
        "layer": difference.groups("layer"),
        "role": difference.groups("role"),
        "most different": {t.name: [t] for t in ranked[:MOST_DIFFERENT]},
        "all": {"": list(difference.tensors)},
    }
    for title, groups in parts.items():
        rows = [difference.figures(tensors) for tensors in groups.values()]
        columns = [
            Column(
                key.replace("_", " "), [number_format.significant(row[key]) for row in rows], True
            )
            for key in difference.figures(difference.tensors)
        ]
        print_columns(console, [Column(title, list(groups)), *columns])
        console.print()
    total = sum(t.elements for t in difference.tensors)
    counts = {name: n for name, n in diff.histogram(difference.tensors).items() if n}
    units = "units in the last place" + (f" of {difference.ulp}" if difference.ulp else "")
    shares = [f"{count / max(total, 1):.3%}" for count in counts.values()]
    print_columns(console, [Column(units, list(counts)), Column("share", shares, True)])
    console.print()
    _print_legend(console, difference)
    for name, reason in difference.skipped.items():
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
"""What each column means."""


def _print_legend(console: Console, difference: Diff) -> None:
    """Print what the columns mean."""
    rounded = f", both rounded to {difference.ulp}" if difference.ulp else ""
    wider = "" if difference.ulp else ", in the wider of both dtypes"
    facts = {key.replace("_", " "): LEGEND[key] for key in difference.figures(difference.tensors)}
    facts["changed"] += rounded
    facts["units"] = f"representable numbers from A's to B's{wider}{rounded}"
    table = Table.grid(padding=(0, GAP, 0, 0))
    for name, text in facts.items():
        table.add_row(Text(name, style="bold"), Text(text))
    console.print(table)
