"""Metrics of a study's models as a flat mapping, with the same names for all points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from merganser.recipe.short_names import shorten
from merganser.results.scores import Entry

NEAR = 1e-6
"""Tolerance for the equality of a sweep's value and a weight."""


class Metrics:
    """Names the metrics of a study's models.

    ``accuracy``, ``accuracy_error``, ``accuracy_low`` and ``accuracy_high`` of each score; each number
    of the sweep by its key, such as ``w``; ``effective_w`` if ``w`` is the weight of one model; the
    weights of all models as ``weight_MODEL`` and ``effective_MODEL``.
    """

    def __init__(self) -> None:
        self._weighing: dict[str, set[str]] = {}

    def of(self, entry: Entry, prefix: str = "") -> dict[str, float]:
        """Return the metrics of a model by name.

        Args:
            entry: the model with its scores. If it is not a merge, the metrics' names begin with its name.
            prefix: prefix of all names; if not empty, only scores are returned.
        """
        start = prefix if entry.role == "point" else f"{prefix}{entry.name}/"
        numbers: dict[str, float] = {}
        for name, score in entry.scores.items():
            numbers |= {name: score.mean, f"{name}_error": score.error}
            numbers |= {f"{name}_low": score.low, f"{name}_high": score.high}
        if not prefix:
            numbers |= self._weights(entry)
        return {f"{start}{k}": float(v) for k, v in numbers.items() if math.isfinite(v)}

    def _weights(self, entry: Entry) -> dict[str, float]:
        values = dict(_numbers(entry.values))
        numbers = dict(values)
        for key, value in values.items():
            model = self._weighed_by(key, value, entry.weights)
            if model is not None and model in entry.effective:
                numbers[f"effective_{key}"] = entry.effective[model]
        for model, short in zip(entry.weights, _short(list(entry.weights)), strict=True):
            numbers[f"weight_{short}"] = entry.weights[model]
            if model in entry.effective:
                numbers[f"effective_{short}"] = entry.effective[model]
        return numbers

    def _weighed_by(self, key: str, value: float, weights: Mapping[str, float]) -> str | None:
        """Return the one model whose weight has equalled the key's value at all points so far; else None."""
        same = {model for model, weight in weights.items() if abs(weight - value) < NEAR}
        self._weighing[key] = self._weighing.get(key, same) & same
        return next(iter(self._weighing[key])) if len(self._weighing[key]) == 1 else None


def _short(models: Sequence[str]) -> list[str]:
    """Return models' names without their folders, if those are unique."""
    names = [model.rstrip("/").rpartition("/")[2] for model in models]
    return names if len(set(names)) == len(names) else shorten(models)


def _numbers(values: Mapping[str, Any]) -> list[tuple[str, float]]:
    numbers: list[tuple[str, float]] = []
    for key, value in values.items():
        if isinstance(value, list | tuple):
            numbers += _numbers({f"{key}[{n}]": each for n, each in enumerate(value)})
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers.append((key, value))
    return numbers
