"""Entries of a recipe that stand for many steps of a training run.

``{run: runs/acc, steps: {last: 8}, schedule: uniform}`` stands for eight models,
``runs/acc/global_step_N``, which share the entry's weight.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from merganser.recipe.document import Document, KeyPath, key_name
from merganser.recipe.run_steps import select_steps

WITHOUT_WEIGHT = frozenset({"relex", "model_stock"})
"""Methods that compute the models' shares themselves, so that a schedule has no meaning."""

BY_STEP = frozenset({"relex"})
"""Methods that take each model's step as a parameter."""

DECAYS = ("linear", "cosine", "1-sqrt")

_KEYS = ("run", "steps", "schedule", "parameters")
_SCHEDULES = "uniform, wma, {ema: 0.8}, or {decay: linear}, {decay: cosine}, {decay: 1-sqrt}"

_STEP = {"type": "integer", "minimum": 0}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "many steps of a training run, in place of a model",
    "properties": {
        "run": {"type": "string", "minLength": 1},
        "steps": {
            "anyOf": [
                {"const": "all"},
                _STEP,
                {"type": "array", "items": _STEP, "minItems": 1},
                {
                    "type": "object",
                    "properties": {key: _STEP for key in ("first", "last", "from", "to", "every")},
                    "additionalProperties": False,
                    "minProperties": 1,
                },
            ]
        },
        "schedule": {
            "anyOf": [
                {"enum": ["uniform", "wma"]},
                {
                    "type": "object",
                    "properties": {"ema": {"type": "number", "minimum": 0, "exclusiveMaximum": 1}},
                    "required": ["ema"],
                    "additionalProperties": False,
                },
                {
                    "type": "object",
                    "properties": {"decay": {"enum": list(DECAYS)}},
                    "required": ["decay"],
                    "additionalProperties": False,
                },
            ]
        },
        "parameters": {"type": "object"},
    },
    "required": ["run"],
    "additionalProperties": False,
}
"""The JSON Schema of an entry for a run."""

# -- schedules -------------------------------------------------------------------------------------


def shares(schedule: Any, count: int) -> list[float] | None:
    """The shares of ``count`` steps, from the first to the last, under a schedule; they add up to 1.

    With ``decay`` the mean of the checkpoints equals further training at a decaying learning rate
    (Tian et al. 2025, "WSM", arXiv:2507.17634): if update i has the weight w_i = w(i / count), the first
    checkpoint's share is 1 - w_1, a later one's w_i - w_(i+1), and the last one's w_(count-1).

    Args:
        schedule: ``uniform``, ``wma``, ``{ema: 0.8}`` or ``{decay: linear}``, as in a recipe.
        count: the number of steps.

    Returns:
        One number per step; None if the schedule is not one of these.
    """
    if schedule == "uniform":
        return [1 / count] * count
    if schedule == "wma":
        return [2 * i / (count * (count + 1)) for i in range(1, count + 1)]
    if not isinstance(schedule, dict) or len(schedule) != 1:
        return None
    [(kind, value)] = schedule.items()
    if kind == "ema" and isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 <= value < 1:
            return None
        return [
            value ** (count - 1) if i == 1 else (1 - value) * value ** (count - i)
            for i in range(1, count + 1)
        ]
    if kind == "decay" and value in DECAYS:
        weights = [1.0, *(_decayed(value, i / count) for i in range(1, count)), 0.0]
        return [weights[i] - weights[i + 1] for i in range(count)]
    return None


def _decayed(kind: str, place: float) -> float:
    if kind == "linear":
        return 1 - place
    return 1 - math.sqrt(place) if kind == "1-sqrt" else (1 + math.cos(math.pi * place)) / 2


# -- one entry for many ----------------------------------------------------------------------------


def expand(document: Document, folder: Path | None) -> tuple[Document, list[str]]:
    """A recipe in which every run is replaced by one model per step, and notes on omitted steps.

    Args:
        document: a recipe.
        folder: its folder, which is also searched for runs.

    Raises:
        RecipeError: when a run or its steps are wrong, with file, line and key.
    """
    lines: list[str] = []
    for path, models in _lists(document.data):
        if any(isinstance(entry, dict) and "run" in entry for entry in models):
            document, more = _expanded(document, path, models, folder)
            lines += more
    return document, lines


def _lists(data: Any) -> Iterator[tuple[KeyPath, list[Any]]]:
    """The lists of models of a recipe: its own, and its modules'."""
    if isinstance(data, dict):
        if isinstance(data.get("models"), list):
            yield ("models",), data["models"]
        modules = data.get("modules")
        for name, module in modules.items() if isinstance(modules, dict) else ():
            if isinstance(module, dict) and isinstance(module.get("models"), list):
                yield ("modules", name, "models"), module["models"]


def _expanded(
    document: Document, path: KeyPath, models: list[Any], folder: Path | None
) -> tuple[Document, list[str]]:
    data: Any = copy.deepcopy(document.data)
    entries: list[Any] = []
    origins: list[int] = []
    warnings: list[str] = []
    for i, entry in enumerate(models):
        if not (isinstance(entry, dict) and "run" in entry):
            of_run, more = [entry], list[str]()
        else:
            of_run, more = _entries(document, (*path, i), entry, data, folder)
        entries += of_run
        origins += [i] * len(of_run)
        address = document.address((*path, i))
        warnings += [f"{address}: {line}" if address else line for line in more]
    place = data
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = entries

    def moved(known: Mapping[KeyPath, Any]) -> dict[KeyPath, Any]:
        depth = len(path)
        lines = {p: v for p, v in known.items() if p[:depth] != path or len(p) == depth}
        for j, i in enumerate(origins):
            for p, v in known.items():
                if p[: depth + 1] == (*path, i):
                    rest = tuple("model" if part == "run" else part for part in p[depth + 1 :])
                    lines[(*path, j, *rest)] = v
        return lines

    text = None
    if document.text is not None:
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
    return replace(
        document,
        data=data,
        text=text,
        lines=moved(document.lines),
        repeated=moved(document.repeated),
    ), warnings


def _entries(
    document: Document, path: KeyPath, entry: Mapping[str, Any], data: Any, folder: Path | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """The models that an entry with a run stands for, and notes on omitted steps."""
    for key in entry:
        if key not in _KEYS:
            what = (
                "give either the model or the run"
                if key == "model"
                else f"unknown key; a run has {', '.join(_KEYS)}"
            )
            raise document.error(f"{key_name((*path, key))}: {what}", (*path, key))
    steps, warnings = select_steps(document, entry["run"], entry.get("steps", "all"), path, folder)
    method = data.get("merge_method")
    given: Any = entry.get("parameters") or {}
    shared = dict(given) if isinstance(given, dict) else given
    weight = shared.get("weight") if isinstance(shared, dict) else None
    if weight is None and isinstance(data.get("parameters"), dict):
        weight = data["parameters"].get("weight")
    here = (*path, "schedule")
    if method in BY_STEP and "schedule" in entry:
        raise document.error(
            f"{key_name(here)}: {method} computes the steps' weights itself; remove the schedule",
            here,
        )
    parts: list[float] | None = None
    if method not in WITHOUT_WEIGHT or "schedule" in entry:
        parts = shares(entry.get("schedule", "uniform"), len(steps))
        if parts is None:
            relex = entry["schedule"] == "relex"
            hint = "; relex is a merge_method: merge_method: relex" if relex else ""
            raise document.error(f"{key_name(here)}: give {_SCHEDULES}{hint}", here)
    entries = []
    for i, step in enumerate(steps):
        parameters = shared
        if isinstance(shared, dict):
            parameters = dict(shared)
            if parts is not None:
                parameters["weight"] = _scaled(1 if weight is None else weight, parts[i])
            if method in BY_STEP:
                parameters["step"] = step.number
        name = f"{entry['run'].rstrip('/')}/{step.name}"
        entries.append({"model": name} | ({"parameters": parameters} if parameters else {}))
    return entries, warnings


def _scaled(value: Any, share: float) -> Any:
    """A weight's setting multiplied by a number: a scalar, a gradient, or the values of its rules."""
    if isinstance(value, list):
        return [_scaled(item, share) for item in value]
    if isinstance(value, dict) and "value" in value:
        return {**value, "value": _scaled(value["value"], share)}
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value * share
    try:
        return float(value) * share  # YAML 1.1 reads 1e-2 as text
    except (TypeError, ValueError):
        return value  # the recipe's reader reports its errors
