"""The loop of a search: ask the optimiser for candidates, score them, report the scores back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merganser.errors import InputError, RecipeError
from merganser.planning import Plan, PlanOptions
from merganser.recipe.sweep_file import Point, Values, flat, values_text
from merganser.results import front
from merganser.results.scores import Addition, Entry, Score
from merganser.study import optimisers
from merganser.study.history import History
from merganser.study.optimisers import Greedy, Verdict
from merganser.study.search_space import Position, Search
from merganser.study.sweep import plan_all

Scorer = Callable[["Candidate"], Mapping[str, float | Score]]
"""Returns a candidate's scores by name; a plain number is a score without a standard error."""

Preparer = Callable[[Sequence["Candidate"]], Mapping[int, str]]
"""Called with the candidates to score next; returns the reasons why some cannot be merged, by number."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A candidate of a search.

    Attributes:
        number: counted from 1.
        position: its position in the space.
        values: the values of the recipe's keys.
        point: the point with its recipe; None if the values give no valid recipe.
        problem: the reason why the recipe is invalid; None if it is valid.
    """

    number: int
    position: Position
    values: Values
    point: Point | None
    problem: str | None = None

    @property
    def name(self) -> str:
        """Unique name among all candidates, and name of its folder."""
        return self.point.name if self.point else f"candidate_{self.number:03d}"


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate that was scored.

    Attributes:
        candidate: the candidate.
        scores: the scores by name; empty if the candidate could not be merged.
        same_as: the number of the earlier candidate with the same values, whose scores are reused; else None.
        invalid: the reason why it could not be merged; None if it could.
    """

    candidate: Candidate
    scores: Mapping[str, Score]
    same_as: int | None = None
    invalid: str | None = None

    @property
    def entry(self) -> Entry:
        """Return the candidate as an entry of a study's results."""
        return Entry(self.candidate.name, "point", values=self.candidate.values, scores=self.scores)


@dataclass(frozen=True, slots=True)
class Standing:
    """The state of a search after one candidate.

    Attributes:
        trial: the last scored candidate.
        budget: the total number of candidates.
        best: the best candidate so far; with several objectives the front.
        seconds_left: estimated seconds until the end.
    """

    trial: Trial
    budget: int
    best: tuple[Trial, ...]
    seconds_left: float


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
    chooser = optimisers.optimiser(
        search.method,
        search.axes,
        objectives=len(search.objectives),
        population=search.population,
        seed=search.seed,
        equal=search.equal,
    )
    trials: list[Trial] = []
    spent: list[float] = []
    with closing(History(folder, {**describe(search), **(settings or {})})) as history:
        if len(history.lines) > search.budget:
            raise RecipeError(
                f"{history.path}: has {len(history.lines)} candidates already, more than the budget of "
                f"{search.budget}; give a budget of {len(history.lines)} or more"
            )
        while len(trials) < search.budget and (positions := chooser.ask()):
            first = len(trials) + 1
            generation = [
                _candidate(search, n, position)
                for n, position in enumerate(positions[: search.budget - len(trials)], first)
            ]
            fresh = [c for c in generation if c.number > len(history.lines)]
            problems = {c.number: c.problem for c in fresh if c.problem is not None}
            problems |= prepare([c for c in fresh if c.point is not None])
            if len(problems) == len(generation) and first == 1:
                raise search.error(f"search: no candidate can be merged: {problems[1]}", "over")
            for candidate in generation:
                if candidate.number <= len(history.lines):
                    line = history.lines[candidate.number - 1]
                    trials.append(_recalled(candidate, line, history.path))
                    continue
                began = time.monotonic()
                problem = problems.get(candidate.number)
                trials.append(
                    _scored(search, candidate, score, trials)
                    if problem is None
                    else Trial(candidate, {}, invalid=problem)
                )
                spent.append(time.monotonic() - began)
                history.append(_line(trials[-1]))
                left = sum(spent) / len(spent) * (search.budget - len(trials))
                on_standing(Standing(trials[-1], search.budget, best(search, trials), left))
            if len(generation) == len(positions):
                chooser.tell([_verdict(search, trial) for trial in trials[first - 1 :]])
    return tuple(trials)


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


def _candidate(search: Search, number: int, position: Position) -> Candidate:
    values = search.values(position)
    try:
        point = search.pattern.point(values, number)
    except RecipeError as error:
        return Candidate(number, position, flat(values), None, str(error))
    return Candidate(number, position, point.values, point)


def _scored(search: Search, candidate: Candidate, score: Scorer, earlier: Sequence[Trial]) -> Trial:
    for trial in earlier:
        if trial.candidate.values == candidate.values:
            same = trial.same_as or trial.candidate.number
            return Trial(candidate, trial.scores, same, trial.invalid)
    scores = {
        name: value if isinstance(value, Score) else Score(value, 0.0, value, value, 1)
        for name, value in score(candidate).items()
    }
    for name in [*search.objectives, *search.limits]:
        if name not in scores:
            key = "objectives" if name in search.objectives else "constraints"
            raise search.error(
                f"search.{key}.{name}: there is no such score; there are {', '.join(scores)}",
                key,
                name,
            )
        if not abs(scores[name].mean) < float("inf"):
            raise InputError(f"candidate {candidate.name}: {name} is {scores[name].mean}")
    return Trial(candidate, scores)


def _line(trial: Trial) -> dict[str, Any]:
    candidate = trial.candidate
    line: dict[str, Any] = {
        "candidate": candidate.number,
        "name": candidate.name,
        "values": dict(candidate.values),
    }
    line["scores"] = {name: score.as_dict() for name, score in trial.scores.items()}
    facts = {"same_as": trial.same_as, "invalid": trial.invalid}
    return line | {key: fact for key, fact in facts.items() if fact is not None}


def _recalled(candidate: Candidate, line: Mapping[str, Any], path: Path) -> Trial:
    try:
        scores = {name: Score(**parts) for name, parts in line["scores"].items()}
        same = line["candidate"] == candidate.number and line["values"] == candidate.values
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: candidate {candidate.number} cannot be read") from None
    if not same:
        raise InputError(
            f"{path}: candidate {candidate.number} was another one ({values_text(line['values'])}); its "
            "optimiser was of another version, so choose another OUT"
        )
    return Trial(candidate, scores, line.get("same_as"), line.get("invalid"))


def _verdict(search: Search, trial: Trial) -> Verdict:
    if trial.invalid is not None:
        return Verdict(trial.candidate.position, (), ())
    means = {name: score.mean for name, score in trial.scores.items()}
    return Verdict(
        trial.candidate.position,
        tuple(
            -means[name] if direction == "max" else means[name]
            for name, direction in search.objectives.items()
        ),
        tuple(limit.missed(means[name]) for name, limit in search.limits.items()),
    )


def ranked(search: Search, trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Return the candidates that satisfy all constraints, best first; with several objectives only the front.

    Candidates with equal values count once; ties keep the order of the search.
    """
    verdicts = [(trial, _verdict(search, trial)) for trial in trials if trial.same_as is None]
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
        chooser.tell([_verdict(search, trial) for trial in tried])
        if before and tried[0].scores:
            name, soup = (names[tuple(map(float, p))] for p in (positions[0], before))
            found.append(Addition(name, soup, chooser.soup != before))
    return tuple(found)


def best(search: Search, trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Return the best candidate or, for several objectives, the front; empty if none is feasible."""
    best_first = ranked(search, trials)
    return best_first[:1] if len(search.objectives) == 1 else best_first
