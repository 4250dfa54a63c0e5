"""Merge methods: pure mathematics in plain functions, whose signatures are their declarations.

A method takes one of three forms, told apart by what it returns:

* ``-> Combination``: the result is a linear combination of the inputs, and the method only says
  with which coefficients. If it has a parameter ``gram`` it is given the inputs' Gram matrix (the
  float64 inner products of this tensor's inputs), which the engine measures in a pass of its own;
  with a parameter ``changes`` that of the differences to the base (of the inputs, where there is
  no base), and the coefficients are those of the differences.
* ``-> Consensus``: the base plus some of what each model changed in it; the method says which, and
  how they are weighed. Thresholds are found by exact selection, in passes of the engine's own.
* ``-> Tensor``: the method computes the result itself in torch from ``tensors`` (and ``base``).
  One that is ``elementwise`` is given tiles, any other whole tensors. With a parameter ``facts``
  it is also given what its ``measure`` counted in all the tiles before; with a parameter
  ``generators`` torch's random generators for this tensor, by the model's number.

The engine does the first two in fused loops that need no torch.

Keyword-only parameters are the recipe's. ``Annotated[Sequence[float], PerModel()]`` is one number
a model, ``Range`` the values that make sense, and a trailing underscore is dropped in recipes
(``lambda_`` is ``lambda``). Methods never log, read files, cast, move or change their inputs.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import (
    TYPE_CHECKING,
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

FAMILIES: tuple[str, ...] = ("combination", "consensus", "selection", "legacy")
"""Modules of this package with built-in methods."""

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]
else:
    Array = Any  # so that looking methods up loads nothing

Gram = Array
"""Inner products ``gram[..., i, j]``, float64; of the inputs the base comes first where there is one.
The leading axes are those of the vectors that the method works on: none for whole tensors."""

Generators = Callable[[int], Any]
"""Makes the ``torch.Generator`` for the draws of one of the models: they depend on the seed, the
tensor's name and the model's number alone."""

Vectors = Literal["tensor", "rows", "columns"]
"""What a method takes for one vector: the flattened tensor, or what lies along its last or its
first axis."""


class Combination(NamedTuple):
    """``sum(c * x for c, x in zip(coefficients, inputs))``, the base first if there is one.

    Attributes:
        coefficients: one an input; where the method works on rows or columns, an array of one a
            vector.
        divide: divide the sum by the coefficients' sum afterwards, both in the dtype that is
            computed in, as MergeKit 0.1.5 does; otherwise methods normalise beforehand, exactly.
        from_zero: begin the sum with zero, as MergeKit does; it makes a sum of negative zeros positive.
    """

    coefficients: tuple[float | Array, ...]
    divide: bool = False
    from_zero: bool = False


class Largest(NamedTuple):
    """Keep the greatest changes of a tensor, or those below the very greatest.

    Magnitudes are compared as float32; equal ones at a cut are kept in the order of the tensor.

    Attributes:
        density: share of the tensor that is kept.
        without: share of the greatest that is dropped first; None for a rule without it, which
            keeps at least one.
    """

    density: float
    without: float | None = None

    def ranks(self, size: int) -> tuple[int, int]:
        """The ranks by descending magnitude that are kept of so many elements, half-open."""
        if self.without is None:
            return 0, max(1, int(self.density * size)) if self.density > 0 and size else 0
        kept, dropped = int(self.density * size), int(self.without * size)
        smallest = max(0, size - kept - dropped)
        return size - smallest - kept, size - smallest


class Random(NamedTuple):
    """Keep each change with a probability of its own draw."""

    density: float


class Ranked(NamedTuple):
    """Keep each change with a probability that grows with its rank in its row, by magnitude: from
    ``density - epsilon`` for the smallest to ``density + epsilon`` for the greatest."""

    density: float
    epsilon: float


class MostVaried(NamedTuple):
    """Keep, in all models, the positions at which the changes vary most between the models: this
    share of those where they vary at all."""

    share: float


Keep = Largest | Random | Ranked | None
"""Which of a model's changes are kept; None for all."""


class Consensus(NamedTuple):
    """The base plus some of what each model changed in it.

    With the differences ``d_i = x_i - x_0``, at every position: ``D_i = w_i f_i d_i`` where d_i is
    kept, else 0; with ``elect`` those D_i count whose sign is that of their sum. The result is
    ``x_0 + scale * sum(D_i) / divisor``.

    Attributes:
        weights: w_i; None for each model's share of the squares of all kept changes.
        keep: which changes are kept, model by model; or one rule for all of them.
        factors: f_i that are known beforehand.
        rescale: the norm of a tensor's changes that f_i makes the kept ones have again, or None.
        elect: whether the sign of the majority is elected.
        divide: by nothing, by the sum of the weights, or by that of the weights which count at this
            position; by 1 where the sum is zero.
        scale: of the whole change.
        agree: positions are kept only where so many models agree with the quotient m, that is
            ``|d_i| >= slack_i |m - d_i|``; None for all positions.
        slack: of each model.
    """

    weights: tuple[float, ...] | None
    keep: tuple[Keep, ...] | MostVaried
    factors: tuple[float, ...] = ()
    rescale: Literal["l1", "l2", "linf"] | None = None
    elect: bool = False
    divide: Literal["no", "weights", "counted"] = "no"
    scale: float = 1.0
    agree: int | None = None
    slack: tuple[float, ...] = ()


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
Density = Annotated[Sequence[float], PerModel(default=1.0), Range(0.0, 1.0)]
Rescale = bool | Literal["l1", "l2", "linf", "dare"]
"""Give the kept changes of a tensor the norm again that all of them had: ``true`` is ``l1``. ``dare``
divides by the density instead, which keeps every change's expectation."""


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
        choices: the words that it may be, or may be instead of a number or truth.
    """

    name: str
    argument: str
    type: type
    per_model: bool
    required: bool
    default: object = None
    range: Range | None = None
    choices: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """What it may be, in words: ``float for each model``, ``bool or l1 or l2``."""
        plain = [] if self.type is str and self.choices else [self.type.__name__]
        kind = " or ".join([*plain, *self.choices])
        return f"{kind} for each model" if self.per_model else kind

    def convert(self, value: object) -> object:
        """Read a recipe's value as this parameter's type.

        Raises:
            ValueError: when it is none.
        """
        if self.choices and isinstance(value, str) and value.lower() not in ("true", "false"):
            if value not in self.choices:
                words = ", ".join(self.choices)
                also = "true, false or " if self.type is bool else ""
                raise ValueError(f"{self.name} is {also}one of {words}, not {value!r}")
            return value
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
        form: what it returns: a combination, a consensus, or a tensor.
        gram: what it needs the Gram matrix of: its inputs, their changes, or None.
        vectors: what it takes for one vector, as a function of its parameters.
        measure: counts things in tiles for a method with ``facts``; see :func:`merge_method`.
        elementwise: whether it may be given tiles.
        symmetric: whether the order of (model, parameters) pairs has no meaning.
        idempotent: whether merging copies of one tensor gives that tensor.
        arithmetic: the arithmetic that this function is the variant for.
        casts_up: whether MergeKit computes it in float32 whatever the dtype of its inputs.
        widens: whether MergeKit's result is float32 whatever the dtype of its inputs.
        draws: whether it is given random generators.
        check: raises ValueError for numbers that it refuses, before anything is read.
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
    form: Literal["combination", "consensus", "tensor"]
    gram: Literal["inputs", "changes"] | None
    vectors: Callable[..., Vectors]
    measure: Callable[..., Any] | None
    elementwise: bool
    symmetric: bool
    idempotent: bool
    arithmetic: str
    casts_up: bool
    parameters: tuple[Parameter, ...]
    ignored: tuple[str, ...]
    widens: bool = False
    draws: bool = False
    check: Callable[..., None] | None = None

    @property
    def combination(self) -> bool:
        """Whether it returns coefficients rather than a tensor."""
        return self.form == "combination"

    @property
    def whole(self) -> bool:
        """Whether it needs whole tensors in memory."""
        return self.form == "tensor" and not self.elementwise

    @property
    def cost(self) -> str:
        """What it costs, in words: memory, and how often the inputs are read."""
        passes = "one pass"
        if self.gram:
            passes = "two passes: inner products first"
        elif self.form == "consensus":
            passes = "one pass, and more where changes are selected or rescaled"
        elif self.measure:
            passes = "two passes: counts first"
        return f"{'whole tensors' if self.whole else 'in tiles'}, {passes}"

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
    ignored: tuple[str, ...] = (),
    vectors: Callable[..., Vectors] = lambda **_: "tensor",
    measure: Callable[..., Any] | None = None,
) -> Callable[[Function], Function]:
    """Register a function as a merge method and return it unchanged.

    See :class:`Method` for the arguments and this module's docstring for the signature. ``measure``
    is given what the method is given but for ``facts``, tile by tile, and returns a float64 tensor
    of counts; ``facts`` is their sum over the whole tensor.

    Raises:
        TypeError: when the signature is not that of a method.
    """

    def register(function: Function) -> Function:
        form, gram, draws = _read_form(function, elementwise)
        doc = inspect.getdoc(function) or ""
        method = Method(
            name,
            function,
            title or name,
            doc.split("\n")[0],
            paper,
            base,
            models,
            form,
            gram,
            vectors,
            measure,
            elementwise,
            symmetric,
            idempotent,
            "exact",
            False,
            _read_parameters(function),
            ignored,
            draws=draws,
        )
        _registry[name, "exact"] = method
        return function

    return register


def variant_of(
    exact: Callable[..., Any],
    arithmetic: str = "mergekit",
    *,
    elementwise: bool = True,
    casts_up: bool = False,
    widens: bool = False,
    measure: Callable[..., Any] | None = None,
    check: Callable[..., None] | None = None,
) -> Callable[[Function], Function]:
    """Register a function as what a method is in another arithmetic, and return it unchanged.

    It has the method's parameters, by the same names, and needs not declare them again; in all that
    is not named here it is as the method. See :class:`Method` for the arguments.

    Raises:
        TypeError: when its parameters are others.
    """
    method = next(m for m in _registry.values() if m.function is exact)

    def register(function: Function) -> Function:
        form, gram, draws = _read_form(function, elementwise)
        keywords = {p.name for p in _keyword_only(function)}
        if keywords != {p.argument for p in method.parameters}:
            raise TypeError(f"{function.__name__}: a variant has the parameters of {method.name}")
        _registry[method.name, arithmetic] = replace(
            method,
            function=function,
            form=form,
            gram=gram,
            measure=measure,
            elementwise=elementwise,
            arithmetic=arithmetic,
            casts_up=casts_up,
            widens=widens,
            draws=draws,
            check=check,
        )
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
        "cost": method.cost,
        "parameters": [
            {
                "name": p.name,
                "type": p.type.__name__,
                "per_model": p.per_model,
                "required": p.required,
                "default": p.default,
                "range": [p.range.low, p.range.high] if p.range else None,
                "choices": list(p.choices),
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


_POSITIONAL: dict[str, tuple[tuple[str, ...], ...]] = {
    "combination": ((), ("gram",), ("changes",)),
    "consensus": ((),),
    "tensor": (
        ("tensors",),
        ("tensors", "base"),
        ("tensors", "facts"),
        ("tensors", "base", "facts"),
        ("tensors", "generators"),
        ("tensors", "base", "generators"),
    ),
}
"""The positional parameters that a method may have, by its form."""

_GRAMS = {"gram": "inputs", "changes": "changes"}


def _read_form(function: Callable[..., Any], elementwise: bool) -> tuple[Any, Any, bool]:
    """What a method returns, what it needs the Gram matrix of, and whether it draws."""
    returned = _hints(function).get("return")
    form = {Combination: "combination", Consensus: "consensus"}.get(returned, "tensor")  # type: ignore[arg-type]
    signature = inspect.signature(function)
    positional = tuple(
        p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD
    )
    if positional not in _POSITIONAL[form]:
        raise TypeError(
            f"{function.__name__}: a merge method takes (), (gram) or (changes) -> Combination, "
            f"() -> Consensus, or (tensors, base, facts) -> Tensor, not {list(positional)}"
        )
    draws = "generators" in positional
    if draws and elementwise:  # every tile would be given the same draws
        raise TypeError(f"{function.__name__}: a method with generators is elementwise=False")
    return form, _GRAMS.get(positional[0]) if positional else None, draws


def _read_parameters(function: Callable[..., Any]) -> tuple[Parameter, ...]:
    hints = _hints(function)
    return tuple(_read_parameter(function, p, hints[p.name]) for p in _keyword_only(function))


def _keyword_only(function: Callable[..., Any]) -> list[inspect.Parameter]:
    signature = inspect.signature(function)
    return [p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(function, localns={"Tensor": _Tensor}, include_extras=True)


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
    choices: tuple[str, ...] = ()
    kinds = []
    for option in (
        (hint,) if isinstance(hint, type) or get_origin(hint) is Literal else get_args(hint)
    ):
        if get_origin(option) is Literal:
            choices = get_args(option)
        elif option is not type(None):
            kinds.append(option)
    kind = kinds[0] if kinds else str
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
        choices,
    )
