"""Groups: an output tensor with its input tensors, before parameters are resolved."""

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
"""The sources of one output layer, as (index of a source, layer) pairs."""


AFTER_TOWER = ".merger.mlp."
"""In the names of tensors outside the layers that take a gradient's last value, as in MergeKit: the
two matrices after the last block of the vision towers of Qwen2-VL and Qwen2.5-VL."""

MAX_LAYERS = 4096
"""Maximum number of layers that a recipe may stack."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One input of an output tensor: its source, its name there, and the parameters that the recipe
    gives to it, with their place."""

    source: int
    name: str
    path: KeyPath
    parameters: Mapping[str, Setting]


@dataclass(frozen=True, slots=True)
class Group:
    """One output tensor before its parameters are resolved.

    Attributes:
        name: of the output.
        place: its role in the model.
        layer: the output layer, or None.
        position: relative depth in its slice, from 0 to 1, for gradients.
        entries: the inputs that have it, in the recipe's order.
        base: index of its base model in the plan's sources, or None.
        parameters: the recipe's parameter blocks around those of the entries, innermost first.
        partial: whether the recipe lists models that lack this tensor.
        taken: whether it is copied from its only entry without merging.
        alike: for a tensor with one block per layer, the groups of the other layers; their
            parameters must equal those of this group.
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
    """The relative depth of a layer in its slice, from 0.0 to 1.0; 1.0 for a single layer, as in
    MergeKit. Tensors outside the layers have 0.0, those after a vision tower 1.0."""
    if layer is None:
        return float(AFTER_TOWER in f".{name}")
    return layer / (depth - 1) if depth > 1 else 1.0


def list_of(names: Iterable[str]) -> str:
    """Distinct names in their order, separated by commas, for a message."""
    return ", ".join(dict.fromkeys(names))


def summary(names: Sequence[str]) -> str:
    """A short text for the names of tensors; names that differ only in a number appear once."""
    if len(names) == 1:
        return f"the tensor {names[0]}"
    patterns = list(dict.fromkeys(re.sub(r"\.\d+(?=\.)", ".*", name) for name in names))
    shown = ", ".join(patterns[:3]) + (f" and {len(patterns) - 3} more" if patterns[3:] else "")
    return f"{len(names)} tensors ({shown})"


@dataclass(frozen=True, slots=True)
class RecipePart:
    """One of the recipe's lists of models or slices, with the modules that it covers and its place."""

    modules: tuple[str, ...]
    models: Sequence[ModelInput] | None
    slices: Sequence[OutputSlice] | None
    path: KeyPath
    levels: Levels
