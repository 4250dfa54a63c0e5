"""Merge with several workers; one process joins their results and finishes the folder."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

from merganser import engine, errors, extras
from merganser.checkpoints import Checkpoint
from merganser.engine.effective_weights import summarize
from merganser.engine.events import Finished, Merged, Started
from merganser.errors import MerganserError, OutputExistsError, RecipeError, reraise_os_errors
from merganser.merging.lock import LockedError
from merganser.merging.merge import write_merge
from merganser.merging.multistage import merge_all, up_to_date
from merganser.merging.options import MergeKeywords, WriteOptions, split_options
from merganser.merging.output_folder import Partial, partial_of
from merganser.merging.recorded_outcomes import are_stored, outcome_of
from merganser.merging.result import MergeResult
from merganser.merging.shared_folder import SHARED, check_no_workers, is_dead, read_result
from merganser.planning import Config, Plan, PlanOptions, make_plan
from merganser.planning.units import Unit, names_in, split
from merganser.recipe.steps import load_steps
from merganser.workers import merge_job
from merganser.workers.claims import TRIES, Claims
from merganser.workers.crew import Crew, LocalCrew, Where, parse
from merganser.workers.driving import lead
from merganser.workers.merge_job import MergeJob
from merganser.workers.merge_worker import MergeWorker

WAIT = 0.5
"""Seconds between two looks at the workers' results."""


class _WrittenMeanwhile(Exception):
    """Another process has finished the folder."""


@dataclass(frozen=True, slots=True)
class SharedMerge:
    """The result of a merge with workers.

    Attributes:
        results: the results of the merges that this process finished; empty if another process did.
        shares: bytes of output by worker, as far as this process joined them.
        written: bytes of output that this process wrote.
    """

    results: tuple[MergeResult, ...]
    shares: Mapping[str, int]
    written: int = 0


def merge_with_workers(
    config: Config | Plan,
    out: str | Path,
    workers: str,
    *,
    resume: bool = False,
    checkpoints: Mapping[str, Checkpoint] | None = None,
    intermediate_dir: str | Path | None = None,
    redo: bool = False,
    unit_bytes: int | None = None,
    on_warning: Callable[[str], None] = lambda _: None,
    **options: Unpack[MergeKeywords],
) -> SharedMerge:
    """Merge as :func:`merganser.merge_all` does, with several workers; the folder has the same bytes.

    The output files are split into units, which workers claim one after the other. All that they share
    is the output's file system. Further workers on any machine that sees it can help: ``merganser
    worker OUT``.

    Args:
        config: a recipe, or a file with several; or a plan.
        out: the output folder.
        workers: ``local:N`` starts N processes on this machine, ``local:auto`` one per four cores;
            ``ray``, ``ray:N`` and ``ray://HOST:PORT`` start workers on the nodes of a Ray cluster;
            ``join`` makes this process a worker, together with others that run the same command.
        resume: as for ``merge``; ``join`` always resumes the same merge.
        checkpoints: as for ``merge``; they must be in files that all workers see.
        intermediate_dir: as for ``merge_all``.
        redo: as for ``merge_all``.
        unit_bytes: the size above which an output file is split; None for one that suits its size.
        on_warning: called when another worker has taken over a unit of this process.
        options: those of :func:`merganser.merge`; threads and memory are those of each process.

    Returns:
        The results, and which worker wrote how much.

    Raises:
        MerganserError: one of its subclasses, by cause, as of ``merge``; finished units stay for
            ``resume``.
    """
    where = parse(workers)
    planning, writing = split_options(options)
    run = SharedRun(Path(os.path.abspath(out)), where, unit_bytes, on_warning)  # noqa: PTH100
    if where.kind == "ray":
        extras.check("ray", "ray")
    if where.kind == "join":
        if isinstance(config, Plan):
            plan = config
        else:
            steps = load_steps(config, planning.strictness)
            if len(steps) > 1:
                raise RecipeError(
                    f"workers=join: merges one recipe, and the file has {len(steps)}, of which one needs "
                    "another's result; local:N merges them in turn"
                )
            plan = make_plan(steps[0].parsed, planning, checkpoints=checkpoints)
        return _join(plan, run, writing)
    if isinstance(config, Plan) or checkpoints:
        merged = write_merge(
            config,
            out,
            planning,
            writing,
            resume=resume,
            checkpoints=checkpoints,
            runner=run,
        )
        return SharedMerge((merged,), run.shares)
    chain = merge_all(
        config,
        out,
        intermediate_dir=intermediate_dir,
        redo=redo,
        resume=resume,
        runner=run,
        **options,
    )
    return SharedMerge(tuple(step.merged for step in chain if step.merged), run.shares)


def _join(plan: Plan, run: SharedRun, options: WriteOptions) -> SharedMerge:
    """Write the folder as driver, or help the process that does; take its place if it dies."""
    folder, written = run.out, 0
    while True:
        try:
            if up_to_date(folder, plan):
                return SharedMerge((), {}, written)
            leftover = None if options.force else True
            merged = write_merge(plan, folder, PlanOptions(), options, resume=leftover, runner=run)
            return SharedMerge((merged,), run.shares, written + run.written)
        except _WrittenMeanwhile:
            return SharedMerge((), {}, written)
        except OutputExistsError as error:
            if up_to_date(folder, plan):
                return SharedMerge((), {}, written)
            if not isinstance(error, LockedError):
                raise
        written += _help(plan, run, options)
        time.sleep(WAIT)


def _help(plan: Plan, run: SharedRun, options: WriteOptions) -> int:
    """Write units for another process; return their bytes."""
    shared = partial_of(run.out) / SHARED
    job = merge_job.read(shared)
    if job is None:
        return 0
    if job.plan["digest"] != plan.digest:
        raise OutputExistsError(f"{run.out}: workers write another merge there; choose another OUT")
    job.check_inputs()
    worker = MergeWorker(job, plan, shared, options.threads, run.on_warning)
    worker.run()
    return sum(unit.size for unit in worker.written)


@dataclass
class SharedRun:
    """Runs plans with workers: a :data:`merganser.merging.folders.Runner`.

    Attributes:
        out: the output folder of the command.
        where: which workers.
        unit_bytes: the size above which a file is split; None for the default.
        on_warning: called when another worker has taken over a unit of this process.
        shares: bytes of output by worker.
        written: bytes of output that this process wrote.
    """

    out: Path
    where: Where
    unit_bytes: int | None = None
    on_warning: Callable[[str], None] = lambda _: None
    shares: dict[str, int] = field(default_factory=dict)
    written: int = 0

    def __call__(
        self,
        partial: Partial,
        options: WriteOptions,
        take_note: Callable[[engine.TensorOutcome], None],
    ) -> engine.Outcome:
        """Have all units of an unfinished folder written, and join the results.

        Raises:
            MerganserError: a unit failed, or its workers died.
        """
        began = time.perf_counter()
        plan = partial.plan
        if self.where.kind == "join" and up_to_date(partial.folder, plan):
            raise _WrittenMeanwhile
        job = MergeJob.of(plan, split(plan, self.unit_bytes), options)
        with reraise_os_errors(errors.ResourceError, "written", partial.shared):
            claims = Claims(partial.shared)
            joined = _Joined(partial, job, claims, take_note, options, self.shares)
            try:
                _begin(job, partial, claims)
                joined.start()
                if self.where.kind == "join":
                    worker = MergeWorker(
                        job,
                        plan,
                        partial.shared,
                        options.threads,
                        self.on_warning,
                        self.on_warning,
                    )
                    while joined.collect():
                        worker.run(claims, joined.collect)
                    self.written += sum(unit.size for unit in worker.written)
                while joined.collect():
                    names = [unit.name for unit in joined.waiting]
                    with self._crew(partial, len(names), options.threads) as crew:
                        lead(crew, claims, names, joined.look)
            finally:  # workers stop, before anything else of the folder is removed
                (partial.shared / merge_job.NAME).unlink(missing_ok=True)
                claims.close()
        plan.check_inputs_unchanged()
        seconds = time.perf_counter() - began
        options.on_event(Finished(seconds))
        tensors = tuple(joined.known[job.name] for job in plan.jobs)
        return engine.Outcome(tensors, summarize(plan, tensors), seconds)

    def _crew(self, partial: Partial, units: int, threads: int | None) -> Crew[Any]:
        """Return the workers that this process starts and stops."""
        most = units * TRIES + TRIES
        if self.where.kind == "local":
            return LocalCrew(
                partial.folder,
                self.where.count,
                0,
                threads,
                most=most,
                on_warning=self.on_warning,
                logs=partial.shared,
            )
        from merganser.workers.inputs import inputs_of_merge
        from merganser.workers.ray_crew import RayCrew

        inputs = inputs_of_merge(partial.shared / merge_job.NAME, partial.plan)
        return RayCrew(
            partial.folder,
            self.where,
            0,
            threads,
            inputs,
            most=most,
            on_warning=self.on_warning,
            scores=False,
        )


def _begin(job: MergeJob, partial: Partial, claims: Claims) -> None:
    """Write the merge's file; keep the units of an earlier run that are on the disk, try others again."""
    plan, folder = partial.plan, partial.shared
    before = merge_job.read(folder)
    if before is not None and before.digest != job.digest:
        check_no_workers(folder)
        for file in folder.iterdir():
            if file.suffix in (".result", ".done", ".failed", ".lost", ".claim"):
                file.unlink(missing_ok=True)
    specs = {entry.name: entry.spec for entry in plan.jobs}
    shards = {shard.file: shard for shard in plan.shards}
    for unit in job.units:
        state = claims.state(unit.name)
        if unit.file in partial.journal.finished:
            if state in ("failed", "given up"):
                claims.forget(unit.name)
            if state != "done" and (claim := claims.take(unit.name)) is not None:
                claim.finish({})
        elif state == "done":
            entries, shard = read_result(folder, unit.name) or {}, shards[unit.file]
            if not _is_complete(
                entries, names_in(shard, unit), job.digest_inputs
            ) or not are_stored(
                partial.new / unit.file, shard, entries, specs, header=unit.begin == 0
            ):
                claims.forget(unit.name)
        elif state in ("failed", "given up"):
            claims.forget(unit.name)
        elif state == "claimed":
            _lose_dead(claims, unit.name)
    job.write(folder)


def _lose_dead(claims: Claims, unit: str) -> None:
    """Free a unit whose worker has ended on this machine, without waiting until its claim is stale."""
    owner = claims.owner(unit)
    if owner is not None and is_dead({"host": owner.host, "process": owner.process}):
        claims.lose(unit, owner.worker)


def _is_complete(entries: Mapping[str, Any], names: tuple[str, ...], digest_inputs: bool) -> bool:
    """Whether a unit's results have all of its tensors, with the inputs' digests if they are wanted."""
    return entries.keys() == set(names) and (
        not digest_inputs or all(entry.get("inputs") for entry in entries.values())
    )


class _Joined:
    """Joins the results of units as they are done, and passes them to the journal.

    Attributes:
        known: the outcomes of all joined tensors, by name.
        waiting: the units that are not joined yet.
    """

    def __init__(
        self,
        partial: Partial,
        job: MergeJob,
        claims: Claims,
        take_note: Callable[[engine.TensorOutcome], None],
        options: WriteOptions,
        shares: dict[str, int],
    ) -> None:
        finished = partial.journal.finished
        self.known = dict(partial.known)
        self.waiting = [unit for unit in job.units if unit.file not in finished]
        self._partial = partial
        self._job = job
        self._claims = claims
        self._take_note = take_note
        self._on_event = options.on_event
        self._shares = shares
        self._specs = {job.name: job.spec for job in partial.plan.jobs}
        self._shards = {shard.file: shard for shard in partial.plan.shards}
        self._done = 0

    def start(self) -> None:
        """Report the begin of the merge."""
        total = sum(unit.size for unit in self.waiting)
        tensors = len(self._specs) - len(self.known)
        self._on_event(Started(total, tensors, 1))

    def collect(self) -> bool:
        """Join the units that were done since the last call.

        Returns:
            Whether units are missing.

        Raises:
            MerganserError: a unit failed, or its workers died.
        """
        for unit in list(self.waiting):
            state = self._claims.state(unit.name)
            if state == "done":
                self._join(unit)
            elif state in ("failed", "given up"):
                self._raise(unit, state)
        return bool(self.waiting)

    def look(self) -> None:
        """Join units, as :meth:`collect` does."""
        self.collect()

    def _join(self, unit: Unit) -> None:
        names = names_in(self._shards[unit.file], unit)
        entries = read_result(self._partial.shared, unit.name) or {}
        if not _is_complete(entries, names, self._job.digest_inputs):
            self._claims.forget(unit.name)  # the system stopped while the results were written
            return
        for name in names:
            outcome = outcome_of(name, self._specs[name], entries[name])
            self._take_note(outcome)
            self.known[name] = outcome
        self.waiting.remove(unit)
        if all(other.file != unit.file for other in self.waiting):
            self._partial.journal.note_file(unit.file)
        record = self._claims.record(unit.name)
        worker = f"process {record.get('process')} on {record.get('host')}"
        self._shares[worker] = self._shares.get(worker, 0) + unit.size
        self._done += unit.size
        self._on_event(Merged(names[-1] if names else unit.file, self._done))

    def _raise(self, unit: Unit, state: str) -> None:
        if state == "failed":
            record = self._claims.record(unit.name)
            kind = getattr(errors, str(record.get("kind")), MerganserError)
            host = record.get("host")
            place = "" if host == platform.node() else f" (on {host})"
            raise kind(f"{record.get('error')}{place}")
        died = ", ".join(map(str, self._claims.tried(unit.name)))
        raise MerganserError(
            f"{unit.file}: {TRIES} workers died while they wrote it ({died}); is there enough memory?"
        )
