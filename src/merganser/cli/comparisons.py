"""Commands about what the differences of a study are worth, and what they print."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from merganser import number_format
from merganser.cli.options import json_option
from merganser.cli.output import print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merganser.cli.columns import Column
    from merganser.results.comparison import Comparison, Comparisons
    from merganser.results.power import Power


class _Weights(click.ParamType[dict[str, float]]):
    """``aime=2,math=1``."""

    name = "TASK=NUMBER,…"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, float]:
        if isinstance(value, dict):
            return value
        weights = {}
        for part in str(value).split(","):
            task, _, number = part.partition("=")
            try:
                weights[task.strip()] = float(number)
            except ValueError:
                self.fail(f"{part!r}: wanted is TASK=NUMBER", param, ctx)
        return weights


score_option = click.option(
    "--score", "scores", multiple=True, metavar="SCORE", help="This score only; may be repeated."
)


@click.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.argument("models", nargs=-1, metavar="[A B …]")
@click.option(
    "--against",
    multiple=True,
    metavar="MODEL",
    help="A reference, named in advance; may be repeated. By default base, experts and references.",
)
@score_option
@click.option(
    "--weights", type=_Weights(), help="Of the tasks, in the mean over them; by default all equal."
)
@click.option("--draws", type=click.IntRange(100), default=10_000, help="Sign flips to draw.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the draws.")
@json_option
def compare(
    study: Path,
    models: tuple[str, ...],
    against: tuple[str, ...],
    scores: tuple[str, ...],
    weights: dict[str, float] | None,
    draws: int,
    seed: int,
    as_json: bool,
) -> None:
    """Test which models of STUDY are better than which.

    Differences are paired over problems, with 95 % intervals, p-values of sign-flip permutation, and
    corrections for the number of tests. The first of several models is compared with each of the others;
    without any, all merges are compared with base, experts and references. What is not significant says
    which difference would have been.

    \b
    Examples:
      merganser compare OUT
      merganser compare OUT w0.4 acc
      merganser compare OUT --against acc --score accuracy
    """
    from merganser.results import paired

    comparisons = paired.compare(
        study, *models, against=against, scores=scores, weights=weights, draws=draws, seed=seed
    )
    if as_json:
        print_json(comparisons.as_dict())
    else:
        show_comparisons(comparisons)


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.option(
    "--detect",
    type=click.FloatRange(min=0, min_open=True),
    metavar="DIFFERENCE",
    help="Print what it takes to detect this difference: in points for scores from 0 to 1, else in their unit.",
)
@score_option
@json_option
def power(results: Path, detect: float | None, scores: tuple[str, ...], as_json: bool) -> None:
    """Say how many problems or samples it takes to see a difference.

    Reads from the samples of a finished study, or of a small pilot, how much differences vary over problems
    and over samples. A difference counts as seen that 80 % of studies find, by a test at 5 %.

    \b
    Examples:
      merganser power OUT
      merganser power OUT --detect 2
    """
    from merganser.results import power as powers

    powers_found = powers.power(results, scores=scores)
    if as_json:
        print_json([_power_data(power, detect) for power in powers_found])
    else:
        show_power(powers_found, detect)


# -- what they print -----------------------------------------------------------------------------


def show_comparisons(comparisons: Comparisons) -> None:
    """Print comparisons: a table for each score and reference."""
    from merganser.cli import columns

    console = columns.stdout()
    groups: dict[tuple[str, str, bool], list[Comparison]] = {}
    several = {row.model for row in comparisons.rows}
    by_reference = len(several) > 1
    for row in comparisons.rows:
        key = row.score, row.reference if by_reference else row.model, row.held_out
        groups.setdefault(key, []).append(row)
    names = dict.fromkeys(name for row in comparisons.rows for name in (row.model, row.reference))
    short = dict(zip(names, _shorten(list(names)), strict=True))
    for (score, fixed, held_out), rows in groups.items():
        arrow = "↑" if rows[0].direction == "max" else "↓"
        where = ", on held-out problems" if held_out else ""
        word = "against" if by_reference else "of"
        first = rows[0]
        mean = first.reference_mean if by_reference else first.mean
        places = _places(rows)
        console.print(
            f"[bold]{score} {arrow}[/] {word} [bold]{short[fixed]}[/] "
            f"({mean:.{places}f}){where}: {_how(rows)}",
            highlight=False,
            soft_wrap=True,
        )
        columns.print_columns(console, _columns(rows, short, places, by_reference))
        console.print()
    _explain(comparisons)


def _shorten(names: Sequence[str]) -> list[str]:
    """Names as short as other tables have them."""
    from merganser.recipe.short_names import POINTS, shorten

    return shorten(names, POINTS)


def _places(rows: Sequence[Comparison]) -> int:
    return number_format.decimals(row.error for row in rows)


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
    from merganser.cli.columns import Column

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
        Column("difference", [f"{row.difference:+.{places}f}" for row in rows], True),
        Column("95 %", [f"{row.low:+.{places}f} … {row.high:+.{places}f}" for row in rows], True),
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


def _explain(comparisons: Comparisons) -> None:
    """What the columns of the tables mean, as far as they are there."""
    from merganser.cli import columns

    console = columns.stdout()
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


SAMPLES = (1, 4, 16, 64, math.inf)
"""Columns of the table of detectable differences."""


def show_power(powers: Sequence[Power], detect: float | None) -> None:
    """Print what differences can be seen, and what it takes to see one."""
    from merganser.cli import columns

    console = columns.stdout()
    for power in powers:
        unit = " points" if power.points == 100 else ""
        detectable = power.detectable() or 0.0
        at = f"{power.problems} problems" + (f" × {power.samples} samples" if power.samples else "")
        difference = f"a difference of {detectable * power.points:.2g}{unit}"
        shown = "no difference" if _is_beyond(detectable, power) else difference
        console.print(
            f"[bold]{power.score}[/]: {at} show {shown}",
            highlight=False,
            soft_wrap=True,
        )
        if power.between is None or power.within is None:
            console.print(
                "  with one sample a problem, luck cannot be told from differences: only problems can be counted"
                if power.samples == 1
                else "  of this score, only problems can be counted",
                soft_wrap=True,
            )
        else:
            console.print(
                f"  true differences vary over problems with variance {power.between:.3g}, "
                f"samples of a problem with {power.within:.3g}",
                highlight=False,
                soft_wrap=True,
            )
        samples = (
            sorted({*SAMPLES, power.samples} - {0})
            if power.between is not None
            else [power.samples]
        )
        rows = sorted({30, 60, 200, 500, 2000, power.problems})
        table = [
            columns.Column(r"problems \ samples", [str(row) for row in rows], True),
            *(
                columns.Column(
                    "∞" if math.isinf(k) else str(int(k)) if k else "as now",
                    [_points(power, power.detectable(n, k or None)) for n in rows],
                    True,
                )
                for k in samples
            ),
        ]
        columns.print_columns(console, table)
        if detect is not None:
            for line in _needed(power, detect / power.points):
                console.print("  " + line, highlight=False, markup=False, soft_wrap=True)
        console.print()


def _is_beyond(difference: float, power: Power) -> bool:
    """Whether two models cannot differ by as much: rates differ by 100 points at most."""
    return power.points == 100 and difference >= 1


def _points(power: Power, value: float | None) -> str:
    if value is None or _is_beyond(value, power):
        return "–"
    shown = value * power.points
    return f"{shown:.2g}" if shown < 10 else f"{shown:.0f}"


def _needed(power: Power, difference: float) -> list[str]:
    """What it takes to see a difference, as sentences."""
    unit = " points" if power.points == 100 else ""
    shown = f"{difference * power.points:g}{unit}"
    samples = f" × {power.samples} samples" if power.samples else ""
    lines = [f"to see {shown}: {power.problems_for(difference):,} problems{samples}"]
    if power.between is None:
        return lines
    count = power.samples_for(difference)
    if count is not None:
        lines.append(f"or {count:,} samples of each of these {power.problems} problems")
    else:
        most = power.problems_for(difference, math.inf)
        lines.append(
            f"no number of samples of these {power.problems} problems shows it: even without luck it takes "
            f"{most:,} problems"
        )
    return lines


def _power_data(power: Power, detect: float | None) -> dict[str, object]:
    from dataclasses import asdict

    data: dict[str, object] = {**asdict(power), "detectable": power.detectable()}
    if detect is not None:
        difference = detect / power.points
        data["detect"] = difference
        data["problems_needed"] = power.problems_for(difference)
        data["samples_needed"] = power.samples_for(difference)
    return data
