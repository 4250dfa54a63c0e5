"""The server's routes, as an ASGI application.

Starlette in place of FastAPI: requests are checked by pydantic here, so that errors have OpenAI's form,
and nothing else of FastAPI would be used.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from merganser.errors import MerganserError
from merganser.serving.answers import as_event, as_json
from merganser.serving.base_service import BaseService
from merganser.serving.gate import GateClosed
from merganser.serving.wire import (
    AnyRequest,
    BadRequest,
    ChatRequest,
    CompletionRequest,
    error_body,
    kind_of,
)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

OPEN = ("/health",)
"""Paths that need no API key."""

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

log = logging.getLogger("merganser.serving")


def make_app(
    service: BaseService,
    *,
    keys: Sequence[str] = (),
    origins: Sequence[str] = (),
    hosts: Sequence[str] = (),
    routes: Sequence[BaseRoute] = (),
    open_paths: Sequence[str] = (),
) -> Starlette:
    """Return the ASGI application of a service.

    Args:
        service: answers the requests.
        keys: API keys, one of which every request must have; empty to accept all requests.
        origins: origins of web pages whose scripts may send requests; ``*`` for all.
        hosts: accepted host names; empty for all. A server without keys on loopback needs some: otherwise
            a web page can reach it by DNS rebinding.
        routes: further routes.
        open_paths: paths of the further routes that need no API key.
    """
    middleware = []
    if origins:
        cors: Any = CORSMiddleware
        allowed = {"allow_methods": ["GET", "POST"], "allow_headers": ["*"]}
        middleware.append(Middleware(cors, allow_origins=list(origins), **allowed))
    guard: Any = _Guard
    is_open = (*OPEN, *open_paths)
    middleware.append(Middleware(guard, keys=keys, hosts=hosts, is_open=is_open))

    async def health(_request: Request) -> Response:
        found, takes_requests = await service.health()
        return _json(found, 200 if takes_requests else 503)

    async def metrics(_request: Request) -> Response:
        await service.refresh()
        body, kind = service.metrics.render()
        return Response(body, media_type=kind)

    async def state(_request: Request) -> Response:
        return _json(service.state())

    async def models(_request: Request) -> Response:
        return _json(service.models())

    async def model(request: Request) -> Response:
        return _json(service.describe(await service.find(request.path_params["name"])))

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await service.close()

    generate: Any = _Generate
    return Starlette(
        routes=[
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/merganser", state),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/v1/chat/completions", generate(service, ChatRequest), methods=["POST"]),
            Route("/v1/completions", generate(service, CompletionRequest), methods=["POST"]),
            *service.routes,
            *routes,
        ],
        middleware=middleware,
        exception_handlers={
            BadRequest: _on_error,
            MerganserError: _on_error,
            HTTPException: _on_error,
            PermissionError: _on_error,
            Exception: _on_error,
        },
        lifespan=lifespan,
    )


class _Guard:
    """Refuses requests without a valid API key, or with a host name that is not accepted."""

    def __init__(
        self, app: Any, keys: Sequence[str], hosts: Sequence[str], is_open: Sequence[str]
    ) -> None:
        self.app = app
        self.is_open = frozenset(is_open)
        self.keys = [key.encode() for key in keys]
        self.hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (problem := self._problem(scope)) is not None:
            await _failure(problem)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _problem(self, scope: Scope) -> BadRequest | None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self.hosts:
            host = headers.get(b"host", b"").decode("latin-1").lower()
            name = host[: host.rindex(":")] if host.rpartition(":")[2].isdigit() else host
            if name not in self.hosts:
                return BadRequest("the server has another name", status=421, code="unknown_host")
        if self.keys and scope["path"] not in self.is_open:
            sign, _, key = headers.get(b"authorization", b"").partition(b" ")
            good = [hmac.compare_digest(key.strip(), known) for known in self.keys]
            if sign.lower() != b"bearer" or not any(good):
                return BadRequest(
                    "the key is missing, or is none of this server's",
                    status=401,
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        return None


class _Generate:
    """A route that generates completions, and stops when the client disconnects."""

    def __init__(self, service: BaseService, kind: type[AnyRequest]) -> None:
        self.service = service
        self.kind = kind
        self.route = "chat" if kind is ChatRequest else "text"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = _Reply(scope, receive, send)
        status = "gone"
        try:
            body = await self._body(Request(scope, receive))
            if body is None:
                return
            work = asyncio.create_task(self._answer(body, reply))
            gone = asyncio.create_task(_until_gone(receive))
            try:
                await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (work, gone):
                    task.cancel()
                with suppress(asyncio.CancelledError):
                    await gone
                with suppress(asyncio.CancelledError):
                    await work
                    status = "200"
        except Exception as error:
            problem = _problem_of(error)
            status = str(problem.status)
            await reply.fail(problem)
        finally:
            self.service.metrics.count_request(self.route, status)

    async def _body(self, request: Request) -> bytes | None:
        """Return a request's body; None if the client has disconnected.

        Raises:
            BadRequest: it is too large, takes too long, or is not declared as JSON.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # an HTML form of another site cannot send this
            raise BadRequest("Content-Type: must be application/json", status=415)
        most = self.service.limits.body
        too_large = BadRequest(f"the body is larger than {most:,} bytes", status=413)
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.service.limits.body_seconds):
                while True:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise too_large
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise BadRequest("the body did not arrive in time", status=408) from None

    async def _answer(self, body: bytes, reply: _Reply) -> None:
        async with aclosing(self.service.reply(body, self.kind)) as parts:
            async for part in parts:
                if isinstance(part, bytes):
                    await reply.stream(part)
                else:
                    await reply.json(part)
        await reply.end()


class _Reply:
    """A response whose status is sent with its first part, so that earlier errors have their own status."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._begun = False

    async def stream(self, part: bytes) -> None:
        """Send an event of a stream."""
        if not self._begun:
            self._begun = True
            kind = (b"content-type", b"text/event-stream; charset=utf-8")
            headers = [kind, (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": part, "more_body": True})

    async def json(self, data: dict[str, Any]) -> None:
        """Send a complete answer."""
        await _json(data)(self._scope, self._receive, self._send)

    async def end(self) -> None:
        """End a stream."""
        if self._begun:
            await self._send({"type": "http.response.body", "body": b""})

    async def fail(self, problem: BadRequest) -> None:
        """Send an error: as the response, or as the last event of a stream that has begun."""
        if not self._begun:
            await _failure(problem)(self._scope, self._receive, self._send)
            return
        await self.stream(as_event(_body_of(problem)))
        await self.end()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _on_error(_request: Request, error: Exception) -> Response:
    return _failure(_problem_of(error))


def _problem_of(error: Exception) -> BadRequest:
    """Return an error in the form that is sent to the client."""
    if isinstance(error, BadRequest):
        return error
    if isinstance(error, HTTPException):
        return BadRequest(error.detail, status=error.status_code, headers=error.headers)
    if isinstance(error, GateClosed):
        return BadRequest(str(error), status=503, headers={"Retry-After": "5"})
    if isinstance(error, PermissionError):
        name = os.path.basename(error.filename or "a file")  # noqa: PTH119  # it may be bytes
        return BadRequest(f"{name}: permission denied", status=403)
    if isinstance(error, MerganserError):
        return BadRequest(str(error), status=500, code="server_error")
    log.error("a request failed", exc_info=error)
    return BadRequest(f"the server failed ({type(error).__name__})", status=500)


def _failure(problem: BadRequest) -> Response:
    response = _json(_body_of(problem), problem.status)
    response.headers.update(problem.headers)
    return response


def _body_of(problem: BadRequest) -> dict[str, Any]:
    return error_body(str(problem), kind_of(problem.status), problem.param, problem.code)


def _json(data: Any, status: int = 200) -> Response:
    return Response(as_json(data), status, media_type="application/json")
