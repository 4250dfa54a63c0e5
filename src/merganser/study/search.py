"""Run a search: score candidates in memory, then score the selected ones again and write them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from merganser.errors import RecipeError
from merganser.evaluation import tasks as evaluations
from merganser.evaluation.engines import EngineName
from merganser.evaluation.tasks import Task
from merganser.merging.options import MergeKeywords, WriteOptions, split_options
from merganser.planning import Config, Plan, PlanOptions, make_plan
from merganser.publishing import study_cards
from merganser.recipe.sweep_file import Point
from merganser.results import front, scores
from merganser.results.scores import HELD_OUT, Addition, Entry, Results, Score
from merganser.study import scoring, search_loop
from merganser.study.exploration import Candidate, Trial
from merganser.study.live_model import Live
from merganser.study.participants import SAMPLES, StudyModel, beside_points
from merganser.study.progress import Event, Listener, Scored, Turn, ignore
from merganser.study.search_loop import Explorer, Standing
from merganser.study.search_preparing import PreparedSearch, prepare_search
from merganser.study.search_space import Search
from merganser.study.sweep import MOST_TOGETHER, SweepResult, check_ready, merge_points, plan_all
from merganser.study.watching import tracked_run
from merganser.tracking import Track, follow
from merganser.tracking import choose as choose_tracker

OnStanding = Callable[[Standing, Search], object]
"""Called after every scored candidate, with the search's state and the search."""


class SearchKeywords(MergeKeywords, total=False):
    """The keywords of :func:`search`."""

    budget: int | None
    write: bool
    engine: EngineName | None
    engine_options: Mapping[str, Any] | None
    allow_code: bool
    track: Track | None
    on_standing: OnStanding
    on_progress: Listener
    on_warning: Callable[[str], None]


PREPARING = ("budget", "engine", "engine_options", "allow_code")
"""The keywords of :func:`prepare_search` among those of :func:`search`."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The results of a search.

    Attributes:
        search: the search's space, objectives and settings.
        trials: every candidate, in order.
        found: the results of all distinct candidates, with the names of the selected ones.
        held_out: the selected candidates' results on held-out problems; None if none are held out.
        written: the merges of the selected candidates; None if writing is off.
        seconds: wall time.
    """

    search: Search
    trials: tuple[Trial, ...]
    found: Results
    held_out: Results | None
    written: SweepResult | None
    seconds: float

    def __repr__(self) -> str:
        return f"SearchResult({len(self.trials)} candidates, {self.seconds:.1f} s, {self.found})"

    def _repr_html_(self) -> str:
        return (self.held_out or self.found)._repr_html_()


def search(
    config: Config,
    out: str | Path,
    *,
    budget: int | None = None,
    write: bool = True,
    engine: EngineName | None = None,
    engine_options: Mapping[str, Any] | None = None,
    allow_code: bool = False,
    track: Track | None = None,
    on_standing: OnStanding = lambda _standing, _search: None,
    on_progress: Listener = ignore,
    on_warning: Callable[[str], None] = lambda _: None,
    **options: Unpack[MergeKeywords],
) -> SearchResult:
    """Search for the best values of a recipe's parameters, and write the merges with these values.

    Every candidate is merged in memory and scored; only the selected ones are written. Scores are
    stored in ``OUT/history.jsonl``, from which an interrupted search resumes.

    Args:
        config: a file with ``search:`` and ``evaluate:`` blocks, or a mapping.
        out: the folder of the history, the results, and the chosen candidates' folders.
        budget: overrides the file's number of candidates.
        write: whether to write the selected candidates.
        engine: overrides the file's engine, which runs the models.
        engine_options: override the file's options of that engine.
        allow_code: allow scorers that run programs of models, whatever the file says.
        track: the tracker that scores are logged with, or its name, in place of the file's;
            ``none`` for none.
        on_standing: called after every scored candidate, with the search's state and the search.
        on_progress: called with the progress of completions of the base, the experts, and the
            models scored on held-out problems.
        on_warning: called with each warning: before the first candidate those of ends of ranges
            that cannot be merged, and those of stored completions of base and experts that must be
            generated again; that of a tracker that fails.
        options: those of :func:`merganser.merge`.

    Returns:
        All candidates with their scores, the selected ones, and their merges.

    Raises:
        MerganserError: one of its subclasses, by cause; the scores so far stay in the history.
    """
    planning, writing = split_options(options)
    prepared = prepare_search(
        config,
        out,
        planning,
        budget=budget,
        engine=engine,
        engine_options=engine_options,
        allow_code=allow_code,
        on_warning=on_warning,
    )
    return run_search(
        prepared,
        writing,
        write=write,
        track=track,
        on_standing=on_standing,
        on_progress=on_progress,
        on_warning=on_warning,
    )


def run_search(
    prepared: PreparedSearch,
    writing: WriteOptions,
    *,
    write: bool = True,
    track: Track | None = None,
    on_standing: OnStanding = lambda _standing, _search: None,
    on_progress: Listener = ignore,
    on_warning: Callable[[str], None] = lambda _: None,
    explore: Explorer = search_loop.explore,
) -> SearchResult:
    """Run a search that is prepared.

    Args:
        prepared: the search.
        writing: options of writing the selected candidates.
        write, track, on_standing, on_progress, on_warning: as for :func:`merganser.search`.
        explore: scores the candidates.

    Raises:
        MerganserError: one of its subclasses, by cause; the scores so far stay in the history.
    """
    began = time.perf_counter()
    wanted, home, planning = prepared.wanted, prepared.home, prepared.planning
    seen, unseen, others = prepared.seen, prepared.unseen, prepared.others
    tracker = choose_tracker(track, prepared.block.track)
    threads = writing.threads
    live = prepared.make_live(threads)

    def check(planned: Sequence[tuple[Point, Plan]]) -> None:
        if write:
            check_ready(planned, home, writing, all_points=False)

    stage = _Stage(live, seen, home, planning, threads, check)

    def note(standing: Standing) -> None:
        trial = standing.trial
        entry = stage.scored.get(trial.candidate.name, trial.entry)
        following.point(trial.candidate.number, entry)
        on_standing(standing, wanted)

    with closing(live), follow(tracker, on_warning) as following:
        following.start(tracked_run(_frame(wanted, seen, live, home), home))
        trials = explore(
            wanted,
            partial(stage.score, listener=on_progress, budget=wanted.budget),
            home,
            settings=prepared.settings(live),
            prepare=stage.prepare,
            on_standing=note,
        )
        chosen = choose(wanted, trials)
        tried = [t for t in trials if t.same_as is None and t.invalid is None]
        points = {t.candidate.name: t.candidate.point for t in tried}
        numbers = {t.candidate.name: t.candidate.number for t in tried}
        chosen_points = [point for name in chosen if (point := points[name])]
        others = _apart(others, points)
        for line in scoring.to_redo(others, seen, live, home):
            on_warning(line)
        beside = [
            scoring.score(model, seen, live, home, on_progress, turn)
            for model, turn in _turns(others)
        ]
        for entry in beside:
            following.point(0, entry)
        all_entries = beside_points([*beside, *stage.entries(tried)], prepared.stated)
        results = _results(
            wanted, seen, live, all_entries, chosen, home, search_loop.additions(wanted, trials)
        )
        held_out = None
        if unseen and chosen_points:
            last = _Stage(live, unseen, home / HELD_OUT, planning, threads)
            again = [
                scoring.score(model, unseen, live, last.home, on_progress, turn)
                for model, turn in _turns(others, more=len(chosen_points))
            ]
            again += [
                last.entry(
                    point, on_progress, Turn(point.name, n, len(others) + len(chosen_points))
                )
                for n, point in enumerate(chosen_points, len(others) + 1)
            ]
            for entry in again:
                following.point(numbers.get(entry.name, 0), entry, f"{HELD_OUT}/")
            held_out = _results(wanted, unseen, live, again, chosen, last.home)
        following.finish([home / scores.CSV_NAME])
    del live
    written = None
    if write and chosen_points:
        written = merge_points(plan_all(chosen_points, planning), home, writing)
        results = _with_folders(results, "", home)
        held_out = held_out and _with_folders(held_out, "../", home / HELD_OUT)
        if writing.write_card:
            study_cards.rewrite_all(home, results)
    return SearchResult(wanted, trials, results, held_out, written, time.perf_counter() - began)


def _apart(others: Sequence[StudyModel], names: Collection[str]) -> list[StudyModel]:
    """Return base and experts, renamed if a candidate has the same name."""
    taken = {name.casefold() for name in names}
    return [
        replace(model, entry=replace(model.entry, name=f"{model.entry.name}_{model.entry.role}"))
        if model.entry.name.casefold() in taken
        else model
        for model in others
    ]


class _Stage:
    """Plans and scores the candidates of a search with one live model.

    Args:
        live: the live model.
        tasks: the tasks to score candidates on.
        home: the folder of the results.
        options: options of :func:`merganser.plan`.
        threads: threads of the merge; None for the default.
        check: called before planned candidates are scored; raises an error if they could not be written.
    """

    def __init__(
        self,
        live: Live,
        tasks: Sequence[Task],
        home: Path,
        options: PlanOptions,
        threads: int | None,
        check: Callable[[Sequence[tuple[Point, Plan]]], None] = lambda _planned: None,
    ) -> None:
        self.check = check
        self.live = live
        self.tasks = tasks
        self.home = home
        self.options = options
        self.threads = threads
        self.models: dict[str, StudyModel] = {}
        self.scored: dict[str, Entry] = {}
        scoring.make_folder(home / SAMPLES)

    def prepare(self, candidates: Sequence[Candidate]) -> Mapping[int, str]:
        """Plan a generation before it is scored; return the reason for each invalid candidate, by number."""
        self.models = {}
        problems: dict[int, str] = {}
        for candidate in candidates:
            assert candidate.point is not None
            try:
                self._plan(candidate.point)
            except RecipeError as error:
                problems[candidate.number] = str(error)
        self.check([(model.point, model.plan) for model in self.models.values() if model.point])
        return problems

    def score(self, candidate: Candidate, listener: Listener, budget: int) -> Mapping[str, Score]:
        """Return a candidate's scores, without the event that reports them."""

        def listen(event: Event) -> None:
            if not isinstance(event, Scored):
                listener(event)

        return self._score(listen, Turn(candidate.name, candidate.number, budget)).scores

    def entry(self, point: Point, on_progress: Listener, turn: Turn) -> Entry:
        """Plan and score a point; return its entry with scores and weights."""
        self.models = {}
        self._plan(point)
        [entry] = self._weighed([self._score(on_progress, turn)])
        self.models = {}
        return entry

    def entries(self, trials: Sequence[Trial]) -> list[Entry]:
        """Return all candidates as entries with weights, including those that an earlier run has scored."""
        scored: list[Entry] = []
        for start in range(0, len(trials), MOST_TOGETHER):
            self.models = {}
            some = trials[start : start + MOST_TOGETHER]
            for trial in some:
                measured = trial.candidate.name in self.scored or trial.weights
                if not measured and trial.candidate.point is not None:
                    self._plan(trial.candidate.point)
            entries = [self.scored.get(trial.candidate.name, trial.entry) for trial in some]
            scored += self._weighed(entries)
        return scored

    def _plan(self, point: Point) -> None:
        entry = Entry(point.name, "point", values=point.values)
        self.models[point.name] = StudyModel(entry, make_plan(point.recipe, self.options), point)

    def _score(self, on_progress: Listener, turn: Turn) -> Entry:
        entry = scoring.score(
            self.models[turn.model], self.tasks, self.live, self.home, on_progress, turn
        )
        self.scored[turn.model] = entry
        return entry

    def _weighed(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return entries with weights also for planned candidates that were not merged in this run."""
        merged = [entry for entry in entries if entry.name in self.models]
        models = [self.models[entry.name] for entry in merged]
        by_name = {e.name: e for e in scoring.measured(merged, models, self.threads)}
        return [by_name.get(entry.name, entry) for entry in entries]


def _turns(models: Sequence[StudyModel], more: int = 0) -> list[tuple[StudyModel, Turn]]:
    """Return each model with its turn; the turns' total includes ``more`` later models."""
    total = len(models) + more
    return [(m, Turn(m.entry.name, n, total)) for n, m in enumerate(models, 1)]


# -- what is chosen ------------------------------------------------------------------------------


def choose(wanted: Search, trials: Sequence[Trial]) -> dict[str, str]:
    """Return the names of the selected candidates, best first, with the rule that selected them.

    With one objective these are the best ones; with several the front, or the members of the front
    with the largest hypervolume contributions.
    """
    good = search_loop.ranked(wanted, trials)
    if len(wanted.objectives) == 1:
        [(score, direction)] = wanted.objectives.items()
        rule = f"the {'highest' if direction == 'max' else 'lowest'} {score}"
        names = [trial.candidate.name for trial in good]
        rules = [rule, *(f"number {n} by {score}" for n in range(2, len(names) + 1))]
        most = len(names) if wanted.keep is None else wanted.keep
        return dict(zip(names[:most], rules, strict=False))
    rule = f"on the front of {' and '.join(wanted.objectives)}"
    names = [trial.candidate.name for trial in good]
    if wanted.keep is not None and wanted.keep < len(names):
        volume = front.hypervolume([trial.entry for trial in good], wanted.objectives)
        order = sorted(names, key=lambda name: -volume.contributions[name])[: wanted.keep]
        rule += ", among those that add most to its hypervolume"
        names = [name for name in names if name in order]
    return dict.fromkeys(names, rule)


def _results(
    wanted: Search,
    tasks: Sequence[Task],
    live: Live,
    entries: Sequence[Entry],
    chosen: Mapping[str, str],
    folder: Path,
    additions: tuple[Addition, ...] = (),
) -> Results:
    samples = [f"{SAMPLES}/{entry.name}.jsonl" for entry in entries]
    results = replace(
        _frame(wanted, tasks, live, folder),
        entries=tuple(
            replace(entry, samples=file if (folder / file).is_file() else None)
            for entry, file in zip(entries, samples, strict=True)
        ),
        chosen=chosen,
        additions=additions,
    )
    scores.write(results, folder)
    return results


def _frame(wanted: Search, tasks: Sequence[Task], live: Live, folder: Path) -> Results:
    """Return the search's results without entries."""
    document: Any = wanted.pattern.document
    return Results(
        name=Path(document.file).stem if document.file else "search",
        recipe=document.text or "",
        directions={**evaluations.score_names(tasks), **_directions(wanted, tasks)},
        settings={
            "search": search_loop.describe(wanted)["search"] | {"budget": wanted.budget},
            **scoring.describe(tasks, live),
        },
        entries=(),
        places=scores.places(folder, wanted.pattern.folder),
    )


def _directions(wanted: Search, tasks: Sequence[Task]) -> dict[str, scores.Direction]:
    """Return the search's directions for the scores of these tasks."""
    there = evaluations.score_names(tasks)
    return {name: better for name, better in wanted.objectives.items() if name in there}


def _with_folders(results: Results, prefix: str, folder: Path) -> Results:
    entries = tuple(
        replace(entry, folder=f"{prefix}{entry.name}") if entry.name in results.chosen else entry
        for entry in results.entries
    )
    results = replace(results, entries=entries)
    scores.write(results, folder)
    return results
