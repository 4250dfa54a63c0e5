"""Files with several recipes that build on each other's results, in the order of merging."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from merganser import suggestions
from merganser.recipe.document import key_name
from merganser.recipe.loading import Config, ParsedRecipe, Strictness, load_all, model_references
from merganser.recipe.references import ModelReference, exists


@dataclass(frozen=True, slots=True)
class Step:
    """One recipe of a file with several.

    Attributes:
        parsed: the recipe.
        name: the name of its result in other recipes, or None.
        needs: names of the results that it takes as inputs.
        final: whether its result is an output, not only an input of other recipes.
    """

    parsed: ParsedRecipe
    name: str | None
    needs: tuple[str, ...]
    final: bool


def load_steps(source: Config, strictness: Strictness = "normal") -> list[Step]:
    """Read all recipes of a file, in the order of merging.

    A model whose path equals a recipe's ``name`` is that recipe's result. The output is the recipe
    without a name, of which there is at most one; if all have names, the outputs are those that no
    other recipe needs.

    Raises:
        RecipeError: when two recipes have one name, or recipes need each other in a circle.
    """
    recipes = load_all(source, strictness)
    if len(recipes) == 1:
        return [Step(recipes[0], recipes[0].recipe.name, (), True)]
    _check_names(recipes)
    names = {r.recipe.name for r in recipes if r.recipe.name}
    uses = [dict(_uses(r, names)) for r in recipes]
    needed = {name for used in uses for name in used}
    named_only = all(r.recipe.name for r in recipes)
    steps = []
    for parsed, used in zip(recipes, uses, strict=True):
        name = parsed.recipe.name or None
        if not named_only and name is not None and name not in needed:
            text = "name: no other document uses this result; it is merged anyway"
            if strictness == "strict":
                raise parsed.error(text, ("name",))
            address = parsed.document.address(("name",))
            parsed = replace(parsed, warnings=(*parsed.warnings, f"{address}: {text}"))
        final = name not in needed if named_only else name is None
        steps.append(Step(parsed, name, tuple(used), final))
    return _in_order(steps, uses)


def _check_names(recipes: Sequence[ParsedRecipe]) -> None:
    seen: dict[str | None, ParsedRecipe] = {}
    for parsed in recipes:
        name = parsed.recipe.name or None
        key = folder_key(name) if name else None
        if key in seen:
            other = seen[key].document.lines.get(("name",) if name else ())
            if name is None:
                raise parsed.error(
                    f"two documents have no name (the other begins at line {other}); all but the "
                    "last merge need one, such as name: stage1"
                )
            raise parsed.error(
                f"name: {name!r} is the name of two documents (first in line {other}), or both get the same folder "
                "on a disk that ignores case",
                ("name",),
            )
        if key == "":
            raise parsed.error(f"name: {name!r} cannot be the name of a folder", ("name",))
        seen[key] = parsed


def folder_name(name: str) -> str:
    """Convert a recipe's name to a folder's name, without path separators."""
    return re.sub(r"[^\w.+-]+", "-", name).strip(".-")


def folder_key(name: str) -> str:
    """A key that is equal for names that are one folder on a disk that ignores case."""
    return folder_name(name).casefold()


def _uses(parsed: ParsedRecipe, names: set[str]) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """The names of the results that a recipe needs, with their paths in the recipe.

    Raises:
        RecipeError: for a model that does not exist and is a likely slip for a result's name.
    """
    for path, reference in model_references(parsed.recipe):
        if _names_result(reference, names):
            yield reference.path, path
        elif "/" not in reference.path and not _exists(reference.path, parsed.folder):
            slip = suggestions.nearest(reference.path, names)
            if slip is not None:
                raise parsed.error(
                    f"{key_name(path)}: there is no model {reference.path!r}; did you mean the "
                    f"document {slip!r} of this file?",
                    path,
                )


def _names_result(reference: ModelReference, names: set[str]) -> bool:
    return reference.revision is None and reference.path in names


def _exists(path: str, beside: Path | None) -> bool:
    return exists(path) or (beside is not None and exists(str(beside / path)))


def _in_order(
    steps: Sequence[Step], uses: Sequence[Mapping[str, tuple[str | int, ...]]]
) -> list[Step]:
    """Sort steps so that each follows those it needs, otherwise in the order of the file."""
    ordered: list[Step] = []
    left = list(steps)
    while left:
        done = {step.name for step in ordered}
        ready = next((step for step in left if done.issuperset(step.needs)), None)
        if ready is None:
            circle = _circle(left)
            first = circle[0]
            path = uses[list(steps).index(first)][str(circle[1 % len(circle)].name)]
            chain = " needs ".join(repr(step.name) for step in [*circle, first])
            raise first.parsed.error(
                f"{key_name(path)}: the merges build on each other in a circle: {chain}", path
            )
        left.remove(ready)
        ordered.append(ready)
    return ordered


def _circle(steps: Sequence[Step]) -> list[Step]:
    """A circle of steps: each needs the next, and the last needs the first."""
    by_name = {step.name: step for step in steps}
    trail = [steps[0]]
    while True:
        following = next(by_name[name] for name in trail[-1].needs if name in by_name)
        if following in trail:
            return trail[trail.index(following) :]
        trail.append(following)


def ancestors(step: Step, steps: Sequence[Step]) -> list[str | None]:
    """Names of the steps that a step needs, directly or indirectly, in order."""
    wanted = set(step.needs)
    for other in reversed(steps):
        if other.name in wanted:
            wanted.update(other.needs)
    return [other.name for other in steps if other.name in wanted]
