"""How checkpoints are opened again: plain data, picklable, without open files.

A locator is the place of a checkpoint in files (:class:`Folder`), in memory (:class:`Given`), or what is
computed from other checkpoints, which are named by their own locators. :mod:`merganser.checkpoints.readers`
opens them.
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
    """A checkpoint that is handed over when it is read, under a name."""

    name: str


@dataclass(frozen=True)
class WithCompanions:
    """A checkpoint with the config and the tokenizer of another folder."""

    of: Locator
    folder: Path


@dataclass(frozen=True)
class Dequantised:
    """A quantised checkpoint as numbers."""

    of: Locator


@dataclass(frozen=True)
class Adapted:
    """A checkpoint with the LoRA adapter in a folder."""

    of: Locator
    folder: Path


@dataclass(frozen=True)
class ExpertsNamed:
    """A checkpoint with its experts under the names that another has."""

    of: Locator
    like: Locator


@dataclass(frozen=True)
class Rearranged:
    """A checkpoint of another's elements.

    Attributes:
        of: the other.
        tensors: for each name, the other's tensor of that name, or blocks of its tensors.
        notes: what the user should know.
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
    """A tensor whose rows come from those of stored ones.

    Attributes:
        name: of the tensor.
        donors: the stored ones, as the row map numbers them; None for a model without such a tensor.
        own: which of them it stands in for.
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
    """A tensor outside the layers that has blocks for layers of stored ones.

    Attributes:
        name: of the tensor.
        donors: the stored ones.
        axes, depths: of each, the axis along which it has its blocks, and how many.
        layers: for each block, which donor it comes from, and which layer's it is.
    """

    name: str
    donors: tuple[TensorAt, ...]
    axes: tuple[int, ...]
    depths: tuple[int, ...]
    layers: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Joined:
    """A checkpoint whose tensors with a block for each layer have those of other layers."""

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
"""How a checkpoint is opened again."""


def after(
    kind: Callable[..., AnyLocator], of: Locator | None, *arguments: Any
) -> AnyLocator | None:
    """The locator of what is computed from a checkpoint; None where that has none itself."""
    known = of is not None and all(each is not None for each in arguments)
    return kind(of, *arguments) if known else None


class Mover:
    """Gives locators other paths; what is shared between them stays shared.

    Args:
        move: the new path for an old one.
    """

    def __init__(self, move: Callable[[Path], Path]) -> None:
        self._move = move
        self._moved: dict[int, tuple[Any, Any]] = {}

    def __call__(self, part: Any) -> Any:
        """A locator, or a part of one, with other paths."""
        if isinstance(part, Path):
            return self._move(part)
        if isinstance(part, tuple):
            return tuple(self(each) for each in part)
        if not is_dataclass(part) or isinstance(part, type):
            return part
        if id(part) not in self._moved:
            paths = {f.name: getattr(part, f.name) for f in fields(part)}
            if isinstance(part, Rearranged):
                paths = {"of": part.of}  # the rest is names of tensors, perhaps 100,000 of them
            moved = {name: self(value) for name, value in paths.items()}
            self._moved[id(part)] = part, replace(part, **moved)
        return self._moved[id(part)][1]
