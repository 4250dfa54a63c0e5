"""The state of a search: which candidates its optimiser has proposed, and which have results.

The state is a function of the search's history. The history has a line for each result, in the order in
which the results came in. A generation is proposed when all earlier candidates have results; a candidate
that is proposed earlier, for a worker that is free, has a line ``{"ask": number}`` of its own. So the
history of a search that several workers have scored gives the same candidates when it is replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from merganser.errors import InputError, RecipeError
from merganser.recipe.sweep_file import Point, Values, flat, values_text
from merganser.results.scores import Entry, Score
from merganser.study import optimisers
from merganser.study.history import History
from merganser.study.optimisers import Asynchronous, Verdict
from merganser.study.search_space import Position, Search

Preparer = Callable[[Sequence["Candidate"]], Mapping[int, str]]
"""Called with the candidates to score next; returns the reasons why some cannot be merged, by number."""

ASK = "ask"
"""Key of a history's line for a candidate that was proposed before others had results."""

BEFORE = "before"
"""Key of a result that came in before that of a candidate with a lower number: the lowest such number."""


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
        invalid: the reason why it could not be merged or scored; None if it could.
        weights, effective: its weights as :class:`Entry` has them, if a worker measured them; not in
            the history.
    """

    candidate: Candidate
    scores: Mapping[str, Score]
    same_as: int | None = None
    invalid: str | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    effective: Mapping[str, float] = field(default_factory=dict)

    @property
    def entry(self) -> Entry:
        """Return the candidate as an entry of a study's results."""
        return Entry(
            self.candidate.name,
            "point",
            values=self.candidate.values,
            scores=self.scores,
            weights=self.weights,
            effective=self.effective,
        )


class Exploration:
    """The proposed candidates of a search, and their results.

    Args:
        search: the space, objectives and settings.
        history: an open history, which is replayed.
        prepare: called with the candidates that need scoring, before the first of them is scored.

    Attributes:
        search: the search.
        open: the candidates without a result, by number.

    Raises:
        RecipeError: the history has more candidates than the search's budget.
        InputError: the history has other candidates than the optimiser proposes.
    """

    def __init__(self, search: Search, history: History, prepare: Preparer) -> None:
        self.search = search
        self.open: dict[int, Candidate] = {}
        self._history = history
        self._prepare = prepare
        self._optimiser = optimisers.optimiser(
            search.method,
            search.axes,
            objectives=len(search.objectives),
            population=search.population,
            seed=search.seed,
            equal=search.equal,
        )
        self._candidates: list[Candidate] = []
        self._firsts: dict[int, int] = {}
        self._over_budget: list[Position] = []
        self._trials: dict[int, Trial] = {}
        self._to_tell: list[Trial] = []
        self._problems: dict[int, str] = {}
        count = max((_number(line) for line in history.lines), default=0)
        if count > search.budget:
            raise RecipeError(
                f"{history.path}: has {count} candidates already, more than the budget of "
                f"{search.budget}; give a budget of {count} or more"
            )
        for line in history.lines:
            self._replay(line)
        self._check(list(self.open.values()))

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All results, by number of the candidate."""
        return tuple(self._trials[number] for number in sorted(self._trials))

    def ask(self) -> bool:
        """Propose the next generation; all candidates have results.

        Returns:
            Whether there are more candidates: False if the budget is spent, or the method is exhausted.

        Raises:
            RecipeError: no candidate of the first generation can be merged.
        """
        candidates = self._propose(early=False)
        self._check(candidates)
        if candidates and not self._trials and len(self._problems) == len(candidates):
            raise self.search.error(
                f"search: no candidate can be merged: {self._problems[1]}", "over"
            )
        return bool(candidates)

    def ask_early(self) -> bool:
        """Propose one more candidate although others have no results yet, if the method can.

        Returns:
            Whether there is one more candidate.
        """
        candidates = self._propose(early=True)
        for candidate in candidates:
            self._history.append({ASK: candidate.number})
        self._check(candidates)
        return bool(candidates)

    def settled(self, candidate: Candidate) -> Trial | None:
        """Return the result of a candidate that needs no scoring; None for others.

        It cannot be merged, or has the same values as a candidate that has a result.
        """
        if candidate.number in self._problems:
            return Trial(candidate, {}, invalid=self._problems[candidate.number])
        first = self._trials.get(self._firsts[candidate.number])
        if first is None:
            return None
        return Trial(candidate, first.scores, first.candidate.number, first.invalid)

    @property
    def to_score(self) -> list[Candidate]:
        """The candidates to score, by number: without those that are invalid or like an earlier one."""
        return [
            candidate
            for number, candidate in self.open.items()
            if number not in self._problems and self._firsts[number] == number
        ]

    def record(self, trial: Trial) -> None:
        """Append a result to the history."""
        number, lowest = trial.candidate.number, next(iter(self.open))
        early = {BEFORE: lowest} if number != lowest else {}
        self._add(trial)
        self._history.append(_line(trial) | early)

    def _add(self, trial: Trial) -> None:
        del self.open[trial.candidate.number]
        self._trials[trial.candidate.number] = trial
        self._to_tell.append(trial)

    def _propose(self, *, early: bool) -> list[Candidate]:
        """Ask the optimiser; return the new candidates within the budget."""
        optimiser = self._optimiser
        if self._over_budget or len(self._candidates) >= self.search.budget:
            return []
        if not isinstance(optimiser, Asynchronous):
            if early:
                return []
            self._to_tell.sort(key=lambda trial: trial.candidate.number)  # a generation at a time
        if self._to_tell:
            optimiser.tell([verdict(self.search, trial) for trial in self._to_tell])
            self._to_tell = []
        ask = (
            optimiser.ask_early if early and isinstance(optimiser, Asynchronous) else optimiser.ask
        )
        positions = ask()
        first = len(self._candidates) + 1
        left = self.search.budget - len(self._candidates)
        self._over_budget = positions[left:]
        candidates = [
            _candidate(self.search, number, position)
            for number, position in enumerate(positions[:left], first)
        ]
        for candidate in candidates:
            self._candidates.append(candidate)
            self.open[candidate.number] = candidate
            self._firsts[candidate.number] = next(
                each.number for each in self._candidates if each.values == candidate.values
            )
        return candidates

    def _check(self, candidates: Sequence[Candidate]) -> None:
        """Plan candidates that are to be scored, and note which of them cannot be merged."""
        self._problems |= {c.number: c.problem for c in candidates if c.problem is not None}
        self._problems |= self._prepare([c for c in candidates if c.point is not None])

    def _replay(self, line: Mapping[str, Any]) -> None:
        if not self.open:
            self._propose(early=False)
        if ASK in line:
            asked = [candidate.number for candidate in self._propose(early=True)]
            if asked != [line[ASK]]:
                raise _another(self._history, _number(line), line)
            return
        number = _number(line)
        lowest = next(iter(self.open), number)
        candidate = self.open.get(number)
        if candidate is None or line.get(BEFORE, number) != lowest:
            raise _another(self._history, lowest, line)
        self._add(_recalled(candidate, line, self._history))


def verdict(search: Search, trial: Trial) -> Verdict:
    """Return a result as the optimiser receives it."""
    candidate = trial.candidate
    if trial.invalid is not None:
        return Verdict(candidate.position, (), (), candidate.number)
    means = {name: score.mean for name, score in trial.scores.items()}
    return Verdict(
        candidate.position,
        tuple(
            -means[name] if direction == "max" else means[name]
            for name, direction in search.objectives.items()
        ),
        tuple(limit.missed(means[name]) for name, limit in search.limits.items()),
        candidate.number,
    )


def checked(
    search: Search, candidate: Candidate, given: Mapping[str, float | Score]
) -> dict[str, Score]:
    """Return the scores of a candidate after a check that the search can use them.

    Raises:
        RecipeError: a score that the search names is missing.
        InputError: it is not finite.
    """
    scores = {
        name: value if isinstance(value, Score) else Score(value, 0.0, value, value, 1)
        for name, value in given.items()
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
    return scores


def _candidate(search: Search, number: int, position: Position) -> Candidate:
    values = search.values(position)
    try:
        point = search.pattern.point(values, number)
    except RecipeError as error:
        return Candidate(number, position, flat(values), None, str(error))
    return Candidate(number, position, point.values, point)


def _number(line: Mapping[str, Any]) -> int:
    """Return the number of the candidate that a line of the history is about; 0 if it has none."""
    number = line.get(ASK, line.get("candidate"))
    return number if isinstance(number, int) else 0


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


def _recalled(candidate: Candidate, line: Mapping[str, Any], history: History) -> Trial:
    try:
        scores = {name: Score(**parts) for name, parts in line["scores"].items()}
        same = line["values"] == candidate.values
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{history.path}: candidate {candidate.number} cannot be read") from None
    if not same:
        raise _another(history, candidate.number, line)
    return Trial(candidate, scores, line.get("same_as"), line.get("invalid"))


def _another(history: History, number: int, line: Mapping[str, Any]) -> InputError:
    values = line.get("values")
    what = f" ({values_text(values)})" if isinstance(values, Mapping) else ""
    return InputError(
        f"{history.path}: candidate {number} was another one{what}; its optimiser was of another "
        "version, so choose another OUT"
    )
