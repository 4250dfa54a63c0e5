"""Events of a study that runs: how far the model at work is, and its scores once it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from merganser.evaluation.statistics import Score


@dataclass(frozen=True, slots=True)
class Turn:
    """Which of a study's models is at work.

    Attributes:
        model: its name.
        number: its number among the models, from 1.
        models: how many models the study scores.
    """

    model: str
    number: int = 1
    models: int = 1


@dataclass(frozen=True, slots=True)
class Scoring:
    """A model is being scored.

    Attributes:
        turn: the model, with its position among all models.
        done: completions that are finished, reused ones included.
        total: completions that its tasks ask for.
        generated: completions that this run has finished.
        tokens: tokens that this run has generated, those of unfinished completions included.
    """

    turn: Turn
    done: int
    total: int
    generated: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Judging:
    """A costly scorer, such as a reward model, is at work on a model's completions.

    Attributes:
        turn: the model, with its position among all models.
        scorer: the scorer's name in its task.
        done: samples that are scored, stored scores included.
        total: samples of the task.
    """

    turn: Turn
    scorer: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Scored:
    """A model has its scores.

    Attributes:
        turn: the model, with its position among all models.
        scores: by name.
        completions: completions that the scores rest on.
        generated: those of them that this run has generated; the others are reused.
    """

    turn: Turn
    scores: Mapping[str, Score]
    completions: int
    generated: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """A model is scored by another process, and waited for.

    Attributes:
        turn: the model, with its position among all models.
    """

    turn: Turn


Event = Scoring | Judging | Scored | Waiting

Listener = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """Listen to nothing."""


@dataclass
class Meter:
    """Counts what a backend generates for one model, and reports each step.

    Attributes:
        turn: the model, with its position among all models.
        listener: called with a :class:`Scoring` at each step.
    """

    turn: Turn
    listener: Listener
    done: int = 0
    total: int = 0
    tokens: int = 0
    _reused: int | None = field(default=None, repr=False)

    def completed(self, done: int, total: int) -> None:
        """Report completions: the first call counts those that are reused."""
        self._reused = done if self._reused is None else self._reused
        self.done, self.total = done, total
        self._report()

    def judged(self, scorer: str, done: int, total: int) -> None:
        """Report samples that a costly scorer has scored."""
        self.listener(Judging(self.turn, scorer, done, total))

    def generated(self, tokens: int) -> None:
        """Report tokens that the backend has generated since the last call."""
        self.tokens += tokens
        self._report()

    def _report(self) -> None:
        generated = self.done - (self._reused or 0)
        self.listener(Scoring(self.turn, self.done, self.total, generated, self.tokens))
