"""Merge methods: pure mathematics in plain functions, whose signatures are their declarations.

A method takes one of two forms, told apart by what it returns:

* ``-> Combination``: the result is a linear combination of the inputs, and the method only says
  with which coefficients. If it has a parameter ``gram`` it is given the inputs' Gram matrix (the
  float64 inner products of this tensor's inputs), which the engine measures in a pass of its own.
  The engine does the rest, in fused loops that need no torch.
* ``-> Tensor``: the method computes the result itself in torch from ``tensors`` (and ``base``).
  One that is ``elementwise`` is given tiles, any other whole tensors.

Keyword-only parameters are the recipe's. ``Annotated[Sequence[float], PerModel()]`` is one number
a model, ``Range`` the values that make sense, and a trailing underscore is dropped in recipes
(``lambda_`` is ``lambda``). Methods never log, read files, cast, move or change their inputs.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from merganser.errors import RecipeError

Function = TypeVar("Function", bound=Callable[..., Any])
BaseUse = Literal["none", "optional", "required"]

FAMILIES: tuple[str, ...] = ("combination", "legacy")
"""Modules of this package with built-in methods."""

Gram = Sequence[Sequence[float]]
"""Inner products of the inputs, base first where there is one: ``gram[i][j]``, float64."""


class Combination(NamedTuple):
    """``sum(c * x for c, x in zip(coefficients, inputs))``, the base first if there is one.

    Attributes:
        coefficients: one an input.
        divide: divide the sum by the coefficients' sum afterwards, both in the dtype that is
            computed in, as MergeKit 0.1.5 does; otherwise methods normalise beforehand, exactly.
        from_zero: begin the sum with zero, as MergeKit does; it makes a sum of negative zeros positive.
    """

    coefficients: tuple[float, ...]
    divide: bool = False
    from_zero: bool = False


@dataclass(frozen=True, slots=True)
class Range:
    """The values of a parameter that make sense, ends included: for sliders and searches."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PerModel:
    """Marks a parameter with one value a model (the base left out, where a method has one)."""

    default: float | None = None


Weight = Annotated[Sequence[float], PerModel(), Range(-2.0, 2.0)]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One of a method's parameters, read from its signature.

    Attributes:
        name: in recipes.
        argument: in Python.
        type: bool, int, float or str.
        per_model: whether each model has its own.
        required: whether a recipe must give it.
        default: what it is otherwise; for ``per_model`` one model's.
        range: the values that make sense, or None.
    """

    name: str
    argument: str
    type: type
    per_model: bool
    required: bool
    default: object = None
    range: Range | None = None

    def convert(self, value: object) -> object:
        """Read a recipe's value as this parameter's type.

        Raises:
            ValueError: when it is none.
        """
        if self.type is str:
            return str(value)
        if isinstance(value, str):
            truth = {"true": True, "false": False}.get(value.lower())
            if truth is None:
                raise ValueError(f"{self.name} is a {self.type.__name__}, not {value!r}")
            value = truth
        if not isinstance(value, bool | int | float):
            raise ValueError(f"{self.name} is a {self.type.__name__}, not {value!r}")
        if self.type is bool and value not in (0, 1):
            raise ValueError(f"{self.name} is true or false, not {value!r}")
        if self.type is int and value != int(value):
            raise ValueError(f"{self.name} is a whole number, not {value!r}")
        return self.type(value)


@dataclass(frozen=True, slots=True)
class Method:
    """A registered merge method.

    Attributes:
        name: in recipes.
        function: as it was written.
        title: for cards and tables.
        summary: the first line of its docstring.
        paper: arXiv number or address of its source, or None.
        base: whether it works on differences to a base model; with ``none``, a base given in a
            recipe is an input like the others.
        models: least and greatest number of inputs, without the base unless ``base`` is ``none``.
        combination: whether it returns coefficients rather than a tensor.
        wants_gram: whether it needs the Gram matrix.
        elementwise: whether it may be given tiles.
        symmetric: whether the order of (model, parameters) pairs has no meaning.
        idempotent: whether merging copies of one tensor gives that tensor.
        arithmetic: the arithmetic that this function is the variant for.
        casts_up: whether MergeKit computes it in float32 whatever the dtype of its inputs.
        parameters: the recipe's.
        ignored: parameters that MergeKit accepts here, without effect.
    """

    name: str
    function: Callable[..., Any]
    title: str
    summary: str
    paper: str | None
    base: BaseUse
    models: tuple[int, int | None]
    combination: bool
    wants_gram: bool
    elementwise: bool
    symmetric: bool
    idempotent: bool
    arithmetic: str
    casts_up: bool
    parameters: tuple[Parameter, ...]
    ignored: tuple[str, ...]

    def parameter(self, name: str) -> Parameter | None:
        """The parameter of that name in recipes, or None."""
        return next((p for p in self.parameters if p.name == name), None)


_registry: dict[tuple[str, str], Method] = {}


def merge_method(
    name: str,
    *,
    title: str | None = None,
    paper: str | None = None,
    base: BaseUse = "none",
    models: tuple[int, int | None] = (1, None),
    elementwise: bool = True,
    symmetric: bool = True,
    idempotent: bool = False,
    arithmetic: str = "exact",
    casts_up: bool = False,
    ignored: tuple[str, ...] = (),
) -> Callable[[Function], Function]:
    """Register a function as a merge method and return it unchanged.

    See :class:`Method` for the arguments and this module's docstring for the signature.

    Raises:
        TypeError: when the signature is not that of a method.
    """

    def register(function: Function) -> Function:
        combination, wants_gram, parameters = _read_signature(function)
        doc = inspect.getdoc(function) or ""
        method = Method(
            name,
            function,
            title or name,
            doc.split("\n")[0],
            paper,
            base,
            models,
            combination,
            wants_gram,
            elementwise,
            symmetric,
            idempotent,
            arithmetic,
            casts_up,
            parameters,
            ignored,
        )
        _registry[name, arithmetic] = method
        return function

    return register


def get(name: str, arithmetic: str = "exact") -> Method | None:
    """The method of that name, in its variant for an arithmetic if it has one; None if unknown."""
    _load_families()
    if (name, "exact") not in _registry:
        for entry in entry_points(group="merganser.methods"):
            entry.load()
    return _registry.get((name, arithmetic)) or _registry.get((name, "exact"))


def names() -> list[str]:
    """The names of all methods, sorted."""
    _load_families()
    return sorted({name for name, _ in _registry})


def describe(method: Method) -> dict[str, Any]:
    """A method as plain data for JSON."""
    return {
        "name": method.name,
        "title": method.title,
        "summary": method.summary,
        "description": inspect.getdoc(method.function) or "",
        "paper": method.paper,
        "base": method.base,
        "models": list(method.models),
        "parameters": [
            {
                "name": p.name,
                "type": p.type.__name__,
                "per_model": p.per_model,
                "required": p.required,
                "default": p.default,
                "range": [p.range.low, p.range.high] if p.range else None,
            }
            for p in method.parameters
        ],
    }


def load_file(path: Path) -> None:
    """Run a Python file that registers methods of the user's own.

    Raises:
        RecipeError: when it cannot be run.
    """
    spec = importlib.util.spec_from_file_location(f"merganser_methods_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise RecipeError(f"{path}: no such Python file with merge methods")
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(f"{path}: cannot be loaded ({type(error).__name__}: {reason})") from error


def _load_families() -> None:
    for family in FAMILIES:
        importlib.import_module(f"{__name__}.{family}")


class _Tensor:
    """Stands for torch's Tensor in annotations, so that reading them does not import torch."""


def _read_signature(function: Callable[..., Any]) -> tuple[bool, bool, tuple[Parameter, ...]]:
    hints = get_type_hints(function, localns={"Tensor": _Tensor}, include_extras=True)
    signature = inspect.signature(function)
    combination = hints.get("return") is Combination
    positional = [
        p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    allowed = [[], ["gram"]] if combination else [["tensors"], ["tensors", "base"]]
    if positional not in allowed:
        forms = "(), (gram) -> Combination or (tensors), (tensors, base) -> Tensor"
        raise TypeError(f"{function.__name__}: a merge method takes {forms}, not {positional}")
    parameters = tuple(
        _read_parameter(function, p, hints[p.name])
        for p in signature.parameters.values()
        if p.kind is p.KEYWORD_ONLY
    )
    return combination, "gram" in positional, parameters


def _read_parameter(
    function: Callable[..., Any], parameter: inspect.Parameter, hint: Any
) -> Parameter:
    marks: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        marks = tuple(rest)
    per_model = next((mark for mark in marks if isinstance(mark, PerModel)), None)
    if per_model is not None:
        hint = get_args(hint)[0]
    options = [option for option in get_args(hint) if option is not type(None)]
    kind = options[0] if options else hint
    if kind not in (bool, int, float, str):
        raise TypeError(
            f"{function.__name__}: parameter {parameter.name} must be a bool, int, float or str"
        )
    default = per_model.default if per_model else parameter.default
    required = default is None if per_model else default is parameter.empty
    return Parameter(
        parameter.name.rstrip("_"),
        parameter.name,
        kind,
        per_model is not None,
        required,
        None if required else default,
        next((mark for mark in marks if isinstance(mark, Range)), None),
    )
