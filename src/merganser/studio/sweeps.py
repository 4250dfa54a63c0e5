"""Make the file of a sweep from a blend: its weights, methods and one parameter, with tasks to score."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from merganser import methods
from merganser.errors import MerganserError, RecipeError
from merganser.evaluation import scorer_registry
from merganser.evaluation.presets import PRESETS, PROBLEM_SETS
from merganser.methods import Method
from merganser.recipe.document import parse_document
from merganser.recipe.references import parse_reference
from merganser.recipe.sweep_file import load_points
from merganser.studio.library import Library
from merganser.studio.recipes import controls_of

MOST_POINTS = 500

Use = Literal["weights", "t", "once"]
"""How a sweep uses a method: at all weights, at all values of ``t`` between two models, or once, since it has
no weights."""

_WORD = re.compile(r"[A-Za-z]{1,16}(?![A-Za-z0-9])")
_RESERVED = {"and", "or", "not", "if", "else", "in", "is", "true", "false", "none"}

_PLAIN = re.compile(r"[^'\\{}\n]*")
"""Texts that an expression can quote."""


class Given(BaseModel):
    """A part of a page's request: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Task(Given):
    """Problems for the models: a file below the folder, a known set, or those of a preset."""

    problems: str | None = None
    preset: str | None = None
    scorers: list[str] = Field(default_factory=list, max_length=16)
    samples: int = Field(1, ge=1, le=64)
    temperature: float | None = Field(None, ge=0, le=5)
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    limit: int | None = Field(None, ge=1)


class Over(Given):
    """A parameter that the sweep varies too, of all models."""

    parameter: str
    values: list[float] = Field(min_length=1, max_length=50)


class Axes(Given):
    """What a sweep varies, and how its models are scored.

    Attributes:
        text: the blend's recipe.
        step, low, high: the weights: of the first of two models; of three or more only the step counts,
            for all weights that add up to 1.
        inside: whether each of three or more models has a weight above 0.
        methods: names of methods; empty for the recipe's.
        over: a further parameter; None for none.
        tasks: problems and scorers.
    """

    text: str
    step: float = Field(0.1, ge=0.01, le=0.5)
    low: float = Field(0.1, ge=-4, le=4)
    high: float = Field(0.9, ge=-4, le=4)
    inside: bool = False
    methods: list[str] = Field(default_factory=list, max_length=20)
    over: Over | None = None
    tasks: list[Task] = Field(min_length=1, max_length=16)


@dataclass(frozen=True, slots=True)
class SweepFile:
    """The file of a sweep.

    Attributes:
        text: its YAML.
        points: number of its points.
        models: number of models to score besides: base and merged models.
        problems: number of problems; None if a data set's size is unknown.
        completions: number of completions of all models; None if unknown.
        network: whether the tasks need data sets that the Hub's cache may not have.
    """

    text: str
    points: int
    models: int
    problems: int | None
    completions: int | None
    network: bool


@functools.cache
def offered_scorers() -> tuple[str, ...]:
    """Return the names of scorers that need no parameters and run no program that a model writes."""
    offered = []
    for name in scorer_registry.names():
        try:
            if not scorer_registry.get(name).runs_code:
                offered.append(name)
        except MerganserError:
            continue
    return tuple(offered)


def use_of(method: Method, count: int) -> Use | None:
    """Return how a sweep over the weights of some models uses a method; None if it cannot."""
    required = {parameter.name for parameter in method.parameters if parameter.required}
    if method.name == "slerp":
        return "t" if count == 2 else None
    most = method.models[1]
    if not method.models[0] <= count <= (count if most is None else most):
        return None
    if required - {"weight"}:
        return None
    weighted = any(p.name == "weight" and p.per_model for p in method.parameters)
    return "weights" if weighted else "once"


def make(axes: Axes, library: Library) -> SweepFile:
    """Return the file of a sweep.

    Raises:
        MerganserError: the recipe has fewer than two models, a method does not fit, or a task is wrong.
    """
    given = parse_document(axes.text).data
    data = given if isinstance(given, dict) else {}
    listed = data.get("models")
    models = list(listed) if isinstance(listed, list) else []
    if len(models) == 1 and data.get("merge_method") == "slerp" and "base_model" in data:
        models = [{"model": data["base_model"]}, *models]
    if len(models) < 2:
        raise RecipeError("a sweep over weights needs a recipe with two or more models")
    if controls_of(axes.text) is None:
        raise RecipeError(
            "the page sweeps no recipe with slices, modules or filters; write a sweep: block into its file"
        )
    tasks = [_task(task, library) for task in axes.tasks]
    sizes = [_problems(task, library) for task in axes.tasks]
    pattern = _Pattern(data, models, axes)
    evaluate: dict[str, Any] = {"tasks": tasks}
    if isinstance(data.get("base_model"), str):
        evaluate = {"base": data["base_model"], **evaluate}
    evaluate = {"keep": "front", **evaluate}
    whole = pattern.recipe() | {"evaluate": evaluate}
    points = load_points(whole)
    if len(points) > MOST_POINTS:
        raise RecipeError(f"{len(points):,} points: the studio runs at most {MOST_POINTS}")
    others = {str(model.get("model")) for model in models} | {str(evaluate.get("base", ""))} - {""}
    samples = [
        None if size is None else size * task.samples
        for size, task in zip(sizes, axes.tasks, strict=True)
    ]
    known = sum(size for size in samples if size is not None)
    count = (len(points) + len(others)) * known
    return SweepFile(
        yaml.safe_dump(whole, sort_keys=False, allow_unicode=True, width=100),
        len(points),
        len(others),
        None if None in sizes else sum(size for size in sizes if size is not None),
        None if None in samples else count,
        any(task.problems is None or task.problems in PROBLEM_SETS for task in axes.tasks),
    )


class _Pattern:
    """The recipe of a sweep, whose texts depend on the weights and the method."""

    def __init__(self, data: Mapping[str, Any], models: Sequence[Mapping[str, Any]], axes: Axes):
        self.data, self.models, self.axes = data, models, axes
        self.names = list(dict.fromkeys(axes.methods)) or [str(data.get("merge_method"))]
        self.uses = {name: self._use(name) for name in self.names}
        self.parts = _parts([str(model.get("model")) for model in models])
        pair = len(models) == 2
        self.weights = ["w", "1 - w"] if pair else [f"w.{part}" for part in self.parts]

    def _method(self, name: str) -> Method:
        method = methods.get(name)
        if method is None:
            raise RecipeError(f"methods: there is no {name[:60]!r}")
        return method

    def _use(self, name: str) -> Use:
        method = self._method(name)
        use = use_of(method, len(self.models))
        if use is None:
            raise RecipeError(
                f"{method.title} cannot be swept over the weights of {len(self.models)} models"
            )
        if use != "t" and method.base == "required" and "base_model" not in self.data:
            raise RecipeError(f"{method.title} needs a base; choose one on the screen Blend")
        over = self.axes.over
        if over and over.parameter not in {p.name for p in method.parameters}:
            raise RecipeError(f"{method.title} has no parameter {over.parameter[:60]!r}")
        return use

    def recipe(self) -> dict[str, Any]:
        """Return the recipe with its sweep."""
        several = len(self.names) > 1
        rest = {
            key: value
            for key, value in self.data.items()
            if key not in ("name", "merge_method", "base_model", "models", "parameters")
        }
        base = self._base()
        return {
            "name": self._name(),
            "sweep": self._grids(),
            "merge_method": "{{ method }}" if several else self.names[0],
            **({} if base is None else {"base_model": base}),
            **rest,
            "models": [self._model(index) for index in range(len(self.models))],
            **({"parameters": shared} if (shared := self._shared()) else {}),
        }

    def _grids(self) -> Any:
        """Return one grid, or a second one for methods without weights, which are merged once."""
        axes, several = self.axes, len(self.names) > 1
        if len(self.models) == 2:
            weights: Any = {"from": axes.low, "to": axes.high, "step": axes.step}
            middle: Any = [0.5]
        else:
            weights = {"simplex": self.parts, "step": axes.step}
            weights |= {"inside": True} if axes.inside else {}
            middle = [dict.fromkeys(self.parts, round(1 / len(self.parts), 4))]
        over = {} if axes.over is None else {"v": list(axes.over.values)}
        grids = []
        for once, values in ((False, weights), (True, middle)):
            names = [name for name, use in self.uses.items() if (use == "once") == once]
            if names:
                grids.append(({"method": names} if several else {}) | {"w": values} | over)
        return grids[0] if len(grids) == 1 else grids

    def _name(self) -> str:
        weights = "_".join(f"{part}{{{{ w.{part} }}}}" for part in self.parts)
        weights = "w{{ w }}" if len(self.models) == 2 else weights
        prefix = "{{ method }}_" if len(self.names) > 1 else ""
        suffix = "" if self.axes.over is None else f"_{self.axes.over.parameter}{{{{ v }}}}"
        return prefix + weights + suffix

    def _when(self, expression: str, names: Sequence[str]) -> str | None:
        """Return an expression for some of the methods, whose key others lack."""
        if not names:
            return None
        if len(names) == len(self.names):
            return f"{{{{ {expression} }}}}"
        return f"{{{{ {expression} if method in {_literal(list(names))} }}}}"

    def _value(self, value: Any, names: Sequence[str]) -> Any:
        """Return a value for some of the methods."""
        if not names:
            return None
        return value if len(names) == len(self.names) else self._when(_literal(value), names)

    def _base(self) -> Any:
        base = self.data.get("base_model")
        turned = [name for name, use in self.uses.items() if use == "t"]
        based = [
            name
            for name, use in self.uses.items()
            if use != "t" and base is not None and self._method(name).base != "none"
        ]
        if not turned:
            return base if len(self.names) == 1 else self._value(base, based)
        first = self.models[0]["model"]
        if not based:
            return self._value(first, turned)
        end = "" if len(turned) + len(based) == len(self.names) else _condition(based)
        return f"{{{{ {_literal(first)}{_condition(turned)} else {_literal(base)}{end} }}}}"

    def _model(self, index: int) -> dict[str, Any]:
        entry = self.models[index]
        given = {k: v for k, v in (entry.get("parameters") or {}).items() if k != "weight"}
        weighted = [name for name, use in self.uses.items() if use == "weights"]
        parameters = {"weight": self._when(self.weights[index], weighted)}
        parameters |= self._declared(given, per_model=True)
        return {**entry, "parameters": {k: v for k, v in parameters.items() if v is not None}}

    def _shared(self) -> dict[str, Any]:
        given = {k: v for k, v in (self.data.get("parameters") or {}).items() if k != "t"}
        shared = self._declared(given, per_model=False)
        turned = [name for name, use in self.uses.items() if use == "t"]
        shared["t"] = self._when(self.weights[1], turned)
        return {name: value for name, value in shared.items() if value is not None}

    def _declared(self, given: Mapping[str, Any], *, per_model: bool) -> dict[str, Any]:
        """Return given parameters for the methods that have them, and the one that is varied."""
        over = self.axes.over
        values = {name: (value, False) for name, value in given.items()}
        if over is not None:
            parameters = self._method(self.names[0]).parameters
            if any(p.name == over.parameter and p.per_model == per_model for p in parameters):
                values[over.parameter] = ("v", True)
        parts: dict[str, Any] = {}
        for name, (value, varied) in values.items():
            names = [
                method
                for method in self.names
                if any(
                    p.name == name and (p.per_model or not per_model)
                    for p in self._method(method).parameters
                )
            ]
            parts[name] = self._when(value, names) if varied else self._value(value, names)
        return parts


def _parts(models: Sequence[str]) -> list[str]:
    """Return names of the models' weights: the first words of their names, or letters."""
    words = []
    for model in models:
        try:
            name = parse_reference(model).name
        except ValueError:
            name = ""
        words.append(_WORD.match(name))
    parts = [word.group() for word in words if word is not None]
    if len(set(parts)) == len(models) and not set(parts) & _RESERVED:
        return parts
    return list(ascii_lowercase[: len(models)])


def _condition(names: Sequence[str]) -> str:
    return f" if method in {_literal(list(names))}"


def _literal(value: Any) -> str:
    """Return a value as an expression writes it.

    Raises:
        RecipeError: it cannot be a part of an expression.
    """
    if isinstance(value, str):
        if not _PLAIN.fullmatch(value):
            raise RecipeError(f"{value[:60]!r} cannot be a part of a sweep over methods")
        return f"'{value}'"
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    raise RecipeError(
        "a sweep over methods needs parameters that are numbers, texts or gradients; edit its file"
    )


def _task(task: Task, library: Library) -> dict[str, Any]:
    """Return a task as its file states it.

    Raises:
        MerganserError: it names problems, a preset or a scorer that there is not.
    """
    if task.preset is not None and task.preset not in PRESETS:
        raise RecipeError(f"preset: there is no {task.preset[:60]!r}")
    if task.problems is None and (task.preset is None or not PRESETS[task.preset].problems):
        raise RecipeError("problems: choose a file or a set")
    if task.problems is not None and task.problems not in PROBLEM_SETS:
        library.inside(task.problems)
    if unknown := next((s for s in task.scorers if s not in offered_scorers()), None):
        raise RecipeError(f"scorers: the page has no {unknown[:60]!r}")
    if not task.scorers and (task.preset is None or not PRESETS[task.preset].scorers):
        raise RecipeError("scorers: choose one or more")
    return {key: value for key, value in task.model_dump().items() if value not in (None, [])}


def _problems(task: Task, library: Library) -> int | None:
    """Return the number of a task's problems; None if it is unknown."""
    if task.problems is None:
        names = PRESETS[task.preset].problems if task.preset else ()
        sizes = [PROBLEM_SETS[name].size for name in names]
        return sum(min(size, task.limit or size) for size in sizes)
    if task.problems in PROBLEM_SETS:
        size = PROBLEM_SETS[task.problems].size
    else:
        path = library.inside(task.problems)
        if not path.is_file():
            return None
        with path.open("rb") as file:
            size = sum(1 for line in file if line.strip())
    return min(size, task.limit or size)
