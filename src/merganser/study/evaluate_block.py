"""The ``evaluate:`` block of a sweep or a search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, model_validator

from merganser.evaluation import tasks as languages
from merganser.evaluation.harness import HarnessTask
from merganser.evaluation.statistics import Direction
from merganser.evaluation.tasks import Evaluate, Task, TaskEntry


class Study(Evaluate):
    """An ``evaluate:`` block of a sweep, with tasks of the lm-evaluation-harness too."""

    tasks: list[TaskEntry] = Field(default_factory=list)
    lm_eval: list[HarnessTask] = Field(default_factory=list)

    keep: str | dict[str, str | list[str]] = "all"
    base: str | None = None
    experts: bool = True
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
