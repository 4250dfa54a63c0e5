"""The engine's threads and their shared state."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from merganser.checkpoints.readers import Readers
from merganser.engine.effective_weights import TensorOutcome
from merganser.engine.events import Listener, Merged
from merganser.engine.tiles import Group, Tile, group_jobs
from merganser.engine.worker import Worker
from merganser.planning import Plan
from merganser.sinks import Sink

PATIENCE = 0.5
"""Seconds that an interrupted run waits for its threads; some need longer, and are left running."""


class Crew:
    """The threads' shared state: pending work, outcomes, and the first failure."""

    def __init__(
        self,
        plans: Sequence[Plan],
        sinks: Sequence[Sink],
        readers: Readers,
        tile: int,
        report: bool,
        digest_inputs: bool,
        finished: Sequence[Mapping[str, TensorOutcome]],
        on_tensor: Callable[[int, TensorOutcome], None],
        on_event: Listener,
    ) -> None:
        self.outcomes = [dict(known) for known in finished]
        self.idle = True
        self._sinks = sinks
        self._on_tensor = on_tensor
        self._on_event = on_event
        wanted = [sink.wants_digests for sink in sinks]
        self._groups = group_jobs(plans, readers, wanted, report, tile, finished, digest_inputs)
        self._open = 0
        self._most_open = 1
        self._ready: deque[Tile] = deque()
        self._done = 0
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._counting = threading.Lock()

    def run(self, threads: int) -> None:
        """Run all plans with a number of threads.

        Raises:
            BaseException: the first failure of any thread.
        """
        self._most_open = threads + 1
        crew = [
            threading.Thread(target=self._work_off, name=f"merge-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in crew:
            thread.start()
        try:
            for thread in crew:
                while thread.is_alive():
                    thread.join(0.2)  # short timeouts, so that Ctrl-C is noticed
        except BaseException as error:
            self._fail(error)
            deadline = time.monotonic() + PATIENCE
            for thread in crew:
                thread.join(max(0.0, deadline - time.monotonic()))
            self.idle = not any(thread.is_alive() for thread in crew)
            raise
        if self._failure is not None:
            raise self._failure

    def _work_off(self) -> None:
        """The work of one thread: tiles, until there are none."""
        worker = Worker(self._sinks)
        try:
            while (tile := self._next()) is not None:
                self._count(tile, worker.do(tile))
        except BaseException as error:
            self._fail(error)

    def _next(self) -> Tile | None:
        """The next tile. If none is ready, the next group begins, so that no thread waits while
        a group is between two rounds. None when all tiles are taken, or a thread failed."""
        while True:
            with self._changed:
                group = None
                while group is None:
                    if self._failure is not None:
                        return None
                    if self._ready:
                        return self._ready.popleft()
                    if self._open < self._most_open:
                        group = next(self._groups, None)
                    if group is None:
                        if self._open == 0:
                            return None
                        self._changed.wait(0.2)
                self._open += 1
            self._begin_round(group)

    def _begin_round(self, group: Group) -> None:
        """Make the tiles of a group's next round ready."""
        tiles = group.next_round()
        with self._changed:
            self._ready.extendleft(reversed(tiles))  # started groups are finished first
            self._changed.notify_all()

    def _count(self, tile: Tile, elements: int) -> None:
        """Count a finished tile; the last one of a round begins the next round, or ends the group."""
        group = tile.group
        with self._counting:
            group.left -= 1
            last = group.left == 0
            if not tile.passes:
                if last:
                    for plan, outcome in group.outcomes():
                        self.outcomes[plan][outcome.name] = outcome
                        self._on_tensor(plan, outcome)
                self._done += elements
                self._on_event(Merged(group.parts[0].job.name, self._done))
        if not last:
            return
        if tile.passes:
            self._begin_round(group)
        else:
            with self._changed:
                self._open -= 1
                self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
