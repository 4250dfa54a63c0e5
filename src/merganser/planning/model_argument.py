"""Resolve a command's argument: a model, a recipe, or a point of a sweep."""

from __future__ import annotations

from pathlib import Path

from merganser.errors import RecipeError
from merganser.planning import Plan, make_plan
from merganser.recipe import is_sweep
from merganser.recipe.sweep_file import find_point

RECIPES = (".yml", ".yaml")


def find_merge(reference: str) -> tuple[str, Plan] | None:
    """The short name and the plan of a recipe or of a point of a sweep; None if the argument is a model.

    ``SWEEP.yml#w=0.7`` (several conditions are joined by ``&``) and ``SWEEP.yml#NAME`` are points
    of a sweep, ``recipe.yml`` is a merge.

    Raises:
        RecipeError: when the argument matches no point, or several.
    """
    point = find_point(reference)
    if point is not None:
        return point.name, make_plan(point.recipe)
    before, mark, values = reference.rpartition("#")
    if mark and "=" in values and not Path(reference).exists():
        near = [f"{before}{suffix}" for suffix in RECIPES if Path(f"{before}{suffix}").is_file()]
        raise RecipeError(
            f"{reference}: a point of a sweep begins with the sweep's file, such as "
            f"{near[0] if near else 'sweep.yml'}#{values}"
        )
    if reference.endswith(RECIPES) and Path(reference).is_file():
        if is_sweep(reference):
            raise RecipeError(
                f"{reference}: is a sweep; say which point, by values ({reference}#w=0.7) or by name"
            )
        return Path(reference).stem, make_plan(reference)
    return None


def find(reference: str) -> tuple[str, Plan]:
    """The short name and the plan of a model, a recipe, or a point of a sweep.

    Raises:
        RecipeError: when the argument matches no point, or several.
        InputError: when the model does not exist.
    """
    merge = find_merge(reference)
    if merge is not None:
        return merge
    plan = make_plan({"merge_method": "passthrough", "models": [{"model": reference}]})
    return plan.sources[0].reference.name, plan
