"""The loop of a search: ask the optimiser for candidates, score them, report the scores back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from merganser.errors import RecipeError
from merganser.planning import Plan, PlanOptions
from merganser.recipe.sweep_file import Point, values_text
from merganser.results import front
from merganser.results.scores import Addition, Score
from merganser.study.exploration import Candidate, Exploration, Preparer, Trial, checked, verdict
from merganser.study.history import History
from merganser.study.optimisers import Greedy
from merganser.study.search_space import Position, Search
from merganser.study.sweep import plan_all

Scorer = Callable[["Candidate"], Mapping[str, float | Score]]
"""Returns a candidate's scores by name; a plain number is a score without a standard error."""


class Explorer(Protocol):
    """Scores the candidates of a search: :func:`explore`, or with several workers another one."""

    def __call__(
        self,
        search: Search,
        score: Scorer,
        folder: Path,
        *,
        settings: Mapping[str, Any] | None = None,
        prepare: Preparer = ...,
        on_standing: Callable[[Standing], object] = ...,
    ) -> tuple[Trial, ...]:
        """See :func:`explore`."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The state of a search after one candidate.

    Attributes:
        trial: the last scored candidate.
        budget: the total number of candidates.
        best: the best candidate so far; with several objectives the front.
        seconds_left: estimated seconds until the end.
        worker: the worker that scored it; empty without workers.
    """

    trial: Trial
    budget: int
    best: tuple[Trial, ...]
    seconds_left: float
    worker: str = ""


def explore(
    search: Search,
    score: Scorer,
    folder: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    prepare: Preparer = lambda _: {},
    on_standing: Callable[[Standing], object] = lambda _: None,
) -> tuple[Trial, ...]:
    """Score as many candidates as the budget allows, and resume an interrupted search.

    The optimiser is replayed from the start; candidates in the history are not scored again, so that the
    history does not depend on interruptions. Candidates whose values cannot be merged count in the budget,
    have no scores, and rank after all others.

    Args:
        search: the space, objectives and settings.
        score: returns a candidate's scores.
        folder: the folder of the history.
        settings: everything else that determines the scores, as plain data.
        prepare: called with the candidates of a generation that need scoring, before the first is scored.
        on_standing: called after every scored candidate.

    Raises:
        MerganserError: one of its subclasses, by cause; the scores so far stay in the history.
    """
    spent: list[float] = []
    with closing(open_history(search, folder, settings)) as history:
        state = Exploration(search, history, prepare)
        while state.open or state.ask():
            candidate = next(iter(state.open.values()))
            began = time.monotonic()
            trial = state.settled(candidate) or Trial(
                candidate, checked(search, candidate, score(candidate))
            )
            spent.append(time.monotonic() - began)
            state.record(trial)
            on_standing(standing(state, trial, sum(spent) / len(spent)))
        return state.trials


def open_history(
    search: Search, folder: Path, settings: Mapping[str, Any] | None, *, read_only: bool = False
) -> History:
    """Open the history of a search in a folder; the caller closes it.

    Raises:
        MerganserError: one of its subclasses, by cause.
    """
    return History(folder, {**describe(search), **(settings or {})}, read_only=read_only)


def standing(state: Exploration, trial: Trial, seconds: float, worker: str = "") -> Standing:
    """Return the state of a search after a result.

    Args:
        state: the search's state.
        trial: the result.
        seconds: seconds per candidate.
        worker: the worker that scored the candidate.
    """
    trials, budget = state.trials, state.search.budget
    left = seconds * (budget - len(trials))
    return Standing(trial, budget, best(state.search, trials), left, worker)


_DECIDING = ("over", "from", "again", "equal", "objectives", "constraints")
"""Keys of a search that determine its candidates, in addition to those with defaults."""


def describe(search: Search) -> dict[str, Any]:
    """Return what determines a search's candidates, as plain data; without the budget, which may grow."""
    block = search.pattern.document.data["search"]  # type: ignore[index]
    told_of = {key: block[key] for key in _DECIDING if key in block}
    how = {"method": search.method, "population": search.population, "seed": search.seed}
    return {
        "search": {**told_of, **how, "held_out": block.get("held_out")},
        "recipe": dict(search.pattern.data),
    }


def invalid_ends(search: Search, options: PlanOptions) -> list[str]:
    """Return the errors of recipes at the ends of the ranges, near which candidates are invalid.

    Args:
        search: the search; the merge at the middle of its ranges must be valid.
        options: of :func:`merganser.plan`.

    Returns:
        One line for each end of a range that gives no valid merge with the other ranges at their middle.
    """
    middle = _middle(search)
    problems = []
    first = 0
    for key, choice in search.over.items():
        axes, after = choice.axes, first + len(choice.axes)
        ranged = axes and all(axis.ordered for axis in axes) and search.method != "greedy"
        for end in (0, 1) if ranged else ():
            ends = [end if axis.count is None else end * (axis.count - 1) for axis in axes]
            place = (*middle[:first], *map(float, ends), *middle[after:])
            values = search.values(place)
            try:
                plan_all([search.pattern.point(values, 0)], options)
            except RecipeError as error:
                problems.append(
                    f"search.over: {values_text({key: values[key]})} cannot be merged: {error}"
                )
        first = after
    return problems


def plan_samples(search: Search, options: PlanOptions) -> list[tuple[Point, Plan]]:
    """Plan the points at the middle of all ranges, with every choice once, without reading weights.

    Raises:
        MerganserError: a point cannot be merged.
    """
    middle = _middle(search)
    places = [middle] + [
        (*middle[:i], choice, *middle[i + 1 :])
        for i, axis in enumerate(search.axes)
        if axis.count is not None and not axis.ordered
        for choice in range(1, axis.count)
    ]
    points = [search.pattern.point(search.values(p), n) for n, p in enumerate(places)]
    return plan_all(points, options)


def _middle(search: Search) -> Position:
    if search.method == "greedy":
        return (1.0,) * len(search.axes)
    return tuple(
        0.5 if axis.count is None else (axis.count - 1) // 2 if axis.ordered else 0
        for axis in search.axes
    )


def ranked(search: Search, trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Return the candidates that satisfy all constraints, best first; with several objectives only the front.

    Candidates with equal values count once; ties keep the order of the search.
    """
    verdicts = [(trial, verdict(search, trial)) for trial in trials if trial.same_as is None]
    good = [(trial, v) for trial, v in verdicts if v.goals and not any(v.missed)]
    if len(search.objectives) == 1:
        return tuple(trial for trial, _ in sorted(good, key=lambda pair: pair[1].goals))
    entries = [trial.entry for trial, _ in good]
    names = {
        entry_on_front.name for entry_on_front in front.non_dominated(entries, search.objectives)
    }
    return tuple(trial for trial, _ in good if trial.candidate.name in names)


def additions(search: Search, trials: Sequence[Trial]) -> tuple[Addition, ...]:
    """Return what a greedy search tried to add to its soup; empty for other searches."""
    if search.method != "greedy":
        return ()
    chooser = Greedy(search.axes, search.equal)
    names: dict[Position, str] = {}
    found: list[Addition] = []
    left = list(trials)
    while (positions := chooser.ask()) and len(left) >= len(positions):
        tried, left = left[: len(positions)], left[len(positions) :]
        for trial in tried:
            own = trial.candidate if trial.same_as is None else trials[trial.same_as - 1].candidate
            names[trial.candidate.position] = own.name
        before = chooser.soup
        chooser.tell([verdict(search, trial) for trial in tried])
        if before and tried[0].scores:
            name, soup = (names[tuple(map(float, p))] for p in (positions[0], before))
            found.append(Addition(name, soup, chooser.soup != before))
    return tuple(found)


def best(search: Search, trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Return the best candidate or, for several objectives, the front; empty if none is feasible."""
    best_first = ranked(search, trials)
    return best_first[:1] if len(search.objectives) == 1 else best_first
