"""Worker processes of one command: on this machine, one per GPU or per share of the cores, or elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Generic, Literal, TypeVar

from merganser import system
from merganser.errors import MerganserError, RecipeError, ResourceError, reraise_os_errors
from merganser.workers.claims import WORKER
from merganser.workers.study_file import FOLDER
from merganser.workers.working import REPLACE

CORES = 4
"""Cores per worker for ``local:auto`` on a machine without GPUs, and for ``ray``."""

PATIENCE = 20.0
"""Seconds that a stopped worker has to store its completions."""

FORMS = "local:N, local:auto, join, ray, ray:N and ray://HOST:PORT"


@dataclass(frozen=True, slots=True)
class Where:
    """The value of the option ``--workers``.

    Attributes:
        kind: ``local`` starts processes on this machine, ``ray`` on the nodes of a Ray cluster; with ``join``
            this process is a worker.
        count: number of workers; None for one per GPU, or per :data:`CORES` cores.
        address: the cluster's address, ``ray://HOST:PORT``; None for the cluster of this machine.
    """

    kind: Literal["local", "join", "ray"]
    count: int | None = None
    address: str | None = None


def parse(text: str) -> Where:
    """Parse the option ``--workers``.

    Raises:
        RecipeError: it has none of the forms :data:`FORMS`.
    """
    if re.fullmatch(r"ray://[^/\s]+:\d+", text):
        return Where("ray", address=text)
    kind, sign, count = text.partition(":")
    if not sign and kind == "join":
        return Where("join")
    if not sign and kind == "ray":
        return Where("ray")
    if kind == "local" and count == "auto":
        return Where("local")
    if kind in ("local", "ray") and count.isascii() and count.isdecimal() and int(count) > 0:
        return Where("local" if kind == "local" else "ray", int(count))
    raise RecipeError(f"workers={text!r} is none of {FORMS}")


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def environments(
    count: int | None, devices: int, threads: int | None, gpus: list[str], cores: int
) -> list[dict[str, str]]:
    """Return each worker's environment variables: its GPUs, and its number of threads.

    Args:
        count: the number of workers; None for one per GPU, or per :data:`CORES` cores.
        devices: GPUs that one worker needs; 0 for workers that use none.
        threads: threads per worker; None for an equal share of the cores.
        gpus: the machine's GPUs.
        cores: number of the machine's cores.

    Raises:
        ResourceError: there are GPUs, but fewer than one worker needs.
    """
    gpus = gpus if devices else []
    sets = [gpus[i : i + devices] for i in range(0, len(gpus) - devices + 1, max(1, devices))]
    if gpus and not sets:
        raise ResourceError(f"a worker needs {devices} GPUs, and this machine has {len(gpus)}")
    count = count or len(sets) or max(1, cores // CORES)
    shared: list[dict[str, str]] = []
    for index in range(count):
        each = {"OMP_NUM_THREADS": str(threads or max(1, cores // count))}
        if sets:
            each["CUDA_VISIBLE_DEVICES"] = ",".join(sets[index % len(sets)])
        shared.append(each)
    return shared


@dataclass(frozen=True, slots=True)
class End:
    """How a worker ended.

    Attributes:
        died: whether it was killed, hung, or met an unexpected error, so that another one replaces it.
        error: the message of its error; empty for none.
    """

    died: bool = False
    error: str = ""


Member = TypeVar("Member")


class Crew(ABC, Generic[Member]):
    """Workers that this process has started. Those that die are replaced; leaving the context stops all.

    Args:
        count: number of workers.
        most: maximum number of replacements.
        on_warning: called when a worker ends with an error while others go on.
    """

    def __init__(self, count: int, *, most: int, on_warning: Callable[[str], None]) -> None:
        self.on_warning = on_warning
        self.members: dict[str, Member] = {}
        self._count = count
        self._left = most
        self._places: dict[str, int] = {}
        self._error = ""

    @abstractmethod
    def start(self, worker: str, place: int) -> Member:
        """Start a worker, whose claims have its name.

        Args:
            worker: the worker's name.
            place: its number, from 0; a replacement has that of the worker that died.
        """

    @abstractmethod
    def ended(self, member: Member) -> End | None:
        """How a worker ended; None if it runs."""

    @abstractmethod
    def kill(self, member: Member) -> None:
        """End a worker at once."""

    @abstractmethod
    def stop(self, members: Mapping[str, Member]) -> None:
        """End workers after they have stored their completions, within :data:`PATIENCE`."""

    def new_name(self) -> str:
        """Return the name of a worker to start."""
        return uuid.uuid4().hex

    def gone(self, workers: Collection[str]) -> list[str]:
        """Return which workers, started by another process, are certainly dead."""
        return []

    def __enter__(self) -> Crew[Member]:
        try:
            for place in range(self._count):
                self._start(place)
        except BaseException:
            self.stop(self.members)
            raise
        return self

    def collect(self, on_end: Callable[[str], None]) -> None:
        """Replace the workers that died since the last call.

        Args:
            on_end: called with the name of each worker that has ended, before another one replaces it.
        """
        ends = {worker: self.ended(member) for worker, member in self.members.items()}
        names = [worker for worker, end in ends.items() if end is not None]
        for worker in names:
            del self.members[worker]
            place, end = self._places.pop(worker), ends[worker]
            assert end is not None
            on_end(worker)
            self._error = end.error or self._error
            if end.died and self._left > 0:
                self._left -= 1
                self._start(place)
            elif end.error and self.members:
                self.on_warning(end.error)

    def check(self) -> None:
        """Check that at least one worker runs.

        Raises:
            MerganserError: all workers have ended; the message is the last one's error.
        """
        if not self.members:
            raise MerganserError(self._error or "all workers have ended")

    def end(self, worker: str) -> None:
        """Kill a worker of this crew that does not answer; :meth:`collect` replaces it."""
        if worker in self.members:
            self.kill(self.members[worker])

    def _start(self, place: int) -> None:
        worker = self.new_name()
        self.members[worker] = self.start(worker, place)
        self._places[worker] = place

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop(self.members)
        self.members = {}


@dataclass(frozen=True, slots=True)
class Process:
    """A worker on this machine, and the file of its output."""

    running: subprocess.Popen[bytes]
    log: Path


class LocalCrew(Crew[Process]):
    """Workers on this machine: ``merganser worker``.

    Args:
        home: the study's folder.
        count: number of workers; None for one per GPU, or per :data:`CORES` cores.
        devices: number of GPUs per worker; 0 for workers that use none.
        threads: threads per worker; None for an equal share of the cores.
        most, on_warning: as for :class:`Crew`.
        logs: the folder of the workers' output; None for that of a study's claims.
    """

    def __init__(
        self,
        home: Path,
        count: int | None,
        devices: int,
        threads: int | None,
        *,
        most: int,
        on_warning: Callable[[str], None],
        logs: Path | None = None,
    ) -> None:
        gpus = visible_gpus() if devices else []
        self._environments = environments(count, devices, threads, gpus, system.cores())
        self._logs = logs or home / FOLDER
        super().__init__(len(self._environments), most=most, on_warning=on_warning)
        self._home = home
        self._started = 0

    def start(self, worker: str, place: int) -> Process:
        """See :meth:`Crew.start`."""
        self._started += 1
        log = self._logs / f"worker-{os.getpid()}-{self._started}.log"
        environment = self._environments[place]
        threads = environment["OMP_NUM_THREADS"]
        command = [sys.executable, "-m", "merganser", "worker", str(self._home), "-j", threads]
        with reraise_os_errors(ResourceError, "written", log), log.open("wb") as stream:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env={**os.environ, **environment, WORKER: worker},
                start_new_session=True,  # Ctrl-C goes to the driver, which then stops them
            )
        return Process(process, log)

    def ended(self, member: Process) -> End | None:
        """See :meth:`Crew.ended`."""
        status = member.running.poll()
        if status is None:
            return None
        return End(status < 0 or status == REPLACE, _last_line(member.log) if status else "")

    def kill(self, member: Process) -> None:
        """See :meth:`Crew.kill`."""
        member.running.kill()

    def stop(self, members: Mapping[str, Process]) -> None:
        """See :meth:`Crew.stop`."""
        for member in members.values():
            member.running.terminate()
        for member in members.values():
            try:
                member.running.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                member.running.kill()
                member.running.wait()


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    texts = [line.removeprefix("merganser: ") for line in lines if line.strip()]
    return texts[-1] if texts else ""
