"""Groups: output tensors with the inputs that make them, before their numbers are settled."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from merganser.architecture import Place
from merganser.recipe import Setting
from merganser.recipe.document import KeyPath
from merganser.recipe.schema import ModelInput, OutputSlice

Levels = tuple[tuple[KeyPath, Mapping[str, Setting]], ...]
LayerOrigins = tuple[tuple[int, int], ...]
"""What one output layer is made of: sources, and layers of theirs."""


AFTER_TOWER = ".merger.mlp."
"""What takes a gradient's last value though it lies outside the layers, as in MergeKit: the two
matrices after the last block of the vision towers of Qwen2-VL and Qwen2.5-VL."""

MAX_LAYERS = 4096
"""Most layers that a recipe may stack."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One input of one output tensor, and the settings that come with it, nearest first."""

    source: int
    name: str
    path: KeyPath
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


def position_in(layer: int | None, depth: int, name: str = "") -> float:
    """Where a layer lies in the depth of its slice; MergeKit puts a single layer at the end. A
    tensor outside the layers is at the start, but for what comes after a vision tower."""
    if layer is None:
        return float(AFTER_TOWER in f".{name}")
    return layer / (depth - 1) if depth > 1 else 1.0


def list_of(names: Iterable[str]) -> str:
    """Names for a message, each once."""
    return ", ".join(dict.fromkeys(names))


def summary(names: Sequence[str]) -> str:
    """Names for a warning, those that differ in a number only once."""
    if len(names) == 1:
        return f"the tensor {names[0]}"
    patterns = list(dict.fromkeys(re.sub(r"\.\d+(?=\.)", ".*", name) for name in names))
    shown = ", ".join(patterns[:3]) + (f" and {len(patterns) - 3} more" if patterns[3:] else "")
    return f"{len(names)} tensors ({shown})"


@dataclass(frozen=True, slots=True)
class RecipePart:
    """The modules that one list of models or slices is for, and where the recipe says so."""

    modules: tuple[str, ...]
    models: Sequence[ModelInput] | None
    slices: Sequence[OutputSlice] | None
    path: KeyPath
    levels: Levels
