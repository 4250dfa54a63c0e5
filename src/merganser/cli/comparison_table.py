"""The comparisons of a study's models, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from merganser import number_format
from merganser.cli.columns import Column, print_columns, stdout
from merganser.recipe.short_names import POINTS, shorten

if TYPE_CHECKING:
    from merganser.results.comparison import Comparison, Comparisons


def show_comparisons(comparisons: Comparisons) -> None:
    """Print comparisons: a table for each score and reference."""
    console = stdout()
    groups: dict[tuple[str, str, bool], list[Comparison]] = {}
    several = {row.model for row in comparisons.rows}
    by_reference = len(several) > 1
    for row in comparisons.rows:
        key = row.score, row.reference if by_reference else row.model, row.held_out
        groups.setdefault(key, []).append(row)
    names = dict.fromkeys(name for row in comparisons.rows for name in (row.model, row.reference))
    short = dict(zip(names, shorten(list(names), POINTS), strict=True))
    for (score, fixed, held_out), rows in groups.items():
        arrow = "↑" if rows[0].direction == "max" else "↓"
        where = ", on held-out problems" if held_out else ""
        word = "against" if by_reference else "of"
        first = rows[0]
        mean = first.reference_mean if by_reference else first.mean
        places = number_format.decimals(row.error for row in rows)
        console.print(
            f"[bold]{score} {arrow}[/] {word} [bold]{short[fixed]}[/] "
            f"({mean:.{places}f}){where}: {_how(rows)}",
            highlight=False,
            soft_wrap=True,
        )
        print_columns(console, _columns(rows, short, places, by_reference))
        console.print()
    _explain(comparisons)


def _how(rows: Sequence[Comparison]) -> str:
    """The problems and the tests of a table."""
    counts = {row.problems for row in rows if row.problems}
    tests = list(dict.fromkeys(row.test for row in rows))
    parts = [f"{max(counts)} problems"] if counts else []
    parts.append(", ".join(tests))
    if rows[0].family > 1:
        parts.append(f"adjusted for {rows[0].family} models")
    return "; ".join(parts)


def _columns(
    rows: Sequence[Comparison], short: dict[str, str], places: int, by_reference: bool
) -> list[Column]:
    names = [row.model if by_reference else row.reference for row in rows]
    marks = [" ‡" if row.selected else "" for row in rows]
    several = any(row.family > 1 for row in rows)
    columns = [
        Column(
            "model" if by_reference else "against",
            [short[n] + m for n, m in zip(names, marks, strict=True)],
        ),
        Column(
            "score",
            [f"{row.mean if by_reference else row.reference_mean:.{places}f}" for row in rows],
            True,
        ),
        Column("difference", [number_format.signed(row.difference, places) for row in rows], True),
        Column("95 %", [_interval(row, places) for row in rows], True),
        Column(
            "better:worse",
            [f"{row.wins}:{row.losses}" if row.problems else "–" for row in rows],
            True,
        ),
        Column("p", [number_format.p_value(row.p) for row in rows], True),
    ]
    if several:
        columns.append(Column("max-T", [number_format.p_value(row.p_max_t) for row in rows], True))
        columns.append(Column("Holm", [number_format.p_value(row.p_holm) for row in rows], True))
    columns.append(Column("verdict", [row.verdict_text(places) for row in rows]))
    return columns


def _interval(row: Comparison, places: int) -> str:
    return " … ".join(number_format.signed(end, places) for end in (row.low, row.high))


def _explain(comparisons: Comparisons) -> None:
    """What the columns of the tables mean, as far as they are there."""
    console = stdout()
    lines = [
        "Differences are paired over problems; 95 % by Student's t. “would see”: the true difference "
        "that 80 % of such studies find."
    ]
    if any(row.selected for row in comparisons.rows):
        lines.append(
            "‡ chosen by these problems, or the best on them: judged by the adjusted value and interval alone."
        )
    for task, count in comparisons.left_out.items():
        lines.append(
            f"{count} problems{f' of {task}' if task else ''} that not all models have are left out."
        )
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
