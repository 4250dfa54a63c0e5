"""Commands about what the differences of a study are worth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from merganser.cli.options import json_option
from merganser.cli.output import print_json

if TYPE_CHECKING:
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
    from merganser.cli.comparison_table import show_comparisons
    from merganser.results import paired

    comparisons = paired.compare(
        study, *models, against=against, scores=scores, weights=weights, draws=draws, seed=seed
    )
    if as_json:
        print_json(comparisons.as_dict())
    else:
        show_comparisons(comparisons)


@click.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option(
    "--detect",
    type=click.FloatRange(min=0, min_open=True),
    metavar="DIFFERENCE",
    help="Print what it takes to detect this difference: in points for scores from 0 to 1, else in their unit.",
)
@score_option
@json_option
def power(study: Path, detect: float | None, scores: tuple[str, ...], as_json: bool) -> None:
    """Say how many problems or samples it takes to see a difference.

    Reads from the samples of STUDY, which may be a small pilot, how much differences vary over problems
    and over samples. A difference counts as seen that 80 % of studies find, by a test at 5 %.

    \b
    Examples:
      merganser power OUT
      merganser power OUT --detect 2
    """
    from merganser.cli.power_table import show_power
    from merganser.results import power as powers

    powers_found = powers.power(study, scores=scores)
    if as_json:
        print_json([_power_data(power, detect) for power in powers_found])
    else:
        show_power(powers_found, detect)


def _power_data(power: Power, detect: float | None) -> dict[str, object]:
    from dataclasses import asdict

    data: dict[str, object] = {**asdict(power), "detectable": power.detectable()}
    if detect is not None:
        difference = detect / power.points
        data["detect"] = difference
        data["problems_needed"] = power.problems_for(difference)
        data["samples_needed"] = power.samples_for(difference)
    return data
