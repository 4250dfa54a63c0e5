"""A worker of a merge: claims a free unit, writes its part of an output file, and claims the next."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from merganser import engine
from merganser.checkpoints.readers import Readers
from merganser.engine.events import Event
from merganser.errors import MerganserError
from merganser.merging.output_folder import NEW, partial_of
from merganser.merging.shared_folder import SHARED, write_result
from merganser.planning import Plan
from merganser.planning.units import Unit, part_of
from merganser.release import manifest
from merganser.sinks import SafetensorsSink
from merganser.workers import merge_job
from merganser.workers.claims import STALL, Claim, ClaimLost, Claims
from merganser.workers.merge_job import Currency, MergeJob

WAIT = 1.0
"""Seconds between two checks of units that other workers have claimed."""


class _Ended(Exception):
    """The merge has ended while a unit was being written."""


def shared_folder_of(out: str | Path) -> Path:
    """Return the folder that the workers of a merge into ``out`` share."""
    return partial_of(Path(os.path.abspath(out))) / SHARED  # noqa: PTH100


def work_on_merge(
    out: str | Path,
    *,
    threads: int | None = None,
    on_warning: Callable[[str], None] = lambda _: None,
    on_hang: Callable[[str], None] | None = None,
) -> list[Unit] | None:
    """Write units of a merge until none is left, together with any number of other workers.

    :func:`merganser.merge_with_workers` must have begun the merge; it also finishes the folder.

    Args:
        out: the output folder.
        threads: number of threads; None for the default.
        on_warning: called when another worker has taken over a unit.
        on_hang: called with a message, in a thread, when this worker makes no progress and others may take
            its unit; None for ``on_warning``.

    Returns:
        The units that this worker wrote, none if the folder is complete; None if there is no such merge.

    Raises:
        InputError: this machine does not see the same inputs.
        MerganserError: one of its subclasses, by cause.
    """
    folder = shared_folder_of(out)
    job = merge_job.read(folder)
    if job is None:
        return [] if (Path(out) / manifest.NAME).is_file() else None
    worker = MergeWorker(job, job.load(), folder, threads, on_warning, on_hang or on_warning)
    worker.run()
    return worker.written


@dataclass
class MergeWorker:
    """One process that writes units of a merge.

    Attributes:
        job: the merge's file.
        plan: the plan.
        folder: the shared folder.
        threads: number of threads; None for the default.
        on_warning: called when another worker has taken over a unit.
        on_hang: called, in a thread, when this worker makes no progress.
        written: the units that it has written.
    """

    job: MergeJob
    plan: Plan
    folder: Path
    threads: int | None = None
    on_warning: Callable[[str], None] = lambda _: None
    on_hang: Callable[[str], None] = lambda _: None
    written: list[Unit] = field(default_factory=list)

    def run(
        self, claims: Claims | None = None, between: Callable[[], object] = lambda: None
    ) -> None:
        """Write units until all are done or given up, or the merge has ended.

        Waits while other workers write the last units, because one of them may die.

        Args:
            claims: the claims; None for those of the shared folder.
            between: called after every unit, and now and then while others write the last ones.

        Raises:
            MerganserError: a unit cannot be written.
        """
        claims = claims or Claims(self.folder)
        current = Currency(self.folder, self.job)
        if not current.holds():  # it ended meanwhile, and the claims have created its folder again
            claims.close()
            with suppress(OSError):
                self.folder.rmdir()
                self.folder.parent.rmdir()
            return
        ended: set[str] = set()
        try:
            with Readers() as readers:
                while True:
                    before, left = len(self.written), False
                    between()
                    for unit in self.job.units:
                        if unit.name in ended:
                            continue
                        if not current.holds():
                            return
                        claim = claims.take(unit.name)
                        if claim is not None and not current.holds():
                            claim.release()  # "done" may have been removed with the merge's file
                            return
                        if claim is not None:
                            self._write(unit, claim, readers, current)
                            between()
                        if claims.state(unit.name) in ("free", "claimed"):
                            left = True
                        else:
                            ended.add(unit.name)
                    if not left:
                        return
                    if len(self.written) == before:
                        time.sleep(WAIT)
        except FileNotFoundError:
            if current.holds():
                raise
        except _Ended:
            return
        finally:
            claims.close()

    def _write(self, unit: Unit, claim: Claim, readers: Readers, current: Currency) -> None:
        began = time.perf_counter()
        try:
            part = part_of(self.plan, unit)

            def hang(seconds: float) -> None:
                self.on_hang(
                    f"no progress on {unit.file} for {seconds / 60:.3g} minutes; another worker may write it"
                )

            def listen(_event: Event) -> None:
                claim.progress()
                if claim.is_lost:
                    raise ClaimLost(unit.name)

            if not self.plan.method.whole:  # a tensor of many may take long
                claim.watch(STALL, hang)
            [outcome] = engine.run(
                [part],
                [
                    SafetensorsSink(
                        self.folder.with_name(NEW), part.shards, part=(unit.begin, unit.end)
                    )
                ],
                threads=self.threads,
                memory=self.job.memory,
                digest_inputs=self.job.digest_inputs,
                readers=readers,
                on_event=listen,
            )
            claim.check()
            write_result(self.folder, unit.name, unit.file, outcome.tensors)
            claim.finish(
                {
                    "host": platform.node(),
                    "process": os.getpid(),
                    "seconds": round(time.perf_counter() - began, 3),
                }
            )
        except ClaimLost:
            self.on_warning(f"another worker has taken over a part of {unit.file}")
            return
        except MerganserError as error:
            if not current.holds():  # its files are gone
                claim.release()
                raise _Ended from None
            kind = type(error).__name__
            try:
                claim.fail({"error": str(error), "kind": kind, "host": platform.node()})
            except ClaimLost:
                self.on_warning(f"another worker has taken over a part of {unit.file}")
                return
            raise
        except BaseException:
            claim.release()
            raise
        self.written.append(unit)
