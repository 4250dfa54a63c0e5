"""Read a method's declaration from its signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from merganser.methods.forms import Combination, SparseDeltas
from merganser.methods.parameters import Parameter, PerModel, Range

BaseUse = Literal["none", "optional", "required"]
Form = Literal["combination", "consensus", "tensor"]


class _Tensor:
    """Stands for torch's Tensor in annotations: reading them does not import torch."""


_POSITIONAL: dict[Form, tuple[tuple[str, ...], ...]] = {
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
"""Valid positional parameters of a method, by its form."""


class Signature(NamedTuple):
    """The declaration in a method's signature.

    Attributes:
        form: its return type.
        gram: the vectors whose Gram matrix it needs: its inputs, their task vectors, or None.
        draws: whether it takes random generators.
        facts: whether it takes the counts of its ``measure``.
        base: whether it takes a base model; None if the signature does not determine it.
        parameters: its parameters in recipes.
    """

    form: Form
    gram: Literal["inputs", "changes"] | None
    draws: bool
    facts: bool
    base: BaseUse | None
    parameters: tuple[Parameter, ...]


def read_signature(function: Callable[..., Any]) -> Signature:
    """Read the declaration in a method's signature.

    Raises:
        TypeError: when it is not a method's signature.
    """
    if not inspect.isfunction(function):
        raise TypeError(f"a merge method is a plain function, not {type(function).__name__}")
    hints = _hints(function)
    returned = hints.get("return")
    form: Form = "tensor"
    if returned is Combination:
        form = "combination"
    elif returned is SparseDeltas:
        form = "consensus"
    parameters = inspect.signature(function).parameters.values()
    positional = tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)
    gathered = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
    if gathered or positional not in _POSITIONAL[form]:
        raise TypeError(
            f"{function.__name__}: a merge method takes (), (gram) or (changes) -> Combination, "
            f"() -> SparseDeltas, or (tensors, base, facts) -> Tensor, not {list(positional)}; "
            "a recipe's parameters are keyword-only"
        )
    base: BaseUse | None = None
    if form == "consensus":
        base = "required"
    elif form == "tensor":
        absent = "base" not in positional
        optional = type(None) in get_args(hints.get("base"))
        base = "none" if absent else "optional" if optional else "required"
    gram: Literal["inputs", "changes"] | None = None
    if "gram" in positional:
        gram = "inputs"
    elif "changes" in positional:
        gram = "changes"
    return Signature(
        form,
        gram,
        "generators" in positional,
        "facts" in positional,
        base,
        tuple(_read_parameter(function, p, hints.get(p.name)) for p in keyword_only(function)),
    )


def keyword_only(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """A function's keyword-only parameters."""
    signature = inspect.signature(function)
    return [p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function, localns={"Tensor": _Tensor}, include_extras=True)
    except NameError as error:
        raise TypeError(
            f"{function.__name__}: its annotations cannot be read ({error}); import what they name, "
            "and not for type checkers alone"
        ) from error


def _read_parameter(
    function: Callable[..., Any], parameter: inspect.Parameter, hint: Any
) -> Parameter:
    if hint is None:
        raise TypeError(f"{function.__name__}: parameter {parameter.name} has no type")
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
        per_model.normalized_by if per_model else None,
    )
