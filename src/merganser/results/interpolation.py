"""Points of a study on a line between two models, and their scores' deviation from linearity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from merganser import number_format
from merganser.recipe.short_names import POINTS, shorten
from merganser.results.scores import Direction, Entry, Results


@dataclass(frozen=True, slots=True)
class Line:
    """Points of a study that differ in one number only, sorted by it.

    Attributes:
        label: what distinguishes the line from others of the study; empty if it is the only one.
        axis: what the number is: ``weight of acc``, or a key of the sweep.
        points: the numbers, and the entries.
        ends: the models at 0 and 1, if the number is the weight between two known models.
    """

    label: str
    axis: str
    points: tuple[tuple[float, Entry], ...]
    ends: tuple[Entry, Entry] | None = None

    def along(self, score: str) -> list[tuple[float, Entry]]:
        """Return the points and ends that have a score, sorted by the number."""
        ends = [] if self.ends is None else [(0.0, self.ends[0]), (1.0, self.ends[1])]
        return _ordered([(x, e) for x, e in (*ends, *self.points) if score in e.scores])


def lines(results: Results) -> list[Line]:
    """Return the lines that a study's points lie on: one for each pair of experts, method and so on.

    The line's number is the weight of a model if points have weights, else the sweep's only
    varying numeric key.
    """
    points = results.points
    short = short_names(results)
    keys = list(dict.fromkeys(key for point in points for key in point.values))
    dials = [key for key in keys if is_dial(key, points)]
    fixed = [key for key in keys if key not in dials]
    groups: dict[tuple[Any, ...], list[Entry]] = {}
    for point in points:
        others = tuple(number_format.ten_digits(point.values.get(key)) for key in fixed)
        groups.setdefault((members(results, point), others), []).append(point)
    several = len({constants for constants, _ in groups}) > 1
    varied = [len({others[n] for _, others in groups}) > 1 for n in range(len(fixed))]
    lines = []
    for (constants, others), chosen in groups.items():
        parts = [" + ".join(short.get(n, n) for n in constants)] if several and constants else []
        parts += [
            f"{key} {short.get(value, value)}"
            for key, value, varies in zip(fixed, others, varied, strict=True)
            if varies and not ("." in key and parts)  # the label has the models
        ]
        lines.append(_line(results, ", ".join(parts), chosen, constants, dials))
    return [line for line in lines if len(line.points) > 1]


def members(results: Results, point: Entry) -> tuple[str, ...]:
    """Return the merged models of a point, by the names of their entries if they have some."""
    known = {e.model: e.name for e in results.entries if e.model is not None}
    return tuple(known.get(name, name) for name in point.weights)


def labels(results: Results) -> dict[str, str]:
    """Return short names of all entries and merged models, by their full names."""
    names = [point.name for point in results.points]
    short = dict(zip(names, shorten(names, POINTS), strict=True)) | short_names(results)
    return {e.model: short[e.name] for e in results.entries if e.model is not None} | short


def short_names(results: Results) -> dict[str, str]:
    """Return short names of the models that are not points, by their full names."""
    experts = [e.name for e in results.entries if e.role == "expert"]
    base = [e.name for e in results.entries if e.role == "base"]
    others = [e.name for e in results.references]
    names = [*experts, *base, *others]
    return dict(zip(names, [*shorten(experts), *shorten(base), *shorten(others)], strict=True))


def is_dial(key: str, points: Sequence[Entry]) -> bool:
    """Whether a key moves points along a line: a number that only changes weights."""
    having = [point for point in points if key in point.values]
    if not all(_is_number(point.values[key]) for point in having):
        return False
    if _is_share(key, having):
        return True
    seen: dict[Any, set[tuple[float, ...]]] = {}
    for point in having:
        others = tuple(
            (k, number_format.ten_digits(v)) for k, v in point.values.items() if k != key
        )
        weights = tuple(point.weights.values()) or (float(point.values[key]),)
        seen.setdefault((tuple(point.weights), others), set()).add(weights)
    return any(len(weights) > 1 for weights in seen.values())


def _is_share(key: str, points: Sequence[Entry]) -> bool:
    """Whether a key is one of the weights of a simplex, which cannot change alone: ``w.acc``."""
    family, dot, _ = key.partition(".")
    for point in points:
        parts = [v for k, v in point.values.items() if k.startswith(f"{family}.")]
        if not dot or not all(map(_is_number, parts)) or abs(sum(parts) - 1) > 1e-9:
            return False
    return len({point.values[key] for point in points}) > 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _line(
    results: Results,
    label: str,
    points: Sequence[Entry],
    names: Sequence[str],
    dials: Sequence[str],
) -> Line:
    """Return points sorted by a weight, or by the sweep's number if weights do not determine the order."""
    known = {entry.name: entry for entry in results.entries if entry.role != "point"}
    weights = [tuple(point.weights.values()) for point in points]
    base = next((e.name for e in known.values() if e.role == "base"), None)
    pair: tuple[str, str] | None = None
    numbers: list[float] = []
    if len(names) == 2 and all(abs(sum(row) - 1) < 1e-6 for row in weights):
        # The model whose weight is the sweep's number is on the right; otherwise the last model.
        first = [row[0] for row in weights]
        turned = any(_near([p.values.get(key) for p in points], first) for key in dials)
        pair = (names[1], names[0]) if turned else (names[0], names[1])
        numbers = first if turned else [row[1] for row in weights]
    elif len(names) == 1 and base is not None:  # a multiple of one model's task vector
        pair, numbers = (base, names[0]), [row[0] for row in weights]
    if pair is not None and len(set(numbers)) == len(points):
        ends = (known[pair[0]], known[pair[1]]) if pair[0] in known and pair[1] in known else None
        name = short_names(results).get(pair[1], pair[1])
        return Line(label, f"weight of {name}", _pairs(numbers, points), ends)
    if len(dials) == 1 and all(dials[0] in point.values for point in points):
        return Line(label, dials[0], _pairs([float(p.values[dials[0]]) for p in points], points))
    return Line(label, "", ())


def _near(values: Sequence[Any], weights: Sequence[float]) -> bool:
    return all(
        _is_number(value) and abs(value - weight) < 1e-6
        for value, weight in zip(values, weights, strict=True)
    )


def _pairs(numbers: Sequence[float], points: Sequence[Entry]) -> tuple[tuple[float, Entry], ...]:
    return tuple(_ordered(list(zip(numbers, points, strict=True))))


def _ordered(pairs: list[tuple[float, Entry]]) -> list[tuple[float, Entry]]:
    return sorted(pairs, key=lambda pair: pair[0])


@dataclass(frozen=True, slots=True)
class Gap:
    """The deviation of a score from the chord, the straight line between a line's ends.

    Attributes:
        at: the position of the largest deviation.
        gap: how much better the score is than the chord there; negative if worse.
        barrier: the largest amount by which a point is worse than the chord; 0 if none is (linear mode
            connectivity: Frankle et al. 2020, Neyshabur et al. 2020).
        tau: Kendall's tau of the score against the number, ends included: 1 if each step improves
            it, -1 if each worsens it. None if it does not vary.
    """

    at: float
    gap: float
    barrier: float
    tau: float | None


def gap(line: Line, score: str, direction: Direction) -> Gap | None:
    """Return the largest gap between a score and the chord.

    Returns:
        The gap; None if the line has no ends with the score, or no point between them.
    """
    inner = [(x, e) for x, e in line.points if 0 < x < 1 and score in e.scores]
    if line.ends is None or not inner or any(score not in end.scores for end in line.ends):
        return None
    sign = 1.0 if direction == "max" else -1.0
    begin, end = (end_entry.scores[score].mean for end_entry in line.ends)
    gaps = [(sign * (e.scores[score].mean - (begin + x * (end - begin))), x) for x, e in inner]
    most, at = max(gaps, key=lambda pair: abs(pair[0]))
    tau = kendall([(x, sign * e.scores[score].mean) for x, e in line.along(score)])
    return Gap(at, most, max(0.0, -min(gaps)[0]), tau)


def kendall(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Return Kendall's tau-b of pairs of numbers (Kendall 1945); None if one side does not vary."""
    x, y = np.array(pairs, np.float64).reshape(-1, 2).T
    dx, dy = np.sign(x[:, None] - x), np.sign(y[:, None] - y)
    varied = math.sqrt(float((dx**2).sum())) * math.sqrt(float((dy**2).sum()))
    return float((dx * dy).sum()) / varied if varied else None
