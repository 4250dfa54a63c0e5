"""The story of a search: ask for candidates, score them, tell the optimiser, keep the best."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from merganser.errors import InputError, RecipeError
from merganser.study import front, optimisers
from merganser.study.history import History
from merganser.study.language import Point, told
from merganser.study.optimisers import Verdict
from merganser.study.results import Entry, Score
from merganser.study.space import Position, Search

Scorer = Callable[["Candidate"], Mapping[str, float | Score]]
"""Scores a candidate, by the scores' names; a plain number is a score without an error."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a search tries.

    Attributes:
        number: counted from 1.
        position: where in the space it is.
        point: its name, values and recipe.
    """

    number: int
    position: Position
    point: Point


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate that was scored.

    Attributes:
        candidate: which.
        scores: by name.
        same_as: the number of an earlier candidate of the same values, whose scores these are.
    """

    candidate: Candidate
    scores: Mapping[str, Score]
    same_as: int | None = None

    @property
    def entry(self) -> Entry:
        """As an entry of a study's results."""
        point = self.candidate.point
        return Entry(point.name, "point", values=point.values, scores=self.scores)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a search is.

    Attributes:
        trial: the candidate that was scored last.
        budget: how many there will be.
        best: the best so far, or the front.
        seconds_left: about how long it will take; None if nothing was timed yet.
    """

    trial: Trial
    budget: int
    best: tuple[Trial, ...]
    seconds_left: float | None


def explore(
    search: Search,
    score: Scorer,
    folder: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    prepare: Callable[[Sequence[Candidate]], object] = lambda _: None,
    on_progress: Callable[[Progress], object] = lambda _: None,
) -> tuple[Trial, ...]:
    """Try as many candidates as the budget has, and go on where an earlier run was cut off.

    The optimiser is asked and told all over again from the start; what the history has a line for is
    not scored again. So the history is the same however often the search was cut off.

    Args:
        search: what is searched.
        score: scores a candidate.
        folder: where the history lies.
        settings: what else decides the scores, as plain data.
        prepare: told the candidates of a generation that are to be scored, before the first is.
        on_progress: told of every candidate that is scored.

    Raises:
        MerganserError: of the kind that fits; what was scored is kept.
    """
    chooser = optimisers.optimiser(
        search.method,
        search.axes,
        objectives=len(search.objectives),
        population=search.population,
        seed=search.seed,
    )
    trials: list[Trial] = []
    spent: list[float] = []
    with History(folder, {**describe(search), **(settings or {})}) as history:
        if len(history.lines) > search.budget:
            raise RecipeError(
                f"{history.path}: has {len(history.lines)} candidates already, and the budget is "
                f"{search.budget}; give --budget {len(history.lines)} or more"
            )
        while len(trials) < search.budget and (positions := chooser.ask()):
            first = len(trials) + 1
            generation = [
                Candidate(n, position, search.pattern.point(search.values(position), n))
                for n, position in enumerate(positions[: search.budget - len(trials)], first)
            ]
            prepare([c for c in generation[max(0, len(history.lines) - len(trials)) :]])
            for candidate in generation:
                kept = history.lines[candidate.number - 1 : candidate.number]
                if kept:
                    trials.append(_recalled(candidate, kept[0], history.path))
                    continue
                began = time.monotonic()
                trials.append(_scored(search, candidate, score, trials))
                spent.append(time.monotonic() - began)
                history.append(_line(trials[-1]))
                left = search.budget - len(trials)
                on_progress(
                    Progress(
                        trials[-1],
                        search.budget,
                        best(search, trials),
                        sum(spent) / len(spent) * left,
                    )
                )
            if len(generation) == len(positions):
                chooser.tell([_verdict(search, trial) for trial in trials[first - 1 :]])
    return tuple(trials)


def describe(search: Search) -> dict[str, Any]:
    """What decides a search's candidates, as plain data; without the budget, which may grow."""
    block = search.pattern.document.data["search"]  # type: ignore[index]
    told_of = {key: block[key] for key in ("over", "objectives", "constraints") if key in block}
    how = {"method": search.method, "population": search.population, "seed": search.seed}
    return {
        "search": {**told_of, **how, "held_out": block.get("held_out")},
        "recipe": dict(search.pattern.data),
    }


def _scored(search: Search, candidate: Candidate, score: Scorer, earlier: Sequence[Trial]) -> Trial:
    for trial in earlier:
        if trial.candidate.point.values == candidate.point.values:
            return Trial(candidate, trial.scores, trial.same_as or trial.candidate.number)
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
            raise InputError(f"candidate {candidate.point.name}: {name} is {scores[name].mean}")
    return Trial(candidate, scores)


def _line(trial: Trial) -> dict[str, Any]:
    point = trial.candidate.point
    line = {
        "candidate": trial.candidate.number,
        "name": point.name,
        "values": point.values,
        "scores": {name: asdict(score) for name, score in trial.scores.items()},
    }
    return line | ({} if trial.same_as is None else {"same_as": trial.same_as})


def _recalled(candidate: Candidate, line: Mapping[str, Any], path: Path) -> Trial:
    try:
        scores = {name: Score(**parts) for name, parts in line["scores"].items()}
        same = line["candidate"] == candidate.number and line["values"] == candidate.point.values
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: candidate {candidate.number} cannot be read") from None
    if not same:
        raise InputError(
            f"{path}: candidate {candidate.number} was another one ({told(line['values'])}); its "
            "optimiser was of another version, so choose another OUT"
        )
    return Trial(candidate, scores, line.get("same_as"))


def _verdict(search: Search, trial: Trial) -> Verdict:
    means = {name: score.mean for name, score in trial.scores.items()}
    return Verdict(
        trial.candidate.position,
        tuple(
            -means[name] if direction == "max" else means[name]
            for name, direction in search.objectives.items()
        ),
        tuple(limit.missed(means[name]) for name, limit in search.limits.items()),
    )


def best(search: Search, trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """The best candidate, or the front of several objectives, among those that keep to all constraints.

    Of equal candidates the first counts. Empty if none keeps to the constraints.
    """
    verdicts = {
        trial.candidate.point.name: _verdict(search, trial)
        for trial in trials
        if trial.same_as is None
    }
    good = [t for t in trials if (v := verdicts.get(t.candidate.point.name)) and not any(v.missed)]
    if len(search.objectives) == 1:
        return tuple(sorted(good, key=lambda trial: verdicts[trial.candidate.point.name].goals)[:1])
    names = {each.name for each in front.non_dominated([t.entry for t in good], search.objectives)}
    return tuple(trial for trial in good if trial.candidate.point.name in names)
