"""Run plans, each into a sink.

Plans with common inputs run together, so that each input is read once. Tiles are independent:
any number of threads, in any order, gives the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
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
    """The result of running one plan.

    Attributes:
        tensors: digests and measurements, in the plan's order.
        report: effective weights, or None if there is nothing to compare.
        seconds: duration of the run, for all of its plans together.
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
    readers: Readers | None = None,
    on_tensor: Callable[[int, TensorOutcome], None] = lambda _index, _outcome: None,
    on_event: Listener = ignore,
) -> list[Outcome]:
    """Run plans together, in one pass over their inputs, each into its sink.

    Args:
        plans: plans over shared inputs; sources with the same reference are the same model.
        sinks: one :class:`merganser.Sink` for each plan; it gets the merged tensors.
        threads: number of threads; None for the default.
        memory: memory limit of the process in bytes, which bounds the buffers; None for no limit.
        tile: elements per tile, a multiple of a cell; it does not affect the result.
        report: whether to measure effective weights.
        digest_inputs: whether to compute digests of all input tensors.
        made: for each plan the results of finished tensors, by name; these are skipped.
        checkpoints: checkpoints in memory, by their names in recipes.
        readers: the inputs, open for several runs; None to open and close them here.
        on_tensor: called from any thread with each finished tensor and the index of its plan.
        on_event: called with progress events.

    Returns:
        One outcome for each plan: digests of its tensors, effective weights, and seconds.

    Raises:
        InputError: when a checkpoint is corrupt, or changes during the run.
        ResourceError: when the memory limit is too low, or an output cannot be written.
        ValueError: when the numbers of plans and sinks differ.
        TypeError: when an argument is not a plan or a sink.
    """
    began = time.perf_counter()
    _check_arguments(plans, sinks)
    if tile <= 0 or tile % CELL:
        raise ValueError(f"a tile is a multiple of {CELL} elements")
    threads, tile = within(memory, threads or default_threads(plans), tile, plans)
    made = made or [{} for _ in plans]
    to_do = [j for p, known in zip(plans, made, strict=True) for j in p.jobs if j.name not in known]
    with nullcontext(readers) if readers is not None else Readers(checkpoints) as opened:
        crew = Crew(plans, sinks, opened, tile, report, digest_inputs, made, on_tensor, on_event)
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
        _outcome(plan, tensors, report, seconds)
        for plan, tensors in zip(plans, crew.outcomes, strict=True)
    ]


def _check_arguments(plans: Sequence[Plan], sinks: Sequence[Sink]) -> None:
    if len(plans) != len(sinks):
        raise ValueError(f"{len(plans)} plans for {len(sinks)} sinks: give one sink for each plan")
    for plan in plans:
        if not isinstance(plan, Plan):
            raise TypeError(
                f"run takes plans, not {type(plan).__name__}: merganser.plan(recipe) makes one"
            )
    for sink in sinks:
        if not isinstance(sink, Sink):
            raise TypeError(
                f"run takes sinks, not {type(sink).__name__}: merganser.Sink is their base class"
            )


def _outcome(
    plan: Plan, outcomes: dict[str, TensorOutcome], report: bool, seconds: float
) -> Outcome:
    tensors = tuple(outcomes[job.name] for job in plan.jobs)
    return Outcome(tensors, summarize(plan, tensors) if report else None, seconds)
