"""Optimisers that propose a search's candidates: one class per method, with an ask/tell interface
by generation.

An optimiser's next step depends only on its seed and the results that it received, so that an
interrupted search is replayed from its history. All goals are minimised.

With several workers, results come in one by one and in any order. An :class:`Asynchronous` optimiser
proposes candidates while it waits for the results of others; the others work by generation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from merganser import extras
from merganser.study.search_axes import Axis
from merganser.study.search_space import Method, Position

POPULATION = 8
"""Candidates per generation of the methods that have no other default."""

FIRST_OF_FRONT = 5
"""Number of points of the even grid that the method ``front`` begins with."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a candidate.

    Attributes:
        position: the candidate's position in the space.
        goals: one number per objective, less is better; empty if the candidate failed, which ranks it
            after all others.
        missed: the violation of each constraint; 0 if it is satisfied.
        number: its number among all positions that the optimiser has proposed, from 1.
    """

    position: Position
    goals: tuple[float, ...]
    missed: tuple[float, ...]
    number: int


class Optimiser(Protocol):
    """Proposes candidates, and receives their results."""

    def ask(self) -> list[Position]:
        """Return a generation; empty if the method is exhausted."""

    def tell(self, verdicts: Sequence[Verdict]) -> None:
        """Receive the results of the last generation, in the order of :meth:`ask`."""


@runtime_checkable
class Asynchronous(Optimiser, Protocol):
    """Takes results one by one and in any order, and proposes candidates while others have none yet."""

    def ask_early(self) -> list[Position]:
        """Return one more candidate; none if the results of the others must come first."""

    def tell(self, verdicts: Sequence[Verdict]) -> None:
        """Receive results, in the order in which they came in."""


def optimiser(
    method: Method,
    axes: Sequence[Axis],
    *,
    objectives: int,
    population: int | None = None,
    seed: int = 0,
    equal: bool = False,
) -> Optimiser:
    """Return the optimiser of a method.

    Args:
        method: its name.
        axes: the axes of the space.
        objectives: the number of goals.
        population: candidates per generation; None for the method's default.
        seed: seed of all random draws.
        equal: whether a greedy soup keeps a model that leaves the score unchanged.

    Raises:
        MerganserError: the method's library is not installed.
    """
    match method:
        case "cma-es":
            return CmaEs(axes, population, seed)
        case "tpe":
            return Tpe(axes, objectives, population or POPULATION, seed)
        case "nsga-ii":
            return NsgaII(axes, objectives, population or POPULATION, seed)
        case "random":
            return Random(axes, population or POPULATION, seed)
        case "front":
            return Front(axes, population or FIRST_OF_FRONT)
        case "greedy":
            return Greedy(axes, equal)


class CmaEs:
    """CMA-ES with margin (Hamano et al. 2022, arXiv:2205.13482), for one goal over numbers.

    Only the ranks within a generation count: candidates that violate constraints rank after all others, by
    the size of the violation (Deb 2000).
    """

    def __init__(self, axes: Sequence[Axis], population: int | None, seed: int) -> None:
        self.axes = axes
        counts = [axis.count or 0 for axis in axes]
        self.search = extras.load("cmaes", "search").CMAwM(
            mean=np.full(len(axes), 0.5),
            sigma=0.3,
            bounds=np.tile([0.0, 1.0], (len(axes), 1)),
            steps=np.array([1 / (count - 1) if count else 0.0 for count in counts]),
            seed=seed,
            population_size=population,
        )
        self.raw: list[Any] = []

    def ask(self) -> list[Position]:
        """Return one generation of candidates."""
        asked = [self.search.ask() for _ in range(self.search.population_size)]
        self.raw = [raw for _, raw in asked]
        return [
            tuple(
                float(x) if axis.count is None else round(float(x) * (axis.count - 1))
                for axis, x in zip(self.axes, place, strict=True)
            )
            for place, _ in asked
        ]

    def tell(self, verdicts: Sequence[Verdict]) -> None:
        """Update the search distribution."""
        keys = [(not v.goals, sum(v.missed), *v.goals) for v in verdicts]
        order = sorted(set(keys))
        ranks = [float(order.index(key)) for key in keys]
        self.search.tell(list(zip(self.raw, ranks, strict=True)))


class Optuna:
    """One of Optuna's samplers.

    Args:
        sampler: returns the sampler, given the library's module of samplers.
        axes: the axes of the space.
        objectives: the number of goals.
        population: candidates per generation.
    """

    def __init__(
        self,
        sampler: Callable[[Any], Any],
        axes: Sequence[Axis],
        objectives: int,
        population: int,
    ) -> None:
        optuna = extras.load("optuna", "search")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.failed = optuna.trial.TrialState.FAIL
        distributions = optuna.distributions
        self.space = {
            f"{i}": distributions.FloatDistribution(0.0, 1.0)
            if axis.count is None
            else distributions.IntDistribution(0, axis.count - 1)
            if axis.ordered
            else distributions.CategoricalDistribution(range(axis.count))
            for i, axis in enumerate(axes)
        }
        self.study = optuna.create_study(
            sampler=sampler(optuna.samplers), directions=["minimize"] * objectives
        )
        self.population = population
        self.trials: list[Any] = []

    def ask(self) -> list[Position]:
        """Return one generation of candidates."""
        return [self._ask_one() for _ in range(self.population)]

    def tell(self, verdicts: Sequence[Verdict]) -> None:
        """Add the results to Optuna's study."""
        for verdict in verdicts:
            trial = self.trials[verdict.number - 1]
            for i, missed in enumerate(verdict.missed):
                trial.set_constraint(f"{i}", missed)
            if verdict.goals:
                self.study.tell(trial, list(verdict.goals))
            else:
                self.study.tell(trial, state=self.failed)

    def _ask_one(self) -> Position:
        trial = self.study.ask(self.space)
        self.trials.append(trial)
        return tuple(trial.params[key] for key in self.space)


class Tpe(Optuna):
    """TPE (Watanabe 2023, arXiv:2304.11127).

    Candidates without a result count as bad ones (a constant liar, Ginsbourger et al. 2010), so that
    candidates that are scored at the same time differ.
    """

    def __init__(self, axes: Sequence[Axis], objectives: int, population: int, seed: int) -> None:
        super().__init__(
            lambda samplers: samplers.TPESampler(
                seed=seed, n_startup_trials=max(10, population), constant_liar=True
            ),
            axes,
            objectives,
            population,
        )

    def ask_early(self) -> list[Position]:
        """Return one more candidate."""
        return [self._ask_one()]


class NsgaII(Optuna):
    """NSGA-II (Deb et al. 2002)."""

    def __init__(self, axes: Sequence[Axis], objectives: int, population: int, seed: int) -> None:
        super().__init__(
            lambda samplers: samplers.NSGAIISampler(seed=seed, population_size=population),
            axes,
            objectives,
            population,
        )


class Random:
    """Random search: independent, uniformly drawn candidates."""

    def __init__(self, axes: Sequence[Axis], population: int, seed: int) -> None:
        self.axes = axes
        self.population = population
        self.random = np.random.default_rng(seed)

    def ask(self) -> list[Position]:
        """Return one generation of candidates."""
        return [position for _ in range(self.population) for position in self.ask_early()]

    def ask_early(self) -> list[Position]:
        """Return one more candidate, the same as if the others had results."""
        return [
            tuple(
                float(self.random.random())
                if axis.count is None
                else int(self.random.integers(axis.count))
                for axis in self.axes
            )
        ]

    def tell(self, verdicts: Sequence[Verdict]) -> None:
        """Ignore the results."""


class Front:
    """An even grid over one number, then repeatedly the middle of the widest gap of the front.

    A gap is the distance between two neighbours' goals, each goal scaled to its range so far;
    pairs without a point on the front come last.
    """

    def __init__(self, axes: Sequence[Axis], first: int) -> None:
        [self.axis] = axes
        self.first = first
        self.asked: dict[float, None] = {}
        self.waits_for = 0
        self.found: dict[float, Verdict] = {}

    def ask(self) -> list[Position]:
        """Return the grid at first, then one candidate at a time."""
        count = self.axis.count
        if not self.asked:
            ends = np.linspace(0, 1 if count is None else count - 1, self.first)
            self.asked = dict.fromkeys(self._place(end) for end in ends)
            self.waits_for = len(self.asked)
            return [(x,) for x in self.asked]
        return self._middle_of_widest_gap()

    def ask_early(self) -> list[Position]:
        """Return the middle of the widest gap in which no candidate waits; none before the grid is scored."""
        return [] if self.waits_for > 0 else self._middle_of_widest_gap()

    def _middle_of_widest_gap(self) -> list[Position]:
        places = sorted(self.found)
        if len(places) < 2:
            return []
        middles = [self._place((a + b) / 2) for a, b in itertools.pairwise(places)]
        goals = np.array([self.found[place].goals for place in places])
        width = np.ptp(goals, axis=0)
        goals = goals / np.where(width > 0, width, 1.0)
        lost = np.array([sum(self.found[place].missed) > 0 for place in places])
        beaten = [(~lost & (goals <= row).all(1) & (goals < row).any(1)).any() for row in goals]
        behind = lost | np.array(beaten)
        gaps = np.linalg.norm(np.diff(goals, axis=0), axis=1)
        ranked = sorted(
            range(len(middles)), key=lambda i: (behind[i] and behind[i + 1], -gaps[i], places[i])
        )
        fresh = (middles[i] for i in ranked if middles[i] not in self.asked)
        chosen = list(itertools.islice(fresh, 1))
        self.asked |= dict.fromkeys(chosen)
        return [(place,) for place in chosen]

    def _place(self, place: float) -> float:
        return float(round(place, 4)) if self.axis.count is None else int(place)

    def tell(self, verdicts: Sequence[Verdict]) -> None:
        """Store the results."""
        self.waits_for -= len(verdicts)
        for verdict in verdicts:
            if verdict.goals:
                self.found[verdict.position[0]] = verdict


class Greedy:
    """Greedy soup: score every model alone, then add models from best to worst, and keep each that
    improves the score.

    Args:
        axes: one per model; with more than two values a model may be added again.
        equal: whether a model that leaves the score unchanged stays.
    """

    def __init__(self, axes: Sequence[Axis], equal: bool = False) -> None:
        self.count = len(axes)
        self.most = (axes[0].count or 2) - 1
        self.equal = equal
        self.order: list[int] | None = None
        self.queue: list[int] = []
        self.soup: tuple[int, ...] = ()
        self.key: tuple[float, ...] = ()
        self.grown = False

    def ask(self) -> list[tuple[float, ...]]:
        """Return the single models at first, then one soup at a time."""
        if self.order is None:
            return [tuple(map(float, self._with((0,) * self.count, i))) for i in range(self.count)]
        if not self.queue and self.most > 1 and self.grown:
            self.queue, self.grown = list(self.order), False
        while self.queue and self.soup[self.queue[0]] >= self.most:
            self.queue.pop(0)
        return [tuple(map(float, self._with(self.soup, self.queue[0])))] if self.queue else []

    def tell(self, verdicts: Sequence[Verdict]) -> None:
        """Sort the single models by score at first; then keep the added model if it improves the score."""
        keys = [(sum(v.missed), *v.goals) if v.goals else () for v in verdicts]
        if self.order is None:
            good = [i for i in range(self.count) if keys[i]]
            self.order = sorted(good, key=lambda i: keys[i])
            if self.order:
                first, *self.queue = self.order
                self.soup, self.key = self._with((0,) * self.count, first), keys[first]
                self.grown = True
            return
        added = self.queue.pop(0)
        if keys[0] and (keys[0] < self.key or (self.equal and keys[0] == self.key)):
            self.soup, self.key = self._with(self.soup, added), keys[0]
            self.grown = True

    def _with(self, soup: tuple[int, ...], model: int) -> tuple[int, ...]:
        return tuple(n + (i == model) for i, n in enumerate(soup))
