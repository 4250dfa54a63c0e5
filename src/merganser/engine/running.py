"""Run plans, each into its sink.

Plans that share inputs run together: what several of them need is read once. Every tile is
independent of every other, so any number of threads, in any order, gives the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from merganser.checkpoints import Checkpoint
from merganser.checkpoints.readers import Readers
from merganser.engine.budget import TILE, default_threads, within
from merganser.engine.crew import Crew
from merganser.engine.effective_weights import Report, TensorOutcome, summarize
from merganser.engine.events import Finished, Listener, Started, ignore
from merganser.kernels import CELL
from merganser.planning import Plan
from merganser.sinks import Sink


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
    checkpoints: Mapping[str, Checkpoint] | None = None,
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
        checkpoints: those in memory that the plans read, by the names that recipes have for them.
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
    threads, tile = within(memory, threads or default_threads(plans), tile, plans)
    made = made or [{} for _ in plans]
    to_do = [j for p, known in zip(plans, made, strict=True) for j in p.jobs if j.name not in known]
    with Readers(checkpoints) as readers:
        crew = Crew(plans, sinks, readers, tile, report, digest_inputs, made, on_tensor, on_event)
        on_event(Started(sum(job.spec.nbytes for job in to_do), len(to_do), threads))
        try:
            crew.run(threads)
            for sink in sinks:
                sink.close()
            for plan in plans:
                plan.check_inputs_unchanged()
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
