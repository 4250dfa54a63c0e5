"""Recipes of greedy soups, from a list of candidate models.

Wortsman et al. 2022, "Model soups" (arXiv:2203.05482). ``from`` lists the models; the recipe needs
no other key, and may set any key except its models.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path as Folder
from typing import Any

from merganser.recipe import Document
from merganser.recipe.run_steps import select_steps
from merganser.recipe.short_names import shorten

KEY = "soup"
"""The key of the models' multiplicities, in expressions and in names of values."""

MOST_MODELS = 200


def with_models(document: Document, folder: Folder | None) -> tuple[Document, tuple[str, ...]]:
    """Return a greedy search's recipe with its models, and the models' short names.

    Args:
        document: the file's content, whose ``search`` has ``from``.
        folder: the file's folder, which is also searched for training runs.

    Raises:
        RecipeError: with file, line and key of the first thing that is wrong.
    """
    data: Any = document.data
    here = ("search", "from")
    for key in ("models", "slices", "modules"):
        if key in data:
            raise document.error(
                f"{key}: a greedy search merges the models of search.from; remove {key}", (key,)
            )
    references: list[str] = []
    listed = data["search"]["from"]
    for i, entry in enumerate(listed if isinstance(listed, list) else []):
        if isinstance(entry, str) and entry.strip():
            references.append(entry)
        elif isinstance(entry, dict) and "run" in entry and set(entry) <= {"run", "steps"}:
            run, steps = entry["run"], entry.get("steps", "all")
            chosen, _ = select_steps(document, run, steps, (*here, i), folder)
            references += [f"{run.rstrip('/')}/{step.name}" for step in chosen]
        else:
            raise document.error(
                f"search.from[{i}]: is a model, or steps of a run {{run: runs/acc, steps: {{last: 8}}}}",
                (*here, i),
            )
    if twice := next((text for text in references if references.count(text) > 1), None):
        raise document.error(f"search.from: {twice} is listed twice", here)
    if not 2 <= len(references) <= MOST_MODELS:
        raise document.error(
            f"search.from: give a list of 2 to {MOST_MODELS} models, such as [runs/a, runs/b]", here
        )
    names = _names(references)
    models = [
        {
            "model": f"{{{{ {_quoted(text)} if {KEY}.{name} > 0 }}}}",
            "parameters": {"weight": f"{{{{ {KEY}.{name} }}}}"},
        }
        for text, name in zip(references, names, strict=True)
    ]
    return replace(document, data={"merge_method": "linear", **data, "models": models}), names


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _names(references: Sequence[str]) -> tuple[str, ...]:
    """Return unique short names of models that are valid in expressions."""
    taken: dict[str, None] = {}
    for text in shorten([reference.strip("/") for reference in references]):
        plain = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_") or "model"
        name = plain if not plain[0].isdigit() else f"m{plain}"
        unique, number = name, 2
        while unique in taken:
            unique, number = f"{name}_{number}", number + 1
        taken[unique] = None
    return tuple(taken)
