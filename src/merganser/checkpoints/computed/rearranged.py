"""Tensors with the elements of another checkpoint's tensors in another order.

A model class stacks, splits or transposes tensors when it loads and saves them. To read such a tensor, the
locations of its elements suffice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from merganser.checkpoints.blocks import read_blocks
from merganser.checkpoints.computed.derived import Derived, DerivedCheckpoint
from merganser.checkpoints.locators import Rearranged, after
from merganser.checkpoints.protocol import Checkpoint
from merganser.tensors import TensorSpec

if TYPE_CHECKING:
    from merganser.checkpoints.computed.derived import Array


@dataclass(frozen=True, slots=True)
class SourceBlock:
    """A block of a tensor, and the tensor of another checkpoint that holds its elements.

    Attributes:
        tensor: the other tensor's name.
        offset: byte offset of its first element in that tensor.
        size: its sizes along each axis.
        stride: distance between neighbours along each axis, in elements of that tensor.
        origin: index of its first element in the new tensor.
    """

    tensor: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    origin: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rearrangement:
    """A tensor as blocks of other tensors.

    Attributes:
        spec: its dtype and shape.
        grid: the shape that the blocks divide: the tensor's shape, with axes possibly split.
        blocks: they do not overlap; elements outside all blocks are zero.
    """

    spec: TensorSpec
    grid: tuple[int, ...]
    blocks: tuple[SourceBlock, ...]


def rearranged(
    checkpoint: Checkpoint, tensors: Mapping[str, Rearrangement | str], notes: Sequence[str]
) -> Checkpoint:
    """Return a checkpoint whose tensors consist of another checkpoint's elements.

    Args:
        checkpoint: the checkpoint that stores the elements.
        tensors: each tensor's blocks, or the name of the equal tensor in ``checkpoint``.
        notes: notes for the user.
    """
    return DerivedCheckpoint(
        checkpoint,
        {
            name: tensor
            if isinstance(tensor, str)
            else Derived(tensor.spec, partial(_fill, checkpoint, tensor))
            for name, tensor in tensors.items()
        },
        checkpoint.config,
        repr(tensors),
        format=checkpoint.format,
        notes=notes,
        locator=after(Rearranged, checkpoint.locator, tuple(tensors.items()), tuple(notes)),
    )


def _fill(checkpoint: Checkpoint, tensor: Rearrangement, start: int, into: Array) -> None:
    def read(block: SourceBlock, position: int, part: memoryview) -> None:
        checkpoint.read(block.tensor, position, part)

    width = tensor.spec.dtype.itemsize
    read_blocks(tensor.grid, tensor.blocks, width, start * width, into.data, read)
