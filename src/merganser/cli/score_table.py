"""The table of a study's scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape

from merganser import number_format
from merganser.cli.columns import (
    Column,
    print_columns,
    say_shortened,
    stdout,
    value_text,
    weights_column,
)

if TYPE_CHECKING:
    from merganser.evaluation.statistics import Score
    from merganser.results.scores import Entry, Results


def show_scores(results: Results) -> None:
    """Print a study's scores, one line per model; chosen ones are marked and listed below."""
    from merganser.results.interpolation import labels

    console = stdout()
    short = labels(results)
    keys = list(dict.fromkeys(key for entry in results.entries for key in entry.values))
    blank = "  " if results.chosen else ""
    names = [("* " if e.name in results.chosen else blank) + short[e.name] for e in results.entries]
    columns = [
        Column(f"{blank}model", names),
        Column("", ["" if e.role == "point" else e.role for e in results.entries]),
        *(
            Column(k, [value_text(e, k) if k in e.values else "" for e in results.entries])
            for k in keys
        ),
    ]
    if any(_is_moved(entry) for entry in results.entries):
        columns.append(weights_column("effective", [entry.effective for entry in results.entries]))
    for name, direction in results.directions.items():
        title = f"{name} {'↑' if direction == 'max' else '↓'}"
        columns.append(score_column(title, [e.scores.get(name) for e in results.entries]))
    print_columns(console, columns)
    points = {point.name for point in results.points}
    say_shortened(console, {name: label for name, label in short.items() if name in points})
    models = {e.name: short[e.name] for e in results.entries if e.name not in points}
    say_shortened(console, models, "")
    console.print("means ± one standard error, over problems", highlight=False)
    for line in failed_lines(results):
        console.print(escape(line), highlight=False, soft_wrap=True)
    for name, rule in results.chosen.items():
        legend = f"* chosen, {escape(rule)}: [bold]{escape(name)}[/]"
        console.print(legend, highlight=False, soft_wrap=True)


def failed_lines(results: Results) -> list[str]:
    """Lines on samples that a scorer failed on: how many, and why."""
    lines = []
    for entry in results.entries:
        for name, score in entry.scores.items():
            if score.failed and "@" not in name:
                reasons = "; ".join(f"{count} × {why}" for why, count in score.failed.items())
                total = sum(score.failed.values())
                lines.append(f"{entry.name}: {name} failed on {total} samples: {reasons}")
    return lines


def _is_moved(entry: Entry) -> bool:
    """Whether rounding moved an effective weight far from the requested one."""
    pairs = ((entry.weights.get(model), got) for model, got in entry.effective.items())
    return any(asked is None or abs(got - asked) > 0.02 for asked, got in pairs)


def score_column(title: str, scores: Sequence[Score | None]) -> Column:
    """A column of scores, all with the decimals that show two digits of the largest error."""
    places = number_format.decimals(score.error for score in scores if score is not None)
    return Column(title, [score_text(score, places) for score in scores], True)


def score_text(score: Score | None, places: int | None = None) -> str:
    """A mean and its standard error; see :func:`merganser.number_format.with_error`."""
    if score is None:
        return number_format.MISSING
    return number_format.with_error(score.mean, score.error, places=places)
