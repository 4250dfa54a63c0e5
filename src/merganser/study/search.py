"""The story of a search: a file of ranges → candidates scored in memory → the best, scored again and written."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from merganser import __version__
from merganser.engine.events import Listener, ignore
from merganser.errors import RecipeError
from merganser.evaluation import tasks as evaluations
from merganser.evaluation.tasks import Task
from merganser.planning import Config, Plan, plan
from merganser.study import cards, exploration, front, results
from merganser.study.exploration import Candidate, Standing, Trial
from merganser.study.language import Point
from merganser.study.live import LiveModel, evaluate_plan
from merganser.study.results import HELD_OUT, Entry, Results, Score
from merganser.study.space import Search, load_search
from merganser.study.sweep import SweepResult, merge_points, plan_all

SAMPLES = "samples"
"""The folder of completions."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found.

    Attributes:
        search: what was searched.
        trials: every candidate, in their order.
        found: the results of all candidates that differ, with those that were chosen.
        held_out: the chosen ones' results on what was held out; None if nothing was.
        written: what became of the chosen ones' folders; None if none were to be written.
        seconds: how long it took.
    """

    search: Search
    trials: tuple[Trial, ...]
    found: Results
    held_out: Results | None
    written: SweepResult | None
    seconds: float


def search(
    config: Config,
    out: str | Path,
    *,
    budget: int | None = None,
    write: bool = True,
    force: bool = False,
    threads: int | None = None,
    memory: int | None = None,
    public: bool = False,
    write_card: bool = True,
    copy_tokenizer: bool = True,
    on_standing: Callable[[Standing, Search], object] = lambda _progress, _search: None,
    on_event: Listener = ignore,
    **options: Any,
) -> SearchResult:
    """Search the best values of a recipe's parameters, and write the merges that have them.

    Every candidate is blended into one live model and scored; only the chosen ones are written. What
    was scored is kept in ``OUT/history.jsonl``: a search that was cut off goes on where it was.

    Args:
        config: a file with ``search:`` and ``evaluate:`` blocks, or a mapping.
        out: the folder of the history, the results, and the chosen candidates' folders.
        budget: how many candidates, in place of the file's number.
        write: whether to write the chosen ones.
        force: replace folders that hold something else.
        threads, memory, public, write_card, copy_tokenizer, on_event: as in :func:`merganser.merge`.
        on_standing: told of every candidate that is scored, and of what is searched.
        options: of :func:`merganser.plan`.

    Raises:
        MerganserError: of the kind that fits; what was scored is kept.
    """
    began = time.perf_counter()
    home = Path(out)
    wanted = load_search(config, options.get("strictness", "normal"))
    wanted = wanted if budget is None else replace(wanted, budget=budget)
    block, tasks = load_tasks(wanted)
    seen, unseen = split(tasks, wanted)
    check_scores(wanted, seen)
    for _, decided in exploration.plan_samples(wanted, **options):
        decided.close()
    live = LiveModel(
        device=block.device, dtype=block.dtype, threads=threads, batch_size=block.batch_size
    )
    settings = {"merganser": __version__, "tasks": evaluations.describe(seen)}
    with _Stage(live, seen, home / SAMPLES, options) as stage:
        trials = exploration.explore(
            wanted,
            stage.score,
            home,
            settings={"evaluate": settings},
            prepare=stage.prepare,
            on_standing=lambda progress: on_standing(progress, wanted),
        )
    chosen = choose(wanted, trials)
    points = {t.candidate.name: t.candidate.point for t in trials}
    entries = [t.entry for t in trials if t.same_as is None and t.invalid is None]
    found = _results(wanted, seen, entries, chosen, home)
    held_out = None
    kept = [point for name in chosen if (point := points[name])]
    if unseen and kept:
        with _Stage(live, unseen, home / HELD_OUT / SAMPLES, options) as stage:
            again = tuple(stage.entry(point) for point in kept)
        held_out = _results(wanted, unseen, again, chosen, home / HELD_OUT)
    del live
    written = None
    if write and kept:
        written = merge_points(
            plan_all(kept, **options),
            home,
            force=force,
            threads=threads,
            memory=memory,
            public=public,
            write_card=write_card,
            copy_tokenizer=copy_tokenizer,
            on_event=on_event,
        )
        found = _with_folders(found, "", home)
        held_out = held_out and _with_folders(held_out, "../", home / HELD_OUT)
        if write_card:
            cards.rewrite_all(home, found)
    return SearchResult(wanted, trials, found, held_out, written, time.perf_counter() - began)


def load_tasks(wanted: Search) -> tuple[evaluations.Evaluate, list[Task]]:
    """The tasks of a search's ``evaluate:`` block.

    Raises:
        MerganserError: of the kind that fits, with file and line.
    """
    document: Any = wanted.pattern.document
    if "evaluate" not in document.data:
        raise document.error("search: there is no evaluate: block to score candidates", ("search",))
    block = evaluations.read_block(document, ("evaluate",), evaluations.Evaluate)
    return block, evaluations.make_tasks(block, document, ("evaluate",), wanted.pattern.folder)


def split(tasks: Sequence[Task], wanted: Search) -> tuple[list[Task], list[Task]]:
    """What candidates are scored on, and what only the chosen ones are.

    A share is taken of the problems of every task, by the digests of their names, so that it stays the
    same wherever a problem stands in its file.

    Raises:
        RecipeError: when there is nothing left on one side, or no such task.
    """
    apart = wanted.held_out
    if apart is None:
        return list(tasks), []
    if isinstance(apart, tuple):
        names = [task.name for task in tasks]
        if unknown := [name for name in apart if name not in names]:
            raise wanted.error(
                f"search.held_out: there is no task {unknown[0]!r}; there are {', '.join(names)}",
                "held_out",
            )
        if len(set(apart)) == len(names):
            raise wanted.error("search.held_out: there is no task left to search with", "held_out")
        parts = [[t for t in tasks if (t.name in apart) is held] for held in (False, True)]
        return parts[0], parts[1]
    seen: list[Task] = []
    unseen: list[Task] = []
    for task in tasks:
        ranked = sorted(
            task.problems,
            key=lambda p: hashlib.sha256(f"{wanted.seed} {task.name} {p.id}".encode()).digest(),
        )
        count = round(apart * len(ranked))
        if not 0 < count < len(ranked):
            raise wanted.error(
                f"search.held_out: {apart:g} of the {len(ranked)} problems of {task.name!r} leaves "
                "none on one side",
                "held_out",
            )
        held = {problem.id for problem in ranked[:count]}
        for part, inside in ((seen, False), (unseen, True)):
            own = tuple(problem for problem in task.problems if (problem.id in held) is inside)
            part.append(replace(task, problems=own))
    return seen, unseen


def check_scores(wanted: Search, tasks: Sequence[Task]) -> None:
    """Refuse a search for scores that its tasks do not have.

    Raises:
        RecipeError: with file and line.
    """
    there = evaluations.score_names(tasks)
    for key, names in (("objectives", wanted.objectives), ("constraints", wanted.limits)):
        for name in names:
            if name not in there:
                raise wanted.error(
                    f"search.{key}.{name}: there is no such score; there are {', '.join(there)}",
                    key,
                    name,
                )


class _Stage:
    """One live model, and the plans of the candidates that it is going to be."""

    def __init__(
        self, live: LiveModel, tasks: Sequence[Task], samples: Path, options: Mapping[str, Any]
    ) -> None:
        self.live = live
        self.tasks = tasks
        self.samples = samples
        self.options = options
        self.plans: dict[str, Plan] = {}

    def prepare(self, candidates: Sequence[Candidate]) -> Mapping[int, str]:
        """Plan a generation, so that candidates that cannot be are told before any is run."""
        self._close()
        problems: dict[int, str] = {}
        for candidate in candidates:
            assert candidate.point is not None
            try:
                self.plans[candidate.name] = plan(candidate.point.recipe, **self.options)
            except RecipeError as error:
                problems[candidate.number] = str(error)
        return problems

    def score(self, candidate: Candidate) -> Mapping[str, Score]:
        """Be a candidate, and score it."""
        assert candidate.point is not None
        return self._score(candidate.point)

    def entry(self, point: Point) -> Entry:
        """Plan a point, and score it."""
        self._close()
        self.plans[point.name] = plan(point.recipe, **self.options)
        return Entry(point.name, "point", values=point.values, scores=self._score(point))

    def _score(self, point: Point) -> Mapping[str, Score]:
        self.samples.mkdir(parents=True, exist_ok=True)
        file = self.samples / f"{point.name}.jsonl"
        return evaluate_plan(self.plans[point.name], self.tasks, live=self.live, samples=file)

    def _close(self) -> None:
        for decided in self.plans.values():
            decided.close()
        self.plans = {}

    def __enter__(self) -> _Stage:
        return self

    def __exit__(self, *_error: object) -> None:
        self._close()


# -- what is chosen ------------------------------------------------------------------------------


def choose(wanted: Search, trials: Sequence[Trial]) -> dict[str, str]:
    """Names of the candidates that are kept, with the rule that chose them, the best first.

    Of one objective the best are; of several the front, or of it those without which most of its
    hypervolume would be lost.
    """
    good = exploration.ranked(wanted, trials)
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
    entries: Sequence[Entry],
    chosen: Mapping[str, str],
    folder: Path,
) -> Results:
    document: Any = wanted.pattern.document
    samples = [f"{SAMPLES}/{entry.name}.jsonl" for entry in entries]
    found = Results(
        name=Path(document.file).stem if document.file else "search",
        recipe=document.text or "",
        directions={**evaluations.score_names(tasks), **_directions(wanted, tasks)},
        settings={
            "search": exploration.describe(wanted)["search"] | {"budget": wanted.budget},
            "tasks": evaluations.describe(tasks),
            "merganser": __version__,
        },
        entries=tuple(
            replace(entry, samples=file if (folder / file).is_file() else None)
            for entry, file in zip(entries, samples, strict=True)
        ),
        chosen=chosen,
    )
    results.write(found, folder)
    return found


def _directions(wanted: Search, tasks: Sequence[Task]) -> dict[str, results.Direction]:
    """What the search says of scores that these tasks have."""
    there = evaluations.score_names(tasks)
    return {name: better for name, better in wanted.objectives.items() if name in there}


def _with_folders(found: Results, prefix: str, folder: Path) -> Results:
    entries = tuple(
        replace(entry, folder=f"{prefix}{entry.name}") if entry.name in found.chosen else entry
        for entry in found.entries
    )
    found = replace(found, entries=entries)
    results.write(found, folder)
    return found
