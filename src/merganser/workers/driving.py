"""Evaluate a sweep with several workers; one process writes the results."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

from merganser import errors, methods
from merganser.errors import MerganserError, OutputExistsError, RecipeError
from merganser.evaluation.engines import EngineName, VllmOptions
from merganser.evaluation.statistics import Score
from merganser.merging.options import MergeKeywords, split_options
from merganser.results import scores as results
from merganser.results.scores import Results
from merganser.study.evaluate import evaluate_sweep
from merganser.study.live_model import Live
from merganser.study.participants import SAMPLES
from merganser.study.preparing import PreparedStudy, prepare
from merganser.study.progress import Event, Listener, Scored, Turn, ignore
from merganser.study.scoring import make_folder
from merganser.study.served_model import ServedModel
from merganser.study.watching import OnResults, no_results
from merganser.tracking import Track, choose
from merganser.workers import study_file
from merganser.workers.claims import TRIES, Claims
from merganser.workers.crew import Crew, Where, parse
from merganser.workers.study_file import FOLDER, StudyFile, units_of
from merganser.workers.working import WAIT, Worker

RESULTS = ".results"
"""Name of the unit for writing the results."""


def sweep_with_workers(
    config: str | Path,
    out: str | Path,
    workers: str,
    *,
    only: Sequence[str] = (),
    write: bool = True,
    engine: EngineName | None = None,
    engine_options: Mapping[str, Any] | None = None,
    allow_code: bool = False,
    track: Track | None = None,
    on_progress: Listener = ignore,
    on_results: OnResults = no_results,
    on_warning: Callable[[str], None] = lambda _: None,
    **options: Unpack[MergeKeywords],
) -> Results:
    """Evaluate a sweep as :func:`merganser.evaluate_sweep` does, with several workers.

    Once all models are scored, ``evaluate_sweep`` runs, reuses every completion, and writes the
    results. Further workers on any machine that sees the folder can help: ``merganser worker OUT``.

    Args:
        config: a file with ``sweep:`` and ``evaluate:`` blocks.
        out: the folder of the study.
        workers: ``local:N`` starts N processes on this machine, ``local:auto`` one per GPU; ``join``
            makes this process a worker, together with others that run the same command.
        only: as for ``evaluate_sweep``.
        write: as for ``evaluate_sweep``.
        engine: as for ``evaluate_sweep``.
        engine_options: as for ``evaluate_sweep``.
        allow_code: as for ``evaluate_sweep``.
        track: as for ``evaluate_sweep``.
        on_progress: as for ``evaluate_sweep``.
        on_warning: as for ``evaluate_sweep``.
        on_results: as for ``evaluate_sweep``; called once all models are scored.
        options: those of :func:`merganser.merge`.

    Returns:
        The results of all entries, as of ``evaluate_sweep``.

    Raises:
        OutputExistsError: workers of another study are at work in the folder.
        MerganserError: one of its subclasses, by cause; scored models keep their completions.
    """
    where = parse(workers)
    planning, writing = split_options(options)
    prepared = prepare(
        config,
        out,
        planning,
        only=only,
        engine=engine,
        engine_options=engine_options,
        allow_code=allow_code,
        on_warning=on_warning,
    )
    choose(track, prepared.block.track)  # what is missing is said before models are scored
    if write:
        prepared.check_ready(writing)
    home = prepared.home
    make_folder(home / SAMPLES)
    with closing(prepared.make_live(writing.threads)) as live:
        if isinstance(live, ServedModel):
            raise RecipeError("workers: the server of engine: endpoint runs its models by itself")
        study = StudyFile(
            config=os.path.relpath(config, home),
            cwd=str(Path.cwd()),
            only=tuple(only),
            engine=engine,
            engine_options=dict(engine_options or {}),
            allow_code=allow_code,
            planning=asdict(planning),
            methods=tuple(os.path.relpath(file, home) for file in methods.loaded_files()),
            units=units_of(prepared, live),
        )
        with _begun(study, prepared, live) as claims:
            shown = _Shown(claims, study, on_progress)
            if where.is_local:
                _lead(study, prepared, where, claims, writing.threads, shown)
            else:
                worker = Worker(prepared, study, live, shown.listen, on_warning)
                worker.run(claims)
                if worker.errors:
                    raise worker.errors[0]
            live.close()
            _check_all_done(study, claims)
            return _finish(
                home,
                claims,
                lambda: evaluate_sweep(
                    config,
                    out,
                    only=only,
                    write=write,
                    engine=engine,
                    engine_options=engine_options,
                    allow_code=allow_code,
                    track=track,
                    on_progress=shown.listen,
                    on_results=on_results,
                    on_warning=on_warning,
                    **options,
                ),
            )


@contextmanager
def _begun(study: StudyFile, prepared: PreparedStudy, live: Live) -> Iterator[Claims]:
    """Write the study's file, or join its workers if it exists; yield the claims.

    Models that are scored already are marked as done; failures of an earlier run are removed.
    """
    claims = Claims(prepared.home / FOLDER)
    try:
        if not study_file.is_current(prepared.home, study):
            if (prepared.home / FOLDER / study_file.NAME).exists():
                _check_idle(prepared.home, claims)
            study.write(prepared.home)
        if claims.state(RESULTS) == "given up":
            claims.forget(RESULTS)
        stage = prepared.stage(live)
        for model in prepared.models:
            name = model.entry.name
            state = claims.state(name)
            is_same = claims.record(name).get("unit") == study.units[name]
            if state in ("failed", "given up") or (state == "done" and not is_same):
                claims.forget(name)
                state = "free"
            if state == "free" and stage.is_complete(model) and (claim := claims.take(name)):
                claim.finish({"unit": study.units[name]})
        yield claims
    finally:
        claims.close()


def _check_idle(home: Path, claims: Claims) -> None:
    """Check that no worker is at work on another study in the same folder.

    Raises:
        OutputExistsError: a worker is.
    """
    for name in study_file.read(home).units:
        claim = claims.take(name)
        if claim is not None:
            claim.release()
        elif claims.state(name) == "claimed":
            raise OutputExistsError(
                f"{home}: workers score other models there, such as {name}; wait for them, or choose another OUT"
            )


def _lead(
    study: StudyFile,
    prepared: PreparedStudy,
    where: Where,
    claims: Claims,
    threads: int | None,
    shown: _Shown,
) -> None:
    """Start workers on this machine, replace those that die, and wait until all models have ended.

    Raises:
        MerganserError: no worker can start; the message is the last worker's.
    """
    devices = 1
    if isinstance(prepared.engine, VllmOptions):
        devices = prepared.engine.tensor_parallel_size
    names = list(study.units)
    with Crew(prepared.home, where, devices, threads, most=len(names) * TRIES + TRIES) as crew:
        while any(claims.state(name) in ("free", "claimed") for name in names):
            shown.look()
            for process in crew.collect():
                for name in names:
                    claims.lose(name, platform.node(), process)
            crew.check()
            time.sleep(WAIT / 2)
        shown.look()


def _check_all_done(study: StudyFile, claims: Claims) -> None:
    """Check that every model was scored.

    Raises:
        MerganserError: a model failed, or its workers died; the message names the first such model.
    """
    if not claims.folder.exists():  # another process has written the results
        return
    for name in study.units:
        state, record = claims.state(name), claims.record(name)
        if state == "failed":
            kind = getattr(errors, str(record.get("kind")), MerganserError)
            raise kind(f"model {name}, on {record.get('host')}: {record.get('error')}")
        if state == "given up":
            died = ", ".join(map(str, claims.tried(name)))
            raise MerganserError(
                f"model {name}: {TRIES} workers died while they scored it ({died}); "
                "is there enough memory? The others' scores stay; run the command again to try once more"
            )


def _finish(home: Path, claims: Claims, evaluate: Callable[[], Results]) -> Results:
    """Write the results, or wait for the process that writes them; then remove the claims.

    Raises:
        MerganserError: three processes died while writing them.
    """
    while True:
        try:
            claim = claims.take(RESULTS)
        except FileNotFoundError:
            claim = None
        if claim is not None:
            try:
                found = evaluate()
            except BaseException:
                claim.release()
                raise
            (home / FOLDER / study_file.NAME).unlink(missing_ok=True)
            claim.release()
            shutil.rmtree(home / FOLDER, ignore_errors=True)
            return found
        if not (home / FOLDER / study_file.NAME).exists():
            return results.read(home)
        if claims.state(RESULTS) == "given up":
            died = ", ".join(map(str, claims.tried(RESULTS)))
            raise MerganserError(
                f"{home}: {TRIES} processes died while they wrote the results ({died}); "
                "every score is stored; run the command again to try once more"
            )
        time.sleep(WAIT)


class _Shown:
    """Reports every model's scores once, whichever process has scored the model."""

    def __init__(self, claims: Claims, study: StudyFile, listener: Listener) -> None:
        self._claims = claims
        self._listener = listener
        names = list(study.units)
        self._turns = {name: Turn(name, n, len(names)) for n, name in enumerate(names, 1)}
        self._seen: set[str] = set()

    def look(self) -> None:
        """Report the scores of models that were done since the last call."""
        for name, turn in self._turns.items():
            if name in self._seen or self._claims.state(name) != "done":
                continue
            record = self._claims.record(name)
            if "scores" in record:
                scores = {key: Score(**values) for key, values in record["scores"].items()}
                event = Scored(turn, scores, record["completions"], record["generated"])
                self._listener(event)
                self._seen.add(name)

    def listen(self, event: Event) -> None:
        """Report an event of this process."""
        name = event.turn.model
        if name in self._seen:
            return
        if isinstance(event, Scored) and name in self._turns:
            self._seen.add(name)
        self._listener(event)
