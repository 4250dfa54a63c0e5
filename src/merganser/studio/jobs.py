"""Commands as child processes: start, progress, output, stop."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from merganser.errors import RecipeError, ResourceError
from merganser.studio.commands import NO_NETWORK, Command

MOST_RUNNING = 4

MOST_KEPT = 50

MOST_LINES = 200

MOST_RESULT = 16 * 2**20
"""Maximum size of a command's JSON result, in bytes."""

OFFLINE = {"HF_HUB_OFFLINE": "1"}
"""Environment of commands that may not use the network."""

State = Literal["running", "done", "failed", "stopped"]


@dataclass(eq=False)
class Job:
    """A running or ended command.

    Attributes:
        number: counted from 1.
        command: the command.
        lines: the last lines of its output for people.
        state: whether it runs, and how it ended.
        result: its JSON, if it has one.
        seconds: running time in seconds.
    """

    number: int
    command: Command
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=MOST_LINES))
    state: State = "running"
    result: Any = None
    began: float = field(default_factory=time.monotonic)
    seconds: float | None = None
    process: asyncio.subprocess.Process | None = None
    task: asyncio.Task[None] | None = None

    def describe(self, *, full: bool = False) -> dict[str, Any]:
        """Return the job as plain data, with the result if ``full``."""
        seconds = time.monotonic() - self.began if self.seconds is None else self.seconds
        described = {
            "job": self.number,
            "title": self.command.title,
            "command": shown(self.command.words),
            "state": self.state,
            "kind": self.command.kind,
            "folder": self.command.folder,
            "seconds": round(seconds, 2),
            "lines": list(self.lines),
        }
        return described | {"result": self.result} if full else described


class Jobs:
    """The commands of a studio.

    Args:
        folder: the commands' working directory.
        online: the environment variables with which commands may use the network; None if no command
            may.
    """

    def __init__(self, folder: Path, online: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._online = online
        self._jobs: dict[int, Job] = {}
        self._count = 0

    def __iter__(self) -> Any:
        return iter(self._jobs.values())

    @property
    def has_network(self) -> bool:
        """Whether commands that need the network may use it."""
        return self._online is not None

    def get(self, number: int) -> Job | None:
        """Return the job with a number; None if there is none."""
        return self._jobs.get(number)

    async def start(self, command: Command) -> Job:
        """Start a command.

        Raises:
            RecipeError: the command needs the network, which the studio may not use.
            ResourceError: too many commands are running.
        """
        if command.network == "needed" and self._online is None:
            raise RecipeError(f"{command.title}: {NO_NETWORK}")
        if sum(job.state == "running" for job in self) >= MOST_RUNNING:
            raise ResourceError(f"{MOST_RUNNING} commands run already; wait for one, or stop it")
        self._count += 1
        job = Job(self._count, command)
        self._jobs[job.number] = job
        for number in [n for n, kept in self._jobs.items() if kept.state != "running"][:-MOST_KEPT]:
            del self._jobs[number]
        allowed = self._online if command.network != "none" else None
        environment = {**os.environ, **(OFFLINE if allowed is None else allowed)}
        job.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "merganser", *command.words,
            cwd=self._folder,
            env={**environment, "COLUMNS": "100", "NO_COLOR": "1"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        job.task = asyncio.create_task(_follow(job))
        return job

    def stop(self, job: Job) -> None:
        """Interrupt a command; the next run reuses its finished work."""
        if job.state == "running" and job.process is not None:
            job.state = "stopped"
            with suppress(ProcessLookupError):
                job.process.send_signal(signal.SIGTERM)

    async def close(self) -> None:
        """Stop all commands."""
        for job in self:
            self.stop(job)
        tasks = [job.task for job in self if job.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=10)
        for job in self:
            if job.process is not None and job.process.returncode is None:
                with suppress(ProcessLookupError):
                    job.process.kill()


def shown(words: Sequence[str]) -> str:
    """Return a command line quoted for a shell."""
    return shlex.join(["merganser", *words])


async def _follow(job: Job) -> None:
    process = job.process
    assert process is not None
    assert process.stdout is not None
    assert process.stderr is not None
    result = bytearray()
    told = _read_lines(process.stderr, job.lines)
    printed = (
        _read_all(process.stdout, result)
        if job.command.result
        else _read_lines(process.stdout, job.lines)
    )
    await asyncio.gather(told, printed)
    code = await process.wait()
    job.seconds = time.monotonic() - job.began
    if job.command.result and code == 0:
        try:
            job.result = json.loads(result)
        except ValueError:
            code = 1
            job.lines.append("the result is too large to be shown")
    if job.state == "running":
        job.state = "done" if code == 0 else "failed"


async def _read_lines(stream: asyncio.StreamReader, lines: deque[str]) -> None:
    """Read a stream to its end; ``\\r`` ends a line too."""
    rest = b""
    while block := await stream.read(65536):
        *ended, rest = (rest + block).replace(b"\r", b"\n").split(b"\n")
        lines.extend(line for each in ended if (line := _text(each)))
        rest = rest[-10_000:]
    if last := _text(rest):
        lines.append(last)


async def _read_all(stream: asyncio.StreamReader, into: bytearray) -> None:
    while block := await stream.read(65536):
        if len(into) <= MOST_RESULT:
            into += block


def _text(line: bytes) -> str:
    text = line.decode("utf-8", "replace").rstrip()
    return "".join(c if c.isprintable() else " " for c in text)[:2000]
