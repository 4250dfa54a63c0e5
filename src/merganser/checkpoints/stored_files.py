"""Files of weights, read by ranges from any thread, few of them open at a time."""

from __future__ import annotations

import mmap
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from merganser import system
from merganser.checkpoints.protocol import Stamp
from merganser.errors import InputError

MAPPED = 1 << 17
"""Smallest range in bytes for which memory mapping is faster than reading."""

POPULATE = 22 if hasattr(os, "RWF_NOWAIT") else 0
"""Linux's MADV_POPULATE_READ: map all pages of a range, or fail."""


class Slots:
    """How many more files the process may hold open; all checkpoints share the count.

    Args:
        share: the part of the system's limit that may be taken.
    """

    def __init__(self, share: float) -> None:
        self.taken = 0
        self._share = share
        self._lock = threading.RLock()  # a mapping may be freed while this thread counts

    def take(self) -> bool:
        """Count one more, unless the limit is reached."""
        with self._lock:
            if self.taken >= self._share * system.most_open_files():
                return False
            self.taken += 1
            return True

    def give(self) -> None:
        """Count one less."""
        with self._lock:
            self.taken -= 1


KEPT = Slots(1 / 4)
"""Files that stay open between two reads."""

VIEWED = Slots(1 / 4)
"""Mappings, each of which holds its file open before Python 3.13."""


class _Mapping(mmap.mmap):
    """A mapping that takes a slot until it is freed."""

    counted = False

    def __del__(self) -> None:
        if self.counted:
            VIEWED.give()


class Files:
    """Read files from any thread.

    A file is opened when it is first needed, and stays open as long as :data:`KEPT` has a slot. Files
    without one are opened for each read: runs have more steps, and models more shards, than a process
    may have open files.
    """

    def __init__(self, stamps: Mapping[Path, Stamp]) -> None:
        """Take the files' stamps at the time their headers were read."""
        self._stamps = stamps
        self._descriptors: dict[Path, int] = {}
        self._lock = threading.Lock()

    def read(self, file: Path, position: int, into: memoryview, what: str) -> None:
        """Fill a buffer from a file.

        Args:
            file: the file.
            position: byte offset in the file.
            into: the buffer.
            what: the tensor's name in messages.

        Raises:
            InputError: when the file ends before the buffer is full, cannot be read, or has changed.
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
        """Memory-map a range of a file that is in the page cache; None if it must be read.

        Pages that are not resident are read with ``preadv`` instead, since an I/O error in a mapping
        kills the process. A file that is truncated while it is mapped would, too; so ranges are short,
        and MADV_POPULATE_READ confirms that all their pages are resident.
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
            mapped = _map(descriptor, size, begin)
            if mapped is None:
                return None
            mapped.madvise(POPULATE)
        except (OSError, ValueError):  # not resident, beyond the end, or not supported
            return None
        return memoryview(mapped)[position - begin :]

    def _open(self, file: Path) -> tuple[int, bool]:
        """A file's descriptor, and whether it stays open."""
        with self._lock:
            descriptor = self._descriptors.get(file)
            if descriptor is not None:
                return descriptor, True
            descriptor = os.open(file, os.O_RDONLY | system.OPEN_FLAGS)
            stamp = self._stamps.get(file)
            if stamp is not None and stamp != Stamp.of(os.fstat(descriptor)):
                os.close(descriptor)
                raise InputError(f"{file}: changed since its header was read; merge again")
            kept = KEPT.take()
            if kept:
                self._descriptors[file] = descriptor
            return descriptor, kept

    def close(self) -> None:
        """Close the files; reading opens them again."""
        with self._lock:
            while self._descriptors:
                KEPT.give()
                with suppress(OSError):  # nothing was written
                    os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        self.close()


def _map(descriptor: int, size: int, offset: int) -> mmap.mmap | None:
    """Map a range of a file, changes to which stay in memory; None if too many files are open."""
    if sys.version_info >= (3, 13):
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY, offset=offset, trackfd=False)
    if not VIEWED.take():
        return None
    try:
        mapped = _Mapping(descriptor, size, access=mmap.ACCESS_COPY, offset=offset)
    except BaseException:
        VIEWED.give()
        raise
    mapped.counted = True
    return mapped
