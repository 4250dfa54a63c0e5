"""Data of an evaluated study for a page: scores, the front, and completions side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import yaml

from merganser.errors import InputError
from merganser.recipe import Document
from merganser.recipe.short_names import POINTS, shorten
from merganser.recipe.sweep_file import pattern_of
from merganser.results import completions, front, interpolation, scores
from merganser.results.scores import Results
from merganser.studio.library import Library

REPORT = "report.html"


def describe(place: str, library: Library, seen: str = "") -> dict[str, Any]:
    """Return a study's models with their scores so far, as plain data; only a version if none is scored.

    Args:
        place: the study's folder, below the root.
        library: the studio's folder.
        seen: the version that the page has; if it is the newest, only the version is returned.

    Raises:
        InputError: the study has no results and no file, or is not below the root.
    """
    try:
        found, total, version = _read(place, library)
    except InputError:
        if library.has(place) and library.has(f"{place}/{scores.JSON_NAME}"):
            raise
        library.inside(f"{place}.yml")
        return {"version": "none"}
    if version == seen:
        return {"version": version}
    folder = library.inside(place)
    best = {entry.name for entry in front.non_dominated(found.entries, found.directions)}
    points = [entry.name for entry in found.points]
    short = interpolation.short_names(found)
    short |= dict(zip(points, shorten(points, POINTS), strict=True))
    return {
        "version": version,
        "total": total,
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
                "folder": None if entry.folder is None else f"{place}/{entry.folder}",
            }
            for entry in found.entries
        ],
    }


def _read(place: str, library: Library) -> tuple[Results, int | None, str]:
    """Return a study's results, how many models it scores if it is not finished, and a version of both.

    The results so far of a study that runs, or was stopped, come before those of an earlier run.

    Raises:
        InputError: the study has no results, or is not below the root.
    """
    try:
        path = library.inside(f"{place}/{scores.PARTIAL_NAME}")
        version = f"partial-{path.stat().st_mtime_ns}"
        found, total = scores.read_partial(path.parent)
    except (InputError, OSError):
        path = library.inside(f"{place}/{scores.JSON_NAME}")
        return scores.read(path.parent), None, f"{path.stat().st_mtime_ns}"
    return found, total, version


def answers(place: str, library: Library) -> list[dict[str, Any]]:
    """Return a study's problems with each model's first completion, as plain data.

    Raises:
        InputError: the completions are missing, broken, or not below the root.
    """
    folder = library.inside(place)
    found, _, _ = _read(place, library)
    return completions.for_page(completions.load(found, folder))


def recipe_of(place: str, name: str, library: Library) -> str:
    """Return the text of the recipe of a study's model.

    Raises:
        InputError: the study has no such model.
        RecipeError: the study's file no longer has the model.
    """
    folder = library.inside(place)
    found, _, _ = _read(place, library)
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
