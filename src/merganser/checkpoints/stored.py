"""Read tensors from files by ranges.

In every format a tensor consists of pieces, which are blocks in a file with a stride along each axis. The
module of a format computes the pieces; this module reads them.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from merganser.checkpoints.blocks import read_blocks
from merganser.checkpoints.locators import Locator
from merganser.checkpoints.protocol import Stamp
from merganser.checkpoints.sidecar_files import check_link
from merganser.checkpoints.stored_files import MAPPED, Files
from merganser.errors import InputError
from merganser.tensors import TensorSpec

MAX_TENSORS = 1 << 19
"""Maximum number of tensors of a checkpoint; a mixture of 384 experts has 140,000."""

MAX_NAME = 512
"""Maximum number of characters of a tensor's name."""

MAX_CUTS = 1 << 20
"""Maximum number of parts into which the check for overlaps cuts a tensor's pieces."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A block of a tensor in a file.

    Attributes:
        file: the file.
        offset: byte offset of its first element in the file.
        size: its size along each axis.
        stride: distance of neighbours along each axis, in elements of the file.
        origin: index of its first element in the tensor.
    """

    file: Path
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    origin: tuple[int, ...]


Parts = tuple[TensorSpec, Sequence[Piece]]
"""A tensor's spec, and pieces of it that may not cover it."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in files.

    Attributes:
        spec: its dtype and shape.
        pieces: pieces that cover each element once.
        grid: the shape that the pieces divide: that of ``spec``, or another shape with the same
            elements in the same order, such as a single row.
    """

    spec: TensorSpec
    pieces: tuple[Piece, ...]
    grid: tuple[int, ...]

    @classmethod
    def dense(cls, spec: TensorSpec, file: Path, offset: int) -> StoredTensor:
        """A contiguous tensor in one file."""
        return cls(spec, (Piece(file, offset, (spec.numel,), (1,), (0,)),), (spec.numel,))

    @classmethod
    def of_pieces(
        cls, spec: TensorSpec, pieces: Sequence[Piece], grid: tuple[int, ...] | None = None
    ) -> StoredTensor:
        """A tensor of pieces. If all are runs of consecutive elements, the grid becomes one row.

        Raises:
            ValueError: when the pieces do not cover the tensor exactly once.
        """
        grid = spec.shape if grid is None else grid
        for piece in pieces:
            ends = zip(piece.origin, piece.size, grid, strict=True)
            if any(begin < 0 or begin + n > whole for begin, n, whole in ends):
                raise ValueError(f"a piece of {list(piece.size)} reaches beyond {list(grid)}")
        pieces = sorted((p for p in pieces if math.prod(p.size)), key=lambda piece: piece.origin)
        covered = sum(math.prod(piece.size) for piece in pieces)
        if covered != spec.numel:
            raise ValueError(f"its pieces hold {covered} of {spec.numel} elements")
        if all(_is_run(piece, grid) for piece in pieces):
            pieces = [_flat(piece, grid) for piece in pieces]
            grid = (spec.numel,)
            overlap = any(a.origin[0] + a.size[0] != b.origin[0] for a, b in pairwise(pieces))
        else:
            overlap = _overlap(pieces)
        if overlap:
            raise ValueError("its pieces overlap")
        return cls(spec, tuple(pieces), grid)

    @property
    def runs(self) -> bool:
        """Whether the pieces are consecutive runs of the tensor's elements."""
        return len(self.grid) == 1 and all(piece.stride == (1,) for piece in self.pieces)


def cut(
    pieces: Sequence[Piece], begin: Sequence[int], size: Sequence[int], itemsize: int
) -> list[Piece]:
    """Cut a block out of a tensor's pieces.

    Args:
        pieces: the tensor's pieces.
        begin: index of the block's first element in the tensor.
        size: the block's size along each axis.
        itemsize: bytes per element.
    """
    block = []
    for piece in pieces:
        low = [max(a, b) for a, b in zip(piece.origin, begin, strict=True)]
        ends = zip(piece.origin, piece.size, begin, size, strict=True)
        extent = [min(a + n, b + m) - c for (a, n, b, m), c in zip(ends, low, strict=True)]
        if all(n > 0 for n in extent):
            steps = zip(low, piece.origin, piece.stride, strict=True)
            skip = sum((at - origin) * stride for at, origin, stride in steps)
            place = tuple(at - b for at, b in zip(low, begin, strict=True))
            offset = piece.offset + skip * itemsize
            block.append(Piece(piece.file, offset, tuple(extent), piece.stride, place))
    return block


class StoredCheckpoint:
    """A model in files of any format. See :class:`merganser.checkpoints.Checkpoint`."""

    def __init__(
        self,
        label: str,
        home: Path,
        tensors: Mapping[str, StoredTensor],
        *,
        format: str,
        files: Sequence[Path],
        config: Mapping[str, Any],
        path: Path | None = None,
        notes: Sequence[str] = (),
        header_digest: str | None = None,
    ) -> None:
        """Create a checkpoint from the headers that a format's module has read.

        Args:
            label, format, config, notes: see :class:`merganser.checkpoints.Checkpoint`.
            home: the opened folder or file.
            tensors: the tensors by name.
            files: the weight files, all below ``home``.
            path: the folder with config and tokenizer, if it is not ``home``.
            header_digest: a digest of the headers; if None, a digest of the tensors and their pieces.
        """
        _check_names(home, tensors)
        for file in files if home.is_dir() else ():
            check_link(file)
        self.label = label
        self.path: Path | None = path or home
        self.home: Path | None = home
        self.specs: Mapping[str, TensorSpec] = {name: t.spec for name, t in tensors.items()}
        self.config = config
        folder = home if home.is_dir() else home.parent
        self.stamps: Mapping[Path, Stamp] = {file: Stamp.of(file.stat()) for file in files}
        self.files: Mapping[str, int] = {
            file.relative_to(folder).as_posix(): stamp.size for file, stamp in self.stamps.items()
        }
        self.format = format
        self.notes = tuple(notes)
        self.header_digest = header_digest or _digest(tensors, folder)
        self.locator: Locator | None = None
        self._tensors = tensors
        self._starts = {
            name: [piece.origin[0] * tensor.spec.dtype.itemsize for piece in tensor.pieces]
            for name, tensor in tensors.items()
            if tensor.runs
        }
        self._files = Files(self.stamps)

    def read(self, name: str, start: int, into: memoryview) -> None:
        """See :meth:`merganser.checkpoints.Checkpoint.read`."""
        tensor = self._tensors[name]
        starts = self._starts.get(name)
        if starts is None:

            def read(piece: Piece, position: int, part: memoryview) -> None:
                self._files.read(piece.file, position, part, name)

            width = tensor.spec.dtype.itemsize
            read_blocks(tensor.grid, tensor.pieces, width, start, into, read)
        elif len(starts) == 1:
            piece = tensor.pieces[0]
            self._files.read(piece.file, piece.offset + start, into, name)
        else:
            self._read_runs(name, tensor, starts, start, into)

    def view(self, name: str, start: int, length: int) -> memoryview | None:
        """See :meth:`merganser.checkpoints.Checkpoint.view`; for tensors in one piece."""
        tensor = self._tensors[name]
        piece = tensor.pieces[0] if tensor.pieces else None
        if length < MAPPED or piece is None or len(self._starts.get(name, ())) != 1:
            return None
        if piece.offset % tensor.spec.dtype.itemsize:
            return None
        return self._files.view(piece.file, piece.offset + start, length)

    def _read_runs(
        self, name: str, tensor: StoredTensor, starts: list[int], start: int, into: memoryview
    ) -> None:
        index = bisect_right(starts, start) - 1
        while len(into):
            piece = tensor.pieces[index]
            within = start - starts[index]
            count = min(len(into), piece.size[0] * tensor.spec.dtype.itemsize - within)
            self._files.read(piece.file, piece.offset + within, into[:count], name)
            into = into[count:]
            start += count
            index += 1

    def close(self) -> None:
        """Close the files."""
        self._files.close()


def _check_names(home: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Check tensor names, which are written to messages, cards and other programs' files."""
    if len(tensors) > MAX_TENSORS:
        raise InputError(f"{home}: has {len(tensors)} tensors; at most {MAX_TENSORS} can be read")
    for name in tensors:
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise InputError(f"{home}: has a tensor of the impossible name {name[:80]!r}")


def _is_run(piece: Piece, grid: tuple[int, ...]) -> bool:
    """Whether a piece is a run of consecutive elements of the tensor, contiguous in its file."""
    step, partial = 1, False
    for n, stride, whole in zip(
        reversed(piece.size), reversed(piece.stride), reversed(grid), strict=True
    ):
        if n > 1 and (stride != step or partial):
            return False
        partial = partial or n < whole
        step *= n
    return True


def _overlap(pieces: Sequence[Piece]) -> bool:
    """Whether any two pieces share an element.

    The tensor is cut into slabs wherever a piece begins or ends along the first axis, the slabs likewise
    along the next axis, and so on. Along the last axis, neighbours are compared. Shards of a mesh have the
    same boundaries, so a shard is in one slab only.

    Raises:
        ValueError: when the pieces are cut in too many ways to check.
    """
    slabs = [pieces]
    for axis in range(len(pieces[0].size) - 1):
        slabs = [slab for whole in slabs for slab in _slabs(whole, axis)]
        if sum(map(len, slabs)) > MAX_CUTS:
            raise ValueError("it is cut into too many different pieces")
    for slab in slabs:
        ends = sorted((piece.origin[-1], piece.size[-1]) for piece in slab)
        if any(begin + n > after for (begin, n), (after, _) in pairwise(ends)):
            return True
    return False


def _slabs(pieces: Sequence[Piece], axis: int) -> list[list[Piece]]:
    """The pieces in each slab between neighbouring boundaries of pieces along an axis, if several."""
    spans = [(piece.origin[axis], piece.origin[axis] + piece.size[axis]) for piece in pieces]
    places = {at: i for i, at in enumerate(sorted({at for span in spans for at in span}))}
    ranges = [range(places[begin], places[end]) for begin, end in spans]
    if sum(map(len, ranges)) > MAX_CUTS:
        raise ValueError("it is cut into too many different pieces")
    slabs: list[list[Piece]] = [[] for _ in places]
    for piece, crossed in zip(pieces, ranges, strict=True):
        for i in crossed:
            slabs[i].append(piece)
    return [slab for slab in slabs if len(slab) > 1]


def _flat(piece: Piece, grid: tuple[int, ...]) -> Piece:
    begin = 0
    for at, whole in zip(piece.origin, grid, strict=True):
        begin = begin * whole + at
    return replace(piece, size=(math.prod(piece.size),), stride=(1,), origin=(begin,))


def _digest(tensors: Mapping[str, StoredTensor], folder: Path) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name!r} {tensor.spec} {tensor.grid}\n".encode())
        for piece in tensor.pieces:
            file = piece.file.relative_to(folder).as_posix()
            digest.update(
                f"{file!r} {piece.offset} {piece.size} {piece.stride} {piece.origin}\n".encode()
            )
    return digest.hexdigest()
