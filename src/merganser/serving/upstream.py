"""HTTP over a Unix socket, to an engine's own server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h11

from merganser.evaluation.generation import EngineFailure

CHUNK = 2**16


@dataclass(frozen=True)
class Response:
    """A response whose body is still arriving.

    Attributes:
        status: its HTTP status.
        parts: its body.
    """

    status: int
    parts: AsyncIterator[bytes]

    async def read(self) -> bytes:
        """Return the complete body.

        Raises:
            EngineFailure: the connection ended before.
        """
        return b"".join([part async for part in self.parts])

    async def json(self) -> Any:
        """Return the complete body's JSON.

        Raises:
            EngineFailure: the connection ended before, or the body is not JSON.
        """
        try:
            return json.loads(await self.read())
        except ValueError:
            raise EngineFailure("the engine's answer is not JSON") from None


@asynccontextmanager
async def request(
    socket: Path, method: str, target: str, data: Any = None
) -> AsyncIterator[Response]:
    """Send a request, with a connection of its own; leaving the context closes it, which cancels the request.

    Args:
        socket: the server's Unix socket.
        method, target: of the request.
        data: its body, as plain data; None for no body.

    Raises:
        EngineFailure: the server cannot be reached, or ends the connection.
    """
    body = b"" if data is None else json.dumps(data).encode()
    headers = [("Host", "localhost"), ("Connection", "close"), ("Content-Length", str(len(body)))]
    if data is not None:
        headers.append(("Content-Type", "application/json"))
    state = h11.Connection(h11.CLIENT)
    try:
        reader, writer = await asyncio.open_unix_connection(socket)
    except OSError as error:
        raise EngineFailure(f"the engine does not listen ({error.strerror or error})") from None
    try:
        head = h11.Request(method=method, target=target, headers=headers)
        events: list[h11.Event] = [head, h11.Data(data=body), h11.EndOfMessage()]
        writer.write(b"".join(state.send(event) or b"" for event in events))
        status = (await _next_event(state, reader, h11.Response)).status_code
        yield Response(status, _parts(state, reader))
    finally:
        writer.transport.abort()  # unread parts are of no use


async def _parts(state: h11.Connection, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        event = await _next_event(state, reader, h11.Data | h11.EndOfMessage)
        if isinstance(event, h11.EndOfMessage):
            return
        yield bytes(event.data)


async def _next_event(state: h11.Connection, reader: asyncio.StreamReader, kind: Any) -> Any:
    """Return the next event of a kind.

    Raises:
        EngineFailure: the connection ends before.
    """
    try:
        while True:
            event = state.next_event()
            if event is h11.NEED_DATA:
                state.receive_data(await reader.read(CHUNK))
            elif isinstance(event, kind):
                return event
            elif isinstance(event, h11.ConnectionClosed):
                break
    except (OSError, h11.RemoteProtocolError):
        pass
    raise EngineFailure("the engine's server has ended the connection")
