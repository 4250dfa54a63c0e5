"""A sink that writes safetensors files."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from merganser import system
from merganser.errors import MerganserError, ResourceError
from merganser.sinks.protocol import Sink

WINDOW = 8 * 2**20
"""Size in bytes of one write to the disk, and its alignment in the file."""

SECTOR = 4096
"""Alignment of direct I/O in the file."""

UNOPENED, CLOSED = -1, -2


class Extents(Protocol):
    """Layout of an output file; a plan's shard is one."""

    @property
    def file(self) -> str:
        """Name of the file."""

    @property
    def header(self) -> bytes:
        """Bytes before the data."""

    @property
    def offsets(self) -> Mapping[str, int]:
        """First byte of each tensor in the file."""

    @property
    def size(self) -> int:
        """Size of the file in bytes."""


class SafetensorsSink(Sink):
    """A sink that writes safetensors files with the plan's names, headers and offsets.

    Bytes are collected in aligned windows. A full window is written to the disk, bypassing the page cache
    if the file system allows it, so that the page cache remains available to the inputs. A window of
    zeros is left as a hole in the file.
    """

    wants_digests = True

    def __init__(
        self,
        folder: Path,
        shards: Sequence[Extents],
        on_file: Callable[[str], None] = lambda _: None,
        part: tuple[int, int] | None = None,
    ) -> None:
        """Prepare the files; each is created when its first byte arrives.

        Args:
            folder: the folder of the files.
            shards: the layout of each file.
            on_file: called with the name of each complete and synced file, from any thread.
            part: write only these bytes of a file, (begin, end); other processes write the others, or
                have written the same. ``begin`` is a multiple of :data:`SECTOR`.
        """
        self._files = [_ShardFile(folder, shard, on_file, part) for shard in shards]
        self._places = {
            name: (file, offset)
            for file, shard in zip(self._files, shards, strict=True)
            for name, offset in shard.offsets.items()
        }

    def write(self, name: str, start: int, data: memoryview) -> None:
        """See :class:`Sink`."""
        file, offset = self._places[name]
        file.write(offset + start, data)

    def reserve(self, name: str, start: int, length: int) -> memoryview | None:
        """See :class:`Sink`. Returns None for a range that crosses windows."""
        file, offset = self._places[name]
        return file.reserve(offset + start, length)

    def commit(self, name: str, start: int, length: int) -> None:
        """See :class:`Sink`."""
        file, offset = self._places[name]
        file.commit(offset + start, length)

    def close(self) -> None:
        """Check that every file is complete."""
        for file in self._files:
            file.close()

    def abort(self) -> None:
        """Close all files, including incomplete ones."""
        for file in self._files:
            file.abort()


@dataclass(slots=True)
class _Window:
    buffer: mmap.mmap
    missing: int


class _ShardFile:
    """One output file. It is open only between its first and last byte, since a merge may have many."""

    def __init__(
        self,
        folder: Path,
        shard: Extents,
        on_file: Callable[[str], None],
        part: tuple[int, int] | None,
    ) -> None:
        self.path = folder / shard.file
        self._name = shard.file
        self._on_file = on_file
        self.size = shard.size
        self._header = shard.header
        self._is_part = part is not None
        self._begin, self._end = part or (0, shard.size)
        self._remaining = self._end - self._begin
        self._windows: dict[int, _Window] = {}
        self._spare: list[mmap.mmap] = []
        self._lock = threading.RLock()
        self._descriptor = UNOPENED
        self._direct = False

    def write(self, position: int, data: memoryview) -> None:
        """Copy bytes into their windows, without a lock, since ranges never overlap."""
        while len(data):
            part = data[: WINDOW - position % WINDOW]
            view = self.reserve(position, len(part))
            assert view is not None
            view[:] = part
            self.commit(position, len(part))
            position += len(part)
            data = data[len(part) :]

    def reserve(self, position: int, length: int) -> memoryview | None:
        """The memory of a range; None for a range that crosses windows."""
        index, within = divmod(position, WINDOW)
        if within + length > WINDOW:
            return None
        with self._lock:
            if self._descriptor == UNOPENED:
                self._open()
            window = self._windows.get(index)
            if window is None:
                buffer = self._spare.pop() if self._spare else system.buffer(WINDOW)
                begin, end = self._range(index)
                window = _Window(buffer, end - begin)
                self._windows[index] = window
        return memoryview(window.buffer)[within : within + length]

    def _range(self, index: int) -> tuple[int, int]:
        """A window's bytes in the file."""
        begin = index * WINDOW
        return max(begin, self._begin), min(begin + WINDOW, self._end)

    def commit(self, position: int, length: int) -> None:
        """Count a filled range; the last range of a window writes the window to the disk."""
        index = position // WINDOW
        with self._lock:
            window = self._windows[index]
            window.missing -= length
            full = window.missing == 0
            if full:
                del self._windows[index]
        if full:  # no other thread uses the window now
            self._flush(index, window.buffer)

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | system.OPEN_FLAGS
        flags |= 0 if self._is_part else os.O_EXCL
        try:
            if "/" in self._name:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._descriptor = os.open(self.path, flags | system.DIRECT, 0o666)
                self._direct = bool(system.DIRECT)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                # Some file systems create the file and then refuse direct I/O.
                self._descriptor = os.open(self.path, flags & ~os.O_EXCL, 0o666)
        except OSError as error:
            raise _cannot_write(self.path, error) from None
        if self._begin == 0:
            self.write(0, memoryview(self._header))

    def _flush(self, index: int, buffer: mmap.mmap) -> None:
        begin, end = self._range(index)
        view = memoryview(buffer)[begin - index * WINDOW : end - index * WINDOW]
        try:
            if not (_is_zero(view) and system.is_hole(self._descriptor, begin, end)):
                self._write_out(view, begin, buffer)
        except OSError as error:
            if (
                error.errno == errno.EINVAL and self._direct
            ):  # direct I/O is refused at this address
                self._direct = False
                system.write_through_cache(self._descriptor)
                return self._flush(index, buffer)
            raise _cannot_write(self.path, error) from None
        with self._lock:
            self._spare.append(buffer)
            self._remaining -= end - begin
            done = self._remaining == 0
        if done:
            self._finish()
        return None

    def _write_out(self, view: memoryview, position: int, buffer: mmap.mmap) -> None:
        """Write a window. Direct I/O takes complete sectors: the end of the file is padded, and cut off
        by :meth:`_finish`, or written through the page cache, if another process may be writing."""
        odd = len(view) % SECTOR if self._direct else 0
        if odd and self._is_part:
            _write_all(self._descriptor, view[:-odd], position)
            flags = os.O_WRONLY | system.OPEN_FLAGS
            cached = os.open(self.path, flags)
            try:
                _write_all(cached, view[-odd:], position + len(view) - odd)
            finally:
                os.close(cached)
        elif odd:
            start = position % WINDOW
            padded = memoryview(buffer)[start : start + len(view) + SECTOR - odd]
            _write_all(self._descriptor, padded, position)
        else:
            _write_all(self._descriptor, view, position)

    def _finish(self) -> None:
        try:
            os.ftruncate(self._descriptor, self.size)
            os.fsync(self._descriptor)
            os.close(self._descriptor)
        except OSError as error:
            raise _cannot_write(self.path, error) from None
        self._descriptor = CLOSED
        self._spare.clear()
        self._on_file(self._name)

    def close(self) -> None:
        if self._descriptor == UNOPENED:  # no tensor of this file has any bytes
            with self._lock:
                self._open()
        if self._remaining:
            raise MerganserError(f"{self.path}: {self._remaining} bytes were never written")

    def abort(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = CLOSED


def _write_all(descriptor: int, data: memoryview, position: int) -> None:
    while len(data):
        count = system.write_at(descriptor, data, position)
        if count == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        data, position = data[count:], position + count


def _is_zero(window: memoryview) -> bool:
    """Whether all bytes are zero; real weights show in the first ones that they are not."""
    if any(window[:64]) or any(window[-8:]):
        return False
    return not np.frombuffer(window, np.uint64, len(window) // 8).any()


def _cannot_write(path: Path, error: OSError) -> ResourceError:
    hint = "; free some space and merge again" if error.errno == errno.ENOSPC else ""
    return ResourceError(f"{path}: cannot be written ({error.strerror}){hint}")
