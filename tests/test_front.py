"""Fronts against their definition and known values."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merganser.errors import MerganserError
from merganser.study import front
from merganser.study.results import Direction, Entry, Score

Directions = Mapping[str, Direction]

BOTH: Directions = {"a": "max", "b": "min"}


def entry(name: str, *means: float, error: float = 0.0) -> Entry:
    scores = {
        key: Score(mean, error, mean - 2 * error, mean + 2 * error, 30)
        for key, mean in zip("abc", means, strict=False)
    }
    return Entry(name, "point", scores=scores)


numbers = st.integers(-3, 3).map(float)


@given(st.lists(st.tuples(numbers, numbers, numbers), max_size=12))
def test_the_front_is_what_nothing_dominates(rows: list[tuple[float, float, float]]) -> None:
    directions: Directions = {"a": "max", "b": "min", "c": "max"}
    entries = [entry(str(n), *row) for n, row in enumerate(rows)]
    good = {e.name: (row[0], -row[1], row[2]) for e, row in zip(entries, rows, strict=True)}
    expected = [
        e
        for e in entries
        if not any(
            mine != other and all(o >= m for o, m in zip(other, mine, strict=True))
            for mine in [good[e.name]]
            for other in good.values()
        )
    ]
    assert front.non_dominated(entries, directions) == expected


def test_entries_without_a_score_are_left_out() -> None:
    assert [e.name for e in front.non_dominated([entry("x", 1), entry("y", 0, 0)], BOTH)] == ["y"]
    assert front.non_dominated([], BOTH) == []


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "moocore", None)
    with pytest.raises(MerganserError, match=r"pip install 'merganser\[plot\]'"):
        front.non_dominated([entry("x", 1, 1)], BOTH)
