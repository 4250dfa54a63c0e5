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

from merganser import system
from merganser.errors import MerganserError, ResourceError
from merganser.sinks.protocol import Sink

WINDOW = 8 * 2**20
"""Size in bytes of one write to the disk, and its alignment in the file."""


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
    if the file system allows it, so that the page cache remains available to the inputs.
    """

    wants_digests = True

    def __init__(
        self,
        folder: Path,
        shards: Sequence[Extents],
        on_file: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Prepare the files; each is created when its first byte arrives.

        Args:
            folder: the folder of the files.
            shards: the layout of each file.
            on_file: called with the name of each complete and synced file, from any thread.
        """
        self._files = [_ShardFile(folder, shard, on_file) for shard in shards]
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

    def __init__(self, folder: Path, shard: Extents, on_file: Callable[[str], None]) -> None:
        self.path = folder / shard.file
        self._name = shard.file
        self._on_file = on_file
        self.size = shard.size
        self._header = shard.header
        self._remaining = shard.size
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
                window = _Window(buffer, min(WINDOW, self.size - index * WINDOW))
                self._windows[index] = window
        return memoryview(window.buffer)[within : within + length]

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
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | system.OPEN_FLAGS
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
        self.write(0, memoryview(self._header))

    def _flush(self, index: int, buffer: mmap.mmap) -> None:
        begin = index * WINDOW
        length = min(WINDOW, self.size - begin)
        padded = -(-length // mmap.PAGESIZE) * mmap.PAGESIZE if self._direct else length
        view = memoryview(buffer)[:padded]
        position = begin
        try:
            while len(view):
                count = system.write_at(self._descriptor, view, position)
                if count == 0:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                view, position = view[count:], position + count
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
            self._remaining -= length
            done = self._remaining == 0
        if done:
            self._finish()
        return None

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


def _cannot_write(path: Path, error: OSError) -> ResourceError:
    hint = "; free some space and merge again" if error.errno == errno.ENOSPC else ""
    return ResourceError(f"{path}: cannot be written ({error.strerror}){hint}")
