"""Progress events of a running study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from merganser.evaluation.statistics import Score


@dataclass(frozen=True, slots=True)
class Turn:
    """The position of a model among the models of a study.

    Attributes:
        model: the model's name.
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
        done: number of finished completions, including reused ones.
        total: number of completions that the tasks require.
        generated: number of completions that this run has finished.
        tokens: number of tokens that this run has generated, including those of unfinished completions.
    """

    turn: Turn
    done: int
    total: int
    generated: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Judging:
    """A costly scorer, such as a reward model, scores a model's completions.

    Attributes:
        turn: the model, with its position among all models.
        scorer: the scorer's name in its task.
        done: number of scored samples, including stored scores.
        total: number of samples of the task.
    """

    turn: Turn
    scorer: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Scored:
    """The scores of a model are known.

    Attributes:
        turn: the model, with its position among all models.
        scores: the scores by name.
        completions: number of completions that the scores are computed from.
        generated: number of those that this run has generated; the others are reused.
        worker: the worker that scored the model; empty for this process.
    """

    turn: Turn
    scores: Mapping[str, Score]
    completions: int
    generated: int
    worker: str = ""


@dataclass(frozen=True, slots=True)
class Waiting:
    """This process waits for a model that another process is scoring.

    Attributes:
        turn: the model, with its position among all models.
    """

    turn: Turn


@dataclass(frozen=True, slots=True)
class Sharing:
    """Workers that this process has started score models.

    Attributes:
        scored: number of models that are scored.
        models: number of models that the study scores.
        workers: number of workers that score a model now.
        done: number of finished completions of all models.
        total: number of completions that the tasks require of all models.
    """

    scored: int
    models: int
    workers: int
    done: int
    total: int


Event = Scoring | Judging | Scored | Waiting | Sharing

Listener = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """Ignore an event."""


@dataclass
class Meter:
    """Counts the completions and tokens of one model, and reports each step to a listener.

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
        """Report the number of finished completions; the first call reports the reused ones."""
        self._reused = done if self._reused is None else self._reused
        self.done, self.total = done, total
        self._report()

    def judged(self, scorer: str, done: int, total: int) -> None:
        """Report the number of samples that a costly scorer has scored."""
        self.listener(Judging(self.turn, scorer, done, total))

    def generated(self, tokens: int) -> None:
        """Report the number of tokens that the backend has generated since the last call."""
        self.tokens += tokens
        self._report()

    def _report(self) -> None:
        generated = self.done - (self._reused or 0)
        self.listener(Scoring(self.turn, self.done, self.total, generated, self.tokens))
