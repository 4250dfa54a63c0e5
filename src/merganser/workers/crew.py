"""Worker processes on this machine: one per GPU, or one per share of the cores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from merganser import system
from merganser.errors import MerganserError, RecipeError, ResourceError, reraise_os_errors
from merganser.workers.study_file import FOLDER

CORES = 4
"""Cores per worker for ``local:auto`` on a machine without GPUs."""

PATIENCE = 20.0
"""Seconds that a stopped worker has to store its completions."""


@dataclass(frozen=True, slots=True)
class Where:
    """The value of the option ``--workers``.

    Attributes:
        is_local: whether to start processes on this machine; otherwise this process is a worker.
        count: number of workers; None for one per GPU, or per :data:`CORES` cores.
    """

    is_local: bool
    count: int | None = None


def parse(text: str) -> Where:
    """Parse the option ``--workers``.

    Raises:
        RecipeError: it is none of ``local:N``, ``local:auto`` and ``join``.
    """
    kind, sign, count = text.partition(":")
    if text == "join":
        return Where(False)
    if kind == "local" and sign and count == "auto":
        return Where(True)
    if kind == "local" and count.isascii() and count.isdecimal() and int(count) > 0:
        return Where(True, int(count))
    raise RecipeError(f"workers={text!r} is none of local:N, local:auto and join")


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def environments(
    where: Where, devices: int, threads: int | None, gpus: list[str], cores: int
) -> list[dict[str, str]]:
    """Return each worker's environment variables: its GPUs, and its number of threads.

    Args:
        where: the number of workers.
        devices: GPUs that one worker needs.
        threads: threads per worker; None for an equal share of the cores.
        gpus: the machine's GPUs.
        cores: number of the machine's cores.

    Raises:
        ResourceError: there are GPUs, but fewer than one worker needs.
    """
    sets = [gpus[i : i + devices] for i in range(0, len(gpus) - devices + 1, devices)]
    if gpus and not sets:
        raise ResourceError(f"a worker needs {devices} GPUs, and this machine has {len(gpus)}")
    count = where.count or len(sets) or max(1, cores // CORES)
    shared: list[dict[str, str]] = []
    for index in range(count):
        each = {"OMP_NUM_THREADS": str(threads or max(1, cores // count))}
        if sets:
            each["CUDA_VISIBLE_DEVICES"] = ",".join(sets[index % len(sets)])
        shared.append(each)
    return shared


@dataclass
class _Member:
    process: subprocess.Popen[bytes]
    environment: Mapping[str, str]
    log: Path


class Crew:
    """Worker processes. A worker that a signal kills is replaced; leaving the context stops all.

    Args:
        home: the study's folder.
        where: the number of workers.
        devices: number of GPUs per worker.
        threads: threads per worker; None for an equal share of the cores.
        most: maximum number of replacements.
    """

    def __init__(
        self, home: Path, where: Where, devices: int, threads: int | None, *, most: int
    ) -> None:
        self._home = home
        self._left = most
        self._members: list[_Member] = []
        self._started = 0
        self._failed: Path | None = None
        self._environments = environments(where, devices, threads, visible_gpus(), system.cores())

    def __enter__(self) -> Crew:
        for environment in self._environments:
            self._start(environment)
        return self

    def collect(self) -> list[int]:
        """Replace the workers that were killed; return the process ids of all that have ended."""
        ended = [member for member in self._members if member.process.poll() is not None]
        for member in ended:
            self._members.remove(member)
            if member.process.returncode < 0 and self._left > 0:
                self._left -= 1
                self._start(member.environment)
            elif member.process.returncode:
                self._failed = member.log
        return [member.process.pid for member in ended]

    def check(self) -> None:
        """Check that at least one worker runs.

        Raises:
            MerganserError: all workers have ended; the message has the last line of output.
        """
        if not self._members:
            raise MerganserError(_last_line(self._failed) or "all workers have ended")

    def _start(self, environment: Mapping[str, str]) -> None:
        self._started += 1
        log = self._home / FOLDER / f"worker-{os.getpid()}-{self._started}.log"
        threads = environment["OMP_NUM_THREADS"]
        command = [sys.executable, "-m", "merganser", "worker", str(self._home), "-j", threads]
        with reraise_os_errors(ResourceError, "written", log), log.open("wb") as stream:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env={**os.environ, **environment},
                start_new_session=True,  # Ctrl-C goes to the driver, which then stops them
            )
        self._members.append(_Member(process, environment, log))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for member in self._members:
            member.process.terminate()
        for member in self._members:
            try:
                member.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                member.process.kill()
                member.process.wait()


def _last_line(log: Path | None) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log else []
    except OSError:
        return ""
    texts = [line.removeprefix("merganser: ") for line in lines if line.strip()]
    return texts[-1] if texts else ""
