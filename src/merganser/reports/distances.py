"""Differences between the weights of a study's experts, measured on request and stored for its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from merganser.errors import InputError, RecipeError, ResourceError
from merganser.results import scores as results
from merganser.results.interpolation import lines, short_names

NAME = "distances.json"


def measure(folder: Path, *, threads: int | None = None) -> Path:
    """Compare the experts of each line of a study; return the file that stores the result for the report.

    Reads the weights of both experts, and of the base if the study has one.

    Raises:
        InputError: when a model cannot be opened.
        RecipeError: when no line of the study joins two experts whose models are known.
    """
    from merganser.differences.diff import diff

    study = results.read(folder)
    short = short_names(study)
    experts = [e for e in study.entries if e.role == "expert" and e.model]
    ends = [line.ends for line in lines(study) if line.ends]
    pairs = {(a.name, b.name): (a, b) for a, b in ends if a in experts and b in experts}
    if not pairs and len(experts) == 2:
        pairs[experts[0].name, experts[1].name] = (experts[0], experts[1])
    if not pairs:
        raise RecipeError(f"{folder}: its study has no two experts to compare")
    bases = [e for e in study.entries if e.role == "base" and e.model][:1]
    measured = []
    for a, b in pairs.values():
        first, second, *base = (
            results.reference(study, folder, e.model) for e in (a, b, *bases) if e.model is not None
        )
        difference = diff(first, second, base=base[0] if base else None, threads=threads)
        title = f"{short[a.name]} and {short[b.name]}"
        measured.append(
            {"title": title, "whole": difference.as_dict()["whole"], "cells": difference.cells()}
        )
    path = folder / NAME
    try:
        path.write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written ({error.strerror})") from None
    return path


def load(folder: Path) -> list[dict[str, Any]]:
    """Return the differences that :func:`measure` stored; empty if there are none."""
    path = folder / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [
            {k: dict(pair[k]) for k in ("whole", "cells")} | {"title": str(pair["title"])}
            for pair in content
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete it, or measure again") from None
