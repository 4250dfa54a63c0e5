"""Evaluate a sweep with several workers; one process writes the results."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

from merganser import errors, extras, methods
from merganser.errors import MerganserError, OutputExistsError, RecipeError
from merganser.evaluation.engines import VllmOptions
from merganser.evaluation.statistics import Score
from merganser.evaluation.tasks import Task
from merganser.merging.options import split_options
from merganser.results import scores as results
from merganser.results.scores import Results
from merganser.study.evaluate import SweepKeywords, evaluate_prepared
from merganser.study.live_model import Live
from merganser.study.participants import SAMPLES
from merganser.study.preparing import PreparedStudy, prepare
from merganser.study.progress import Event, Listener, Scored, Sharing, Turn, ignore
from merganser.study.scoring import make_folder, to_redo
from merganser.study.search_preparing import PreparedSearch
from merganser.study.served_model import ServedModel
from merganser.study.watching import no_results
from merganser.tracking import choose
from merganser.workers import study_file
from merganser.workers.claims import STALL, TRIES, Claims
from merganser.workers.crew import Crew, LocalCrew, Where, parse
from merganser.workers.study_file import FOLDER, StudyFile, units_of
from merganser.workers.working import WAIT, OnHang, Worker, completions_files, worker_text

RESULTS = ".results"
"""Name of the unit for writing the results."""

LOOK = 10.0
"""Seconds between two looks for workers that lost their claims, or that another process left."""

HUNG = "if it may take as long between two tokens, give more seconds, such as stall=7200."
"""The advice on a model without progress."""

CHOICES = ("only", "engine", "engine_options", "allow_code")
"""The options of a sweep that its plans depend on, and that workers need."""

Warn = Callable[[str], None]


def sweep_with_workers(
    config: str | Path,
    out: str | Path,
    workers: str,
    *,
    stall: float = STALL,
    on_hang: OnHang | None = None,
    **options: Unpack[SweepKeywords],
) -> Results:
    """Evaluate a sweep as :func:`merganser.evaluate_sweep` does, with several workers.

    Once all models are scored, this process reads every completion and writes the results. Further
    workers on any machine that sees the folder can help: ``merganser worker OUT``.

    Args:
        config: a file with ``sweep:`` and ``evaluate:`` blocks.
        out: the folder of the study.
        workers: ``local:N`` starts N processes on this machine, ``local:auto`` one per GPU; ``ray``,
            ``ray:N`` and ``ray://HOST:PORT`` start workers on the nodes of a Ray cluster; ``join`` makes this
            process a worker, together with others that run the same command.
        stall: seconds without progress after which a worker hangs, and its model goes to another;
            0 for no limit.
        on_hang: with ``join``, called with a message, in a thread, when this process hangs; None for
            ``on_warning``.
        options: those of ``evaluate_sweep``. ``on_results`` is called once all models are scored.

    Returns:
        The results of all entries, as of ``evaluate_sweep``.

    Raises:
        OutputExistsError: workers of another study are at work in the folder.
        InputError: a node of the cluster does not see a file.
        MerganserError: one of its subclasses, by cause; scored models keep their completions.
    """
    where = parse(workers)
    if where.kind == "ray":
        extras.check("ray", "ray")
    given: Any = dict(options)
    choices = {key: given.pop(key) for key in CHOICES if key in given}
    write, track = given.pop("write", True), given.pop("track", None)
    on_results = given.pop("on_results", no_results)
    on_progress: Listener = given.pop("on_progress", ignore)
    on_warning: Warn = given.pop("on_warning", lambda _: None)
    planning, writing = split_options(given)
    prepared = prepare(config, out, planning, on_warning=on_warning, **choices)
    choose(track, prepared.block.track)  # what is missing is said before models are scored
    if write:
        prepared.check_ready(writing)
    home = prepared.home
    make_folder(home / SAMPLES)
    with closing(prepared.make_live(writing.threads)) as live:
        if isinstance(live, ServedModel):
            raise RecipeError("workers: the server of engine: endpoint runs its models by itself")
        for line in to_redo(prepared.models, prepared.seen, live, home):
            on_warning(line)
        study = StudyFile(
            kind="sweep",
            config=os.path.relpath(config, home),
            cwd=str(Path.cwd()),
            only=tuple(choices.get("only", ())),
            engine=choices.get("engine"),
            engine_options=dict(choices.get("engine_options") or {}),
            allow_code=choices.get("allow_code", False),
            planning=asdict(planning),
            methods=tuple(os.path.relpath(file, home) for file in methods.loaded_files()),
            units=units_of(prepared, live),
            stall=stall,
        )
        with begun(study, prepared, live) as claims:
            names = list(study.units)
            shown = Shown(claims, names, completions_of(prepared.seen), on_progress, on_warning)
            if where.kind == "join":
                worker = Worker(
                    prepared, study, live, shown.listen, on_warning, on_hang or on_warning
                )
                worker.run(claims)
                if worker.errors:
                    raise worker.errors[0]
            elif any(claims.state(name) in ("free", "claimed") for name in study.units):
                most = len(study.units) * TRIES + TRIES
                with make_crew(
                    where, study, prepared, live, writing.threads, most, shown.warn
                ) as crew:
                    lead(crew, claims, names, shown.look)
            live.close()
            check_all_done(study, claims)
            return _finish(
                home,
                claims,
                lambda: evaluate_prepared(
                    prepared,
                    writing,
                    write=write,
                    track=track,
                    on_progress=shown.listen,
                    on_results=on_results,
                    on_warning=on_warning,
                ),
            )


def make_crew(
    where: Where,
    study: StudyFile,
    prepared: PreparedStudy | PreparedSearch,
    live: Live,
    threads: int | None,
    most: int,
    on_warning: Warn,
) -> Crew[Any]:
    """Return the workers that this process starts and stops."""
    devices = 1
    if isinstance(prepared.engine, VllmOptions):
        devices = prepared.engine.tensor_parallel_size
    home = prepared.home
    if where.kind == "local":
        return LocalCrew(home, where.count, devices, threads, most=most, on_warning=on_warning)
    from merganser.workers.inputs import inputs_of
    from merganser.workers.ray_crew import RayCrew

    return RayCrew(
        home,
        where,
        devices if live.device.startswith("cuda") else 0,
        threads,
        inputs_of(study, prepared),
        most=most,
        on_warning=on_warning,
    )


def lead(crew: Crew[Any], claims: Claims, names: Sequence[str], look: Callable[[], None]) -> None:
    """Wait until all units have ended; free the units of workers that die, at once.

    Args:
        crew: the workers, which have been started.
        claims: the claims of the units.
        names: the units; ``look`` may change this list.
        look: called twice a second, and at the end.

    Raises:
        MerganserError: all workers have ended; the message is the last one's error.
    """

    def free(worker: str) -> None:
        for name in names:
            claims.lose(name, worker)

    def left() -> bool:
        return any(claims.state(name) in ("free", "claimed") for name in names)

    looked = time.monotonic() - LOOK
    while left():
        look()
        crew.collect(free)
        if time.monotonic() - looked >= LOOK:
            looked = time.monotonic()
            owners = [claims.owner(name) for name in names]
            for worker in crew.gone({owner.worker for owner in owners if owner}):
                free(worker)
            for name in names:
                for owner in claims.tried(name):
                    crew.end(owner.worker)  # it lost a claim and goes on: it hangs, or nearly so
        if left():  # workers may have ended since, because all is done
            crew.check()
        time.sleep(WAIT / 2)
    look()


@contextmanager
def begun(
    study: StudyFile, prepared: PreparedStudy | PreparedSearch, live: Live
) -> Iterator[Claims]:
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


def check_all_done(study: StudyFile, claims: Claims) -> None:
    """Check that every model was scored.

    Raises:
        MerganserError: a model failed, or its workers died; the message names the first such model.
    """
    if not claims.folder.exists():  # another process has written the results
        return
    for name in study.units:
        state, record = claims.state(name), claims.record(name)
        if state == "failed":
            raise failure_of(f"model {name}", record)
        if state == "given up":
            raise MerganserError(
                f"model {name}: {deaths(claims, name)} The others' scores stay; run the command again to "
                "try once more"
            )


def failure_of(what: str, record: Mapping[str, Any]) -> MerganserError:
    """Return the error that a worker recorded.

    Args:
        what: the unit that cannot be scored.
        record: the unit's record.
    """
    kind = getattr(errors, str(record.get("kind")), MerganserError)
    failure: MerganserError = kind(f"{what}, on {record.get('host')}: {record.get('error')}")
    failure.details = str(record.get("details", ""))
    failure.__notes__ = list(record.get("notes", []))
    return failure


def deaths(claims: Claims, name: str) -> str:
    """Return who died with a unit that is given up, and what to do about it."""
    lost = claims.tried(name)
    hung = any(owner.hung for owner in lost)
    return (
        f"{TRIES} workers died{' or hung' if hung else ''} while they scored it "
        f"({'; '.join(map(str, lost))}); {HUNG if hung else 'is there enough memory?'}"
    )


def completions_of(tasks: Sequence[Task]) -> int:
    """Return the number of completions that tasks require of a model."""
    return sum(len(task.problems) * task.samples for task in tasks)


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


class Shown:
    """Reports every model's scores or failure once, whichever process has scored the model."""

    def __init__(
        self,
        claims: Claims,
        names: Sequence[str],
        completions: int,
        listener: Listener,
        on_warning: Warn,
    ) -> None:
        self._claims = claims
        self._completions = completions
        self._listener = listener
        self._on_warning = on_warning
        self._failures: dict[str, str] = {}
        self._read: dict[Path, tuple[int, int]] = {}
        self._turns = {name: Turn(name, n, len(names)) for n, name in enumerate(names, 1)}
        self._seen: set[str] = set()
        self._candidates: Callable[[], tuple[Sequence[str], int, int]] = lambda: ((), 0, 0)

    def look(self) -> None:
        """Report the scores of models that were done since the last call, and those that failed."""
        for name, turn in self._turns.items():
            state = "seen" if name in self._seen else self._claims.state(name)
            if state not in ("done", "failed"):
                continue
            record = self._claims.record(name)
            if state == "failed" and name not in self._failures:
                self._failures[name] = str(record.get("error"))
                self._on_warning(f"{name} cannot be scored: {self._failures[name]}")
            if "scores" in record:
                scores = {key: Score(**values) for key, values in record["scores"].items()}
                event = Scored(
                    turn,
                    scores,
                    record["completions"],
                    record["generated"],
                    worker_text(record),
                )
                self._listener(event)
                self._seen.add(name)
        self._share(*self._candidates())

    def follow(self, candidates: Callable[[], tuple[Sequence[str], int, int]]) -> None:
        """Count the candidates of a search too.

        Args:
            candidates: returns the names of those that await scores, the number of those that have some, and
                the number of all.
        """
        self._candidates = candidates

    def _share(self, candidates: Sequence[str], scored: int, budget: int) -> None:
        """Report the progress of all models together, by the completions that workers have stored.

        See :meth:`follow` for the arguments.
        """
        if self._listener is ignore:
            return
        states = {name: self._claims.state(name) for name in (*self._turns, *candidates)}
        working = [name for name, state in states.items() if state == "claimed"]
        scored += sum(states[name] == "done" for name in self._turns)
        done = scored * self._completions
        for name in working:
            files = completions_files(self._claims.folder, name)
            done += max(map(self._lines, files), default=0)
        models = len(self._turns) + budget
        total = models * self._completions
        self._listener(Sharing(scored, models, len(working), done, total))

    def _lines(self, file: Path) -> int:
        """Return a file's number of lines, reading what is new since the last call."""
        place, lines = self._read.get(file, (0, 0))
        with suppress(FileNotFoundError), file.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size < place:  # it was written anew
                place = lines = 0
            stream.seek(place)
            new = stream.read()
            place, lines = place + len(new), lines + new.count(b"\n")
            self._read[file] = place, lines
        return lines

    def warn(self, text: str) -> None:
        """Report a worker's error, unless it is a model's, which is reported already."""
        if not any(failure in text for failure in self._failures.values()):
            self._on_warning(text)

    def listen(self, event: Event) -> None:
        """Report an event of this process."""
        if isinstance(event, Sharing):
            return
        name = event.turn.model
        if name in self._seen:
            return
        if isinstance(event, Scored) and name in self._turns:
            self._seen.add(name)
        self._listener(event)
