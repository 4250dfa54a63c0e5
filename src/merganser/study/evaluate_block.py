"""The ``evaluate:`` block of a sweep or a search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from merganser.evaluation import tasks as languages
from merganser.evaluation.harness import HarnessTask
from merganser.evaluation.statistics import Direction
from merganser.evaluation.tasks import Evaluate, Part, Task, TaskEntry

Positive = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class StatedScore(Part):
    """A score that was measured elsewhere, with what is known of its uncertainty."""

    mean: Number
    error: Positive | None = None
    low: Number | None = None
    high: Number | None = None
    problems: Annotated[int, Field(ge=1)] | None = None


class Reference(Part):
    """What merges are compared with: a model that is scored like them, or scores from elsewhere."""

    name: Annotated[str, Field(min_length=1, max_length=150)] | None = None
    role: Literal["mixed", "published", "reference"] = "reference"
    model: str | None = None
    scores: dict[str, StatedScore] = Field(default_factory=dict)
    source: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Reference:
        if (self.model is None) == (not self.scores):
            raise ValueError("give either a model, which is scored, or scores and a name")
        if self.model is None and self.name is None:
            raise ValueError("scores want a name: whose are they?")
        return self


class Study(Evaluate):
    """An ``evaluate:`` block of a sweep, with tasks of the lm-evaluation-harness too."""

    tasks: list[TaskEntry] = Field(default_factory=list)
    lm_eval: list[HarnessTask] = Field(default_factory=list)

    keep: str | dict[str, str | list[str]] = "all"
    base: str | None = None
    experts: bool = True
    references: list[Reference] = Field(default_factory=list)
    held_out: Annotated[float, Field(gt=0, lt=1)] | str | list[str] | None = None

    @model_validator(mode="after")
    def _names(self) -> Study:
        if not self.tasks and not self.lm_eval:
            raise ValueError("there is nothing to score; give tasks")
        names = [task.score for task in self.lm_eval]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"lm_eval: two scores are called {twice!r}; give one a name")
        return self

    def directions(self, tasks: Sequence[Task]) -> dict[str, Direction]:
        """All scores, and whether more or less of each is better."""
        return languages.score_names(tasks) | {task.score: task.better for task in self.lm_eval}
