"""The share of a score's variance that each parameter of a search explains alone, against chance."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from merganser.number_format import ten_digits

Array = np.ndarray[Any, np.dtype[np.float64]]

SHUFFLES = 200
"""Number of random permutations of the scores, which give the share that chance explains."""

LEAST = 8
"""Minimum number of candidates for an estimate."""


@dataclass(frozen=True, slots=True)
class Importance:
    """The share of a score's variance that one parameter explains.

    Attributes:
        key: the parameter.
        share: the share of the score's variance between groups of the parameter's values.
        chance: the 95 % quantile of the share under random permutations of the scores; a share
            below it is no evidence.
    """

    key: str
    share: float
    chance: float


def importances(
    values: Sequence[dict[str, Any]], scores: Sequence[float], keys: Sequence[str]
) -> list[Importance]:
    """Return the parameters, most important first.

    The first-order index of Sobol 1993, Var(E[score | parameter]) / Var(score), with numbers in groups of
    about equal size by their ranks. Interactions of parameters are not included.

    Args:
        values: each candidate's parameter values.
        scores: each candidate's score.
        keys: the parameters' names.

    Returns:
        Empty if there are too few candidates, or the score does not vary.
    """
    numbers: Array = np.array(scores, np.float64)
    if len(numbers) < LEAST or not np.ptp(numbers) > 0:
        return []
    draw = random.Random(0)
    orders = [draw.sample(range(len(numbers)), len(numbers)) for _ in range(SHUFFLES)]
    result = []
    for key in keys:
        groups = _groups([point.get(key) for point in values])
        if groups.max() == 0:
            continue
        by_chance = [_share(numbers[order], groups) for order in orders]
        result.append(Importance(key, _share(numbers, groups), float(np.quantile(by_chance, 0.95))))
    return sorted(result, key=lambda point: -point.share)


def _groups(values: Sequence[Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the group of each value: one per distinct value for choices and few values, else quantile
    groups."""
    texts = [ten_digits(value) for value in values]
    most = max(2, round(len(values) ** 0.5))
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if not numbers or len(set(texts)) <= most:
        names = sorted(set(texts))
        return np.array([names.index(text) for text in texts])
    ends = np.quantile(np.array(values, np.float64), np.linspace(0, 1, most + 1)[1:-1])
    return np.searchsorted(ends, np.array(values, np.float64), side="right")


def _share(scores: Array, groups: np.ndarray[Any, np.dtype[np.int64]]) -> float:
    """Return the share of the scores' variance that is between groups."""
    total = float(((scores - scores.mean()) ** 2).sum())
    between = 0.0
    for group in np.unique(groups):
        group_scores = scores[groups == group]
        between += len(group_scores) * float((group_scores.mean() - scores.mean()) ** 2)
    return between / total if total > 0 else 0.0
