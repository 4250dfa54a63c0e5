"""Locks for several processes on one study, so that one of them scores each model."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from merganser.errors import OutputExistsError
from merganser.merging.lock import Lock

WAIT = 0.5
"""Seconds between two attempts to take a lock that another process holds."""

CLAIMS = ".claims"
"""Name of the folder in a study's folder by which workers share it; see :mod:`merganser.workers.claims`."""

STALE = 120.0
"""Seconds after which a claim that is not touched counts as a dead worker's."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def each_once(
    items: Sequence[Item],
    lock_of: Callable[[Item], Path],
    work: Callable[[int, Item], Result],
    on_wait: Callable[[int, Item], None],
) -> list[Result]:
    """Process items one after the other; those that another process has locked come last.

    Args:
        items: the items to process.
        lock_of: returns an item's lock file, which is removed afterwards.
        work: called with an item's index and the item while its lock is held. It must reuse what
            another process has finished in the meantime.
        on_wait: called once for each item that another process has locked.

    Returns:
        The results of ``work``, in the order of ``items``.

    Raises:
        OSError: a lock cannot be created.
    """
    results: dict[int, Result] = {}
    waiting = dict(enumerate(items))
    seen: set[int] = set()
    while waiting:
        busy: dict[int, Item] = {}
        for place, item in waiting.items():
            try:
                lock = Lock(lock_of(item))
            except OutputExistsError:
                busy[place] = item
                continue
            try:
                results[place] = work(place, item)
            finally:
                lock.release()
        if len(busy) == len(waiting):
            place = next(iter(busy))
            if place not in seen:
                on_wait(place, busy[place])
            seen.add(place)
            time.sleep(WAIT)
        waiting = busy
    return [results[place] for place in range(len(items))]


@contextmanager
def attempt(file: Path) -> Iterator[bool]:
    """Take a lock, without waiting; yield whether this process holds it.

    Raises:
        OSError: the lock cannot be created.
    """
    try:
        lock = Lock(file)
    except OutputExistsError:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def exclusive(file: Path) -> Iterator[None]:
    """Hold a lock, after waiting until no other process holds it.

    Raises:
        OSError: the lock cannot be created.
    """
    while True:
        try:
            lock = Lock(file)
            break
        except OutputExistsError:
            time.sleep(WAIT)
    try:
        yield
    finally:
        lock.release()


def remove_idle_claims(home: Path) -> None:
    """Remove the claims in a study's folder that workers left behind, unless one of them is at work.

    Args:
        home: the study's folder, whose results this process has just written.
    """
    folder = home / CLAIMS
    if not folder.is_dir():
        return
    clock = folder / f".clock-{os.getpid()}"  # ages are by the file system's clock
    with suppress(FileNotFoundError):  # a worker removes its claim, and the last one the folder
        clock.touch()
        now = clock.stat().st_mtime
        if any(now - claim.stat().st_mtime < STALE for claim in folder.glob("*.claim")):
            clock.unlink()
        else:
            shutil.rmtree(folder, ignore_errors=True)
