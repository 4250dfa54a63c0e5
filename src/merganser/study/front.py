"""Which models of a study are worth having, when several scores count at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from merganser import extras
from merganser.study.results import Direction, Entry

Array = np.ndarray[Any, np.dtype[Any]]


def scored(entries: Sequence[Entry], directions: Mapping[str, Direction]) -> list[Entry]:
    """Those that have all the scores."""
    return [entry for entry in entries if all(name in entry.scores for name in directions)]


def table(entries: Sequence[Entry], directions: Mapping[str, Direction]) -> Array:
    """The scores' means, float64 [entries, scores]."""
    rows = [[entry.scores[name].mean for name in directions] for entry in entries]
    return np.array(rows, np.float64).reshape(len(entries), len(directions))


def non_dominated(entries: Sequence[Entry], directions: Mapping[str, Direction]) -> list[Entry]:
    """The Pareto front: entries than which no other is as good in all scores and better in one.

    Args:
        entries: those that lack a score are left out; of equal ones all are kept.
        directions: the scores that count, and whether more or less of each is better.

    Raises:
        MerganserError: moocore is not installed.
    """
    complete = scored(entries, directions)
    if not complete or not directions:
        return complete
    mask = extras.load("moocore", "plot").is_nondominated(
        table(complete, directions), maximise=_maximise(directions), keep_weakly=True
    )
    return [entry for entry, kept in zip(complete, mask, strict=True) if kept]


def _maximise(directions: Mapping[str, Direction]) -> list[bool]:
    return [direction == "max" for direction in directions.values()]
