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
"""The sources of one output layer: models and their layers."""


AFTER_TOWER = ".merger.mlp."
"""Tensors outside the layers that take a gradient's last value, as in MergeKit: the two
matrices after the last block of the vision towers of Qwen2-VL and Qwen2.5-VL."""

MAX_LAYERS = 4096
"""Maximum number of layers that a recipe may stack."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One input of one output tensor, with its settings, nearest first."""

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
        position: relative depth in its slice, for gradients.
        entries: the inputs that have it, in the recipe's order.
        base: index of its base model in the plan's sources, or None.
        parameters: the settings above those of the entries, nearest first.
        partial: whether the recipe lists models that lack this tensor.
        taken: whether it is copied from its only entry without merging.
        alike: the same tensor for other layers of the stack, with their settings: for a tensor
            with one block per layer, whose parameters must be equal for all.
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
    """Relative depth of a layer in its slice: a single layer is at the end, as in MergeKit.
    Tensors outside the layers are at the start, except those after a vision tower."""
    if layer is None:
        return float(AFTER_TOWER in f".{name}")
    return layer / (depth - 1) if depth > 1 else 1.0


def list_of(names: Iterable[str]) -> str:
    """Distinct names, for a message."""
    return ", ".join(dict.fromkeys(names))


def summary(names: Sequence[str]) -> str:
    """Names for a warning; of names that differ only in a number, one."""
    if len(names) == 1:
        return f"the tensor {names[0]}"
    patterns = list(dict.fromkeys(re.sub(r"\.\d+(?=\.)", ".*", name) for name in names))
    shown = ", ".join(patterns[:3]) + (f" and {len(patterns) - 3} more" if patterns[3:] else "")
    return f"{len(names)} tensors ({shown})"


@dataclass(frozen=True, slots=True)
class RecipePart:
    """The modules that a list of models or slices covers, and its place in the recipe."""

    modules: tuple[str, ...]
    models: Sequence[ModelInput] | None
    slices: Sequence[OutputSlice] | None
    path: KeyPath
    levels: Levels
