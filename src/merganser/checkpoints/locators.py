"""Locators: plain, picklable data that describes how to reopen a checkpoint.

A locator describes a checkpoint in files (:class:`Folder`), in memory (:class:`Given`), or computed
from other checkpoints, given by their locators. :mod:`merganser.checkpoints.readers` opens them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Union

if TYPE_CHECKING:
    from merganser.checkpoints.computed.rearranged import Rearrangement
    from merganser.checkpoints.computed.vocabulary_rows import RowMap
    from merganser.checkpoints.protocol import Weights

AnyLocator = TypeVar("AnyLocator")


@dataclass(frozen=True)
class Folder:
    """A checkpoint in a folder or a file; see :func:`merganser.checkpoints.open_checkpoint`."""

    path: Path
    label: str
    weights: Weights


@dataclass(frozen=True)
class Given:
    """A checkpoint in memory, which the caller passes by name."""

    name: str


@dataclass(frozen=True)
class WithCompanions:
    """A checkpoint with the config and tokenizer of another folder."""

    of: Locator
    folder: Path


@dataclass(frozen=True)
class Dequantised:
    """A quantised checkpoint, dequantised."""

    of: Locator


@dataclass(frozen=True)
class Adapted:
    """A checkpoint with the LoRA adapter in a folder."""

    of: Locator
    folder: Path


@dataclass(frozen=True)
class ExpertsNamed:
    """A checkpoint with its experts in the names and layout of the checkpoint ``like``."""

    of: Locator
    like: Locator


@dataclass(frozen=True)
class Rearranged:
    """A checkpoint whose tensors consist of another checkpoint's elements.

    Attributes:
        of: the other checkpoint.
        tensors: pairs of a name and the equal tensor's name in ``of``, or blocks of its tensors.
        notes: notes for the user.
    """

    of: Locator
    tensors: tuple[tuple[str, str | Rearrangement], ...] = field(repr=False)
    notes: tuple[str, ...]


@dataclass(frozen=True)
class TensorAt:
    """A tensor of a checkpoint."""

    checkpoint: Locator
    name: str


@dataclass(frozen=True)
class GatheredRows:
    """A tensor with rows from stored tensors.

    Attributes:
        name: the tensor's name.
        donors: the stored tensors, indexed by the row map's origins; None for a model without one.
        own: index of the donor that the tensor replaces.
    """

    name: str
    donors: tuple[TensorAt | None, ...]
    own: int


@dataclass(frozen=True)
class Gathered:
    """A checkpoint with the rows of another vocabulary."""

    of: Locator
    tensors: tuple[GatheredRows, ...] = field(repr=False)
    rows: RowMap = field(repr=False)


@dataclass(frozen=True)
class JoinedLayers:
    """A tensor outside the layers, with one block per layer from stored tensors.

    Attributes:
        name: the tensor's name.
        donors: the stored tensors.
        axes, depths: the axis of each donor's blocks, and their number.
        layers: for each block of the result, the index of its donor and the layer there.
    """

    name: str
    donors: tuple[TensorAt, ...]
    axes: tuple[int, ...]
    depths: tuple[int, ...]
    layers: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Joined:
    """A checkpoint with blocks per layer rearranged for other layers."""

    of: Locator
    tensors: tuple[JoinedLayers, ...] = field(repr=False)


Locator = Union[  # noqa: UP007
    Folder,
    Given,
    WithCompanions,
    Dequantised,
    Adapted,
    ExpertsNamed,
    Rearranged,
    Gathered,
    Joined,
]
"""Describes how to reopen a checkpoint."""


def after(
    kind: Callable[..., AnyLocator], of: Locator | None, *arguments: Any
) -> AnyLocator | None:
    """The locator of a checkpoint computed from another; None if the other has none."""
    known = of is not None and all(each is not None for each in arguments)
    return kind(of, *arguments) if known else None


class Mover:
    """Replaces paths in locators; shared parts stay shared.

    Args:
        move: returns the new path for an old one.
    """

    def __init__(self, move: Callable[[Path], Path]) -> None:
        self._move = move
        self._moved: dict[int, tuple[Any, Any]] = {}

    def __call__(self, part: Any) -> Any:
        """A locator, or part of one, with replaced paths."""
        if isinstance(part, Path):
            return self._move(part)
        if isinstance(part, tuple):
            return tuple(self(each) for each in part)
        if not is_dataclass(part) or isinstance(part, type):
            return part
        if id(part) not in self._moved:
            paths = {f.name: getattr(part, f.name) for f in fields(part)}
            if isinstance(part, Rearranged):
                paths = {"of": part.of}  # the rest is tensor names, perhaps 100,000
            moved = {name: self(value) for name, value in paths.items()}
            self._moved[id(part)] = part, replace(part, **moved)
        return self._moved[id(part)][1]
