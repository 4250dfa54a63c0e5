"""The ``evaluate:`` block of a sweep or a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from merganser import extras
from merganser.errors import RecipeError
from merganser.evaluation import engines
from merganser.evaluation import tasks as languages
from merganser.evaluation.engines import AnyOptions, EngineName
from merganser.evaluation.harness import HarnessTask
from merganser.evaluation.statistics import Direction
from merganser.evaluation.task_entries import Evaluate, TaskEntry, TaskPart, read_block
from merganser.evaluation.tasks import Task
from merganser.recipe import Config, Document, Strictness
from merganser.recipe.sweep_file import read_pattern
from merganser.study.keep import parse_rule
from merganser.tracking import TrackerName

Positive = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class StatedScore(TaskPart):
    """A score that was measured elsewhere, with its uncertainty in one of three forms."""

    mean: Number
    error: Positive | None = None
    low: Number | None = None
    high: Number | None = None
    problems: Annotated[int, Field(ge=1)] | None = None


class Reference(TaskPart):
    """An entry to compare merges with: a model to score, or scores that were measured elsewhere."""

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
            raise ValueError("scores need a name, that of their model")
        return self


class Study(Evaluate):
    """The ``evaluate:`` block of a sweep or a search: tasks, engine, references, and what to keep."""

    tasks: list[TaskEntry] = Field(default_factory=list)
    lm_eval: list[HarnessTask] = Field(default_factory=list)

    keep: str | dict[str, str | list[str]] = "all"
    base: str | None = None
    experts: bool = True
    references: list[Reference] = Field(default_factory=list)
    held_out: Annotated[float, Field(gt=0, lt=1)] | str | list[str] | None = None
    track: TrackerName | None = None

    @model_validator(mode="after")
    def _names(self) -> Study:
        if not self.tasks and not self.lm_eval:
            raise ValueError("there is nothing to score; give tasks")
        names = [task.score for task in self.lm_eval]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"lm_eval: two scores are called {twice!r}; give one a name")
        return self

    def directions(self, tasks: Sequence[Task]) -> dict[str, Direction]:
        """Return ``max`` (more is better) or ``min`` for each score, by name."""
        return languages.score_names(tasks) | {task.score: task.better for task in self.lm_eval}


def check_block(config: Config, strictness: Strictness = "normal") -> None:
    """Check the ``evaluate:`` block of a sweep, without running a model.

    Raises:
        RecipeError: for the first error, with file and line.
        InputError: when a file of problems is missing or wrong.
        MerganserError: when an extra is not installed.
    """
    pattern = read_pattern(config, "sweep", strictness)
    block, tasks = load_block(pattern.document, pattern.folder, allow_code=True)  # runs no program
    parse_rule(block.keep, block.directions(tasks), pattern.document)


def choose_engine(
    block: Study,
    engine: EngineName | None = None,
    options: Mapping[str, Any] | None = None,
) -> AnyOptions:
    """Return the checked options of the engine that runs models.

    Args:
        block: the study's block, which names an engine.
        engine: replaces the block's engine; None keeps it.
        options: override the block's options of the same names; with another engine than the block's, the
            block's options are ignored.

    Raises:
        MerganserError: when an extra is not installed, or an option is wrong.
    """
    chosen = engines.choose(block.engine, block.engine_options, engine, options)
    engines.check_installed(chosen)
    if block.lm_eval:
        if engines.name_of(chosen) != "transformers":
            raise RecipeError(
                "lm_eval: tasks of the lm-evaluation-harness need engine: transformers"
            )
        extras.check("lm_eval", "lm-eval")
    return chosen


def load_block(
    document: Document, folder: Path | None, *, allow_code: bool = False
) -> tuple[Study, list[Task]]:
    """Return the ``evaluate:`` block of a study's file, and its tasks.

    Args:
        document: the file's content.
        folder: the folder that its relative paths start at.
        allow_code: allow scorers that run programs of models, whatever the block says.

    Raises:
        RecipeError: when there is no block, or it is wrong, with file and line.
        InputError: when a file of problems is missing or wrong.
    """
    if not isinstance(document.data, dict) or "evaluate" not in document.data:
        raise document.error("the evaluate: block, which says how models are scored, is missing")
    block = read_block(document, ("evaluate",), Study)
    if allow_code:
        block = block.model_copy(update={"allow_code": True})
    return block, languages.make_tasks(block, document, ("evaluate",), folder)
