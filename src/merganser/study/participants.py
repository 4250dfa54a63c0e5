"""The models of a study: base, experts and points, each with a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from merganser import recipe, suggestions
from merganser.checkpoints import Weights
from merganser.errors import RecipeError
from merganser.planning import Plan, PlanOptions, make_plan
from merganser.recipe import Document, ModelReference, ParsedRecipe, model_references
from merganser.recipe.steps import folder_name
from merganser.recipe.sweep_file import Point
from merganser.results import scores as results
from merganser.results.references import stated_score
from merganser.results.scores import Direction, Entry, Role
from merganser.study.evaluate_block import Study

SAMPLES = "samples"
"""Name of the folder of completions, next to the points' folders."""


@dataclass(frozen=True, slots=True)
class StudyModel:
    """A model of a study, before it is scored.

    Attributes:
        entry: its name and role, without scores.
        plan: the plan of its merge.
        point: the sweep's or search's point; None for other models.
    """

    entry: Entry
    plan: Plan
    point: Point | None = None


def point_model(point: Point, plan: Plan) -> StudyModel:
    """Return a point as a model of a study."""
    return StudyModel(Entry(point.name, "point", values=point.values), plan, point)


def settle(text: str, beside: Path | None = None, weights: Weights | None = None) -> Plan:
    """Return the plan that reproduces one model unchanged.

    Args:
        text: a reference, as in recipes.
        beside: a folder that is also searched for the model.
        weights: which weights of a training step to read.

    Raises:
        MerganserError: the model does not exist or cannot be read.
    """
    data = {"merge_method": "passthrough", "models": [{"model": text}]}
    parsed = recipe.validate(Document(data), beside, "normal")
    return make_plan(parsed, PlanOptions(weights=weights))


def base_and_experts(
    block: Study,
    points: Sequence[StudyModel],
    folder: Path | None,
    document: Document,
    options: PlanOptions,
) -> list[StudyModel]:
    """Return the base and the experts of all points, each once, bases first.

    Args:
        block: the study's block, which may name a base, or exclude the experts.
        points: the points' plans.
        folder: the folder that relative paths of models start at.
        document: gives errors their file and line.
        options: of :func:`merganser.plan`.

    Raises:
        MerganserError: a model cannot be read.
    """
    wanted = references_of(block, points, document)
    taken = {point.entry.name.casefold() for point in points}
    models: list[StudyModel] = []
    for reference, role, own_name in wanted:
        name = own_name or folder_name(reference.name)
        if name.casefold() in taken:
            name = folder_name(reference.text).strip("._-")[-150:]
        if name.casefold() in taken:
            name = f"{name}_{role}{len(models)}"
        taken.add(name.casefold())
        stated = role == "base" and block.base is not None
        place = ("evaluate", "references") if role in results.REFERENCES else ()
        with document.addressed(("evaluate", "base") if stated else place):
            plan = settle(reference.text, folder, options.weights)
        models.append(StudyModel(Entry(name, role, model=reference.text), plan))
    return models


def references_of(
    block: Study, points: Sequence[StudyModel], document: Document
) -> list[tuple[ModelReference, Role, str | None]]:
    """Return the references, roles and names of the points' base and experts, each once, bases first, and
    of the block's references."""
    merged: dict[str, ModelReference] = {}
    bases: dict[str, ModelReference] = {}
    for point in points:
        parsed: ParsedRecipe = point.plan.recipe
        written = parsed.recipe
        inputs = [written.models or [], written.slices or [], written.modules or {}]
        merged |= {r.text: r for _, r in model_references(inputs)}
        if written.base_model is not None:
            bases[written.base_model.text] = written.base_model
    if block.base is not None:
        try:
            bases = {block.base: recipe.parse_reference(block.base)}
        except ValueError as error:
            raise document.error(f"evaluate.base: {error}", ("evaluate", "base")) from None
    else:
        bases = {text: r for text, r in bases.items() if text not in merged}
    wanted: list[tuple[ModelReference, Role, str | None]] = [
        (r, "base", None) for r in bases.values()
    ]
    if block.experts:
        wanted += [(r, "expert", None) for text, r in merged.items() if text not in bases]
    known = {reference.text for reference, _, _ in wanted}
    for number, stated in enumerate(block.references):
        if stated.model is None:
            continue
        path = ("evaluate", "references", number, "model")
        try:
            reference = recipe.parse_reference(stated.model)
        except ValueError as error:
            raise document.error(f"evaluate.references[{number}]: {error}", path) from None
        if reference.text in known:
            raise document.error(
                f"evaluate.references[{number}]: {stated.model} is a model of the study already",
                path,
            )
        known.add(reference.text)
        wanted.append((reference, stated.role, stated.name and folder_name(stated.name)))
    return wanted


def stated_references(
    block: Study,
    directions: Mapping[str, Direction],
    document: Document,
    taken: Sequence[Entry] = (),
) -> list[Entry]:
    """Return the block's references whose scores are given in the file.

    Args:
        block: the study's block.
        directions: the study's scores.
        document: gives errors their file and line.
        taken: the other entries, whose names are in use.

    Raises:
        RecipeError: the study has no such score, or its uncertainty is missing.
    """
    names = {folder_name(entry.name).casefold() for entry in taken}
    entries: list[Entry] = []
    for number, listed in enumerate(block.references):
        if listed.model is not None or listed.name is None:
            continue
        path = ("evaluate", "references", number)
        if folder_name(listed.name).casefold() in names:
            raise document.error(
                f"evaluate.references: two models are called {listed.name!r}", path
            )
        names.add(folder_name(listed.name).casefold())
        stated = {}
        for score, values in listed.scores.items():
            place = (*path, "scores", score)
            where = f"evaluate.references[{number}].scores.{score}"
            if score not in directions:
                hint = suggestions.suggest(score, list(directions))
                raise document.error(f"{where}: there is no score {score!r}; {hint}", place)
            try:
                stated[score] = stated_score(**values.model_dump())
            except ValueError as error:
                raise document.error(f"{where}: {error}", place) from None
        entries.append(Entry(listed.name, listed.role, scores=stated, source=listed.source))
    return entries


def beside_points(entries: Sequence[Entry], stated: Sequence[Entry]) -> list[Entry]:
    """Return entries in the order of display: stated references before the points."""
    others = [entry for entry in entries if entry.role != "point"]
    return [*others, *stated, *(entry for entry in entries if entry.role == "point")]


def check_names(models: Sequence[StudyModel]) -> None:
    """Check that no point has the name of a folder of the study.

    Raises:
        RecipeError: a point has.
    """
    for model in models:
        if model.point is not None and model.entry.name.casefold() == SAMPLES:
            raise RecipeError(f"a point cannot be called {SAMPLES!r}: its folder holds completions")
        if model.point is not None and model.entry.name.casefold() == results.HELD_OUT:
            raise RecipeError(
                f"a point cannot be called {results.HELD_OUT!r}: its folder holds the scores on "
                "problems that are held out"
            )
