"""Stands in for vLLM's own server: it takes weights as vLLM's workers do, and answers with their sum."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from merganser.engine.stream import TensorStream
from merganser.evaluation import vllm_feed
from merganser.evaluation.engines import VllmOptions
from merganser.planning import Plan
from merganser.serving.adapter_points import AdapterFamily
from merganser.serving.fleet import Fleet
from merganser.serving.forwarding import Forwarding
from merganser.serving.limits import Limits
from merganser.serving.names import Catalogue
from merganser.serving.replica import ServerSetting, Share
from merganser.serving.server import Address
from merganser.serving.vllm_server import Start
from served_study import Running, start


def total(tensors: Any) -> str:
    """What tells weights apart, in a text."""
    return f"{sum(float(tensor.double().abs().sum()) for _, tensor in tensors):.6f}"


def total_of(plan: Plan) -> str:
    return total(TensorStream(plan, threads=1, report=False))


class FakeVllm:
    """A server in a thread of its own. The word of a prompt says what it does.

    ``slow`` takes half a second, ``bad`` is refused, ``die`` ends the server without an answer,
    ``dead`` is answered by what vLLM says when its engine has died.
    """

    def __init__(self, given: Start) -> None:
        self.given = given
        self.socket = given.socket
        self.seen: list[dict[str, Any]] = []
        self.weights = "dummy"
        self.running = 0
        self.swapped_while_running = False
        self.resets: list[bool] = []
        self.adapters: dict[str, str] = {}
        self.unloaded: list[str] = []
        self.tokens = 0
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.socket.unlink(missing_ok=True)
        routes = [
            Route("/health", lambda _: Response()),
            Route("/metrics", self._metrics),
            Route("/collective_rpc", self._receive, methods=["POST"]),
            Route("/reset_prefix_cache", self._reset, methods=["POST"]),
            Route("/v1/completions", self._complete, methods=["POST"]),
            Route("/v1/chat/completions", self._complete, methods=["POST"]),
            Route("/v1/load_lora_adapter", self._load, methods=["POST"]),
            Route("/v1/unload_lora_adapter", self._unload, methods=["POST"]),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes), uds=str(self.socket), log_level="critical", lifespan="off",
            timeout_graceful_shutdown=0,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._server.run()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ended.set)

    async def ended(self) -> None:
        await self._ended.wait()

    async def stop(self) -> None:
        self.die()
        await self._ended.wait()

    def die(self) -> None:
        self._server.should_exit = self._server.force_exit = True

    async def _metrics(self, _request: Request) -> Response:
        return PlainTextResponse(
            f'vllm:prompt_tokens_total{{engine="0"}} {3.0 * len(self.seen)}\n'
            f'vllm:generation_tokens_total{{engine="0"}} {float(self.tokens)}\n'
        )

    async def _receive(self, request: Request) -> Response:
        told = await request.json()
        assert told["method"] == "merganser_receive"
        self.swapped_while_running |= self.running > 0
        self.weights = "torn"
        tensors = await asyncio.to_thread(lambda: list(vllm_feed.receive(*told["args"])))
        self.weights = total(tensors)
        return JSONResponse({"results": [[]]})

    async def _reset(self, _request: Request) -> Response:
        self.resets.append(self.running == 0)
        return JSONResponse({"success": self.running == 0})

    async def _load(self, request: Request) -> Response:
        told = await request.json()
        assert told["lora_name"] not in self.adapters
        self.adapters[told["lora_name"]] = told["lora_path"]
        assert (Path(told["lora_path"]) / "adapter_config.json").is_file()
        return PlainTextResponse("Success")

    async def _unload(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        self.unloaded.append(name)
        del self.adapters[name]
        return PlainTextResponse("Success")

    async def _complete(self, request: Request) -> Response:
        told = await request.json()
        self.seen.append(told)
        prompt = json.dumps(told.get("prompt") or told.get("messages"))
        if "bad" in prompt:
            error = {
                "message": "no such thing",
                "type": "BadRequestError",
                "param": "x",
                "code": 400,
            }
            return JSONResponse({"error": error}, 400)
        if "dead" in prompt:
            dead = {"message": "EngineCore encountered an issue. See stack trace (above)."}
            if not told.get("stream"):
                return JSONResponse({"error": dead}, 500)
            event = b"data: " + json.dumps({"error": dead}).encode() + b"\n\n"
            return Response(event, media_type="text/event-stream")
        if told["model"] not in ("merganser", *self.adapters):
            return JSONResponse({"error": {"message": "no model"}}, 404)
        before = self.weights
        words = [told["model"], before]
        head = {"id": "1", "model": told["model"], "system_fingerprint": "vllm"}
        if told.get("stream"):
            parts = self._stream(request, head, words, prompt)
            return StreamingResponse(parts, media_type="text/event-stream")
        self.running += 1
        try:
            if not await self._work(request, prompt):
                return Response(status_code=499)
        finally:
            self.running -= 1
        self.tokens += 2
        text = " ".join([*words, self.weights])
        choice = {"index": 0, "text": text, "finish_reason": "stop"}
        if "messages" in told:
            choice["message"] = {"role": "assistant", "content": choice.pop("text")}
        return JSONResponse(
            {**head, "object": "text_completion", "created": 1, "choices": [choice]}
        )

    async def _work(self, request: Request, prompt: str) -> bool:
        """Take some time; return whether the client is still there."""
        if "die" in prompt:
            self.die()
            for connection in list(self._server.server_state.connections):
                connection.transport.abort()  # type: ignore[union-attr]
            await asyncio.sleep(30)
        for _ in range(50 if "slow" in prompt else 1):
            await asyncio.sleep(0.01)
            if await request.is_disconnected():
                return False
        return True

    async def _stream(
        self, request: Request, head: dict[str, Any], words: Sequence[str], prompt: str
    ) -> AsyncIterator[bytes]:
        self.running += 1
        try:
            for word in (*words, None):
                text = f"{word} " if word else self.weights
                choice = {"index": 0, "text": text, "finish_reason": None if word else "stop"}
                yield b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n"
                if word and not await self._work(request, prompt):
                    return
            yield b"data: [DONE]\n\n"
        finally:
            self.running -= 1


class Starts:
    """Starts fake servers, and keeps them."""

    def __init__(self) -> None:
        self.servers: list[FakeVllm] = []

    async def __call__(self, given: Start) -> FakeVllm:
        server = FakeVllm(given)
        self.servers.append(server)
        while not server.socket.exists():
            await asyncio.sleep(0.002)
        return server


@dataclass
class Stand:
    """A server over fake ones."""

    running: Running
    service: Forwarding
    starts: Starts

    @property
    def url(self) -> str:
        return self.running.url

    def health(self) -> tuple[int, Any]:
        found = httpx.get(self.url.removesuffix("/v1") + "/health")
        return found.status_code, found.json()


def make(
    catalogue: Catalogue, replicas: int = 1, family: AdapterFamily | None = None, **limits: Any
) -> Stand:
    """A server over fake ones, in a thread."""
    starts = Starts()
    setting = ServerSetting(
        "vllm 0", VllmOptions(), True, lambda _plan: "float32", threads=1, start=starts
    )
    fleet = Fleet(setting, [Share()] * replicas)
    service = Forwarding(catalogue, fleet, Limits(**{"turn": 0.02} | limits), family)
    return Stand(start(service, Address(port=0)), service, starts)


def settle(condition: Callable[[], bool]) -> None:
    """Wait until something holds, ten seconds at most."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
