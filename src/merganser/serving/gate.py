"""Schedules the weights: they are one point's at a time, and points take turns."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from merganser.errors import MerganserError
from merganser.serving.limits import LONGEST_TURN, MOST_WAITING, TURN

Point = TypeVar("Point", bound=Hashable)


class QueueFull(MerganserError):
    """The maximum number of requests waits already."""


class GateClosed(MerganserError):
    """The server is stopping."""


class Gate(Generic[Point]):
    """Admits requests for the point whose weights are loaded, and swaps weights between turns.

    A request for the current point is admitted at once, except while other points wait and the turn is
    older than ``turn`` seconds. After the last request of a turn, the point that has waited longest is next.
    After ``longest`` seconds the turn ends although requests still run: the engine pauses them, and the
    point goes to the end of the queue. So a request waits at most ``longest`` seconds and one swap for
    each point before its own.

    Args:
        become: loads a point's weights, and pauses what still runs for another point.
        turn: seconds in which requests join a turn although other points wait.
        longest: seconds after which running requests are paused; None to let them finish.
        most_waiting: maximum number of waiting requests.
        on_swap: called with the duration of each swap, in seconds.

    Attributes:
        current: the point whose weights are loaded; None before the first, and after a failure.
        swaps: number of swaps.
    """

    def __init__(
        self,
        become: Callable[[Point], Awaitable[None]],
        *,
        turn: float = TURN,
        longest: float | None = LONGEST_TURN,
        most_waiting: int = MOST_WAITING,
        on_swap: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        self.current: Point | None = None
        self.swaps = 0
        self._become = become
        self._turn = turn
        self._longest = longest
        self._most_waiting = most_waiting
        self._on_swap = on_swap
        self._inside: dict[Point, int] = {}
        # Points that wait for a turn, in the order of their first request, with those requests. A point
        # whose turn ended early is here too, even if it has only admitted, paused requests.
        self._queue: dict[Point, deque[asyncio.Future[None]]] = {}
        self._since = 0.0
        self._swapping: asyncio.Task[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def inside(self) -> dict[Point, int]:
        """The number of admitted requests by point."""
        return dict(self._inside)

    @property
    def waiting(self) -> dict[Point, int]:
        """The number of waiting requests by point."""
        return {point: len(waiters) for point, waiters in self._queue.items() if waiters}

    @asynccontextmanager
    async def admitted(self, point: Point) -> AsyncIterator[None]:
        """Hold an admission for a point: the engine generates for it only with that point's weights.

        Raises:
            QueueFull: too many requests wait already.
            GateClosed: the gate is closed.
            BaseException: the exception that ``become`` raised.
        """
        await self._enter(point)
        try:
            yield
        finally:
            self._leave(point)

    def close(self) -> None:
        """Refuse new and waiting requests."""
        self._closed = True
        for waiters in self._queue.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(GateClosed("the server stops"))
        self._queue.clear()
        self._set_alarm(None)

    async def _enter(self, point: Point) -> None:
        if self._closed:
            raise GateClosed("the server stops")
        if self._swapping is None and point == self.current:
            others_wait = any(other != point for other in self._queue)
            if not (others_wait and self._age() > self._turn):
                self._inside[point] = self._inside.get(point, 0) + 1
                return
        if sum(map(len, self._queue.values())) >= self._most_waiting:
            raise QueueFull(f"{self._most_waiting:,} requests wait already; ask again later")
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.setdefault(point, deque()).append(waiter)
        self._advance()
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._leave(point)  # admitted and cancelled at the same moment
            else:
                self._forget(point, waiter)
            raise

    def _leave(self, point: Point) -> None:
        self._inside[point] -= 1
        if not self._inside[point]:
            del self._inside[point]
            if self._queue.get(point) == deque():
                del self._queue[point]
        self._advance()

    def _forget(self, point: Point, waiter: asyncio.Future[None]) -> None:
        waiters = self._queue.get(point)
        if waiters is not None and waiter in waiters:
            waiters.remove(waiter)
            if not waiters and point not in self._inside:
                del self._queue[point]
        self._advance()

    def _advance(self) -> None:
        """Begin the next turn if it is due."""
        if self._swapping is not None or self._closed:
            return
        if not self._queue:
            self._set_alarm(None)
            return
        current = self.current
        if current is not None and all(point == current for point in self._queue):
            self._begin(current)
            return
        if current is not None and current in self._inside:
            left = None if self._longest is None else self._longest - self._age()
            if left is None or left > 0:
                self._set_alarm(left)
                return
            self._queue[current] = self._queue.pop(current, deque())  # at the end
        self._set_alarm(None)
        point = next(iter(self._queue))
        if point == current:
            self._begin(point)
        else:
            self._swapping = asyncio.create_task(self._swap(point))

    def _begin(self, point: Point) -> None:
        """Admit all requests that wait for a point whose weights are loaded."""
        self._since = asyncio.get_running_loop().time()
        for waiter in self._queue.pop(point, ()):
            if not waiter.done():
                self._inside[point] = self._inside.get(point, 0) + 1
                waiter.set_result(None)
        self._advance()

    async def _swap(self, point: Point) -> None:
        began = asyncio.get_running_loop().time()
        try:
            await self._become(point)
        except BaseException as error:
            self.current = None
            failure = error if isinstance(error, Exception) else GateClosed("the server stops")
            for waiter in self._queue.pop(point, ()):
                if not waiter.done():
                    waiter.set_exception(failure)
            self._swapping = None
            if not isinstance(error, Exception):
                raise
            self._advance()
        else:
            self.current = point
            self.swaps += 1
            self._on_swap(asyncio.get_running_loop().time() - began)
            self._swapping = None
            self._begin(point)

    def _age(self) -> float:
        return asyncio.get_running_loop().time() - self._since

    def _set_alarm(self, seconds: float | None) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if seconds is not None:
            self._alarm = asyncio.get_running_loop().call_later(seconds, self._advance)
