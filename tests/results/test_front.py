"""Fronts against their definition and known values."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merganser.errors import MerganserError
from merganser.results import front, interpolation
from merganser.results.scores import Direction, Entry, Results, Score

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


# Rewarded soups' own front (arXiv:2306.04488, its repository's table), weight 0 to 1 by tenths.
SOUPS = [
    *((0.984, -0.788), (1.109, -0.785), (1.197, -0.777), (1.285, -0.862), (1.394, -1.082)),
    *((1.459, -1.080), (1.513, -1.118), (1.569, -1.212), (1.653, -1.325), (1.728, -1.315)),
    (1.781, -1.526),
]
REWARDS: Directions = {"a": "max", "b": "max"}


def soups() -> Results:
    entries = [entry(f"w{n / 10}", *row) for n, row in enumerate(SOUPS)]
    ends = [
        Entry(name, "expert", f"runs/{name}", scores=e.scores)
        for name, e in (("first", entries[0]), ("second", entries[-1]))
    ]
    points = [
        Entry(
            e.name, "point", None, {"w": n / 10}, e.scores, {"first": 1 - n / 10, "second": n / 10}
        )
        for n, e in enumerate(entries)
        if 0 < n < 10
    ]
    return Results("soups", "", REWARDS, {}, (*ends, *points))


def test_hypervolumes_of_a_published_front() -> None:
    entries = soups().entries
    experts = entries[:2]
    assert front.hypervolume(entries, REWARDS, margin=0).value == pytest.approx(0.618, abs=5e-4)
    whole = front.hypervolume(entries, REWARDS)
    assert whole.value == pytest.approx(0.828, abs=5e-4)
    assert whole.worst == pytest.approx({"a": 0.984, "b": -1.526})
    assert whole.reference == pytest.approx({"a": 0.9043, "b": -1.6009})
    alone = front.hypervolume(experts, REWARDS, frame=entries)
    assert alone.value == pytest.approx(0.209, abs=5e-4)
    assert front.hypervolume(experts, REWARDS, frame=entries, margin=0).value == 0
    best = {e.name for e in front.non_dominated(entries, REWARDS)}
    assert {name for name, part in whole.contributions.items() if part > 0} == best
    for name, part in whole.contributions.items():
        rest = [e for e in entries if e.name != name]
        less = front.hypervolume(rest, REWARDS, frame=entries).value
        assert part == pytest.approx(whole.value - less)


def test_less_may_be_better_and_units_do_not_matter() -> None:
    entries = soups().entries
    turned: Directions = {"a": "max", "b": "min"}
    other = [entry(e.name, e.scores["a"].mean, -50 * e.scores["b"].mean + 3) for e in entries]
    assert front.hypervolume(other, turned).value == pytest.approx(
        front.hypervolume(entries, REWARDS).value
    )
    assert front.hypervolume(other, turned).reference["b"] > max(e.scores["b"].mean for e in other)


def test_hypervolume_of_nothing_and_of_one() -> None:
    assert front.hypervolume([], REWARDS).value == 0
    assert front.hypervolume([entry("x", 1, 1)], REWARDS).value == pytest.approx(0.01)
    one = front.hypervolume([entry("x", 1), entry("y", 3), entry("z", 2)], {"a": "max"})
    assert one.value == pytest.approx(1.1)
    assert one.contributions == pytest.approx({"x": 0, "y": 0.5, "z": 0})


def test_the_line_of_a_published_front() -> None:
    (line,) = interpolation.lines(soups())
    assert line.axis == "weight of second"
    assert [x for x, _ in line.points] == pytest.approx([n / 10 for n in range(1, 10)])
    for score, most in (("a", 0.091), ("b", 0.159)):
        found = interpolation.gap(line, score, "max")
        assert found is not None
        assert found.gap == pytest.approx(most, abs=1e-3)
        assert found.barrier == 0
    rising, falling = (interpolation.gap(line, score, "max") for score in "ab")
    assert rising is not None
    assert rising.tau == pytest.approx(1)
    assert falling is not None
    assert falling.tau is not None
    assert -1 < falling.tau < -0.8


def test_a_barrier() -> None:
    entries = (
        Entry("x", "expert", scores=entry("", 0.5).scores),
        Entry("y", "expert", scores=entry("", 0.7).scores),
        *(
            Entry(f"w{w}", "point", None, {"w": w}, entry("", s).scores, {"x": w, "y": 1 - w})
            for w, s in ((0.2, 0.4), (0.8, 0.7))
        ),
    )
    (line,) = interpolation.lines(Results("", "", {"a": "max"}, {}, entries))
    assert line.axis == "weight of x"  # the sweep's number
    assert line.ends is not None
    assert line.ends[0].name == "y"
    found = interpolation.gap(line, "a", "max")
    assert found is not None
    assert (found.at, found.gap, found.barrier) == pytest.approx((0.2, -0.26, 0.26))
    worse = interpolation.gap(line, "a", "min")
    assert worse is not None
    assert (worse.gap, worse.barrier) == pytest.approx((0.26, 0.16))


def test_lines_are_told_apart() -> None:
    def point(w: float, method: str, pair: tuple[str, str]) -> Entry:
        weights = dict(zip(pair, (1 - w, w), strict=True)) if method == "linear" else {}
        values = {"w": w, "method": method, "pair.first": pair[0], "pair.second": pair[1]}
        return Entry(f"{method}{pair}{w}", "point", None, values, {}, weights)

    pairs = [("acc", "fmt"), ("acc", "len")]
    points = [point(w, m, p) for m in ("linear", "slerp") for p in pairs for w in (0.1, 0.5, 0.9)]
    found = interpolation.lines(Results("", "", {}, {}, tuple(points)))
    assert [(line.label, line.axis, len(line.points)) for line in found] == [
        ("acc + fmt, method linear", "weight of fmt", 3),
        ("acc + len, method linear", "weight of len", 3),
        ("method slerp, pair.second fmt", "w", 3),
        ("method slerp, pair.second len", "w", 3),
    ]


def test_multiples_of_one_change() -> None:
    entries = (
        Entry("base", "base", "b"),
        Entry("acc", "expert", "runs/acc"),
        *(Entry(f"s{w}", "point", None, {"s": w}, {}, {"runs/acc": w}) for w in (0.5, 1.5)),
    )
    (line,) = interpolation.lines(Results("", "", {}, {}, entries))
    assert line.axis == "weight of acc"
    assert line.ends == entries[:2]


def test_kendall_with_ties() -> None:
    assert interpolation.kendall([(1, 1), (2, 2), (3, 2), (4, 0)]) == pytest.approx(
        -1 / (6 * 5) ** 0.5
    )
    assert interpolation.kendall([(1, 1), (2, 1)]) is None


def test_knee_and_best() -> None:
    entries = [entry("x", 0, 10), entry("k", 8, 8), entry("y", 10, 0), entry("no", 7, 7)]
    knee = front.knee(entries, REWARDS)
    assert knee is not None
    assert knee.name == "k"
    assert front.knee(entries[::2], REWARDS) is None
    chosen = front.best(entries, REWARDS, "a", {"b": 5})
    assert chosen is not None
    assert chosen.name == "k"
    assert front.best(entries, REWARDS, "a", {"b": 50}) is None
    least = front.best(entries, {"a": "min", "b": "min"}, "b", {"a": 7.5})
    assert least is not None
    assert least.name == "no"


def test_certainty_uses_pairs_of_problems() -> None:
    random = np.random.default_rng(1)
    hard = random.normal(size=40)  # what problems have in common hides a small difference
    rows = {"x": hard, "y": hard + 0.05}
    entries = [
        Entry(n, "point", scores={"a": Score(float(r.mean()), float(r.std() / 40**0.5), 0, 0, 40)})
        for n, r in rows.items()
    ]
    per = {n: {"a": {str(i): float(v) for i, v in enumerate(r)}} for n, r in rows.items()}
    paired = front.certainty(entries, {"a": "max"}, per)
    assert paired.paired
    assert paired.on_front == {"x": 0.0, "y": 1.0}
    assert paired.dominates["y"]["x"] == 1
    alone = front.certainty(entries, {"a": "max"})
    assert not alone.paired
    assert 0.4 < alone.on_front["y"] < 0.8
    assert alone.on_front["x"] + alone.on_front["y"] == pytest.approx(1)
    assert front.certainty(entries, {"a": "max"}, {"x": per["x"]}).paired is False
    assert front.certainty([], {"a": "max"}).on_front == {}
