"""Tasks as their author writes them: the keys of an ``evaluate:`` block, or of a file of tasks."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from merganser import recipe, suggestions
from merganser.errors import RecipeError
from merganser.evaluation import engines
from merganser.evaluation.engines import EngineName
from merganser.evaluation.statistics import Direction
from merganser.recipe import Document, key_name


class TaskPart(BaseModel):
    """A part of the language: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ScorerEntry(TaskPart):
    """A scorer with its parameters."""

    scorer: str
    name: str | None = None
    better: Direction | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    pass_at: list[int] = Field(default_factory=list)
    maj_at: list[int] = Field(default_factory=list)
    batch: bool | None = None
    concurrency: int | None = Field(default=None, ge=1)
    timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    failed: float | None = Field(default=None, allow_inf_nan=False)


class TaskEntry(TaskPart):
    """A task as its author wrote it; a preset may stand for several, and for problems and scorers."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [{"required": ["preset"]}, {"required": ["problems", "scorers"]}]
        }
    )

    name: str | None = Field(default=None, pattern=r"^[\w.+-]+$")
    problems: str | None = None
    scorers: list[str | ScorerEntry] = Field(default_factory=list, min_length=1)
    preset: str | None = None
    samples: int = Field(default=1, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=10)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    stop: list[str] = Field(default_factory=list)
    system: str | None = None
    template: str | None = None
    chat: bool = True
    limit: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)


class Evaluate(TaskPart):
    """An ``evaluate:`` block, or a file of tasks."""

    tasks: list[TaskEntry] = Field(min_length=1)
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_size: int | None = Field(default=None, ge=1)
    engine: EngineName = "transformers"
    engine_options: dict[str, Any] = Field(default_factory=dict)
    allow_code: bool = False

    @model_validator(mode="after")
    def _options(self) -> Evaluate:
        try:
            engines.read_options(self.engine, self.engine_options)
        except RecipeError as error:
            raise ValueError(str(error)) from None
        return self


Kind = TypeVar("Kind", bound=Evaluate)


def read_block(document: Document, path: tuple[str | int, ...], kind: type[Kind]) -> Kind:
    """Return a block of a document, read and checked.

    Args:
        document: the document of a file, or one created in Python.
        path: the path of keys to the block in the document; empty for the whole document.
        kind: :class:`Evaluate`, or a subclass with more keys.

    Raises:
        RecipeError: with file, line and key of the first mistake.
    """
    data: Any = document.data
    for part in path:
        data = data[part]
    if not isinstance(data, dict):
        raise document.error(f"{key_name(path) or 'tasks'}: a mapping with tasks is wanted", path)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        entry = error.errors(include_url=False)[0]
        if entry["type"] == "extra_forbidden":
            known = {f for each in (kind, TaskEntry, ScorerEntry) for f in each.model_fields}
            key = str(entry["loc"][-1])
            slip = suggestions.nearest(key, known)
            hint = f"; did you mean {slip!r}?" if slip else ""
            if key in TaskEntry.model_fields and len(entry["loc"]) == 1:
                hint = f" here; it belongs to a task: tasks: [{{{key}: …}}]"
            entry["msg"] = "unknown key" + hint
        raise recipe.invalid(document, entry, path) from None
