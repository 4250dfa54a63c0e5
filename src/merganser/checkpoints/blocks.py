"""Read ranges of a tensor that consists of blocks, which are parts of files or of other tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np

SPAN = 1 << 16
"""Bytes that are read in one call even if most are gaps between the wanted elements."""


class Block(Protocol):
    """A block of a tensor, and the location of its stored elements; see :class:`Piece`."""

    @property
    def offset(self) -> int:
        """Byte offset of its first element."""

    @property
    def size(self) -> tuple[int, ...]:
        """Its size along each axis."""

    @property
    def stride(self) -> tuple[int, ...]:
        """Distance between neighbours along each axis, in stored elements."""

    @property
    def origin(self) -> tuple[int, ...]:
        """Index of its first element in the tensor."""


AnyBlock = TypeVar("AnyBlock", bound=Block)


def read_blocks(
    grid: tuple[int, ...],
    blocks: Sequence[AnyBlock],
    width: int,
    start: int,
    into: memoryview,
    read: Callable[[AnyBlock, int, memoryview], None],
) -> None:
    """Fill a buffer with a range of a tensor that consists of blocks.

    Args:
        grid: the shape of the tensor that the blocks divide.
        blocks: disjoint blocks; elements outside of them are zero.
        width: bytes per element.
        start: first byte of the range in the tensor.
        into: the buffer to fill.
        read: called with a block, a byte offset and a buffer; fills the buffer with the block's stored
            bytes from that offset on.
    """
    import numpy as np

    first, last = start // width, -(-(start + len(into)) // width)
    values = np.zeros(last - first, f"u{width}")
    done = 0
    for origin, size in _blocks(grid, first, last):
        count = math.prod(size)
        target = values[done : done + count].reshape(size)
        done += count
        for block in blocks:
            low = [max(a, b) for a, b in zip(origin, block.origin, strict=True)]
            ends = zip(origin, size, block.origin, block.size, strict=True)
            high = [min(a + n, b + m) for a, n, b, m in ends]
            if all(a < b for a, b in zip(low, high, strict=True)):
                begin = [a - b for a, b in zip(low, block.origin, strict=True)]
                place = zip(low, high, origin, strict=True)
                out = target[tuple(slice(a - o, b - o) for a, b, o in place)]
                _gather(block, begin, out, read)
    skip = start - first * width
    into[:] = values.view(np.uint8).data[skip : skip + len(into)]


def _gather(
    block: AnyBlock,
    begin: Sequence[int],
    out: np.ndarray[Any, Any],
    read: Callable[[AnyBlock, int, memoryview], None],
) -> None:
    """Copy the part of a block that begins at ``begin``, with the shape of ``out``."""
    import numpy as np

    width = out.itemsize
    skip = sum(b * s for b, s in zip(begin, block.stride, strict=True))
    span = 1 + sum((n - 1) * s for n, s in zip(out.shape, block.stride, strict=True))
    if span * width > max(2 * out.nbytes, SPAN):  # mostly gaps: split along the widest stride
        axis = max(range(out.ndim), key=lambda a: (out.shape[a] > 1, block.stride[a]))
        for k in range(out.shape[axis]):
            at = [b + k * (a == axis) for a, b in enumerate(begin)]
            part = tuple(slice(k, k + 1) if a == axis else slice(None) for a in range(out.ndim))
            _gather(block, at, out[part], read)
        return
    raw = np.empty(span, out.dtype)
    read(block, block.offset + skip * width, raw.view(np.uint8).data)
    steps = tuple(s * width for s in block.stride)
    out[...] = np.lib.stride_tricks.as_strided(raw, out.shape, steps, writeable=False)


def _blocks(
    shape: tuple[int, ...], first: int, last: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Divide a range of a tensor's elements into blocks (origin, size), in order.

    They are the end of a row, complete rows, and the beginning of a row.
    """
    if len(shape) == 1:
        yield (first,), (last - first,)
        return
    inner = shape[1:]
    row = math.prod(inner)
    while first < last:
        index, within = divmod(first, row)
        if within == 0 and last - first >= row:
            count = (last - first) // row
            yield (index, *(0 for _ in inner)), (count, *inner)
            first += count * row
            continue
        end = min(last, (index + 1) * row)
        for origin, size in _blocks(inner, within, within + end - first):
            yield (index, *origin), (1, *size)
        first = end
