"""Claims: files in a shared folder that say which worker has which unit of a study.

All that workers share is a folder. For a unit NAME it has:

- ``NAME.1.claim``: a worker has the unit; the worker's thread touches the file every ten seconds.
- ``NAME.1.lost``: that worker died. The next try is ``NAME.2.claim``.
- ``NAME.done`` or ``NAME.failed``: what came of it.

A claim is created exclusively, so one worker gets it. A claim that is not touched for two minutes is
stale: who renames it to ``.lost`` first may try again. The number in the name makes sure that a
claim is never mistaken for a later one. Ages are differences of times that the file system wrote, so
clocks of machines may differ.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from merganser import system

BEAT = 10.0
"""Seconds between two touches of a claim."""

STALE = 120.0
"""Seconds without a touch after which a claim's worker counts as dead."""

TRIES = 3
"""How many workers a unit may kill before it is given up."""

State = Literal["free", "claimed", "done", "failed", "given up"]


class ClaimLost(Exception):
    """Another worker has taken over the unit, since this one was not heard of for too long."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The worker that has, or had, a claim.

    Attributes:
        host: its machine.
        process: its process number.
        token: a random name of this one claim.
    """

    host: str
    process: int
    token: str

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


class Claim:
    """A unit that this process has. It is touched by a thread until it is released.

    Attributes:
        name: the unit.
        owner: this process.
        file: the claim's file.
    """

    def __init__(self, claims: Claims, name: str, owner: Owner, file: Path) -> None:
        self.name = name
        self.owner = owner
        self.file = file
        self._claims = claims
        self._over = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="claim", daemon=True)
        self._thread.start()

    @property
    def is_lost(self) -> bool:
        """Whether the thread has seen that another worker has the unit. Costs nothing."""
        return self._lost.is_set()

    def check(self) -> None:
        """Look whether this process still has the unit.

        Raises:
            ClaimLost: it has not.
        """
        if not self.is_lost and _read_owner(self.file) != self.owner:
            self._lost.set()
        if self.is_lost:
            raise ClaimLost(self.name)

    def finish(self, record: Mapping[str, Any]) -> None:
        """Say that the unit is done, and release it.

        Raises:
            ClaimLost: another worker has it.
        """
        self._settle("done", record)

    def fail(self, record: Mapping[str, Any]) -> None:
        """Say that the unit cannot be done, so that no other worker tries, and release it.

        Raises:
            ClaimLost: another worker has it.
        """
        self._settle("failed", record)

    def release(self) -> None:
        """Let others have the unit, unless another has it already."""
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
            try:
                self.check()
                os.utime(self.file)
            except (ClaimLost, FileNotFoundError):
                self._lost.set()
                return
            except OSError:  # a server that is away for a moment; the next beat tries again
                continue


class Claims:
    """The claims in a folder.

    Args:
        folder: is shared by all workers; created if missing.
        beat: seconds between two touches of a claim.
        stale: seconds without a touch after which a claim can be taken over.

    Raises:
        OSError: the folder cannot be created.
    """

    def __init__(self, folder: Path, *, beat: float = BEAT, stale: float = STALE) -> None:
        self.folder = folder
        self.beat = beat
        self.stale = stale
        folder.mkdir(parents=True, exist_ok=True)
        self._clock = folder / f".clock-{uuid.uuid4().hex}"

    def state(self, name: str) -> State:
        """What is known of a unit."""
        if (self.folder / f"{name}.done").exists():
            return "done"
        if (self.folder / f"{name}.failed").exists():
            return "failed"
        number = self._try(name)
        if number > TRIES:
            return "given up"
        return "claimed" if self._claim_file(name, number).exists() else "free"

    def take(self, name: str) -> Claim | None:
        """Claim a unit; None if another worker has it, or nothing is left to do.

        A stale claim is taken over.

        Raises:
            OSError: the folder cannot be written.
        """
        while self.state(name) in ("free", "claimed"):
            number = self._try(name)
            file = self._claim_file(name, number)
            owner = Owner(platform.node(), os.getpid(), uuid.uuid4().hex)
            try:
                descriptor = os.open(
                    file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | system.OPEN_FLAGS, 0o666
                )
            except FileExistsError:
                if not self._is_stale(file) or not self._lose(name, number):
                    return None
                continue
            with os.fdopen(descriptor, "w") as stream:
                json.dump(
                    {"host": owner.host, "process": owner.process, "token": owner.token}, stream
                )
            # What was free a moment ago may have been done, or tried in vain, in the meantime.
            if self._try(name) == number and self.state(name) == "claimed":
                return Claim(self, name, owner, file)
            file.unlink(missing_ok=True)
        return None

    def record(self, name: str) -> dict[str, Any]:
        """What a worker wrote about a unit that is done or failed; empty for others."""
        for state in ("done", "failed"):
            with suppress(OSError, ValueError):
                return dict(json.loads((self.folder / f"{name}.{state}").read_text("utf-8")))
        return {}

    def tried(self, name: str) -> list[Owner]:
        """The workers that died with a unit."""
        files = [self._lost_file(name, number) for number in range(1, self._try(name))]
        return [owner for owner in map(_read_owner, files) if owner is not None]

    def lose(self, name: str, host: str, process: int) -> bool:
        """Say that a worker is dead, so that its claim needs not become stale first.

        Returns:
            Whether it had the unit.
        """
        number = self._try(name)
        owner = _read_owner(self._claim_file(name, number))
        return (
            owner is not None
            and (owner.host, owner.process) == (host, process)
            and self._lose(name, number)
        )

    def forget(self, name: str) -> None:
        """Forget what came of a unit, so that it is tried again; nothing changes while it is tried."""
        if self.state(name) == "given up":
            for number in range(1, TRIES + 1):  # nobody can claim it before the last one is gone
                self._lost_file(name, number).unlink(missing_ok=True)
        for state in ("failed", "done"):
            (self.folder / f"{name}.{state}").unlink(missing_ok=True)

    def close(self) -> None:
        """Remove this process's clock."""
        self._clock.unlink(missing_ok=True)

    def _try(self, name: str) -> int:
        """The number of the try that is to come, or runs."""
        for number in range(TRIES, 0, -1):
            if self._lost_file(name, number).exists():
                return number + 1
        return 1

    def _is_stale(self, file: Path) -> bool:
        """Whether a claim was not touched for too long, by the file system's clock."""
        self._clock.touch()
        try:
            with file.open("rb") as stream:  # opening makes a network file system ask its server
                touched = os.fstat(stream.fileno()).st_mtime
        except FileNotFoundError:
            return False
        return self._clock.stat().st_mtime - touched > self.stale

    def _lose(self, name: str, number: int) -> bool:
        """Rename a claim; True for the one process that succeeds."""
        try:
            self._claim_file(name, number).rename(self._lost_file(name, number))
        except FileNotFoundError:
            return False
        return True

    def _claim_file(self, name: str, number: int) -> Path:
        return self.folder / f"{name}.{number}.claim"

    def _lost_file(self, name: str, number: int) -> Path:
        return self.folder / f"{name}.{number}.lost"


def _read_owner(file: Path) -> Owner | None:
    """The worker that is recorded in a claim; None if there is none yet."""
    try:
        return Owner(**json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_json(file: Path, record: Mapping[str, Any]) -> None:
    """Write a record; others see all of it or nothing.

    Raises:
        OSError: the file cannot be written.
    """
    partial = file.with_name(f".{file.name[-40:]}.{uuid.uuid4().hex}")
    partial.write_text(json.dumps(record, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    partial.replace(file)
