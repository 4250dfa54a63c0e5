"""Check a study's file before the studio runs it: it may use the library's models, and no program."""

from __future__ import annotations

from collections.abc import Iterator

from merganser import recipe
from merganser.errors import InputError, RecipeError
from merganser.evaluation.presets import PROBLEM_SETS
from merganser.evaluation.task_entries import read_block
from merganser.recipe.references import parse_reference
from merganser.recipe.sweep_file import load_points
from merganser.studio.library import Library
from merganser.studio.sweeps import offered_scorers
from merganser.study.evaluate_block import Study


def check(name: str, library: Library) -> bool:
    """Check the file of a study, and return whether its problems may have to be downloaded.

    Args:
        name: the file's path below the root.
        library: the studio's folder.

    Raises:
        InputError: a model or a file of problems is not the library's.
        RecipeError: the file is wrong, or runs programs or asks servers.
    """
    path = library.inside(name)
    [document, *_], folder = recipe.read_documents(path)
    if not isinstance(document.data, dict) or "evaluate" not in document.data:
        raise RecipeError(f"{name}: has no evaluate: block")
    block = read_block(document, ("evaluate",), Study)
    for what in _not_run(block):
        raise RecipeError(f"{name}: the studio runs no study with {what}; run it in a terminal")
    home = (folder or library.root).relative_to(library.root)
    network = False
    for task in block.tasks:
        if task.problems is None or task.problems in PROBLEM_SETS or "://" in task.problems:
            network = True
        else:
            library.inside(str(home / task.problems))
    others = [block.base, *(reference.model for reference in block.references)]
    models = {model for model in others if model is not None}
    for point in load_points(path):
        models |= {used.text for _, used in recipe.model_references(point.recipe.recipe)}
    for model in sorted(models):
        try:
            library.located(parse_reference(model))
        except ValueError as error:
            raise InputError(str(error)) from None
    return network


def _not_run(block: Study) -> Iterator[str]:
    """Yield what the studio does not run in a study."""
    if block.allow_code:
        yield "allow_code"
    if block.engine == "endpoint":
        yield "engine: endpoint"
    if block.lm_eval:
        yield "lm_eval"
    if block.track not in (None, "none"):
        yield f"track: {block.track}"
    for task in block.tasks:
        for entry in task.scorers:
            name = entry if isinstance(entry, str) else entry.scorer
            if name not in offered_scorers():
                yield f"the scorer {name[:60]}"
