"""Schedules weights: an engine holds those of one point at a time, and points take turns."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from merganser.errors import MerganserError
from merganser.serving.limits import LONGEST_TURN, MOST_WAITING, TURN

Point = TypeVar("Point", bound=Hashable)

Become = Callable[[Point], Awaitable[None]]

CROWD = 4
"""Number of running requests from which an idle engine loads the same point, too."""


class QueueFull(MerganserError):
    """The maximum number of requests waits already."""


class GateClosed(MerganserError):
    """The server is stopping."""


class EngineGone(MerganserError):
    """An engine cannot be started again; the other engines take its requests."""


@dataclass(eq=False)
class _Lane(Generic[Point]):
    """One engine.

    Attributes:
        become: loads a point's weights.
        current: the point whose weights are loaded; None before the first, and after a failure.
        target: the point whose weights are being loaded.
        inside: number of admitted requests by point.
        held: points with paused requests, which only this engine can resume, and the time of their pause.
        since: begin of the turn.
        alarm: ends the turn.
        is_gone: whether the engine is out of service.
    """

    become: Become[Point]
    current: Point | None = None
    target: Point | None = None
    inside: dict[Point, int] = field(default_factory=dict)
    held: dict[Point, int] = field(default_factory=dict)
    since: float = 0.0
    alarm: asyncio.TimerHandle | None = None
    swap: asyncio.Task[None] | None = None
    is_gone: bool = False

    @property
    def load(self) -> int:
        """Number of admitted requests."""
        return sum(self.inside.values())

    @property
    def is_free(self) -> bool:
        """Whether it can load another point at once."""
        return not (self.inside or self.held or self.swap or self.is_gone)

    def admit(self, point: Point) -> None:
        self.inside[point] = self.inside.get(point, 0) + 1

    def age(self) -> float:
        return asyncio.get_running_loop().time() - self.since

    def set_alarm(self, seconds: float | None, ring: Callable[[], None] = lambda: None) -> None:
        if self.alarm is not None:
            self.alarm.cancel()
            self.alarm = None
        if seconds is not None:
            self.alarm = asyncio.get_running_loop().call_later(seconds, ring)


class Gate(Generic[Point]):
    """Admits requests for the points whose weights are loaded, and swaps weights between turns.

    A request for a loaded point is admitted at once, except while other points wait and the turn is
    older than ``turn`` seconds. After the last request of a turn, the point that has waited longest is next.
    After ``longest`` seconds the turn ends although requests still run: the engine pauses them, and the
    point goes to the end of the queue. So a request waits at most ``longest`` seconds and one swap for
    each point before its own.

    With several engines, a point goes to one that has it, else to the first that is free. An idle engine
    also loads a point that keeps another one busy.

    Args:
        become: for each engine, loads a point's weights, and pauses what still runs for another point.
        turn: seconds in which requests join a turn although other points wait.
        longest: seconds after which running requests are paused; None to let them finish.
        most_waiting: maximum number of waiting requests.
        on_swap: called with the duration of each swap, in seconds.

    Attributes:
        swaps: number of swaps.
    """

    def __init__(
        self,
        *become: Become[Point],
        turn: float = TURN,
        longest: float | None = LONGEST_TURN,
        most_waiting: int = MOST_WAITING,
        on_swap: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        self.swaps = 0
        self._lanes: list[_Lane[Point]] = [_Lane(each) for each in become]
        self._turn = turn
        self._longest = longest
        self._most_waiting = most_waiting
        self._on_swap = on_swap
        # Points that wait for a turn, in the order of their first request, with that order's number.
        self._queue: dict[Point, deque[asyncio.Future[int]]] = {}
        self._order: dict[Point, int] = {}
        self._clock = itertools.count()
        self._closed = False

    @property
    def loaded(self) -> list[Point | None]:
        """For each engine, the point whose weights are loaded; None before the first and after a failure."""
        return [lane.current for lane in self._lanes]

    @property
    def current(self) -> Point | None:
        """The point whose weights the first engine has."""
        return self._lanes[0].current

    @property
    def inside(self) -> dict[Point, int]:
        """The number of admitted requests by point."""
        counts: dict[Point, int] = {}
        for lane in self._lanes:
            for point, count in lane.inside.items():
                counts[point] = counts.get(point, 0) + count
        return counts

    @property
    def waiting(self) -> dict[Point, int]:
        """The number of waiting requests by point."""
        return {point: len(waiters) for point, waiters in self._queue.items()}

    @asynccontextmanager
    async def admitted(self, point: Point) -> AsyncIterator[int]:
        """Hold an admission for a point: the engine generates for it only with that point's weights.

        Yields:
            The engine's index.

        Raises:
            QueueFull: too many requests wait already.
            GateClosed: the gate is closed.
            BaseException: the exception that ``become`` raised.
        """
        number = await self._enter(point)
        try:
            yield number
        finally:
            self._leave(self._lanes[number], point)

    def reload(self, number: int) -> None:
        """Load an engine's point again, since the engine has lost its weights."""
        lane = self._lanes[number]
        point, lane.current = lane.current, None
        if point is not None and lane.swap is None and not self._closed:
            self._start(lane, point)

    def close(self) -> None:
        """Refuse new and waiting requests."""
        self._closed = True
        for waiters in self._queue.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(GateClosed("the server stops"))
        self._queue.clear()
        for lane in self._lanes:
            lane.set_alarm(None)

    async def _enter(self, point: Point) -> int:
        if self._closed:
            raise GateClosed("the server stops")
        if all(lane.is_gone for lane in self._lanes):
            raise EngineGone("no engine runs; start the server again")
        if (lane := self._open_lane(point)) is not None:
            lane.admit(point)
            self._relieve(lane, point)
            return self._lanes.index(lane)
        if sum(map(len, self._queue.values())) >= self._most_waiting:
            raise QueueFull(f"{self._most_waiting:,} requests wait already; ask again later")
        waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if point not in self._queue:
            self._order[point] = next(self._clock)
        self._queue.setdefault(point, deque()).append(waiter)
        self._advance()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._leave(self._lanes[waiter.result()], point)  # admitted at the same moment
            else:
                self._forget(point, waiter)
            raise

    def _open_lane(self, point: Point) -> _Lane[Point] | None:
        """The least busy engine that admits a point at once."""
        lanes = [
            lane
            for lane in self._lanes
            if lane.current == point
            and lane.swap is None
            and not (self._others_wait(lane, point) and lane.age() > self._turn)
        ]
        return min(lanes, key=lambda lane: lane.load, default=None)

    def _others_wait(self, lane: _Lane[Point], point: Point) -> bool:
        return any(other != point for other in itertools.chain(self._pending(lane), lane.held))

    def _pending(self, lane: _Lane[Point]) -> Iterable[Point]:
        """The waiting points that no other engine is loading."""
        targets = [other.target for other in self._lanes if other is not lane and other.swap]
        return (point for point in self._queue if point not in targets)

    def _relieve(self, lane: _Lane[Point], point: Point) -> None:
        """Load a point into an idle engine, too, if its own is busy and nobody waits."""
        if lane.load > CROWD and not self._queue:
            others = (other for other in self._lanes if other.is_free and other.current != point)
            if (idle := next(others, None)) is not None:
                self._start(idle, point)

    def _leave(self, lane: _Lane[Point], point: Point) -> None:
        lane.inside[point] -= 1
        if not lane.inside[point]:
            del lane.inside[point]
            lane.held.pop(point, None)
        self._advance()

    def _forget(self, point: Point, waiter: asyncio.Future[int]) -> None:
        waiters = self._queue.get(point)
        if waiters is not None and waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._queue[point]
        self._advance()

    def _advance(self) -> None:
        """Begin the next turns that are due."""
        # The least busy engine first, and of idle ones that whose turn began first.
        for lane in sorted(self._lanes, key=lambda lane: (lane.load, lane.since)):
            if lane.swap is None and not lane.is_gone and not self._closed:
                self._advance_lane(lane)

    def _advance_lane(self, lane: _Lane[Point]) -> None:
        current = lane.current
        pending = list(self._pending(lane))
        if not pending and not lane.held:
            lane.set_alarm(None)
            if lane.is_free and (crowded := self._crowded()) is not None:
                self._start(lane, crowded)
            return
        if current is not None and not self._others_wait(lane, current):
            self._begin(lane, current)
            return
        if current is not None and current in lane.inside:
            left = None if self._longest is None else self._longest - lane.age()
            if left is None or left > 0:
                lane.set_alarm(left, self._advance)
                return
            lane.held[current] = next(self._clock)
            if current in self._queue:
                self._order[current] = next(self._clock)
        lane.set_alarm(None)
        since = {point: self._order[point] for point in pending}
        for point, paused in lane.held.items():
            since[point] = min(paused, since.get(point, paused))
        point = min(since, key=since.__getitem__)
        if point == current:
            self._begin(lane, point)
        else:
            self._start(lane, point)

    def _crowded(self) -> Point | None:
        """A point that is being loaded, for which more requests wait than one engine should take."""
        crowds = (point for point, waiters in self._queue.items() if len(waiters) > CROWD)
        return next(crowds, None)

    def _begin(self, lane: _Lane[Point], point: Point) -> None:
        """Admit the requests that wait for a point whose weights are loaded.

        Those that another engine will take, which is loading the same point, still wait.
        """
        lane.since = asyncio.get_running_loop().time()
        lane.held.pop(point, None)
        waiters = self._queue.get(point, deque())
        engines = 1 + sum(other.target == point for other in self._lanes if other.swap)
        number = self._lanes.index(lane)
        for _ in range(-(-len(waiters) // engines)):
            waiter = waiters.popleft()
            if not waiter.done():
                lane.admit(point)
                waiter.set_result(number)
        if not waiters:
            self._queue.pop(point, None)
        self._advance()

    def _start(self, lane: _Lane[Point], point: Point) -> None:
        lane.target = point
        lane.swap = asyncio.create_task(self._swap(lane, point))

    async def _swap(self, lane: _Lane[Point], point: Point) -> None:
        began = asyncio.get_running_loop().time()
        try:
            await lane.become(point)
        except BaseException as error:
            lane.current = lane.target = lane.swap = None
            lane.held.pop(point, None)
            lane.is_gone = isinstance(error, EngineGone)
            failure = error if isinstance(error, Exception) else GateClosed("the server stops")
            if not (lane.is_gone and any(not other.is_gone for other in self._lanes)):
                self._fail(point, failure)
            if not isinstance(error, Exception):
                raise
            self._advance()
        else:
            lane.current = point
            lane.target = lane.swap = None
            self.swaps += 1
            self._on_swap(asyncio.get_running_loop().time() - began)
            self._begin(lane, point)

    def _fail(self, point: Point, failure: Exception) -> None:
        for waiter in self._queue.pop(point, ()):
            if not waiter.done():
                waiter.set_exception(failure)
