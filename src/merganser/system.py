"""System calls that Windows or macOS lack, each with a portable fallback.

Merganser is tested on Linux. The fallbacks are correct and slower: one thread at a time reads or
writes a file, outputs go through the page cache, and a lock file names the process that holds it.
"""

from __future__ import annotations

import errno
import functools
import mmap
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

OPEN_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""Flags for every ``os.open``: child processes do not inherit the file, and Windows does not translate
line ends."""

DIRECT = getattr(os, "O_DIRECT", 0)
"""The flag for direct I/O; 0 where there is none."""

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
"""Errors of a system or a file system without file locks."""

_position = threading.Lock()


def read_at(descriptor: int, into: memoryview, position: int) -> int:
    """Read from a file into a buffer, and return how many bytes; 0 at the end of the file."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [into], position)
    with _position:
        os.lseek(descriptor, position, os.SEEK_SET)
        data = os.read(descriptor, len(into))
    into[: len(data)] = data
    return len(data)


def write_at(descriptor: int, data: memoryview | bytes, position: int) -> int:
    """Write to a file, and return how many bytes of ``data`` it took."""
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, position)
    with _position:
        os.lseek(descriptor, position, os.SEEK_SET)
        return os.write(descriptor, data)


def is_hole(descriptor: int, begin: int, end: int) -> bool:
    """Whether a file has no data in a range, which then reads as zeros; False where the system cannot say."""
    if not hasattr(os, "SEEK_DATA"):
        return False
    try:
        return os.lseek(descriptor, begin, os.SEEK_DATA) >= end
    except OSError as error:
        return error.errno == errno.ENXIO  # there is no data until the end of the file


def is_cached(descriptor: int, position: int) -> bool:
    """Whether the byte at a position is in the page cache; False where the system cannot say.

    Raises:
        OSError: when it is not cached.
    """
    if not hasattr(os, "preadv") or not hasattr(os, "RWF_NOWAIT"):
        return False
    return os.preadv(descriptor, [bytearray(1)], position, os.RWF_NOWAIT) != 0


def advise(mapped: mmap.mmap, advice: int) -> None:
    """Advise on a writable mapping, as ``mapped.madvise(advice)`` does, but without the GIL: mapping a
    tile's pages takes a good part of the time that a merge of it takes.

    Raises:
        OSError: when the system refuses.
    """
    import ctypes

    address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
    if _madvise()(ctypes.c_void_p(address), ctypes.c_size_t(len(mapped)), advice):
        raise OSError(ctypes.get_errno(), "madvise")


@functools.cache
def _madvise() -> Any:
    import ctypes

    return ctypes.CDLL(None, use_errno=True).madvise


def write_through_cache(descriptor: int) -> None:
    """Turn direct I/O off for a file that is open."""
    import fcntl

    mode = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, mode & ~DIRECT)


def lock(descriptor: int) -> None:
    """Lock an open file for this process, until it is closed.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: with a number of :data:`NO_LOCKS` where the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def buffer(size: int) -> mmap.mmap:
    """Allocate zeroed, page-aligned memory, in huge pages where the system has them.

    Direct I/O splits a request into far fewer pieces on huge pages.

    Raises:
        MemoryError: when there is not enough memory.
    """
    try:
        if hasattr(mmap, "MAP_PRIVATE"):
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        else:
            memory = mmap.mmap(-1, size)
    except OSError:
        raise MemoryError from None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # the system has none
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk; Windows has no such call for folders."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY | OPEN_FLAGS)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 2


def give_back_memory() -> None:
    """Return freed memory to the system, where the C library keeps it (glibc)."""
    import ctypes

    with suppress(OSError, AttributeError, TypeError):  # another library
        ctypes.CDLL(None).malloc_trim(0)


def most_open_files() -> int:
    """How many files this process may have open; Windows has no call for it."""
    try:
        import resource
    except ImportError:
        return 512
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 20


def memory_size() -> int | None:
    """Bytes of memory of the machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
