"""A server's models by name: points of studies, points between them, and single models."""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from merganser import suggestions
from merganser.errors import InputError, MerganserError, RecipeError
from merganser.planning import Plan, PlanOptions, make_plan
from merganser.planning.model_argument import RECIPES, find
from merganser.recipe import Document, is_sweep
from merganser.recipe.axes import WHERE, Grid, is_number, read_grids
from merganser.recipe.sweep_file import Pattern, load_points, pattern_of, read_pattern
from merganser.results import scores as results
from merganser.results.scores import Entry, Role, Score
from merganser.study import sweep
from merganser.study.evaluate_block import Reference, Study
from merganser.study.participants import base_and_experts, point_model, settle

MOST_BETWEEN = 256
"""Maximum number of points off the grid whose plans are cached."""


class UnknownModel(MerganserError):
    """The server has no model of this name."""


@dataclass(frozen=True, eq=False)
class Served:
    """A model that a server serves.

    Attributes:
        name: its name in requests.
        plan: the plan of its merge.
        role: its role in its study; None for a single model.
        values: a point's values by key.
        scores: its scores; empty if the study is not evaluated.
    """

    name: str
    plan: Plan
    role: Role | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Score] = field(default_factory=dict)


@dataclass(frozen=True)
class _Study:
    """A study that is served.

    Attributes:
        labels: names of the study, which may stand before ``#``.
        pattern: the recipe that points' values are inserted into.
        grids: the sweep's grids; empty for a search.
        models: its models by name.
    """

    labels: Sequence[str]
    pattern: Pattern
    grids: Sequence[Grid]
    models: Mapping[str, Served]


class Catalogue:
    """The models of a server.

    A sweep, or the folder of a study, adds its points, its base and its experts. ``STUDY#w=0.73`` names a
    point between those of a grid, with a value from the sweep's range for each key that varies; STUDY is
    the reference, or its last part. A single model is named by its short name or by its reference.

    Args:
        references: the models to serve: anything that ``merganser generate`` accepts, sweeps, and folders of
            studies.
        grid_only: whether to refuse points between those of a grid.

    Attributes:
        models: the models by name, in order.

    Raises:
        MerganserError: a model cannot be planned, or two models have the same name.
    """

    def __init__(self, references: Sequence[str], *, grid_only: bool = False) -> None:
        self.models: dict[str, Served] = {}
        self._grid_only = grid_only
        self._studies: list[_Study] = []
        self._references: dict[str, Served] = {}
        self._between: OrderedDict[str, Served] = OrderedDict()
        self._lock = threading.Lock()
        for reference in references:
            opened = self._open(reference)
            if len(opened) == 1:
                self._references[reference] = opened[0]

    def find(self, name: str) -> Served:
        """Return the model with a name.

        The first request for a point off the grid reads the headers of its models.

        Raises:
            UnknownModel: there is no such model.
            MerganserError: the point's recipe is not a valid merge.
        """
        with self._lock:
            known = (self.models, self._references, self._between)
            if found := next((each[name] for each in known if name in each), None):
                return found
            label, mark, fragment = name.rpartition("#")
            study = next((each for each in self._studies if label in each.labels), None)
            if not mark or study is None:
                names = [*self.models, *(f"{each.labels[0]}#…" for each in self._studies)]
                hint = suggestions.suggest(name, names)
                raise UnknownModel(f"there is no model {name[:200]!r}; {hint}")
            found = study.models.get(fragment) or self._point(study, name, fragment)
            self._between[name] = found
            if len(self._between) > MOST_BETWEEN:
                self._between.popitem(last=False)
            return found

    def _open(self, reference: str) -> list[Served]:
        folder = Path(reference)
        if (folder / results.JSON_NAME).is_file():
            return self._add(reference, *_read_results(folder))
        if reference.endswith(RECIPES) and folder.is_file() and is_sweep(reference):
            return self._add(reference, *_read_sweep(reference))
        name, plan = find(reference)
        return [self._register(reference, Served(name, plan))]

    def _add(self, reference: str, pattern: Pattern, listed: Sequence[Served]) -> list[Served]:
        models = [self._register(reference, served) for served in listed]
        labels = _labels(reference)
        document: Any = pattern.document
        grids = (
            read_grids(document, document.data["sweep"], pattern.folder)
            if pattern.block == "sweep"
            else []
        )
        by_name = {model.name: model for model in models}
        self._studies.append(_Study(labels, pattern, grids, by_name))
        return models

    def _register(self, reference: str, served: Served) -> Served:
        """Add a model, and return it; a model that is given twice is one, as its study describes it.

        Raises:
            RecipeError: another model has its name.
        """
        known = self.models.get(served.name)
        if known is not None:
            if not _are_same(known.plan, served.plan):
                raise RecipeError(
                    f"{reference}: two models are called {served.name!r}; serve them separately, or give "
                    "the recipes other names"
                )
            if served.role is None or known.role is not None:
                return known
            for name, model in self._references.items():
                self._references[name] = served if model is known else model
        self.models[served.name] = served
        return served

    def _point(self, study: _Study, name: str, fragment: str) -> Served:
        """Return the point for ``w=0.73``, on the grid or between its points."""
        if "=" not in fragment:
            hint = suggestions.suggest(fragment, study.models)
            raise UnknownModel(f"{study.labels[0]}: there is no point {fragment[:200]!r}; {hint}")
        given = _read_values(fragment)
        problem = "there are no values to choose from"
        for grid in study.grids:
            try:
                values = _values_in(grid, given)
            except ValueError as error:
                problem = str(error)
                continue
            document = study.pattern.document
            if not any(replace(grid, axes=_single(values)).points(document)):
                problem = f"the sweep's {WHERE}: excludes it"
                continue
            point = study.pattern.point(values)
            if (known := study.models.get(point.name)) and known.values == point.values:
                return known
            if self._grid_only:
                problem = "the grid has no such point, and the server has no others"
                continue
            return Served(name, make_plan(point.recipe), "point", point.values)
        raise UnknownModel(f"{name[:200]}: {problem}")


def _are_same(one: Plan, other: Plan) -> bool:
    """Whether two plans give the same model from the same files, however their recipes name these."""
    if one.digest == other.digest:
        return True
    how = [(p.jobs, p.shards, p.arithmetic, p.rounding, p.chat_template) for p in (one, other)]
    files = [
        [
            {file.resolve(): stamp for file, stamp in source.checkpoint.stamps.items()}
            for source in plan.all_sources
        ]
        for plan in (one, other)
    ]
    plain = one.tokenizer is None and other.tokenizer is None and one.rounding == "nearest"
    return plain and how[0] == how[1] and files[0] == files[1]


def _labels(reference: str) -> list[str]:
    """Return a study's names: the reference, its last part, and that without its extension."""
    path = Path(os.path.abspath(reference))  # noqa: PTH100
    return list(dict.fromkeys([path.stem, path.name, reference]))


def _read_sweep(reference: str) -> tuple[Pattern, list[Served]]:
    """Return the pattern of a sweep file, and its points, base and experts."""
    pattern = read_pattern(reference, "sweep")
    options = PlanOptions()
    points = [point_model(*each) for each in sweep.plan_all(load_points(reference), options)]
    others = base_and_experts(_block(pattern), points, pattern.folder, pattern.document, options)
    return pattern, [
        Served(model.entry.name, model.plan, model.entry.role, model.entry.values)
        for model in (*others, *points)
    ]


def _block(pattern: Pattern) -> Study:
    """Return the ``evaluate:`` block without reading its problems."""
    data = pattern.document.data
    given = data.get("evaluate") if isinstance(data, dict) else None
    block: Mapping[str, Any] = given if isinstance(given, dict) else {}
    listed = block.get("references")
    references = [r for r in listed if isinstance(r, dict)] if isinstance(listed, list) else []
    return Study.model_construct(
        base=block.get("base"),
        experts=block.get("experts", True),
        references=[Reference.model_validate(r) for r in references if "model" in r],
    )


def _read_results(folder: Path) -> tuple[Pattern, list[Served]]:
    """Return the pattern of an evaluated study, and its models with their scores."""
    found = results.read(folder)
    document = Document(yaml.safe_load(found.recipe), found.recipe, str(folder / results.JSON_NAME))
    homes = [(folder / place).resolve() for place in found.places] or [folder.resolve()]
    entries = [entry for entry in found.entries if entry.source is None]
    problem: MerganserError | None = None
    for home in homes:
        block = (
            "sweep" if isinstance(document.data, dict) and "sweep" in document.data else "search"
        )
        pattern = pattern_of(document, home, block)
        try:
            return pattern, [_entry(folder, pattern, home, entry) for entry in entries]
        except InputError as error:  # the models are in another of the study's places
            problem = problem or error
    raise problem or InputError(f"{folder}: has no models")


def _entry(folder: Path, pattern: Pattern, home: Path, entry: Entry) -> Served:
    if entry.model is not None:
        plan = settle(entry.model, home)
    elif entry.folder is not None and (folder / entry.folder).is_dir():
        plan = settle(str(folder / entry.folder))
    else:
        plan = make_plan(pattern.point(_nested(entry.values)).recipe)
    return Served(entry.name, plan, entry.role, entry.values, entry.scores)


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with keys ``key.part`` nested as mappings."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        place = found
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return found


def _read_values(fragment: str) -> dict[str, Any]:
    """Return the values in ``w=0.73&method=slerp``, by key.

    Raises:
        UnknownModel: a part does not have the form ``key=value``.
    """
    found: dict[str, Any] = {}
    for part in fragment.split("&"):
        key, sign, text = part.partition("=")
        if not sign or not key.strip() or key.strip() in found or len(text) > 100:
            raise UnknownModel(f"#{fragment[:200]}: write it like #w=0.73 or #w=0.73&method=slerp")
        number = re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?\s*", text)
        whole = re.fullmatch(r"\s*[-+]?\d+\s*", text)
        found[key.strip()] = int(text) if whole else float(text) if number else text.strip()
    return found


def _values_in(grid: Grid, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a value in its range for every key of a grid.

    Raises:
        ValueError: a value is missing, or outside of its range; the message is the reason.
    """
    known = {key: _parts(values) for key, values in grid.axes.items()}
    names = [f"{key}.{part}" if part else key for key, parts in known.items() for part in parts]
    if unknown := next((key for key in given if key not in names), None):
        raise ValueError(f"the sweep has no {unknown!r}; it has {', '.join(names)}")
    found: dict[str, Any] = {}
    for key, parts in known.items():
        own = {}
        for part, values in parts.items():
            name = f"{key}.{part}" if part else key
            if name not in given and len(set(map(str, values))) > 1:
                raise ValueError(f"it lacks a value for {name}")
            own[part] = _in_range(name, given.get(name, values[0]), values)
        if "" in own:
            found[key] = own[""]
            continue
        entries = grid.axes[key]
        sums = {round(sum(entry.values()), 6) for entry in entries if _are_numbers(entry.values())}
        if sums == {1} and all(_are_numbers(entry.values()) for entry in entries):
            if round(sum(own.values()), 6) != 1:
                raise ValueError(f"the values of {key} must add up to 1")
        elif own not in entries:
            raise ValueError(f"the sweep has no such combination of {key}")
        found[key] = own
    return found


def _parts(values: Sequence[Any]) -> dict[str, list[Any]]:
    """Return a key's values, or those of each part if they are mappings."""
    if not all(isinstance(value, Mapping) for value in values):
        return {"": list(values)}
    return {part: [value[part] for value in values if part in value] for part in values[0]}


def _in_range(name: str, value: Any, values: Sequence[Any]) -> Any:
    """Return the value if it is one of the sweep's, or a number between two of them.

    Raises:
        ValueError: it is neither.
    """
    for known in values:
        if known == value and is_number(known) == is_number(value):
            return known
        if not is_number(known) and str(known).lower() == str(value).lower():
            return known
    if not _are_numbers(values) or not is_number(value):
        shown = ", ".join(map(str, values[:8]))
        raise ValueError(f"the sweep has no {name} = {str(value)[:60]}; it has {shown}")
    if not min(values) <= value <= max(values):
        raise ValueError(
            f"{name} = {value:g} is outside the sweep's {min(values):g} to {max(values):g}"
        )
    if all(isinstance(known, int) for known in values) and not isinstance(value, int):
        raise ValueError(f"{name} is a whole number in this sweep")
    return value if all(isinstance(known, int) for known in values) else float(value)


def _are_numbers(values: Any) -> bool:
    return all(map(is_number, values))


def _single(values: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    return {key: [value] for key, value in values.items()}
