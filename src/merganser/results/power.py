"""Power analysis: numbers of problems or samples needed to detect a difference."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from merganser import suggestions
from merganser.errors import RecipeError
from merganser.evaluation.significance import POWER_Z, Z
from merganser.results import problem_scores, scores
from merganser.results.problem_scores import ScoreTable
from merganser.results.scores import Results

DETECTED = (Z + POWER_Z) ** 2
"""Square of the difference, in standard errors, that is detected at 5 % with a power of 80 %: 7.85."""


@dataclass(frozen=True, slots=True)
class Power:
    """The variance components of the differences of one score.

    The mean difference of n problems with k samples each has the variance
    ``(between + 2 within / k) / n``.

    Attributes:
        score: the score's name.
        points: units of ``detect`` per unit of the score: 100 for rates, which are given in
            percentage points, else 1.
        problems, samples: the study's numbers; samples are 0 if problems have different numbers of them.
        pairs: number of model pairs averaged over.
        variance: variance of the problems' differences.
        between: variance of the problems' true differences; None if it cannot be separated from
            sampling noise.
        within: variance of a model's samples of one problem; None likewise.
    """

    score: str
    points: int
    problems: int
    samples: int
    pairs: int
    variance: float
    between: float | None
    within: float | None

    def variance_with(self, samples: float) -> float | None:
        """Return the variance of a problem's difference at a number of samples; None if unknown."""
        if self.between is None or self.within is None:
            return self.variance if samples == self.samples else None
        return self.between + 2 * self.within / samples

    def detectable(self, problems: int | None = None, samples: float | None = None) -> float | None:
        """Return the smallest true difference that a test at 5 % detects with a power of 80 %.

        Args:
            problems, samples: by default those of the study; ``math.inf`` samples give the limit.
        """
        variance = self.variance if samples is None else self.variance_with(samples)
        if variance is None:
            return None
        return math.sqrt(DETECTED * variance / (problems or self.problems))

    def problems_for(self, difference: float, samples: float | None = None) -> int | None:
        """Return the number of problems needed to detect a difference; None if it is unknown."""
        variance = self.variance if samples is None else self.variance_with(samples)
        return None if variance is None else max(2, math.ceil(DETECTED * variance / difference**2))

    def samples_for(self, difference: float, problems: int | None = None) -> int | None:
        """Samples per problem needed to detect a difference; None if no number suffices, or it is unknown."""
        if self.between is None or self.within is None:
            return None
        left = (problems or self.problems) * difference**2 / DETECTED - self.between
        return max(1, math.ceil(2 * self.within / left)) if left > 0 else None


def power(study: str | Path, *, scores: Sequence[str] = ()) -> list[Power]:
    """Return the variance components of a study's scores, which give the needed numbers of problems.

    The components are averaged over pairs of merges and references.

    Args:
        study: the folder of a study, which may be a small pilot.
        scores: the scores to analyse; by default all that have samples.

    Returns:
        One entry per score.

    Raises:
        InputError: when there are no results, or their samples cannot be read.
        RecipeError: when the score does not exist, there are fewer than two models, or no two of them
            differ on any problem.
    """
    folder = Path(study)
    results = _read_results(folder)
    tables = problem_scores.load(results, folder)
    for name in scores:
        if name not in tables:
            raise RecipeError(
                f"there are no samples of a score {name!r}; {suggestions.suggest(name, tables)}"
            )
    return [_power(results, tables[name]) for name in scores or tables]


_read_results = scores.read


def _power(results: Results, table: ScoreTable) -> Power:
    pairs = _pairs(results, table)
    if len(table.problems) < 2:
        raise RecipeError(f"{table.score}: one problem allows no estimate; two or more are needed")
    rows = {name: table.row(name) for name in table.models}
    variance = float(np.mean([np.var(rows[a] - rows[b], ddof=1) for a, b in pairs]))
    luck = dict(zip(table.models, table.spread.mean(axis=1).tolist(), strict=True))
    counts = np.unique(table.counts)
    samples = int(counts[0]) if len(counts) == 1 else 0
    between = within = None
    if table.is_mean and not any(math.isnan(value) for value in luck.values()):
        by_luck = float(np.mean([luck[a] + luck[b] for a, b in pairs]))
        between = max(0.0, variance - by_luck)
        within = float((table.spread * table.counts).mean())
    if variance == 0:  # models that are equal on a few problems can differ on others
        if not table.is_rate:
            raise RecipeError(
                f"{table.score}: no two models differ on any of the {len(table.problems)} problems, "
                "so their power cannot be estimated"
            )
        variance = len(table.problems) / (len(table.problems) + 2) ** 2  # an error of 1 / (n + 2)
        between = None if between is None else variance
    points = 100 if table.is_rate else 1
    return Power(
        table.score, points, len(table.problems), samples, len(pairs), variance, between, within
    )


def _pairs(results: Results, table: ScoreTable) -> list[tuple[str, str]]:
    """Return pairs of merges and references, or all pairs of models if there are no merges."""
    points = [entry.name for entry in results.points if entry.name in table.models]
    others = [name for name in table.models if name not in points]
    pairs = [(point, other) for point in points for other in others]
    pairs = pairs or list(itertools.combinations(table.models, 2))
    if not pairs:
        raise RecipeError(f"{results.name}: there are no two models with samples of {table.score}")
    return pairs
