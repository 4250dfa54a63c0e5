"""Run a server until it is stopped; requests that have arrived by then are answered."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

import uvicorn
from starlette.routing import BaseRoute

from merganser.errors import ResourceError
from merganser.serving.app import LOOPBACK, make_app
from merganser.serving.base_service import BaseService
from merganser.serving.limits import DRAIN_SECONDS, PORT

KEEP_ALIVE = 75
"""Seconds until an idle connection is closed: longer than clients' timeouts, so that no client sends
a request on a connection that the server has closed."""


MOST_SECONDS_TO_CUT_OFF = 2
"""Seconds that running requests have to fail after a second signal; a long prefill may take more."""


@dataclass(frozen=True, slots=True)
class Address:
    """A server's address, and the clients that it accepts.

    Attributes:
        host, port: the address; port 0 takes any free port.
        keys: API keys, one of which every request must have; empty to accept all requests.
        origins: origins of web pages whose scripts may send requests.
        drain_seconds: seconds that running requests have to finish once the server is stopped.
    """

    host: str = "127.0.0.1"
    port: int = PORT
    keys: Sequence[str] = ()
    origins: Sequence[str] = ()
    drain_seconds: int = DRAIN_SECONDS

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


class Server(uvicorn.Server):
    """Serves until it is stopped; requests that have arrived by then are answered.

    Args:
        service: answers the requests.
        address: the address to listen on.
        on_ready: called with the server's address once it listens.
        on_stop: called with a line when a signal ends the server and requests still run.
        routes, open_paths: see :func:`merganser.serving.app.make_app`.

    Attributes:
        url: the URL of the API.

    Raises:
        ResourceError: the address is in use, or does not belong to this machine.
    """

    def __init__(
        self,
        service: BaseService,
        address: Address,
        on_ready: Callable[[str], None] = lambda _url: None,
        *,
        on_stop: Callable[[str], None] = lambda _line: None,
        routes: Sequence[BaseRoute] = (),
        open_paths: Sequence[str] = (),
    ) -> None:
        hosts = (
            (*LOOPBACK, address.host, f"[{address.host}]")
            if address.is_loopback and not address.keys
            else ()
        )
        config = uvicorn.Config(
            make_app(
                service,
                keys=address.keys,
                origins=address.origins,
                hosts=hosts,
                routes=routes,
                open_paths=open_paths,
            ),
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            lifespan="on",
            timeout_graceful_shutdown=address.drain_seconds,
            timeout_keep_alive=KEEP_ALIVE,
        )
        super().__init__(config)
        logging.getLogger("uvicorn.error").addFilter(self._is_fault)
        self._service = service
        self._on_ready = on_ready
        self._on_stop = on_stop
        self._listening = _bind(address)
        host, port = self._listening.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"

    def serve_until_stopped(self) -> None:
        """Serve until SIGTERM, Ctrl-C or :meth:`stop`.

        Raises:
            KeyboardInterrupt: a second signal has cut off the requests that ran.
        """
        self.run(sockets=[self._listening])
        if self.force_exit:
            error = KeyboardInterrupt()
            error.add_note("the requests that ran are cut off")
            raise error

    def stop(self) -> None:
        """Refuse new requests, and end once the others are answered; a second call ends at once."""
        self._service.draining = True
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the engine, listen, and call ``on_ready``."""
        starting = asyncio.create_task(self._service.start())
        while not starting.done() and not self.should_exit:
            await asyncio.wait({starting}, timeout=0.1)
        if self.should_exit:
            starting.cancel()
        try:
            await starting
        except BaseException as error:
            await self._service.close()
            if isinstance(error, asyncio.CancelledError):
                return
            raise
        await super().startup(sockets)
        if self.started:
            self._on_ready(self.url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer the requests that run; after a second signal, cut them off."""
        await super().shutdown(sockets)
        if self.force_exit:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.lifespan.shutdown(), MOST_SECONDS_TO_CUT_OFF)

    def _is_fault(self, record: logging.LogRecord) -> bool:
        """Whether a log record is more than that the server's end has cut off a request."""
        cut_off = record.exc_info is not None and isinstance(
            record.exc_info[1], asyncio.CancelledError
        )
        return not (self.force_exit or cut_off)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop after the running requests at the first signal, at once at the second."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, self.handle_exit) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop as :meth:`stop` does, for any signal."""
        is_first = not self.should_exit
        self.stop()
        if is_first and self.server_state.tasks:
            seconds = self.config.timeout_graceful_shutdown
            self._on_stop(
                f"requests that run have {seconds} s to end; a second signal cuts them off"
            )


def _bind(address: Address) -> socket.socket:
    """A socket at an address. asyncio sends small parts at once (TCP_NODELAY) only where the socket
    says that its protocol is TCP: otherwise every answer waits 40 ms."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, place = found[0]
        with ExitStack() as stack:
            listening = stack.enter_context(socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(place)
            stack.pop_all()
            return listening
    except OSError as error:
        reason = error.strerror or error
        raise ResourceError(
            f"{address.host}:{address.port}: cannot be listened on ({reason}); give another port"
        ) from None
