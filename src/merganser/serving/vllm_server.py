"""Starts vLLM servers in processes of their own, and ends them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from merganser.errors import InputError, RecipeError
from merganser.evaluation import vllm_settings
from merganser.evaluation.generation import EngineFailure
from merganser.serving import upstream

NAME = "merganser"
"""The model's name in the vLLM server, which clients never see."""

COMMAND = (sys.executable, "-m", "merganser.serving.vllm_process")

ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # routes that replace weights; only this process reaches the socket
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Further variables of a server's process."""

START_SECONDS = 1800.0
"""Time limit for a start; compiling a large model takes minutes."""

STOP_SECONDS = 5.0
"""Time that a server has to end by itself."""

POLL = 0.1
"""Seconds between two questions whether a server is ready."""


class EngineServer(Protocol):
    """A running server.

    Attributes:
        socket: its Unix socket.
    """

    socket: Path

    async def ended(self) -> None:
        """Wait until the server has ended."""

    async def stop(self) -> None:
        """End the server."""


@dataclass(frozen=True)
class Start:
    """What a server is started with.

    Attributes:
        engine: the engine with its version.
        label: the model's name in messages.
        arguments: arguments of the engine, by their names in Python.
        socket: the Unix socket to listen on.
        devices: values of environment variables that select the devices.
        cores: numbers of the processor's cores to run on; empty for all.
    """

    engine: str
    label: str
    arguments: Mapping[str, Any]
    socket: Path
    devices: Mapping[str, str]
    cores: Sequence[int] = ()


Starter = Callable[[Start], Awaitable[EngineServer]]


def flags_of(arguments: Mapping[str, Any]) -> list[str]:
    """Return engine arguments as flags of vLLM's command line.

    Raises:
        RecipeError: a name is not an identifier.
    """
    flags: list[str] = []
    for name, value in arguments.items():
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
            raise RecipeError(f"engine_options.arguments: {name!r} is no name of an argument")
        flag = name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, Mapping):
            flags += [f"--{flag}", json.dumps(value)]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            flags += [f"--{flag}", *map(str, value)]
        else:
            flags += [f"--{flag}", str(value)]
    return flags


async def start(given: Start) -> ServerProcess:
    """Start a vLLM server, and wait until it is ready.

    Raises:
        InputError: vLLM cannot run the model, or refuses an argument.
    """
    server = ServerProcess(given)
    try:
        await server.until_ready()
    except BaseException:
        await server.stop()
        raise
    return server


class ServerProcess:
    """A vLLM server in a process group of its own."""

    def __init__(self, given: Start) -> None:
        self.socket = given.socket
        self._engine, self._label = given.engine, given.label
        self._log = given.socket.with_suffix(".log")
        self.socket.unlink(missing_ok=True)
        listening: dict[str, Any] = {
            "uds": str(given.socket),
            "served_model_name": NAME,
            "disable_uvicorn_access_log": True,
            "uvicorn_log_level": "error",
        }
        flags = flags_of({**given.arguments, **listening})
        cores = ",".join(map(str, given.cores)) or "all"
        environment = {**vllm_settings.ENVIRONMENT, **os.environ, **ENVIRONMENT, **given.devices}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*COMMAND, cores, *flags],
                stdin=subprocess.PIPE,  # its end of file says that this process has ended
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C is for this process
            )
        self._ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._watch, args=(loop,), name="vllm", daemon=True).start()

    async def ended(self) -> None:
        """See :class:`EngineServer`."""
        await self._ended.wait()

    async def until_ready(self) -> None:
        """Wait until the server answers.

        Raises:
            InputError: it ended before, or took too long.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                while not self._ended.is_set():
                    with suppress(EngineFailure):
                        async with upstream.request(self.socket, "GET", "/health") as response:
                            if response.status == 200:
                                return
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._ended.wait(), POLL)
        raise InputError(
            f"{self._label}: {self._engine} cannot serve this model ({self._reason()}); "
            "engine='transformers' may"
        )

    async def stop(self) -> None:
        """See :class:`EngineServer`."""
        if not self._ended.is_set():
            self._signal(signal.SIGTERM)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), STOP_SECONDS)
        self._signal(signal.SIGKILL)  # its children, too
        await self._ended.wait()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        self.process.wait()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # workers that outlived their server
        assert self.process.stdin is not None
        self.process.stdin.close()
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._ended.set)

    def _reason(self) -> str:
        """The last error in the log."""
        if not self._ended.is_set():
            return f"it was not ready after {START_SECONDS:g} s"
        lines = self._log.read_text(errors="replace").splitlines()
        errors = [line for line in lines if re.search(r"\b\w*(Error|Exception)\b: |error: ", line)]
        # vLLM repeats an engine's error as "Engine core initialization failed. See root cause above."
        causes = [line for line in errors if "See root cause above" not in line] or lines[-1:]
        text = causes[-1] if causes else f"it ended with status {self.process.returncode}"
        text = re.sub(r"^(\(\w+ pid=\d+\)\s*)?(ERROR \S+ \S+ \[\S+\]\s*)?", "", text)
        return " ".join(text.split())[:300]
