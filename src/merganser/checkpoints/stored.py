"""Tensors in files: where their bytes lie, and how any range of them is read.

Every format on disk comes down to this: a tensor is one or more blocks, each of which lies in a file
with some distance between its elements. A format's module works out where; reading is done here.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import threading
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from merganser import system
from merganser.checkpoints.blocks import read_blocks
from merganser.checkpoints.protocol import Stamp
from merganser.checkpoints.sidecar_files import refuse_foreign_link
from merganser.errors import InputError
from merganser.tensors import TensorSpec

MAPPED = 1 << 17
"""Bytes from which on it pays to look at a range where it lies, and not to read it."""

POPULATE = 22 if hasattr(os, "RWF_NOWAIT") else 0
"""Linux's MADV_POPULATE_READ: makes a range's pages be there, or says that they cannot be."""

KEPT = 128
"""Files of a checkpoint that are kept open."""

MAX_TENSORS = 1 << 19
"""Most tensors of a checkpoint; a mixture of 384 experts has 140,000."""

MAX_NAME = 512
"""Most characters of a tensor's name."""

MAX_CUTS = 1 << 20
"""Most parts that a tensor's pieces are cut into to see whether they overlap."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A block of a tensor, and where it lies.

    Attributes:
        file: the file.
        offset: the byte of the file with which its first element begins.
        size: its sizes along each axis.
        stride: the distance, in elements of the file, of neighbours along each axis.
        origin: the place of its first element in the tensor.
    """

    file: Path
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    origin: tuple[int, ...]


Parts = tuple[TensorSpec, Sequence[Piece]]
"""What a tensor is, and blocks of it that may or may not cover it."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor, and the pieces that make it up.

    Attributes:
        spec: its dtype and shape.
        pieces: blocks that cover it, each element once.
        grid: the shape that the pieces are blocks of: that of ``spec``, or another way to write the
            same elements in the same order, such as all in one row.
    """

    spec: TensorSpec
    pieces: tuple[Piece, ...]
    grid: tuple[int, ...]

    @classmethod
    def dense(cls, spec: TensorSpec, file: Path, offset: int) -> StoredTensor:
        """A tensor that lies in one file without gaps."""
        return cls(spec, (Piece(file, offset, (spec.numel,), (1,), (0,)),), (spec.numel,))

    @classmethod
    def of_pieces(
        cls, spec: TensorSpec, pieces: Sequence[Piece], grid: tuple[int, ...] | None = None
    ) -> StoredTensor:
        """A tensor of pieces; those that are runs of its elements are written as such.

        Raises:
            ValueError: when they do not cover it, or reach beyond it.
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
        """Whether the pieces are runs of the tensor's elements, one after the other."""
        return len(self.grid) == 1 and all(piece.stride == (1,) for piece in self.pieces)


def cut(
    pieces: Sequence[Piece], begin: Sequence[int], size: Sequence[int], itemsize: int
) -> list[Piece]:
    """A block of a tensor, as pieces of its own.

    Args:
        pieces: the tensor's.
        begin: where the block begins in it.
        size: of the block.
        itemsize: bytes an element.
    """
    found = []
    for piece in pieces:
        low = [max(a, b) for a, b in zip(piece.origin, begin, strict=True)]
        ends = zip(piece.origin, piece.size, begin, size, strict=True)
        extent = [min(a + n, b + m) - c for (a, n, b, m), c in zip(ends, low, strict=True)]
        if all(n > 0 for n in extent):
            steps = zip(low, piece.origin, piece.stride, strict=True)
            skip = sum((at - origin) * stride for at, origin, stride in steps)
            place = tuple(at - b for at, b in zip(low, begin, strict=True))
            offset = piece.offset + skip * itemsize
            found.append(Piece(piece.file, offset, tuple(extent), piece.stride, place))
    return found


class Files:
    """Files that are read at any place by any thread; opened when first needed, and the first
    ``KEPT`` kept open: a model's shards may be more than a process may have open."""

    def __init__(self, stamps: Mapping[Path, Stamp]) -> None:
        """Remember what the files were when their headers were read."""
        self._stamps = stamps
        self._descriptors: dict[Path, int] = {}
        self._lock = threading.Lock()

    def read(self, file: Path, position: int, into: memoryview, what: str) -> None:
        """Fill a buffer from a file.

        Args:
            file: the file.
            position: the byte from which on.
            into: the buffer.
            what: the tensor's name, for messages.

        Raises:
            InputError: when the file ends before the buffer is full, cannot be read, or is
                another than it was.
        """
        try:
            descriptor, kept = self._descriptors.get(file), True
            if descriptor is None:
                descriptor, kept = self._open(file)
            try:
                while len(into):
                    count = system.read_at(descriptor, into, position)
                    if count == 0:
                        raise InputError(f"{file}: ends within tensor {what!r}; fetch it again")
                    into = into[count:]
                    position += count
            finally:
                if not kept:
                    with suppress(OSError):
                        os.close(descriptor)
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror})") from None

    def view(self, file: Path, position: int, length: int) -> memoryview | None:
        """A range of a file where it lies in the page cache, or None where it must be read.

        What is not in memory is read in the ordinary way, by which an error is told as one: in a mapping
        it would end the process. So would the file's becoming shorter while the range is looked at, so
        ranges are short, and only looked at where all of them can be had.
        """
        descriptor = self._descriptors.get(file)
        if descriptor is None or not POPULATE:
            return None
        begin = position // mmap.PAGESIZE * mmap.PAGESIZE
        try:
            for place in (position, position + length - 1):
                if not system.is_cached(descriptor, place):
                    return None
            size = position + length - begin
            mapped = mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY, offset=begin)
            mapped.madvise(POPULATE)
        except (OSError, ValueError):  # not in memory, beyond the end, or not to be had so
            return None
        return memoryview(mapped)[position - begin :]

    def _open(self, file: Path) -> tuple[int, bool]:
        """A file's descriptor, and whether it is kept."""
        with self._lock:
            descriptor = self._descriptors.get(file)
            if descriptor is not None:
                return descriptor, True
            descriptor = os.open(file, os.O_RDONLY | system.OPEN_FLAGS)
            stamp = self._stamps.get(file)
            if stamp is not None and stamp != Stamp.of(os.fstat(descriptor)):
                os.close(descriptor)
                raise InputError(f"{file}: changed since its header was read; merge again")
            kept = len(self._descriptors) < KEPT
            if kept:
                self._descriptors[file] = descriptor
            return descriptor, kept

    def close(self) -> None:
        """Close them; reading opens them again."""
        with self._lock:
            while self._descriptors:
                with suppress(OSError):  # nothing was written
                    os.close(self._descriptors.popitem()[1])


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
        """Keep what a format found.

        Args:
            label, format, config: see the protocol.
            home: the folder or file that was opened.
            tensors: where they lie.
            files: the weight files, all below ``home``.
            path: the folder with config and tokenizer, if that is not ``home``.
            notes: see the protocol.
            header_digest: a digest of the headers; one of the tensors and their places if None.
        """
        _check_names(home, tensors)
        for file in files if home.is_dir() else ():
            refuse_foreign_link(file)
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
        """See :meth:`merganser.checkpoints.Checkpoint.view`: what lies in one piece."""
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
    """Refuse names that no model has: they end up in messages, cards and other programs' files."""
    if len(tensors) > MAX_TENSORS:
        raise InputError(f"{home}: has {len(tensors)} tensors; at most {MAX_TENSORS} can be read")
    for name in tensors:
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise InputError(f"{home}: has a tensor of the impossible name {name[:80]!r}")


def _is_run(piece: Piece, grid: tuple[int, ...]) -> bool:
    """Whether a piece is a run of the tensor's elements, without gaps in the file."""
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
    """Whether any two blocks share an element.

    The tensor is cut into slabs wherever a block begins or ends along an axis, these along the next
    axis, and so on; along the last axis it is enough to look at neighbours. Shards of a mesh are cut
    at the same places, so that each lies in one slab.

    Raises:
        ValueError: when the blocks are cut in so many ways that this would take long.
    """
    slabs = [pieces]
    for axis in range(len(pieces[0].size) - 1):
        slabs = [slab for whole in slabs for slab in _slabs(whole, axis)]
        if sum(map(len, slabs)) > MAX_CUTS:
            raise ValueError("its pieces are cut in too many ways")
    for slab in slabs:
        ends = sorted((piece.origin[-1], piece.size[-1]) for piece in slab)
        if any(begin + n > after for (begin, n), (after, _) in pairwise(ends)):
            return True
    return False


def _slabs(pieces: Sequence[Piece], axis: int) -> list[list[Piece]]:
    """The blocks between any two neighbouring places at which one begins or ends along an axis."""
    spans = [(piece.origin[axis], piece.origin[axis] + piece.size[axis]) for piece in pieces]
    places = {at: i for i, at in enumerate(sorted({at for span in spans for at in span}))}
    ranges = [range(places[begin], places[end]) for begin, end in spans]
    if sum(map(len, ranges)) > MAX_CUTS:
        raise ValueError("its pieces are cut in too many ways")
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
