"""The candidates that a search chose, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from merganser.cli.columns import Column, print_columns, say_shortened, stdout, value_text
from merganser.cli.score_table import score_column

if TYPE_CHECKING:
    from merganser.study.search import SearchResult


def show_search(result: SearchResult, *, verbose: bool = False) -> None:
    """Print the candidates that a search chose, with their scores; with ``verbose`` all of them."""
    from merganser.results.interpolation import short_names

    console = stdout()
    held = {entry.name: entry for entry in result.held_out.entries} if result.held_out else {}
    found = {entry.name: entry for entry in result.found.entries}
    others = [entry.name for entry in result.found.entries if entry.role != "point"]
    points = [entry.name for entry in result.found.points]
    shown = dict.fromkeys([*others, *result.found.chosen, *(points if verbose else ())])
    keys = list(dict.fromkeys(key for name in shown for key in found[name].values))
    scores = list(dict.fromkeys([*result.search.objectives, *result.search.limits]))
    beside = list(result.held_out.directions) if result.held_out else []
    entries = [found[name] for name in shown]
    again = [held.get(name) for name in shown]
    why = [result.found.chosen.get(e.name, "" if e.role == "point" else e.role) for e in entries]
    short = short_names(result.found)
    columns = [
        Column("model", [short.get(name, name) for name in shown]),
        *(Column(key, [value_text(entry, key) for entry in entries]) for key in keys),
        *(score_column(name, [e.scores.get(name) for e in entries]) for name in scores),
        *(
            score_column(f"{name}, held out", [e.scores.get(name) if e else None for e in again])
            for name in beside
        ),
        Column("", why),
    ]
    print_columns(console, columns)
    say_shortened(console, short, "")
    if not result.found.chosen and result.search.limits:
        limits = ", ".join(result.search.limits)
        console.print(f"no candidate keeps to the constraints on {escape(limits)}")
    console.print(
        f"\n{len(result.trials)} candidates, {len(points)} of them different, in {result.seconds:.1f} s",
        highlight=False,
    )
