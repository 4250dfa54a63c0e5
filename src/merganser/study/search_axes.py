"""The axes of a search space: numbers, weights that add up to one, and the models of a soup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merganser.recipe import Document, simplex
from merganser.recipe.document import KeyPath

MOST_OFTEN = 9
"""Maximum multiplicity of a model in a greedy soup."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One dimension of a search space.

    Attributes:
        count: number of values; None for all numbers from 0 to 1.
        ordered: whether the values have an order; otherwise they are choices.
    """

    count: int | None = None
    ordered: bool = True


@dataclass(frozen=True, slots=True)
class Simplex:
    """Weights of some models that add up to one.

    Uniformly distributed positions give uniformly distributed weights.

    Attributes:
        names: the models' names.
        parts: weights are multiples of 1 / parts; None for weights of four digits.
    """

    names: tuple[str, ...]
    parts: int | None = None

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes, one fewer than models."""
        return (Axis(),) * (len(self.names) - 1)

    def value(self, position: Sequence[float]) -> dict[str, float]:
        """Return the weights at a position, by model."""
        grain = 10**simplex.DIGITS if self.parts is None else self.parts
        weights = simplex.rounded(simplex.from_cube(position), grain)
        return dict(zip(self.names, map(float, weights), strict=True))

    def __str__(self) -> str:
        step = "" if self.parts is None else f" in steps of 1/{self.parts}"
        return f"{', '.join(self.names)}, which add up to 1{step}"


@dataclass(frozen=True, slots=True)
class Soup:
    """Multiplicity of each model in a mean of models.

    Attributes:
        names: the models' names.
        again: whether a model may occur more than once.
    """

    names: tuple[str, ...]
    again: bool = False

    @property
    def axes(self) -> tuple[Axis, ...]:
        """One axis per model."""
        return (Axis(MOST_OFTEN + 1 if self.again else 2),) * len(self.names)

    def value(self, position: Sequence[float]) -> dict[str, int]:
        """Return the multiplicity of each model, by name."""
        return dict(zip(self.names, map(int, position), strict=True))

    def __str__(self) -> str:
        return f"a mean of some of {', '.join(self.names)}"


def read_simplex(document: Document, given: Mapping[str, Any], path: KeyPath) -> Simplex:
    """Parse ``{simplex: [acc, fmt, len]}``, with an optional ``step``.

    Raises:
        RecipeError: with file, line and key of the first thing that is wrong.
    """
    simplex.check_keys(document, given, path, frozenset({"step"}))
    names = simplex.names(document, given, path)
    step = given.get("step")
    parts = None if step is None else simplex.parts(document, step, (*path, "step"))
    return Simplex(tuple(names), parts)
