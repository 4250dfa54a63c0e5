"""Triangles: points of a study that mix three models with weights that sum to one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from merganser.number_format import ten_digits
from merganser.recipe import parse_reference
from merganser.recipe.short_names import shorten
from merganser.results.interpolation import is_dial, members, short_names
from merganser.results.scores import Entry, Results

Array = np.ndarray[Any, np.dtype[np.float64]]

TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Triangle:
    """Merges of the same three models.

    Attributes:
        label: what distinguishes these merges from others of the study; empty if they are the only ones.
        models: short names of the models at the corners.
        points: the three weights and the entry of each point.
        corners: the models' entries; None for a model without scores.
    """

    label: str
    models: tuple[str, str, str]
    points: tuple[tuple[tuple[float, float, float], Entry], ...]
    corners: tuple[Entry | None, Entry | None, Entry | None]

    def having(self, score: str) -> list[tuple[tuple[float, float, float], Entry]]:
        """Return the points that have a score, and the corners without a point."""
        points = [(w, e) for w, e in self.points if score in e.scores]
        there = {tuple(round(number, 6) for number in w) for w, _ in points}
        for n, corner in enumerate(self.corners):
            place = (float(n == 0), float(n == 1), float(n == 2))
            if corner is not None and score in corner.scores and place not in there:
                points.append((place, corner))
        return points


def place(weights: Sequence[float]) -> tuple[float, float]:
    """Return the (x, y) of three weights in a triangle: first model left, second right, third on top."""
    _, right, top = weights
    return right + top / 2, top * 3**0.5 / 2


def triangles(results: Results) -> list[Triangle]:
    """Return a study's triangles with points inside: one per three models, method and other values."""
    keys = list(dict.fromkeys(key for point in results.points for key in point.values))
    fixed = [key for key in keys if not is_dial(key, results.points)]
    groups: dict[tuple[Any, ...], list[Entry]] = {}
    for point in results.points:
        if len(point.weights) == 3:
            others = tuple(ten_digits(point.values.get(key)) for key in fixed)
            groups.setdefault((members(results, point), others), []).append(point)
    known = {entry.name: entry for entry in results.entries if entry.role != "point"}
    short = short_names(results)
    result = []
    for (names, others), points in groups.items():
        placed = [(_three(p), p) for p in points]
        good = tuple((w, p) for w, p in placed if min(w) > -TOLERANCE and _is_one(sum(w)))
        if not _spans([w for w, _ in good]):
            continue
        label = ", ".join(
            f"{key} {value}" for key, value in zip(fixed, others, strict=True) if len(groups) > 1
        )
        shown = dict(zip(names, _shown(names, points), strict=True)) | short
        first, second, third = (shown[name] for name in names)
        corners = (known.get(names[0]), known.get(names[1]), known.get(names[2]))
        result.append(Triangle(label, (first, second, third), good, corners))
    return result


def _shown(names: Sequence[str], points: Sequence[Entry]) -> list[str]:
    """Return names of merged models that are not entries: those of the sweep's weights, else the folders'."""
    keys = [key for key in points[0].values if "." in key]
    parts = []
    for model in range(len(names)):
        varying = [
            key
            for key in keys
            if all(abs(_number(p.values.get(key)) - _three(p)[model]) < TOLERANCE for p in points)
        ]
        parts += [varying[0].rpartition(".")[2]] if len(varying) == 1 else []
    return parts if len(parts) == len(names) else shorten([_folder(name) for name in names])


def _folder(name: str) -> str:
    try:
        return parse_reference(name).name
    except ValueError:
        return name


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.inf


def _three(point: Entry) -> tuple[float, float, float]:
    first, second, third = point.weights.values()
    return first, second, third


def _is_one(total: float) -> bool:
    return abs(total - 1) < TOLERANCE


def _spans(weights: Sequence[Sequence[float]]) -> bool:
    """Whether points are not all on one line."""
    if len(weights) < 3:
        return False
    places: Array = np.array([place(w) for w in weights])
    return bool(np.linalg.matrix_rank(places - places[0], tol=1e-6) == 2)
