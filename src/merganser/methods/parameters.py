"""The parameters of a method, and the marks that declare them in its signature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal


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
