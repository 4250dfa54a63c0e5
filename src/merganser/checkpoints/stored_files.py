"""Read ranges of weight files from any thread, with a limited number of open files."""

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
    """A counter that limits the process's open files; all checkpoints share it.

    Args:
        share: the usable fraction of the system's limit on open files.
    """

    def __init__(self, share: float) -> None:
        self.taken = 0
        self._share = share
        self._lock = threading.RLock()  # a mapping may be freed while this thread counts

    def take(self) -> bool:
        """Take a slot and return True; return False if none is free."""
        with self._lock:
            if self.taken >= self._share * system.most_open_files():
                return False
            self.taken += 1
            return True

    def give(self) -> None:
        """Free a slot."""
        with self._lock:
            self.taken -= 1


KEPT = Slots(1 / 4)
"""Slots of files that stay open between reads."""

VIEWED = Slots(1 / 4)
"""Slots of memory mappings; before Python 3.13 a mapping occupies a file descriptor."""


class _Mapping(mmap.mmap):
    """A mapping that occupies a slot of :data:`VIEWED` until it is freed."""

    counted = False

    def __del__(self) -> None:
        if self.counted:
            VIEWED.give()


class Files:
    """Read files from any thread.

    A file is opened on first use, and stays open if :data:`KEPT` has a free slot. Without a slot it is opened
    for each read, since checkpoints may have more shards than a process may have open files.
    """

    def __init__(self, stamps: Mapping[Path, Stamp]) -> None:
        """Create a reader of files that had these stamps when their headers were read."""
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
        kills the process. So does the truncation of a mapped file; therefore ranges are short, and
        MADV_POPULATE_READ confirms that all their pages are resident.
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
            system.advise(mapped, POPULATE)
        except (OSError, ValueError):  # not resident, beyond the end, or not supported
            return None
        return memoryview(mapped)[position - begin :]

    def _open(self, file: Path) -> tuple[int, bool]:
        """Open a file; return its descriptor, and whether it stays open."""
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
    """Map a range of a file, copy-on-write; None if too many files are open."""
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
