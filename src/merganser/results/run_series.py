"""Points of a study that differ in the training step of a model: scores against steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from merganser.number_format import ten_digits
from merganser.recipe.run_steps import step_of
from merganser.results.scores import Entry, Results

KEY = "step"
"""A key with this name holds training steps, whatever the models' names are."""


@dataclass(frozen=True, slots=True)
class Series:
    """Points that differ in the training step only, sorted by it.

    Attributes:
        label: what distinguishes the series from others of the study; empty if it is the only one.
        points: the steps, and the entries.
    """

    label: str
    points: tuple[tuple[int, Entry], ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """A grid of points over the steps and one other number.

    Attributes:
        key: the sweep's key of that number.
        steps, numbers: the values of both, sorted.
        points: the entries by step and number.
    """

    key: str
    steps: tuple[int, ...]
    numbers: tuple[float, ...]
    points: Mapping[tuple[int, float], Entry]


def reference_step(model: str) -> int | None:
    """Return the step that a reference names; None if it names none."""
    numbers = map(step_of, reversed(PurePath(model.partition("+")[0]).parts))
    return next((number for number in numbers if number is not None), None)


def step_key(results: Results) -> str | None:
    """Return the sweep's key that runs over the steps of a run; None if there is none."""
    keys = dict.fromkeys(key for point in results.points for key in point.values)
    for key in keys:
        having = [p for p in results.points if key in p.values]
        values = [p.values[key] for p in having]
        if len(set(map(ten_digits, values))) < 2 or not all(type(value) is int for value in values):
            continue
        named = all(
            any(reference_step(name) == p.values[key] for name in p.weights) for p in having
        )
        if named or key == KEY:
            return key
    return None


def series(results: Results) -> list[Series]:
    """Return one series over steps for each combination of the other keys."""
    key = step_key(results)
    if key is None:
        return []
    points = [p for p in results.points if key in p.values]
    others = _varied(points, key)
    groups: dict[tuple[str, ...], list[tuple[int, Entry]]] = {}
    for point in points:
        label = tuple(ten_digits(point.values.get(other)) for other in others)
        groups.setdefault(label, []).append((point.values[key], point))
    return [
        Series(
            ", ".join(f"{other} {value}" for other, value in zip(others, label, strict=True)),
            tuple(sorted(pairs, key=lambda pair: pair[0])),
        )
        for label, pairs in groups.items()
    ]


def run_itself(results: Results) -> list[tuple[int, Entry]]:
    """Return the experts that are steps of the run with the most of them, sorted; empty if fewer than two."""
    runs: dict[str, list[tuple[int, Entry]]] = {}
    for entry in results.entries:
        number = reference_step(entry.model) if entry.role == "expert" and entry.model else None
        if number is None or entry.model is None:
            continue
        parts = PurePath(entry.model).parts
        last = max(i for i, part in enumerate(parts) if step_of(part) is not None)
        runs.setdefault("/".join(parts[:last]), []).append((number, entry))
    longest = max(runs.values(), key=len, default=[])
    return sorted(longest, key=lambda pair: pair[0]) if len(longest) > 1 else []


def grid(results: Results) -> Grid | None:
    """Return the points by step and one other number; None if they form no such grid."""
    key = step_key(results)
    if key is None:
        return None
    points = [p for p in results.points if key in p.values]
    others = _varied(points, key)
    numbers = [
        other
        for other in others
        if all(isinstance(p.values.get(other), int | float) for p in points)
    ]
    if len(others) != 1 or numbers != others:
        return None
    other = others[0]
    cells = {(int(p.values[key]), float(p.values[other])): p for p in points}
    return Grid(
        other,
        tuple(sorted({step for step, _ in cells})),
        tuple(sorted({number for _, number in cells})),
        cells,
    )


def _varied(points: Sequence[Entry], key: str) -> list[str]:
    """Return the varying keys other than the step's."""
    keys: dict[str, Any] = dict.fromkeys(other for p in points for other in p.values)
    return [
        other
        for other in keys
        if other != key and len({ten_digits(p.values.get(other)) for p in points}) > 1
    ]
