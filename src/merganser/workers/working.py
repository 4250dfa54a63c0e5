"""A worker: claims a free model of a study, scores it, and claims the next."""

from __future__ import annotations

import faulthandler
import os
import platform
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from merganser.errors import MerganserError, one_line
from merganser.evaluation import judgement_file
from merganser.results.scores import Entry
from merganser.study.live_model import Live
from merganser.study.participants import SAMPLES, StudyModel
from merganser.study.preparing import PreparedStudy, Stage, harness_file
from merganser.study.progress import Event, Listener, Scored, Turn, ignore
from merganser.study.scoring import make_folder
from merganser.study.search_preparing import PreparedSearch
from merganser.workers import study_file
from merganser.workers.candidates import OpenCandidates, take_place
from merganser.workers.claims import Claim, ClaimLost, Claims
from merganser.workers.study_file import FOLDER, StudyFile

WAIT = 1.0
"""Seconds between two checks of models that other workers have claimed."""

WORK = "work"
"""Name of the folder with one folder of completions per claim."""

REPLACE = 75
"""Exit code of a worker that another one should replace: it hangs, or an unexpected error may have spoilt it."""

OnHang = Callable[[str], None]
"""Called with a message when a worker makes no progress, after its unit is free for others."""


def work(
    out: str | Path,
    *,
    threads: int | None = None,
    on_progress: Listener = ignore,
    on_warning: Callable[[str], None] = lambda _: None,
    on_hang: OnHang | None = None,
) -> list[str]:
    """Score models of a study until none is left, together with any number of other workers.

    :func:`merganser.sweep_with_workers` must have begun the study; it also writes the results.

    Args:
        out: the study's folder.
        threads: threads of the merge; None for the default.
        on_progress: called with the progress of the completions.
        on_warning: called when another worker has taken over a model.
        on_hang: called with a message, in a thread, when this worker makes no progress and others may take
            its model; None for ``on_warning``. A process that nothing else needs should end itself.

    Returns:
        The names of the models that this worker scored; none where the study has ended.

    Raises:
        InputError: the folder has no begun study, or this machine has other inputs or versions.
        MerganserError: one of its subclasses, by cause; other workers continue.
    """
    if study_file.is_finished(Path(out)):
        return []
    worker = begin_work(out, threads)
    worker.on_progress, worker.on_warning = on_progress, on_warning
    worker.on_hang = on_hang or on_warning
    with closing(worker.live):
        worker.run()
    if worker.errors:
        raise worker.errors[0]
    home, candidates = worker.prepared.home, worker.candidates
    if candidates and study_file.is_current(home, worker.study) and not candidates.have_ended:
        on_warning(f"{home}: no process leads the search now; run its command again to go on")
    return worker.scored


def begin_work(out: str | Path, threads: int | None) -> Worker:
    """Return a worker for the study in a folder, after checking that this machine sees the same study.

    Args:
        out: the study's folder.
        threads: threads of the merge; None for the default.

    Raises:
        InputError: the folder has no begun study, or this machine has other inputs or versions.
        MerganserError: one of its subclasses, by cause.
    """
    home = Path(os.path.abspath(out))  # noqa: PTH100
    study = study_file.read(home)
    prepared = study.prepare(home)
    live = prepared.make_live(threads)
    study.check_same(study_file.units_of(prepared, live))
    worker = Worker(prepared, study, live)
    if isinstance(prepared, PreparedSearch):
        worker.candidates = OpenCandidates(prepared, study.digest)
    return worker


@dataclass
class Worker:
    """One process that scores models of a study.

    Attributes:
        prepared: the study, planned on this machine.
        study: the study's file.
        live: the live model.
        on_progress: called with the progress of the completions.
        on_warning: called when another worker has taken over a model.
        on_hang: called, in a thread, when this worker makes no progress.
        scored: names of the models that it has scored.
        errors: the errors of models that cannot be scored.
        candidates: the candidates of a search; None for a sweep.
    """

    prepared: PreparedStudy | PreparedSearch
    study: StudyFile
    live: Live
    on_progress: Listener = ignore
    on_warning: Callable[[str], None] = lambda _: None
    on_hang: OnHang = lambda _: None
    scored: list[str] = field(default_factory=list)
    errors: list[MerganserError] = field(default_factory=list)
    candidates: OpenCandidates | None = None

    @property
    def limit(self) -> float:
        """Seconds without progress after which a model is given up; 0 for no limit."""
        # The lm-evaluation-harness reports no progress.
        return 0.0 if self.prepared.block.lm_eval else self.study.stall

    def run(self, claims: Claims | None = None) -> None:
        """Score models until all are done, given up, or failed; those of a search, until it has ended.

        Waits while other workers score the last models, because one of them may die.
        """
        folder = self.prepared.home / FOLDER
        claims = claims or Claims(folder)
        models = self.prepared.models
        turns = [Turn(m.entry.name, n, len(models)) for n, m in enumerate(models, 1)]
        stage = self.prepared.stage(self.live)
        others = list(zip(models, turns, strict=True))
        place: Claim | None = None
        try:
            place = take_place(claims) if self.candidates else None
            while study_file.is_current(self.prepared.home, self.study):
                left = self.candidates is not None and self.candidates.may_grow(claims)
                unit: _Unit | None = None
                for model, turn in [*(self.candidates.turns() if self.candidates else ()), *others]:
                    claim = claims.take(model.entry.name)
                    if claim is not None:
                        unit = _Unit(stage, model, turn, claim, folder, self)
                        break  # then look again: candidates come before base and experts
                    left = left or claims.state(model.entry.name) in ("free", "claimed")
                if unit is None and not left:
                    return
                if unit is None:
                    time.sleep(WAIT if self.candidates is None else WAIT / 4)
                elif study_file.is_current(self.prepared.home, self.study):
                    unit.run()
                else:  # the study has ended, or another one has begun in the folder
                    unit.claim.release()
        except FileNotFoundError:
            if folder.exists():
                raise
        finally:
            if place is not None:
                place.release()
            claims.close()

    def unit(self, name: str) -> Mapping[str, str]:
        """Return what the scores of a model depend on."""
        if self.candidates is None or name in self.study.units:
            return self.study.units[name]
        return self.candidates.unit(name)


@dataclass
class _Unit:
    """One model that a worker has claimed.

    Its completions are written to a private folder. They are moved into the study's folder when all are
    complete, or when this worker stops.
    """

    stage: Stage
    model: StudyModel
    turn: Turn
    claim: Claim
    folder: Path
    worker: Worker
    _last: Scored | None = None

    @property
    def name(self) -> str:
        return self.model.entry.name

    def run(self) -> None:
        own = self.folder / WORK / self.name / self.claim.owner.token
        self.worker.live.on_event = lambda _: self.claim.progress()
        self.claim.watch(self.worker.limit, self._hang)
        try:
            make_folder(own / SAMPLES)
            self._adopt(own)
            entry = self.stage.score(self.model, self._listen, self.turn, own)
            self.claim.check()
            self._hand_over(own, complete=True)
            self.claim.finish(self._record(entry))
            self.worker.scored.append(self.name)
            shutil.rmtree(own.parent, ignore_errors=True)
        except BaseException as error:
            self._stop(error, own)

    def _hang(self, seconds: float) -> None:
        self.worker.on_hang(
            f"no progress on {self.name} for {seconds / 60:.3g} minutes; another worker may take it over"
        )

    def _stop(self, error: BaseException, own: Path) -> None:
        """End the unit after an error; return if the worker can continue with other models."""
        try:
            self.claim.check()
        except ClaimLost:
            self.worker.live.close()
            if not isinstance(error, Exception):
                raise error from None
            self.worker.on_warning(f"another worker has taken over {self.name}")
            return
        with suppress(OSError):
            self._hand_over(own, complete=False)
        notes = [n.replace(str(own), str(self.stage.home)) for n in getattr(error, "__notes__", [])]
        error.__notes__ = notes
        if not isinstance(error, Exception):
            self.claim.release()
            raise error
        known = error if isinstance(error, MerganserError) else _unexpected(error)
        self.worker.errors.append(known)
        self.claim.fail(
            {
                "error": str(known),
                "kind": type(known).__name__,
                "details": known.details,
                "notes": notes,
                "host": platform.node(),
            }
        )
        if known is not error:
            raise error  # the engine, or the whole process, may be spoilt
        self.worker.on_warning(f"{self.name} cannot be scored: {known}")

    def _listen(self, event: Event) -> None:
        self.claim.progress()
        if self.claim.is_lost:
            raise ClaimLost(self.name)
        if isinstance(event, Scored):
            self._last = event
        self.worker.on_progress(event)

    def _adopt(self, own: Path) -> None:
        """Copy the study's completions, and those of workers that died or stopped, to reuse them."""
        places = [self.stage.home, *sorted(own.parent.iterdir())]
        for file in _files(self.model, own)[:-1]:
            parts = [_complete_lines(place / SAMPLES / file.name) for place in places]
            if any(parts):
                file.write_bytes(b"".join(parts))
        harness = harness_file(self.model, own)
        for place in places:
            with suppress(FileNotFoundError):
                shutil.copyfile(place / SAMPLES / harness.name, harness)

    def _hand_over(self, own: Path, *, complete: bool) -> None:
        """Move completions, judgements and scores into the study's folder, completions last."""
        for file in reversed(_files(self.model, own)):
            target = self.stage.home / SAMPLES / file.name
            if file.exists():
                file.replace(target)
            elif complete:
                target.unlink(missing_ok=True)

    def _record(self, entry: Entry) -> dict[str, object]:
        last = self._last
        return {
            "unit": self.worker.unit(self.name),
            "scores": {name: asdict(score) for name, score in entry.scores.items()},
            "completions": last.completions if last else 0,
            "generated": last.generated if last else 0,
            "host": platform.node(),
            "worker": self.claim.owner.worker,
            "process": os.getpid(),
            "weights": dict(entry.weights),
            "effective": dict(entry.effective),
        }


def worker_text(record: Mapping[str, Any]) -> str:
    """Return the worker that wrote a record, as text; empty if it is unknown."""
    if "process" not in record:
        return ""
    host = record.get("host")
    return f"process {record['process']}" + (f" on {host}" if host != platform.node() else "")


def completions_files(folder: Path, name: str) -> list[Path]:
    """Return the files of completions of a model that is being scored, one for each of its workers so far.

    Args:
        folder: the claims' folder.
        name: the model's name.
    """
    return list((folder / WORK / name).glob(f"*/{SAMPLES}/{name}.jsonl"))


def leave(message: str) -> None:
    """End this process, which hangs, and print the stacks of its threads: an ``on_hang``."""
    faulthandler.dump_traceback(sys.stderr)
    print(f"merganser: {message}", file=sys.stderr, flush=True)  # noqa: T201
    os._exit(REPLACE)


def _unexpected(error: Exception) -> MerganserError:
    """Return an exception that is not Merganser's as one of its errors, with the traceback."""
    known = MerganserError(f"{type(error).__name__}: {error}")
    lines = "".join(traceback.format_exception(error)).rstrip().split("\n")
    known.details = "\n".join(map(one_line, lines))
    return known


def _files(model: StudyModel, home: Path) -> list[Path]:
    """Return a model's files in a folder of completions; completions first, scores of the harness last."""
    samples = home / SAMPLES / f"{model.entry.name}.jsonl"
    return [samples, judgement_file.path_of(samples), harness_file(model, home)]


def _complete_lines(file: Path) -> bytes:
    """Return a file's lines without an incomplete last one; empty if there is no file."""
    try:
        head, newline, _ = file.read_bytes().rpartition(b"\n")
    except FileNotFoundError:
        return b""
    return head + newline
