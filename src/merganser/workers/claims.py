"""Claims: files in a shared folder that assign units of a study to workers.

Workers share only a folder. For a unit NAME it has:

- ``NAME.1.claim``: a worker is at work on the unit; a thread of it touches the file every ten seconds.
- ``NAME.1.lost``: that worker died. The next attempt is ``NAME.2.claim``.
- ``NAME.done`` or ``NAME.failed``: the outcome.

A claim is created exclusively, so only one worker gets it. A claim that is not touched for two minutes
is stale: the first worker to rename it to ``.lost`` may claim the unit again. The number in the name
distinguishes a claim from later ones. Ages are differences of timestamps that the file system wrote, so
machines' clocks may differ.

A worker that hangs goes on touching its claim, since a thread does it. So the thread also counts the time
since the last progress, and gives the claim up when that is too long.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from merganser import system
from merganser.study.sharing import STALE

BEAT = 10.0
"""Seconds between two touches of a claim."""

STALL = 1800.0
"""Default of the seconds without progress after which a worker hangs."""

TRIES = 3
"""Number of workers that may die or hang with a unit before it is given up."""

WORKER = "MERGANSER_WORKER"
"""Environment variable with the name of a worker, which the process that started it sets."""

State = Literal["free", "claimed", "done", "failed", "given up"]


class ClaimLost(Exception):
    """Another worker has taken over the unit, because this worker's claim became stale."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The worker that created a claim.

    Attributes:
        host: the machine's name.
        process: the process id.
        token: a random identifier of the claim.
        worker: the name by which the process that started the worker knows it.
        hung: seconds without progress, if that is why the worker gave the claim up.
    """

    host: str
    process: int
    token: str
    worker: str = ""
    hung: float = 0.0

    def __str__(self) -> str:
        hung = f", without progress for {self.hung / 60:.3g} minutes" if self.hung else ""
        return f"process {self.process} on {self.host}{hung}"


class Claim:
    """A claim of this process. A thread touches the file until the claim is released.

    Attributes:
        name: the unit's name.
        owner: this process.
        file: the claim's file.
    """

    def __init__(self, claims: Claims, name: str, number: int, owner: Owner, file: Path) -> None:
        self.name = name
        self.owner = owner
        self.file = file
        self._number = number
        self._claims = claims
        self._idle = 0.0
        self._limit = 0.0
        self._on_hang: Callable[[float], None] = lambda _: None
        self._over = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="claim", daemon=True)
        self._thread.start()

    @property
    def is_lost(self) -> bool:
        """Whether the thread has noticed that another worker has taken over the unit; reads no file."""
        return self._lost.is_set()

    def watch(self, limit: float, on_hang: Callable[[float], None]) -> None:
        """Give the claim up after a time without a call of :meth:`progress`.

        Args:
            limit: seconds; 0 for no limit.
            on_hang: called from the claim's thread, with the seconds, after the claim is given up.
        """
        self._on_hang = on_hang
        self._idle = 0.0
        self._limit = limit

    def progress(self) -> None:
        """Note that the worker makes progress."""
        self._idle = 0.0

    def check(self) -> None:
        """Check the file: is the unit still this process's?

        Raises:
            ClaimLost: another worker has taken over the unit.
        """
        taken_over = self.file.with_suffix(".lost").exists()
        if not self.is_lost and (taken_over or _read_owner(self.file) != self.owner):
            self._lost.set()
        if self.is_lost:
            raise ClaimLost(self.name)

    def finish(self, record: Mapping[str, Any]) -> None:
        """Mark the unit as done, and release the claim.

        Raises:
            ClaimLost: another worker has taken over the unit.
        """
        self._settle("done", record)

    def fail(self, record: Mapping[str, Any]) -> None:
        """Mark the unit as failed, so that no other worker tries it, and release the claim.

        Raises:
            ClaimLost: another worker has taken over the unit.
        """
        self._settle("failed", record)

    def release(self) -> None:
        """Remove the claim, unless another worker has taken over the unit."""
        self._over.set()
        self._thread.join()
        with suppress(ClaimLost, FileNotFoundError):
            self.check()
            self.file.unlink()

    def _settle(self, state: str, record: Mapping[str, Any]) -> None:
        self.check()
        write_json(self._claims.folder / f"{self.name}.{state}", record)
        self.release()

    def _beat(self) -> None:
        while not self._over.wait(self._claims.beat):
            self._idle += self._claims.beat  # unlike a clock, it stops with the process
            try:
                self.check()
                if 0 < self._limit < self._idle:
                    self._give_up(self._idle)
                    return
                os.utime(self.file)
            except (ClaimLost, FileNotFoundError):
                self._lost.set()
                return
            except OSError:  # a file server is unreachable for a moment; the next beat tries again
                continue

    def _give_up(self, idle: float) -> None:
        write_json(self.file, asdict(replace(self.owner, hung=idle)))
        self._claims.lose_attempt(self.name, self._number)
        self._lost.set()
        self._on_hang(idle)


class Claims:
    """The claims in a folder.

    Args:
        folder: the folder that all workers share; created if missing.
        beat: seconds between two touches of a claim.
        stale: seconds without a touch after which a claim can be taken over.

    Attributes:
        worker: this worker's name; a random one, unless the environment has one.

    Raises:
        OSError: the folder cannot be created.
    """

    def __init__(self, folder: Path, *, beat: float = BEAT, stale: float = STALE) -> None:
        self.folder = folder
        self.beat = beat
        self.stale = stale
        self.worker = os.environ.get(WORKER) or uuid.uuid4().hex
        folder.mkdir(parents=True, exist_ok=True)
        self._clock = folder / f".clock-{uuid.uuid4().hex}"

    def state(self, name: str) -> State:
        """Return the state of a unit."""
        if (self.folder / f"{name}.done").exists():
            return "done"
        if (self.folder / f"{name}.failed").exists():
            return "failed"
        number = self._try(name)
        if number > TRIES:
            return "given up"
        return "claimed" if self._claim_file(name, number).exists() else "free"

    def is_alive(self, name: str) -> bool:
        """Whether a worker that is alive has claimed a unit."""
        file = self._claim_file(name, self._try(name))
        return file.exists() and not self._is_stale(file)

    def take(self, name: str) -> Claim | None:
        """Claim a unit; return None if another worker has claimed it, or it has ended.

        A stale claim is taken over.

        Raises:
            OSError: the folder cannot be written.
        """
        while self.state(name) in ("free", "claimed"):
            number = self._try(name)
            file = self._claim_file(name, number)
            owner = Owner(platform.node(), os.getpid(), uuid.uuid4().hex, self.worker)
            try:
                descriptor = os.open(
                    file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | system.OPEN_FLAGS, 0o666
                )
            except FileExistsError:
                if not self._is_stale(file) or not self.lose_attempt(name, number):
                    return None
                continue
            with os.fdopen(descriptor, "w") as stream:
                json.dump(asdict(owner), stream)
            # The unit may have ended between the look at its state and the claim.
            if self._try(name) == number and self.state(name) == "claimed":
                return Claim(self, name, number, owner, file)
            file.unlink(missing_ok=True)
        return None

    def record(self, name: str) -> dict[str, Any]:
        """Return the record of a unit that is done or failed; empty for others."""
        for state in ("done", "failed"):
            with suppress(OSError, ValueError):
                return dict(json.loads((self.folder / f"{name}.{state}").read_text("utf-8")))
        return {}

    def tried(self, name: str) -> list[Owner]:
        """Return the workers that died or hung with a unit."""
        files = [self._lost_file(name, number) for number in range(1, self._try(name))]
        return [owner for owner in map(_read_owner, files) if owner is not None]

    def owner(self, name: str) -> Owner | None:
        """Return the worker that has claimed a unit; None if none has, or its claim is not written yet."""
        return _read_owner(self._claim_file(name, self._try(name)))

    def lose(self, name: str, worker: str) -> bool:
        """Mark a dead worker's claim of a unit as lost, without waiting until it is stale.

        Returns:
            Whether the worker had claimed the unit.
        """
        number = self._try(name)
        owner = _read_owner(self._claim_file(name, number))
        return owner is not None and owner.worker == worker and self.lose_attempt(name, number)

    def forget(self, name: str) -> None:
        """Remove the outcome of a unit, so that it is tried again; a claimed unit does not change."""
        if self.state(name) == "given up":
            # No worker can claim the unit before the last of these files is removed.
            for number in range(1, TRIES + 1):
                self._lost_file(name, number).unlink(missing_ok=True)
        for state in ("failed", "done"):
            (self.folder / f"{name}.{state}").unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the file whose timestamps are this process's clock."""
        self._clock.unlink(missing_ok=True)

    def _try(self, name: str) -> int:
        """Return the number of the current or next attempt."""
        for number in range(TRIES, 0, -1):
            if self._lost_file(name, number).exists():
                return number + 1
        return 1

    def _is_stale(self, file: Path) -> bool:
        """Whether a claim is stale by the file system's clock."""
        self._clock.touch()
        try:
            with file.open("rb") as stream:  # opening makes a network file system ask its server
                touched = os.fstat(stream.fileno()).st_mtime
        except FileNotFoundError:
            return False
        return self._clock.stat().st_mtime - touched > self.stale

    def lose_attempt(self, name: str, number: int) -> bool:
        """Rename the claim of an attempt to ``.lost``; True for the one process that succeeds."""
        claim, lost = self._claim_file(name, number), self._lost_file(name, number)
        try:
            os.link(claim, lost)  # unlike a rename, it replaces nothing
        except (FileExistsError, FileNotFoundError):
            return False
        except OSError:  # the file system has no hard links
            try:
                claim.rename(lost)
            except FileNotFoundError:
                return False
        claim.unlink(missing_ok=True)
        return True

    def _claim_file(self, name: str, number: int) -> Path:
        return self.folder / f"{name}.{number}.claim"

    def _lost_file(self, name: str, number: int) -> Path:
        return self.folder / f"{name}.{number}.lost"


def _read_owner(file: Path) -> Owner | None:
    """Return the worker that a claim names; None if the claim is not written yet."""
    try:
        return Owner(**json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_json(file: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON atomically.

    Raises:
        OSError: the file cannot be written.
    """
    partial = file.with_name(f".{file.name[-40:]}.{uuid.uuid4().hex}")
    partial.write_text(json.dumps(record, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    partial.replace(file)
