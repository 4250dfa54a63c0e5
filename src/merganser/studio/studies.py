"""Data of an evaluated study for a page: scores, the front, and completions side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import yaml

from merganser.errors import InputError
from merganser.recipe import Document
from merganser.recipe.sweep_file import pattern_of
from merganser.results import completions, front, interpolation, scores
from merganser.studio.library import Library

REPORT = "report.html"


def describe(place: str, library: Library) -> dict[str, Any]:
    """Return a study's models with their scores, as plain data.

    Raises:
        InputError: the study has no results, or is outside the root.
    """
    folder = library.inside(place)
    library.inside(f"{place}/{scores.JSON_NAME}")
    found = scores.read(folder)
    best = {entry.name for entry in front.non_dominated(found.entries, found.directions)}
    short = interpolation.short_names(found)
    return {
        "name": found.name,
        "directions": dict(found.directions),
        "report": (folder / REPORT).is_file(),
        "recipe": found.recipe,
        "entries": [
            {
                "name": entry.name,
                "short": short.get(entry.name, entry.name),
                "role": entry.role,
                "values": dict(entry.values),
                "weights": dict(entry.weights),
                "effective": dict(entry.effective),
                "scores": {name: asdict(score) for name, score in entry.scores.items()},
                "front": entry.name in best,
                "chosen": found.chosen.get(entry.name),
                "samples": entry.samples is not None,
            }
            for entry in found.entries
        ],
    }


def answers(place: str, library: Library) -> list[dict[str, Any]]:
    """Return a study's problems with each model's first completion, as plain data.

    Raises:
        InputError: the completions are missing, broken, or outside the root.
    """
    folder = library.inside(place)
    found = scores.read(folder)
    return completions.for_page(completions.load(found, folder))


def recipe_of(place: str, name: str, library: Library) -> str:
    """Return the text of the recipe of a study's model.

    Raises:
        InputError: the study has no such model.
        RecipeError: the study's file no longer has the model.
    """
    folder = library.inside(place)
    found = scores.read(folder)
    entry = next((entry for entry in found.entries if entry.name == name), None)
    if entry is None or entry.source is not None:
        raise InputError(f"{place}: has no model {name[:200]!r}")
    data: Any = {"merge_method": "passthrough", "models": [{"model": entry.model}]}
    if entry.model is None:
        document = Document(yaml.safe_load(found.recipe), found.recipe, scores.JSON_NAME)
        searched = isinstance(document.data, dict) and "search" in document.data
        pattern = pattern_of(document, folder, "search" if searched else "sweep")
        data = dict(pattern.point(_nested(entry.values)).recipe.data)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with keys ``key.part`` nested as mappings, as in a sweep."""
    made: dict[str, Any] = {}
    for key, value in values.items():
        first, dot, last = key.partition(".")
        if dot:
            made.setdefault(first, {})[last] = value
        else:
            made[first] = value
    return made
