"""The numbers that a search moves, weights that add up to one among them, and which models a soup has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merganser.recipe import Document, simplex
from merganser.recipe.document import KeyPath

MOST_OFTEN = 9
"""How often a greedy soup may take one model."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One number that is searched.

    Attributes:
        count: how many values it has; None for all from 0 to 1.
        ordered: whether they have an order; else they are choices.
    """

    count: int | None = None
    ordered: bool = True


@dataclass(frozen=True, slots=True)
class Simplex:
    """Weights of some models that add up to one.

    Positions that are spread evenly over the axes are spread evenly over the weights.

    Attributes:
        names: the models' names.
        parts: into how many steps 1 is divided; None for weights of four digits.
    """

    names: tuple[str, ...]
    parts: int | None = None

    @property
    def axes(self) -> tuple[Axis, ...]:
        """One fewer than models."""
        return (Axis(),) * (len(self.names) - 1)

    def value(self, position: Sequence[float]) -> dict[str, float]:
        """The weights at a position, by their names."""
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
    """Read ``{simplex: [acc, fmt, len]}``, or with a ``step``.

    Raises:
        RecipeError: with file, line and key of the first thing that is wrong.
    """
    simplex.check_keys(document, given, path, frozenset({"step"}))
    names = simplex.names(document, given, path)
    step = given.get("step")
    parts = None if step is None else simplex.parts(document, step, (*path, "step"))
    return Simplex(tuple(names), parts)
