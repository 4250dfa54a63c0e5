"""The table of a search's candidates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from merganser import number_format
from merganser.cli.columns import Column, print_columns, say_shortened, stdout, value_text
from merganser.cli.score_table import score_column

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from merganser.results.scores import Results
    from merganser.study.search import SearchResult


def show_search(result: SearchResult, *, verbose: bool = False) -> None:
    """Print the candidates that a search chose, or with ``verbose`` all, with their scores."""
    from merganser.results.interpolation import short_names

    console = stdout()
    held = {entry.name: entry for entry in result.held_out.entries} if result.held_out else {}
    by_name = {entry.name: entry for entry in result.found.entries}
    others = [entry.name for entry in result.found.entries if entry.role != "point"]
    points = [entry.name for entry in result.found.points]
    shown = dict.fromkeys([*others, *result.found.chosen, *(points if verbose else ())])
    keys = list(dict.fromkeys(key for name in shown for key in by_name[name].values))
    scores = list(dict.fromkeys([*result.search.objectives, *result.search.limits]))
    beside = list(result.held_out.directions) if result.held_out else []
    entries = [by_name[name] for name in shown]
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
    tried = number_format.counted(len(result.trials), "candidate")
    console.print(
        f"\n{tried}, {len(points)} of them different, in {result.seconds:.1f} s", highlight=False
    )


def show_additions(found: Results, folder: Path) -> None:
    """Print what a greedy search tried to add to its soup, and how sure each difference is.

    Args:
        found: the search's results.
        folder: where they are.
    """
    from merganser.results import paired

    rows = paired.additions(folder)
    if not rows:
        return
    values = {entry.name: entry.values for entry in found.points}
    places = number_format.decimals(row.error for row in rows)
    columns = [
        Column("added", [_added(values[row.model], values[row.reference]) for row in rows]),
        Column("difference", [f"{row.difference:+.{places}f}" for row in rows], True),
        Column("95 %", [f"{row.low:+.{places}f} … {row.high:+.{places}f}" for row in rows], True),
        Column("verdict", [row.verdict_text(places) for row in rows]),
        Column("", ["kept" if each.kept else "" for each in found.additions]),
    ]
    console = stdout()
    console.print(
        f"\n[bold]The soup[/], {rows[0].score} against the soup so far: {rows[0].problems} problems, "
        f"{rows[0].test}; adjusted for {len(rows)} additions",
        highlight=False,
        soft_wrap=True,
    )
    print_columns(console, columns)


def _added(values: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """The model that a soup has and the one before has not, or has less of."""
    [key] = [key for key, count in values.items() if count != before[key]]
    return key.partition(".")[2]
