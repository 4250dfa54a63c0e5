"""The engine: runs plans. It reads tiles, measures, combines, rounds once, and hands on; it decides nothing.

Plans that share inputs run together: what several of them need is read once. Every tile is
independent of every other, so any number of threads, in any order, gives the same bits.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from merganser import number_format
from merganser.engine.effective_weights import ModelWeight, Report, TensorOutcome, summarize
from merganser.engine.events import Event, Finished, Listener, Merged, Started, ignore
from merganser.engine.tiles import Group, Tile, group_jobs
from merganser.engine.worker import Worker
from merganser.errors import ResourceError
from merganser.kernels import CELL
from merganser.planning import OVERHEAD, TILE, Plan, buffer_bytes, default_threads
from merganser.sinks import Sink

__all__ = [
    "Event",
    "Finished",
    "Listener",
    "Merged",
    "ModelWeight",
    "Outcome",
    "Report",
    "Started",
    "TensorOutcome",
    "run",
]


PATIENCE = 0.5
"""Seconds that an interrupted run waits for its threads: a tile of some methods takes longer."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What running one plan gave, beside what went into its sink.

    Attributes:
        tensors: digests and measurements, in the plan's order.
        report: effective weights, or None where there is nothing to compare.
        seconds: how long the engine worked on all plans of the run.
    """

    tensors: tuple[TensorOutcome, ...]
    report: Report | None
    seconds: float

    def __repr__(self) -> str:
        measured = "" if self.report is None else ", with effective weights"
        return f"Outcome({len(self.tensors)} tensors, {self.seconds:.1f} s{measured})"


def run(
    plans: Sequence[Plan],
    sinks: Sequence[Sink],
    *,
    threads: int | None = None,
    memory: int | None = None,
    tile: int = TILE,
    report: bool = True,
    digest_inputs: bool = False,
    made: Sequence[Mapping[str, TensorOutcome]] | None = None,
    on_tensor: Callable[[int, TensorOutcome], None] = lambda _index, _outcome: None,
    on_event: Listener = ignore,
) -> list[Outcome]:
    """Run plans together, each into its sink.

    Args:
        plans: plans over shared inputs; sources with the same reference are the same model.
        sinks: one for each plan.
        threads: how many; None for as many as pay off.
        memory: bytes that the process may take, a bound on the buffers; None for no bound.
        tile: elements of a tile, a multiple of the cell's; the result does not depend on it.
        report: whether to measure effective weights.
        digest_inputs: whether to compute digests of all tensors that are read.
        made: of each plan what is known of tensors that were made before, by their names; they are
            not made again.
        on_tensor: told of each tensor that is made, with the index of its plan, by any thread.
        on_event: told of the progress.

    Returns:
        One outcome for each plan.

    Raises:
        InputError: when a checkpoint turns out to be broken, or changes while it is read.
        ResourceError: when the memory given is not enough, or an output cannot be written.
        ValueError: when there is not one sink for each plan.
        TypeError: when a plan or a sink is something else.
    """
    began = time.perf_counter()
    _check_arguments(plans, sinks)
    if tile <= 0 or tile % CELL:
        raise ValueError(f"a tile is a multiple of {CELL} elements")
    threads, tile = _within(memory, threads or default_threads(plans), tile, plans)
    made = made or [{} for _ in plans]
    crew = _Crew(plans, sinks, tile, report, digest_inputs, made, on_tensor, on_event)
    to_do = [j for p, known in zip(plans, made, strict=True) for j in p.jobs if j.name not in known]
    on_event(Started(sum(job.spec.nbytes for job in to_do), len(to_do), threads))
    try:
        crew.run(threads)
        for sink in sinks:
            sink.close()
        for plan in plans:
            plan.refuse_changed_inputs()
    except BaseException:
        for sink in sinks if crew.idle else ():
            sink.abort()
        raise
    seconds = time.perf_counter() - began
    on_event(Finished(seconds))
    return [
        _outcome(plan, found, report, seconds)
        for plan, found in zip(plans, crew.outcomes, strict=True)
    ]


def _check_arguments(plans: Sequence[Plan], sinks: Sequence[Sink]) -> None:
    if len(plans) != len(sinks):
        raise ValueError(f"{len(plans)} plans for {len(sinks)} sinks: give one sink for each plan")
    for each in plans:
        if not isinstance(each, Plan):
            raise TypeError(
                f"run takes plans, not {type(each).__name__}: merganser.plan(recipe) makes one"
            )
    for sink in sinks:
        if not isinstance(sink, Sink):
            raise TypeError(
                f"run takes sinks, not {type(sink).__name__}: merganser.Sink is their base class"
            )


def _outcome(plan: Plan, found: dict[str, TensorOutcome], report: bool, seconds: float) -> Outcome:
    tensors = tuple(found[job.name] for job in plan.jobs)
    return Outcome(tensors, summarize(plan, tensors) if report else None, seconds)


def _within(memory: int | None, threads: int, tile: int, plans: Sequence[Plan]) -> tuple[int, int]:
    """Fewer threads, then smaller tiles, until the buffers fit the budget."""
    if memory is None:
        return threads, tile
    while True:
        each = buffer_bytes(plans, tile)
        if OVERHEAD + each * threads <= memory:
            return threads, tile
        if threads > 1:
            threads -= 1
        elif tile > CELL:
            tile = max(CELL, tile // 2 // CELL * CELL)
        else:
            raise ResourceError(
                f"this merge needs {number_format.size(OVERHEAD + each)} of memory, more than the "
                f"{number_format.size(memory)} given"
            )


class _Crew:
    """The threads' common ground: the list of work, the outcomes, and the first failure."""

    def __init__(
        self,
        plans: Sequence[Plan],
        sinks: Sequence[Sink],
        tile: int,
        report: bool,
        digest_inputs: bool,
        made: Sequence[Mapping[str, TensorOutcome]],
        on_tensor: Callable[[int, TensorOutcome], None],
        on_event: Listener,
    ) -> None:
        self.outcomes = [dict(known) for known in made]
        self.idle = True
        self._sinks = sinks
        self._on_tensor = on_tensor
        self._on_event = on_event
        wanted = [sink.wants_digests for sink in sinks]
        self._groups = group_jobs(plans, wanted, report, tile, made, digest_inputs)
        self._open = 0
        self._most_open = 1
        self._ready: deque[Tile] = deque()
        self._done = 0
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._counting = threading.Lock()

    def run(self, threads: int) -> None:
        """Work off everything.

        Raises:
            Whatever the first thread that failed raised.
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
                    thread.join(0.2)  # in steps, so that Ctrl-C is heard
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
        worker = Worker(self._sinks)
        try:
            while (tile := self._next()) is not None:
                self._count(tile, worker.do(tile))
        except BaseException as error:
            self._fail(error)

    def _next(self) -> Tile | None:
        """A tile. When none is ready another group is begun: while one is between two rounds, nobody
        has to wait for it."""
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
        tiles = group.next_round()
        with self._changed:
            self._ready.extendleft(reversed(tiles))  # what was begun is finished first
            self._changed.notify_all()

    def _count(self, tile: Tile, made: int) -> None:
        group = tile.group
        with self._counting:
            group.left -= 1
            last = group.left == 0
            if not tile.passes:
                if last:
                    for plan, outcome in group.outcomes():
                        self.outcomes[plan][outcome.name] = outcome
                        self._on_tensor(plan, outcome)
                self._done += made
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
