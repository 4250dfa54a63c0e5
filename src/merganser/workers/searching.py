"""Search with several workers: one process proposes candidates, and all others score them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

from merganser import methods
from merganser.errors import MerganserError, OutputExistsError
from merganser.merging.options import split_options
from merganser.results import scores as results
from merganser.study import search_loop
from merganser.study.exploration import Candidate, Exploration, Preparer, Trial, checked
from merganser.study.live_model import Live
from merganser.study.participants import SAMPLES
from merganser.study.progress import Listener, ignore
from merganser.study.scoring import make_folder, to_redo
from merganser.study.search import (
    PREPARING,
    SearchKeywords,
    SearchResult,
    run_search,
)
from merganser.study.search_loop import Scorer, Standing
from merganser.study.search_preparing import PreparedSearch, prepare_search
from merganser.study.search_space import Search
from merganser.tracking import choose
from merganser.workers import candidates as open_candidates
from merganser.workers import study_file
from merganser.workers.candidates import LEADER, OpenCandidates
from merganser.workers.claims import STALL, TRIES, Claim, ClaimLost, Claims
from merganser.workers.crew import Where, parse
from merganser.workers.driving import (
    Shown,
    Warn,
    begun,
    check_all_done,
    completions_of,
    deaths,
    failure_of,
    lead,
    make_crew,
)
from merganser.workers.study_file import FOLDER, StudyFile, units_of
from merganser.workers.working import WAIT, OnHang, Worker, worker_text


def search_with_workers(
    config: str | Path,
    out: str | Path,
    workers: str,
    *,
    stall: float = STALL,
    on_hang: OnHang | None = None,
    **options: Unpack[SearchKeywords],
) -> SearchResult:
    """Search as :func:`merganser.search` does, with several workers that score candidates.

    With one worker the candidates, and all files, are those of ``search``. With more, the methods ``tpe``,
    ``random`` and ``front`` propose a candidate as soon as a worker is free, without the scores of those that
    others are scoring; the other methods' generations are shared out. ``OUT/history.jsonl`` has the order in
    which candidates were proposed and scored, from which the search resumes with the same candidates.

    Args:
        config: a file with ``search:`` and ``evaluate:`` blocks.
        out: the folder of the search.
        workers: as for :func:`merganser.sweep_with_workers`. With ``join`` one of the processes leads the
            search, and starts a worker of its own; if it dies, another one leads.
        stall: as for ``sweep_with_workers``.
        on_hang: as for ``sweep_with_workers``.
        options: those of ``search``.

    Returns:
        All candidates with their scores, the selected ones, and their merges; the latter only in the
        process that wrote them.

    Raises:
        OutputExistsError: workers of another study are at work in the folder, or another process leads this
            search.
        MerganserError: one of its subclasses, by cause; the scores so far stay in the history.
    """
    where = parse(workers)
    given: Any = dict(options)
    choices = {key: given.pop(key) for key in PREPARING if key in given}
    listeners = {key: given.pop(key) for key in ("write", "track", "on_standing") if key in given}
    on_progress: Listener = given.pop("on_progress", ignore)
    on_warning: Warn = given.pop("on_warning", lambda _: None)
    planning, writing = split_options(given)
    home = Path(os.path.abspath(out))  # noqa: PTH100
    prepared = prepare_search(config, home, planning, on_warning=on_warning, **choices)
    choose(listeners.get("track"), prepared.block.track)
    make_folder(home / SAMPLES)
    with closing(prepared.make_live(writing.threads)) as live:
        for line in to_redo(prepared.others, prepared.seen, live, home):
            on_warning(line)
        study = StudyFile(
            kind="search",
            config=os.path.relpath(config, home),
            cwd=str(Path.cwd()),
            only=(),
            engine=choices.get("engine"),
            engine_options=dict(choices.get("engine_options") or {}),
            allow_code=choices.get("allow_code", False),
            planning=asdict(planning),
            methods=tuple(os.path.relpath(file, home) for file in methods.loaded_files()),
            units=units_of(prepared, live),
            stall=stall,
        )
        with begun(study, prepared, live) as claims:
            names = [model.entry.name for model in prepared.models]
            shown = Shown(claims, names, completions_of(prepared.seen), on_progress, on_warning)
            if claims.state(LEADER) == "given up":
                claims.forget(LEADER)
            leader = _take_lead(
                where,
                claims,
                Worker(
                    prepared,
                    study,
                    live,
                    shown.listen,
                    on_warning,
                    on_hang or on_warning,
                    candidates=OpenCandidates(prepared, study.digest),
                ),
            )
            if leader is None:
                return _read(prepared, live)
            live.close()
            team = Team(
                prepared, study, where, claims, leader, live, writing.threads, shown, on_warning
            )
            try:
                found = run_search(
                    prepared,
                    writing,
                    on_progress=shown.listen,
                    on_warning=on_warning,
                    explore=team.explore,
                    **listeners,
                )
                (home / FOLDER / study_file.NAME).unlink(missing_ok=True)
            except ClaimLost:
                raise MerganserError(
                    f"{home}: this process stood still, and another one leads the search now"
                ) from None
            finally:
                leader.release()
            shutil.rmtree(home / FOLDER, ignore_errors=True)
            return found


def _take_lead(where: Where, claims: Claims, worker: Worker) -> Claim | None:
    """Return the claim to lead the search; None if another process has ended it.

    With ``join`` this process is a worker as long as another one leads.

    Raises:
        OutputExistsError: another process leads, and this one is not to join it.
        MerganserError: leading has killed three processes, or a candidate cannot be scored.
    """
    home = worker.prepared.home
    while True:
        leader = None
        with suppress(FileNotFoundError):
            leader = claims.take(LEADER)
        if not study_file.is_current(home, worker.study):
            if leader is not None:
                leader.release()
            return None
        if leader is not None:
            return leader
        if claims.state(LEADER) == "given up":
            died = "; ".join(map(str, claims.tried(LEADER)))
            raise MerganserError(
                f"{home}: {TRIES} processes died while they led the search ({died}); every score is stored; "
                "run the command again to try once more"
            )
        if where.kind != "join":
            raise OutputExistsError(
                f"{home}: another process leads a search there; help it by `merganser worker {home}`"
            )
        worker.run(claims)
        if worker.errors:
            raise worker.errors[0]
        time.sleep(WAIT)


def _read(prepared: PreparedSearch, live: Live) -> SearchResult:
    """Return the results that another process has written."""
    began = time.perf_counter()
    home, wanted = prepared.home, prepared.wanted
    history = search_loop.open_history(wanted, home, prepared.settings(live), read_only=True)
    with closing(history):
        trials = Exploration(wanted, history, lambda _: {}).trials
    folder = home / results.HELD_OUT
    held_out = results.read(folder) if (folder / results.JSON_NAME).is_file() else None
    seconds = time.perf_counter() - began
    return SearchResult(wanted, trials, results.read(home), held_out, None, seconds)


class Team:
    """The workers of a search, and the process that leads it.

    Args:
        prepared: the search.
        study: the study's file, which is written.
        where: the workers to start; for ``join`` one on this machine.
        claims: the claims of candidates and models.
        leader: the claim to lead the search.
        live: the live model of this process, closed.
        threads: threads of a worker; None for an equal share of the cores.
        shown: reports the scores of base and experts.
        on_warning: called with each warning.
    """

    def __init__(
        self,
        prepared: PreparedSearch,
        study: StudyFile,
        where: Where,
        claims: Claims,
        leader: Claim,
        live: Live,
        threads: int | None,
        shown: Shown,
        on_warning: Warn,
    ) -> None:
        self._prepared = prepared
        self._study = study
        self._where = Where("local", 1) if where.kind == "join" else where
        self._claims = claims
        self._leader = leader
        self._live = live
        self._threads = threads
        self._shown = shown
        self._on_warning = on_warning

    def explore(
        self,
        search: Search,
        score: Scorer,
        folder: Path,
        *,
        settings: Mapping[str, Any] | None = None,
        prepare: Preparer = lambda _: {},
        on_standing: Callable[[Standing], object] = lambda _: None,
    ) -> tuple[Trial, ...]:
        """Have all candidates, the base and the experts scored by the workers.

        An :class:`~merganser.study.search_loop.Explorer`; ``score`` is not called.

        Raises:
            MerganserError: a candidate cannot be scored, or no worker can start.
        """
        with closing(search_loop.open_history(search, folder, settings)) as history:
            state = Exploration(search, history, prepare)
            lookout = _Lookout(
                state, self._claims, self._leader, self._study.digest, on_standing, self._on_warning
            )
            others = [model.entry.name for model in self._prepared.models]
            home, claims = self._prepared.home, self._claims
            waited_for: list[str] = []

            def look() -> None:
                names = lookout.look(home)
                self._shown.look()
                left = [name for name in others if claims.state(name) in ("free", "claimed")]
                places = open_candidates.places(claims)
                # The lead is claimed until the search has ended, which ends the waiting.
                waited_for[:] = [LEADER, *names, *left, *places] if names or left else []

            self._shown.follow(lambda: (lookout.names, len(state.trials), search.budget))
            most = search.budget * TRIES + TRIES
            look()
            if waited_for:
                with make_crew(
                    self._where,
                    self._study,
                    self._prepared,
                    self._live,
                    self._threads,
                    most,
                    self._shown.warn,
                ) as crew:
                    lead(crew, claims, waited_for, look)
            open_candidates.write(home, [], search.budget, ended=True)
            check_all_done(self._study, claims)
            return state.trials


class _Lookout:
    """Asks for candidates, hands them out, and records their results.

    Args:
        state: the search's state.
        claims: the claims of candidates.
        leader: the claim to lead the search.
        study: the digest of the study's file.
        on_standing: called after every result.
        on_warning: called with each candidate that kills its workers.

    Attributes:
        names: the names of the candidates that await scores.
    """

    def __init__(
        self,
        state: Exploration,
        claims: Claims,
        leader: Claim,
        study: str,
        on_standing: Callable[[Standing], object],
        on_warning: Warn,
    ) -> None:
        self._state = state
        self._claims = claims
        self._leader = leader
        self._study = study
        self._on_standing = on_standing
        self._on_warning = on_warning
        self.names: list[str] = []
        self._known: set[str] = set()
        self._began = time.monotonic()
        self._results = 0

    def look(self, home: Path) -> list[str]:
        """Record results, ask for candidates for free workers, and write the file of candidates.

        Returns:
            The names of the candidates that await scores; none if the search has ended.
        """
        state = self._state
        self._record()
        while not state.open and state.ask():
            self._record()
        workers = len(open_candidates.places(self._claims))
        if not self._results and not workers:
            self._began = time.monotonic()  # the start of the workers does not count
        while state.open and len(state.to_score) < workers and state.ask_early():
            self._record()
        candidates = state.to_score
        names = [candidate.name for candidate in candidates]
        if names != self.names:
            for name in names:
                if name not in self._known and self._claims.state(name) in ("failed", "given up"):
                    self._claims.forget(name)  # it is tried again
                self._known.add(name)
            self._leader.check()
            open_candidates.write(home, candidates, state.search.budget)
            self.names = names
        return names

    def _record(self) -> None:
        """Record all results that have come in, by number."""
        for candidate in list(self._state.open.values()):
            result = self._result(candidate)
            if result is None:
                continue
            trial, worker = result
            self._leader.check()
            self._state.record(trial)
            self._results += bool(worker)
            seconds = (time.monotonic() - self._began) / max(self._results, 1)
            self._on_standing(search_loop.standing(self._state, trial, seconds, worker))

    def _result(self, candidate: Candidate) -> tuple[Trial, str] | None:
        """Return a candidate's result, with the worker that scored it; None if it has none yet."""
        state, claims, name = self._state, self._claims, candidate.name
        if candidate is next(iter(state.open.values())) and (trial := state.settled(candidate)):
            return trial, ""
        if name not in self._known:
            return None
        match claims.state(name):
            case "done":
                record = claims.record(name)
                if "scores" not in record:  # a file server is unreachable for a moment
                    return None
                line = open_candidates.line_of(candidate)
                if record["unit"] != open_candidates.unit(self._study, line):
                    claims.forget(name)  # of an earlier search in the folder
                    return None
                scores = {key: results.Score(**parts) for key, parts in record["scores"].items()}
                trial = Trial(
                    candidate,
                    checked(state.search, candidate, scores),
                    weights=record["weights"],
                    effective=record["effective"],
                )
                return trial, worker_text(record)
            case "failed":
                raise failure_of(f"candidate {name}", claims.record(name))
            case "given up":
                why = deaths(claims, name)
                if not any(trial.scores for trial in state.trials):
                    raise MerganserError(
                        f"candidate {name}: {why} Run the command again to try once more"
                    )
                self._on_warning(f"candidate {name} counts as failed: {why}")
                return Trial(candidate, {}, invalid=why), ""
        return None
