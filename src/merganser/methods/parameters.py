"""Parameters of methods, and the annotations that declare them in a signature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal


@dataclass(frozen=True, slots=True)
class Range:
    """The values of a numeric parameter, both ends included.

    Attributes:
        low, high: the usual values. Others get a warning; tests draw from these.
        least, most: the valid values. Others are an error. By default every finite number is valid:
            weights, for example, may extrapolate.
    """

    low: float
    high: float
    least: float = -math.inf
    most: float = math.inf

    def __post_init__(self) -> None:
        if not self.least <= self.low <= self.high <= self.most:
            raise ValueError("a Range needs least <= low <= high <= most")

    def usual(self, value: float) -> bool:
        """Whether a value is usual."""
        return self.low <= value <= self.high

    def check(self, name: str, value: float) -> None:
        """Check that a value is valid.

        Raises:
            ValueError: with the parameter's name and its valid values, if it is not.
        """
        if not self.least <= value <= self.most:
            raise ValueError(f"{name} must be {_interval(self.least, self.most)}, not {value:g}")

    @property
    def usual_text(self) -> str:
        """The usual values in words."""
        return _interval(self.low, self.high)

    @property
    def valid_text(self) -> str:
        """The valid values in words."""
        return _interval(self.least, self.most)


def _interval(low: float, high: float) -> str:
    if math.isinf(low) and math.isinf(high):
        return "any finite number"
    if math.isinf(high):
        return f"at least {low:g}"
    if math.isinf(low):
        return f"at most {high:g}"
    return f"between {low:g} and {high:g}"


@dataclass(frozen=True, slots=True)
class PerModel:
    """Annotation of a parameter with one value per model, except the base.

    Attributes:
        default: a model's default value; None if the recipe must give one.
        normalized_by: name of the bool parameter that makes the method divide the values by their
            sum, or True if it always does. The usual range then applies to the quotients.
    """

    default: float | None = None
    normalized_by: str | Literal[True] | None = None


Weight = Annotated[Sequence[float], PerModel(normalized_by="normalize"), Range(-2.0, 2.0)]
Density = Annotated[Sequence[float], PerModel(default=1.0), Range(0.01, 1.0, least=0.0, most=1.0)]
Rescale = bool | Literal["l1", "l2", "linf", "dare"]
"""Give the kept deltas of a tensor the norm that all its deltas had; ``true`` is ``l1``. ``dare``
divides by the density instead, which keeps the expectation of every delta."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One of a method's parameters, read from its signature.

    Attributes:
        name: its name in recipes.
        argument: its name in Python.
        type: bool, int, float or str.
        per_model: whether each model has a value.
        required: whether a recipe must give it.
        default: its default; for ``per_model`` one model's.
        range: its usual and its valid values; None for any.
        choices: words that are valid values, alone or besides numbers or truth values.
        normalized_by: see :class:`PerModel`.
    """

    name: str
    argument: str
    type: type
    per_model: bool
    required: bool
    default: object = None
    range: Range | None = None
    choices: tuple[str, ...] = ()
    normalized_by: str | Literal[True] | None = None

    @property
    def kind(self) -> str:
        """Its type in words: ``float for each model``, ``bool or l1 or l2``."""
        plain = [] if self.type is str and self.choices else [self.type.__name__]
        kind = " or ".join([*plain, *self.choices])
        return f"{kind} for each model" if self.per_model else kind

    def convert(self, value: object) -> object:
        """Convert a recipe's value to this parameter's type.

        Raises:
            ValueError: when it has another type, or is not valid.
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
        if self.type is not bool and isinstance(value, bool):
            raise ValueError(f"{self.name} is a number, not {str(value).lower()}")
        if self.type is bool and value not in (0, 1):
            raise ValueError(f"{self.name} is true or false, not {value!r}")
        if self.type is int and value != int(value):
            raise ValueError(f"{self.name} is a whole number, not {value!r}")
        number = self.type(value)
        if self.range is not None:
            self.range.check(self.name, number)
        return number
