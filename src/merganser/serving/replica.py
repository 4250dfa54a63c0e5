"""One vLLM server as an engine: it takes the weights of one model after the other, and is restarted if it dies."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from merganser.engine.stream import TensorStream
from merganser.errors import InputError, MerganserError
from merganser.evaluation import vllm_settings
from merganser.evaluation.codec import Codec
from merganser.evaluation.engines import VllmOptions
from merganser.evaluation.generation import EngineFailure
from merganser.evaluation.vllm_feed import Feed
from merganser.planning import Plan
from merganser.serving import upstream, vllm_server
from merganser.serving.gate import EngineGone
from merganser.serving.generation import Facts, facts_of
from merganser.serving.names import Served
from merganser.serving.vllm_server import EngineServer, Start, Starter
from merganser.study import shell

LENGTH = 2048
"""Maximum number of tokens of a prompt with its completion, if neither the model nor an option says."""

RESTARTS = 5
"""Maximum number of restarts within :data:`RESTART_SECONDS`."""

RESTART_SECONDS = 600.0

IDLE_SECONDS = 60.0
"""Time limit for vLLM to abort the requests of clients that have gone, after a swap."""

Condition = Literal["stopped", "starting", "running", "failed"]


@dataclass(frozen=True)
class ServerSetting:
    """How the servers of all replicas are started.

    Attributes:
        name: the engine with its version.
        options: options of the engine.
        on_cpu: whether the installed vLLM is a build for CPUs.
        dtype_of: returns torch's name of the compute dtype for a plan.
        threads: threads of the merge; None for the default.
        batch_size: maximum number of simultaneous completions.
        max_tokens: default maximum of tokens of a completion; None for what the context leaves.
        more: further arguments of the engine.
        start: starts a server.
    """

    name: str
    options: VllmOptions
    on_cpu: bool
    dtype_of: Callable[[Plan], str]
    threads: int | None = None
    batch_size: int | None = None
    max_tokens: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    start: Starter = vllm_server.start


@dataclass(frozen=True)
class Share:
    """The devices of one replica.

    Attributes:
        devices: values of environment variables that select them.
        cores: see :class:`vllm_server.Start`.
    """

    devices: Mapping[str, str] = field(default_factory=dict)
    cores: Sequence[int] = ()


class Replica:
    """A vLLM server that :meth:`become` gives the weights of one model after the other.

    Args:
        setting: how the server is started.
        share: its devices.
        on_death: called when the server has died.

    Attributes:
        condition: its state; ``failed`` after too many restarts.
        restarts: number of restarts.
        running: number of its requests.
        adapters: names of the loaded adapters, with the task that loads each.
        codec: the tokenizer and config of the current model.
    """

    def __init__(self, setting: ServerSetting, share: Share, on_death: Callable[[], None]) -> None:
        self.condition: Condition = "stopped"
        self.restarts = 0
        self.running = 0
        self.adapters: dict[str, asyncio.Task[bytes]] = {}
        self.codec: Codec | None = None
        self._setting = setting
        self._share = share
        self._on_death = on_death
        self._shape: Plan | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._server: EngineServer | None = None
        self._watching: asyncio.Task[None] | None = None
        self._recent: deque[float] = deque()
        self._is_hopeless = False
        self._model = Path()
        self._loads_files = False

    async def become(self, model: Served, *, report: bool) -> Facts:
        """Load a model's weights; start the server if it does not run, or runs a model of another shape.

        Args:
            model: the model.
            report: whether to measure effective weights.

        Raises:
            InputError: vLLM does not support the model, or weights are missing.
            EngineGone: the server has died too often.
            EngineFailure: the server fails, and failed again after a restart.
        """
        plan = model.plan
        await self.open(plan)
        try:
            return await self._load(model, report)
        except EngineFailure:
            if self._server is not None:  # it runs, and is of no use
                self._count_death()
                await self._stop()
            await self.open(plan)
            return await self._load(model, report)

    async def open(self, plan: Plan, weights: Sequence[Path] = ()) -> None:
        """Start a server for a plan's shape, unless one runs.

        Args:
            plan: the plan.
            weights: files of weights that the server loads; empty to start it without weights.

        Raises:
            InputError: vLLM does not support the model.
            EngineGone: the server has died too often.
        """
        if self._is_hopeless:
            self.condition = "failed"
            raise EngineGone(f"vLLM has died {len(self._recent)} times; start the server again")
        if self._shape is None or not await asyncio.to_thread(shell.are_alike, self._shape, plan):
            await self._stop()
            self._shape = None
            self._folder = self._folder or tempfile.TemporaryDirectory(prefix="merganser-")
            folder = Path(tempfile.mkdtemp(dir=self._folder.name))
            self.codec = await asyncio.to_thread(shell.make, plan, folder)
            if not self._setting.options.unchecked:
                vllm_settings.check_tested(self.codec)
            for file in weights:
                (folder / file.name).symlink_to(file)
            self._model = folder
            self._loads_files = bool(weights)
            self._shape = plan
        if self._server is None:
            await self._start(plan)

    @asynccontextmanager
    async def ask(self, target: str, data: Any) -> AsyncIterator[upstream.Response]:
        """Send a request of a client.

        Raises:
            EngineFailure: the server does not run, or dies.
        """
        server = self._server
        if server is None:
            raise EngineFailure("the engine has ended")
        self.running += 1
        try:
            async with upstream.request(server.socket, "POST", target, data) as response:
                yield response
        finally:
            self.running -= 1

    async def call(self, target: str, data: Any = None, method: str = "POST") -> bytes:
        """Send a request of this process, and return the body of the answer.

        Raises:
            EngineFailure: the server refuses it, or dies.
        """
        if self._server is None:
            raise EngineFailure("the engine has ended")
        async with upstream.request(self._server.socket, method, target, data) as response:
            body = await response.read()
            if response.status != 200:
                text = " ".join(body.decode(errors="replace").split())[:300]
                raise EngineFailure(f"vLLM refuses {target} ({text})")
            return body

    async def close(self) -> None:
        """End the server."""
        await self._stop()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = self._shape = None

    async def _start(self, plan: Plan) -> None:
        assert self.codec is not None
        assert self._folder is not None
        setting, options = self._setting, self._setting.options
        arguments = vllm_settings.engine_arguments(
            self._model,
            self.codec,
            dtype=setting.dtype_of(plan),
            options=options,
            length=options.max_model_len or self.codec.context or LENGTH,
            at_once=setting.batch_size,
            on_cpu=setting.on_cpu,
        )
        if self._loads_files:
            arguments["load_format"] = "safetensors"
            del arguments["worker_extension_cls"]
        if setting.max_tokens is not None:
            arguments["override_generation_config"] = {"max_new_tokens": setting.max_tokens}
        arguments |= {**setting.more, **options.arguments}
        socket = Path(self._folder.name) / "engine.sock"
        given = Start(
            setting.name,
            self.codec.label,
            arguments,
            socket,
            self._share.devices,
            self._share.cores,
        )
        self.condition = "starting"
        try:
            self._server = await setting.start(given)
        except BaseException:
            self.condition = "stopped"
            raise
        self.condition = "running"
        self._watching = asyncio.create_task(self._watch(self._server))

    async def _watch(self, server: EngineServer) -> None:
        """Note that a server has died."""
        await server.ended()
        if server is not self._server:
            return
        self._forget_server()
        self._count_death()
        self._on_death()

    def _count_death(self) -> None:
        now = time.monotonic()
        self._recent.append(now)
        while now - self._recent[0] > RESTART_SECONDS:
            self._recent.popleft()
        self.restarts += 1
        self._is_hopeless = len(self._recent) > RESTARTS

    def _forget_server(self) -> None:
        self._server = None
        self.condition = "stopped"
        self.adapters.clear()

    async def _stop(self) -> None:
        server, watching = self._server, self._watching
        if server is not None:
            self._forget_server()
            await server.stop()
        if watching is not None:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            self._watching = None

    async def _load(self, model: Served, report: bool) -> Facts:
        """Send a model's weights to the server, and clear its prefix cache."""
        assert self.codec is not None
        stream = TensorStream(model.plan, threads=self._setting.threads, report=report)
        feed = Feed(stream, self._setting.options.tensor_parallel_size)
        try:
            await self._send(feed)
        except EngineFailure:
            if isinstance(feed.failure, MerganserError):
                raise feed.failure from None
            raise
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                # The prefix cache has keys and values of the old weights. It cannot be cleared while vLLM
                # still aborts requests of clients that have gone.
                while b"true" not in await self.call("/reset_prefix_cache"):
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise EngineFailure("vLLM keeps requests of clients that have gone") from None
        assert stream.outcome is not None
        return facts_of(self.codec, stream.outcome, model.name)

    async def _send(self, feed: Feed) -> None:
        assert self.codec is not None
        feed.__enter__()
        try:
            request = {"method": "merganser_receive", "args": list(feed.address)}
            missing_names = json.loads(await self.call("/collective_rpc", request))["results"]
        except BaseException as error:
            await asyncio.to_thread(feed.__exit__, type(error), error, error.__traceback__)
            raise
        await asyncio.to_thread(feed.__exit__, None, None, None)
        if missing := sorted({name for names in missing_names for name in names}):
            raise InputError(
                f"{self.codec.label}: lacks tensor {missing[0]!r}, which vLLM's model needs "
                f"({len(missing)} missing in all)"
            )
