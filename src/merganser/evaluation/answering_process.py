"""A child process that answers requests in JSON lines, and is killed when an answer takes too long."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

from merganser.errors import MerganserError


class AnsweringProcess:
    """A module of Merganser that runs as a program, started on first use.

    The program reads one JSON line from stdin per request and writes one JSON line to stdout per answer.
    The first line on stdout reports its start: ``{}``, or an object with ``error``.

    Args:
        module: the module's name, such as ``merganser.evaluation.grader``.
        arguments: the program's command-line arguments.
        start: the time limit in seconds for the program to become ready.
        errors: the target of its stderr: ``subprocess.DEVNULL``, or None for this process's stderr.
    """

    def __init__(
        self,
        module: str,
        arguments: tuple[str, ...] = (),
        *,
        start: float,
        errors: int | IO[bytes] | None = subprocess.DEVNULL,
    ) -> None:
        self.module = module
        self.arguments = arguments
        self.start = start
        self.errors = errors
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: Any, seconds: float) -> Any:
        """Return the answer to a request; None after ``seconds`` without one, or if the process ended.

        Without an answer the process is killed; the next request starts another.

        Raises:
            MerganserError: when the process does not start.
        """
        process = self._ready()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            reply = self._read(seconds)
        except OSError:
            reply = None
        if reply is None:
            self.close()
        return reply

    def _ready(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        home = str(Path(__file__).parents[2])
        paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module, *self.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            encoding="utf-8",
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )
        ready = self._read(self.start)
        if ready is None or "error" in ready:
            self.close()
            raise MerganserError(
                f"{self.module}: could not be started" if ready is None else ready["error"]
            )
        return self._process

    def _read(self, seconds: float) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                return None
        text = self._process.stdout.readline()
        return json.loads(text) if text else None

    def close(self) -> None:
        """Kill the process; the next request starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
