"""A serving engine with continuous batching, on a live transformers model."""

from __future__ import annotations

import asyncio
import gc
import queue
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from merganser.errors import MerganserError, ResourceError
from merganser.evaluation.generation import EngineFailure
from merganser.evaluation.inference import (
    MEMORY_SHARE,
    free_memory,
    is_out_of_memory,
    release_memory,
)
from merganser.serving.batches import Batch, Forward, Reading, choose
from merganser.serving.generation import EngineState, Facts, Increment, Wanted, facts_of
from merganser.serving.limits import MOST_ROWS
from merganser.serving.names import Served
from merganser.serving.rows import Answer, Row, joined
from merganser.study.live_model import LiveModel

PIECE = 2048
"""Tokens of a prompt that are read between two decoding steps."""

STOPPED = "the engine has stopped"

READ_TOGETHER = 4096
"""Maximum tokens of several prompts that are read at once, padding included."""

ITERATIONS = 3
"""Iterations of the event loop for which arrived requests wait for others: one to read a request, one to
start its task, one to spare. They take microseconds if nothing arrives."""

AHEAD = 256
"""Tokens of a completion that memory is reserved for; a longer completion may have to wait again."""


@dataclass(eq=False)
class _Station:
    """The pending work of one model.

    Attributes:
        waiting: rows whose prompts are not read yet.
        reading: the prefill in progress; None if there is none.
        batches: rows that are being generated.
    """

    waiting: deque[Row] = field(default_factory=deque)
    reading: Reading | None = None
    batches: list[Batch] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        """All rows."""
        reading = self.reading.rows if self.reading else []
        return [*self.waiting, *reading, *(row for batch in self.batches for row in batch.rows)]

    @property
    def count(self) -> int:
        """Number of all rows."""
        reading = len(self.reading.rows) if self.reading else 0
        return len(self.waiting) + reading + sum(len(batch.rows) for batch in self.batches)

    @property
    def cached(self) -> int:
        """Cached tokens, padding included."""
        return sum(batch.size for batch in self.batches)

    def drop(self, chosen: Batch | Reading) -> list[Row]:
        """Discard a batch or a prefill with its cache, and return its rows."""
        if chosen is self.reading:
            self.reading = None
        self.batches = [batch for batch in self.batches if batch is not chosen]
        return chosen.rows


class TransformersEngine:
    """Generates with a live transformers model, in a separate thread.

    Prompts are read in pieces between decoding steps. Rows are padded on the left, as in static batches,
    and every row draws from its own seed, so that concurrent requests change at most the last bits of an
    answer's logits. When another model's turn begins, the rows of this one keep their cache, and resume
    at its next turn.

    Args:
        live: the model in memory.
        most_rows: maximum number of simultaneous completions.

    Attributes:
        freezes: whether the garbage collector skips a loaded model and the libraries; for a process that
            only serves.
    """

    freezes = False

    def __init__(self, live: LiveModel, *, most_rows: int = MOST_ROWS) -> None:
        self.name = live.engine_name
        self._live = live
        self._most_rows = most_rows
        self._forward: Forward | None = None
        self._facts: WeakKeyDictionary[Served, Facts] = WeakKeyDictionary()
        self._stations: WeakKeyDictionary[Served, _Station] = WeakKeyDictionary()
        self._station = _Station()
        self._failed: WeakKeyDictionary[Served, Exception] = WeakKeyDictionary()
        self._state = EngineState()
        self._budget = self._token_bytes = 0
        self._tokens = self._prompt_tokens = 0
        self._outbox: list[tuple[Row, Answer]] = []
        self._arrived: list[tuple[Served, list[Row]]] = []
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="serving-engine", daemon=True)

    @property
    def is_alive(self) -> bool:
        """See :class:`merganser.serving.generation.Engine`."""
        return not self._stopping

    @property
    def state(self) -> EngineState:
        """See :class:`merganser.serving.generation.Engine`."""
        return self._state

    async def become(self, model: Served) -> Facts:
        """See :class:`merganser.serving.generation.Engine`."""
        done: Future[Facts] = Future()
        self._post(partial(_settle, done, partial(self._become, model)))
        return await asyncio.wrap_future(done)

    async def generate(
        self, model: Served, wanted: Sequence[Wanted]
    ) -> AsyncGenerator[tuple[int, Increment]]:
        """See :class:`merganser.serving.generation.Engine`."""
        parts: list[tuple[int, Answer]] = []
        arrived = asyncio.Event()
        codec = self._facts[model].codec

        def listener(index: int) -> Callable[[Answer], None]:
            def take(part: Answer) -> None:
                parts.append((index, part))
                arrived.set()

            return take

        rows = [Row(each, codec, listener(index)) for index, each in enumerate(wanted)]
        self._arrive(model, rows)
        try:
            left = len(rows)
            while left:
                await arrived.wait()
                arrived.clear()
                now, parts[:] = joined(parts), []
                for index, part in now:
                    left -= part.completion is not None
                    yield index, part
        finally:
            for row in rows:
                row.cancelled = True
            if self.is_alive:
                self._post(self._sweep)

    async def close(self) -> None:
        """See :class:`merganser.serving.generation.Engine`."""
        self._stopping = True
        if self._thread.is_alive():
            self._commands.put(lambda: None)
            while self._thread.is_alive():  # a join in a thread could not be cancelled
                await asyncio.sleep(0.005)
        self._live.close()

    def _arrive(self, model: Served, rows: list[Row]) -> None:
        """Hand rows to the thread, together with those of other requests that have come by now.

        Their prompts are then read at once, and they take their steps together. Requests that wait in
        the connections' buffers reach this in the next iterations of the event loop, so the hand-over
        waits until an iteration brought none.

        Raises:
            EngineFailure: the engine has stopped.
        """
        if not self.is_alive:
            raise EngineFailure(STOPPED)
        if not self._arrived:
            self._defer(1, ITERATIONS)
        self._arrived.append((model, rows))

    def _defer(self, known: int, iterations: int) -> None:
        """Hand over the arrived rows after some iterations of the event loop without new ones."""

        def later() -> None:
            count = len(self._arrived)
            if count > known:
                self._defer(count, ITERATIONS)
            elif iterations > 1:
                self._defer(count, iterations - 1)
            else:
                self._hand_over()

        asyncio.get_running_loop().call_soon(later)

    def _hand_over(self) -> None:
        arrived, self._arrived = self._arrived, []

        def add() -> None:
            for model, rows in arrived:
                self._add(model, rows)

        try:
            self._post(add)
        except EngineFailure as error:
            _deliver([(row, error) for _, rows in arrived for row in rows])

    def _post(self, command: Callable[[], None]) -> None:
        """Queue a command that the thread runs between two steps."""
        with self._lock:
            if not self.is_alive:
                raise EngineFailure(STOPPED)
            self._loop = asyncio.get_running_loop()
            if not self._thread.is_alive():
                self._thread.start()
            self._commands.put(command)

    # -- in the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        import torch

        try:
            while not self._stopping:
                try:
                    self._obey()
                    with torch.inference_mode():
                        self._work()
                except Exception as error:  # not caused by one row
                    self._fail(self._leave_station(), self._failure(error))
                self._flush()
        finally:
            with self._lock:
                self._stopping = True
            self._obey()
            for station in list(self._stations.values()):
                self._fail(station.rows, EngineFailure(STOPPED))
            self._stations.clear()
            self._station = _Station()
            self._forward = None
            self._flush()

    def _leave_station(self) -> list[Row]:
        """Discard all work of the current model, and return its rows."""
        here = self._station
        rows = here.rows
        here.waiting, here.reading, here.batches = deque(), None, []
        return rows

    def _failure(self, error: Exception) -> Exception:
        """Return the error of a step in the form that is reported to clients."""
        if isinstance(error, MerganserError):
            return error
        text = " ".join(str(error).split())[:200]
        return EngineFailure(f"{self.name}: {type(error).__name__}: {text}")

    def _obey(self) -> None:
        """Run the queued commands; wait for one if there is no other work."""
        here = self._station
        idle = not (self._stopping or here.waiting or here.reading or here.batches)
        try:
            while True:
                self._commands.get(block=idle)()
                idle = False
        except queue.Empty:
            pass

    def _add(self, model: Served, rows: Sequence[Row]) -> None:
        if model in self._failed:
            self._fail(rows, self._failed[model])
        else:
            wanted = (row for row in rows if not row.cancelled)
            self._stations.setdefault(model, _Station()).waiting.extend(wanted)

    def _sweep(self) -> None:
        """Drop cancelled rows."""
        for station in list(self._stations.values()):
            station.waiting = deque(row for row in station.waiting if not row.cancelled)
            if station.reading and all(row.cancelled for row in station.reading.rows):
                station.reading = None
            for batch in station.batches:
                batch.keep([i for i, row in enumerate(batch.rows) if not row.cancelled])
            station.batches = [batch for batch in station.batches if batch.rows]

    def _become(self, model: Served) -> Facts:
        if self._stopping:
            raise EngineFailure(STOPPED)
        self._station = _Station()
        self._failed.pop(model, None)
        known = self._facts.get(model)
        try:
            outcome = self._live.become(model.plan, report=known is None)
            codec = self._live.backend.codec
            if self._forward is None or self._forward.module is not self._live.module:
                self._forward = Forward(self._live.module, codec.padding, codec.label)
                if self.freezes:
                    _forget_long_lived()
        except BaseException as error:
            # Some weights may already be overwritten: the next model is loaded from scratch.
            self._forward = None
            self._live.close()
            failure = error if isinstance(error, Exception) else EngineFailure(STOPPED)
            self._failed[model] = failure
            self._fail(self._stations.pop(model, _Station()).rows, failure)
            raise
        self._station = self._stations.setdefault(model, _Station())
        size = next(self._live.module.parameters()).element_size()
        self._token_bytes = codec.key_value_bytes(size)
        self._budget = int(MEMORY_SHARE * (free_memory(self._live.device) + self._cached_bytes()))
        if known is None:
            known = self._facts[model] = facts_of(codec, outcome, model.name)
        return known

    def _work(self) -> None:
        """Do one step of all pending work of the current model."""
        here = self._station
        if here.reading is None and here.waiting:
            rows = self._next_rows()
            if rows and self._forward is not None:
                # Not every recurrent model can continue from its state with more than one token.
                piece = PIECE if self._forward.joins else rows[0].length
                here.reading = Reading(self._forward, rows, piece)
        for batch in list(here.batches):
            self._step(batch)
        if here.reading is not None:
            self._read(here.reading)
        while self._cached_bytes() > self._budget and sum(len(b.rows) for b in here.batches) > 1:
            self._make_room()

    def _next_rows(self) -> list[Row]:
        """Return the waiting rows to read next: as many as memory and one prefill have room for."""
        here = self._station
        running = sum(len(batch.rows) for batch in here.batches)
        chosen: list[Row] = []
        width = 0
        while here.waiting:
            row = here.waiting[0]
            wider = max(width, row.length)
            needed = (len(chosen) + 1) * min(row.longest, wider + AHEAD)
            if running + len(chosen) >= self._most_rows:
                break
            if (running or chosen) and not self._has_room(needed):
                break
            if chosen and (
                (len(chosen) + 1) * wider > READ_TOGETHER
                or (self._forward is not None and not self._forward.joins)
            ):
                break
            chosen.append(here.waiting.popleft())
            width = wider
        return chosen

    def _read(self, reading: Reading) -> None:
        here = self._station
        try:
            scores = reading.step()
            if scores is None:
                return
            self._prompt_tokens += reading.tokens
            here.reading = None
            batch = reading.batch()
            self._take(batch, scores)
        except Exception as error:
            self._recover(reading, error)
            return
        if batch.rows:
            for other in here.batches:
                if other.takes(batch):
                    other.join(batch)
                    return
            here.batches.append(batch)

    def _step(self, batch: Batch) -> None:
        try:
            self._take(batch, batch.step())
        except Exception as error:
            self._recover(batch, error)
            return
        if not batch.rows:
            self._station.batches.remove(batch)

    def _take(self, batch: Batch, scores: Any) -> None:
        """Append the next token to each row of a batch, and remove complete rows."""
        self._tokens += len(batch.rows)
        left = []
        for place, (token, score) in enumerate(choose(batch.rows, scores)):
            row = batch.rows[place]
            part = row.add(token, score)
            if part is not None:
                self._outbox.append((row, part))
            if part is None or part.completion is None:
                left.append(place)
        batch.keep(left)

    def _recover(self, chosen: Batch | Reading, error: Exception) -> None:
        """Queue rows again if memory was insufficient for so many; otherwise fail them."""
        here = self._station
        rows = here.drop(chosen)
        running = len(rows) + sum(len(batch.rows) for batch in here.batches)
        release_memory()
        if not is_out_of_memory(error):
            self._fail(rows, self._failure(error))
        elif running > 1:
            self._most_rows = max(1, running // 2)
            here.waiting.extendleft(reversed(rows))
        else:
            length = rows[0].length
            self._fail(rows, ResourceError(f"memory does not suffice for {length:,} tokens"))

    def _make_room(self) -> None:
        """Discard caches, those of other models first, then the newest; their rows wait again."""
        for station in list(self._stations.values()):
            if station is not self._station and station.batches:
                station.waiting.extendleft(reversed(station.drop(station.batches[-1])))
                return
        here = self._station
        batch = here.batches[-1]
        here.waiting.appendleft(batch.rows[-1])
        batch.keep(range(len(batch.rows) - 1))
        here.batches = [batch for batch in here.batches if batch.rows]

    def _has_room(self, tokens: int) -> bool:
        return self._cached_bytes() + tokens * self._token_bytes <= self._budget

    def _cached_bytes(self) -> int:
        return sum(s.cached for s in list(self._stations.values())) * self._token_bytes

    def _fail(self, rows: Sequence[Row], error: Exception) -> None:
        self._outbox += [(row, error) for row in rows]

    def _flush(self) -> None:
        """Pass finished parts to the event loop."""
        here = self._station
        running = sum(len(batch.rows) for batch in here.batches)
        everywhere = sum(station.count for station in list(self._stations.values()))
        self._state = EngineState(
            running=running,
            waiting=here.count - running,
            held=everywhere - here.count,
            tokens=self._tokens,
            prompt_tokens=self._prompt_tokens,
        )
        outbox, self._outbox = self._outbox, []
        if outbox and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_deliver, outbox)


def _deliver(outbox: Sequence[tuple[Row, Answer]]) -> None:
    for row, part in outbox:
        if not row.cancelled:
            row.deliver(part)


def _settle(done: Future[Facts], work: Callable[[], Facts]) -> None:
    """Do some work, and set its result or exception on a future."""
    if not done.set_running_or_notify_cancel():
        return
    try:
        done.set_result(work())
    except BaseException as error:
        done.set_exception(error)


def _forget_long_lived() -> None:
    """Take the libraries' and the model's objects out of later garbage collections.

    There are about a million of them, and a collection of all stops the server for 0.3 s. Those of the
    model before, which may be garbage now, are collected first.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
