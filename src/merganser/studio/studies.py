"""What a page shows of an evaluated study: scores, the front, and completions side by side."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from merganser.results import completions, front, interpolation, scores
from merganser.studio.library import Library

REPORT = "report.html"


def describe(place: str, library: Library) -> dict[str, Any]:
    """A study's models with their scores, as plain data.

    Raises:
        InputError: it has no results, or is elsewhere.
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
    """The problems of a study with each model's first completion.

    Raises:
        InputError: the completions are missing, broken, or elsewhere.
    """
    folder = library.inside(place)
    found = scores.read(folder)
    return completions.for_page(completions.load(found, folder))
