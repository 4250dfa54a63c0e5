"""Tensors that hold the elements of another checkpoint's tensors in another order.

A model class stacks, splits or transposes tensors as it loads and saves them. What reading needs of this
is where the elements of each tensor are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from merganser.checkpoints.blocks import read_blocks
from merganser.checkpoints.computed.derived import Array, Derived, DerivedCheckpoint
from merganser.checkpoints.locators import Rearranged, after
from merganser.checkpoints.protocol import Checkpoint
from merganser.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class SourceBlock:
    """A block of a tensor, and the tensor of another checkpoint that holds its elements.

    Attributes:
        tensor: the other tensor's name.
        offset: the byte of that tensor with which its first element begins.
        size: its sizes along each axis.
        stride: the distance, in elements of that tensor, of neighbours along each axis.
        origin: the place of its first element in the tensor that it is a block of.
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
        grid: the shape that the blocks are blocks of: its own with axes split further.
        blocks: no element is in two of them; those in none are zero.
    """

    spec: TensorSpec
    grid: tuple[int, ...]
    blocks: tuple[SourceBlock, ...]


def rearranged(
    checkpoint: Checkpoint, tensors: Mapping[str, Rearrangement | str], notes: Sequence[str]
) -> Checkpoint:
    """A checkpoint of the elements of another.

    Args:
        checkpoint: the other.
        tensors: of what each tensor consists, or the name of the tensor that it is.
        notes: what the user should know.
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
