"""Groups: output tensors with the inputs that make them, before their numbers are settled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from merganser.architecture import Place
from merganser.recipe import Setting

Path = tuple[str | int, ...]
Levels = tuple[tuple[Path, Mapping[str, Setting]], ...]
Layers = tuple[tuple[int, int], ...]
"""What one output layer is made of: sources, and layers of theirs."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One input of one output tensor, and the settings that come with it, nearest first."""

    source: int
    name: str
    path: Path
    parameters: Mapping[str, Setting]


@dataclass(frozen=True, slots=True)
class Group:
    """One output tensor before its numbers are settled.

    Attributes:
        name: of the output.
        place: what it is in its model.
        layer: the output layer, or None.
        position: where it lies in the depth of its slice, for gradients.
        entries: the inputs that have it, in the recipe's order.
        base: the base model for it, an index of the plan's sources, or None.
        parameters: the settings above those of the entries, nearest first.
        partial: whether the recipe lists models that lack this tensor.
        taken: whether it is taken from its only entry without being merged.
        alike: the same tensor as other layers of the stack have it, with settings of their own: for a
            tensor that has a block for each layer, whose numbers must be the same for all.
    """

    name: str
    place: Place
    layer: int | None
    position: float
    entries: tuple[Entry, ...]
    base: int | None
    parameters: Levels
    partial: bool = False
    taken: bool = False
    alike: tuple[Group, ...] = ()
