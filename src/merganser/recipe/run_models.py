"""Training runs among the models of a recipe: one entry for many steps.

``{run: runs/acc, steps: {last: 8}, schedule: uniform}`` stands for eight models,
``runs/acc/global_step_N``, each with its part of the entry's weight.
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
"""Methods that find the models' shares themselves."""

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
    """How a schedule shares a weight among so many steps, from the first to the last; None if there is no
    such schedule.

    Of ``decay`` they are those with which a mean of checkpoints equals training on with a rate that
    decays (Tian et al. 2025, "WSM", arXiv:2507.17634): with update i weighted w_i = w(i / count), the
    first checkpoint has 1 - w_1, each next one w_i - w_(i+1), and the last w_(count-1).
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
    """Return a recipe with one model per step of its runs, and notes on omitted steps.

    Args:
        document: a recipe.
        folder: its folder, which is also searched for runs.

    Raises:
        RecipeError: with file, line and key of what is wrong with a run.
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
            made, more = [entry], list[str]()
        else:
            made, more = _entries(document, (*path, i), entry, data, folder)
        entries += made
        origins += [i] * len(made)
        address = document.address((*path, i))
        warnings += [f"{address}: {line}" if address else line for line in more]
    place = data
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = entries

    def moved(known: Mapping[KeyPath, Any]) -> dict[KeyPath, Any]:
        depth = len(path)
        found = {p: v for p, v in known.items() if p[:depth] != path or len(p) == depth}
        for j, i in enumerate(origins):
            for p, v in known.items():
                if p[: depth + 1] == (*path, i):
                    rest = tuple("model" if part == "run" else part for part in p[depth + 1 :])
                    found[(*path, j, *rest)] = v
        return found

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
    """Return the models of an entry with a run."""
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
    own = dict(given) if isinstance(given, dict) else given
    weight = own.get("weight") if isinstance(own, dict) else None
    if weight is None and isinstance(data.get("parameters"), dict):
        weight = data["parameters"].get("weight")
    here = (*path, "schedule")
    if method in BY_STEP and "schedule" in entry:
        raise document.error(
            f"{key_name(here)}: {method} finds the steps' weights itself; take the schedule out",
            here,
        )
    parts: list[float] | None = None
    if method not in WITHOUT_WEIGHT or "schedule" in entry:
        parts = shares(entry.get("schedule", "uniform"), len(steps))
        if parts is None:
            relex = entry["schedule"] == "relex"
            hint = "; relex is a merge_method: merge_method: relex" if relex else ""
            raise document.error(f"{key_name(here)}: give {_SCHEDULES}{hint}", here)
    made = []
    for i, step in enumerate(steps):
        parameters = own
        if isinstance(own, dict):
            parameters = dict(own)
            if parts is not None:
                parameters["weight"] = _scaled(1 if weight is None else weight, parts[i])
            if method in BY_STEP:
                parameters["step"] = step.number
        name = f"{entry['run'].rstrip('/')}/{step.name}"
        made.append({"model": name} | ({"parameters": parameters} if parameters else {}))
    return made, warnings


def _scaled(value: Any, share: float) -> Any:
    """A weight's setting times a number: itself, its gradient's, or its rules'."""
    if isinstance(value, list):
        return [_scaled(each, share) for each in value]
    if isinstance(value, dict) and "value" in value:
        return {**value, "value": _scaled(value["value"], share)}
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value * share
    try:
        return float(value) * share  # YAML 1.1 reads 1e-2 as text
    except (TypeError, ValueError):
        return value  # the recipe's reader reports its errors
