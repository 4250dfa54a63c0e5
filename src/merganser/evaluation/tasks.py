"""The language in which an evaluation is asked for: tasks, their problems, scorers and sampling."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from merganser import recipe, suggestions
from merganser.errors import InputError, MerganserError, RecipeError
from merganser.evaluation import engines, scorers
from merganser.evaluation import problems as problem_files
from merganser.evaluation.engines import EngineName
from merganser.evaluation.generation import Message, Prompt, Sampling
from merganser.evaluation.problems import Problem
from merganser.evaluation.samples import Sample
from merganser.evaluation.scorers import Scorer
from merganser.evaluation.statistics import Direction
from merganser.recipe import Document, key_name

PROBLEM = "{problem}"
"""Placeholder of the problem in a task's template."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {"temperature": 0.0, "top_p": 1.0},
    "open-rs": {
        "temperature": 0.6,
        "top_p": 0.95,
        "max_tokens": 32768,
        "template": (
            "Solve this problem of mathematics efficiently and clearly, thinking step by step before "
            "you answer. The last line of your response must read 'Therefore, the final answer is: "
            "$\\boxed{ANSWER}$. I hope it is correct' (without the quotes), where ANSWER is nothing but "
            "the number or expression that solves the problem.\n\n{problem}"
        ),
    },
}
"""Settings by name. ``open-rs``: those of the open-rs study, without a system prompt. Its instructions are
told in other words here, but for the last line, which is the same."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A score of a task.

    Attributes:
        name: in the results.
        scorer: the scorer of the samples.
        better: whether more or less is better.
        pass_at, maj_at: the k of additional pass@k and maj@k scores, for verdicts of 0 and 1.
    """

    name: str
    scorer: Scorer
    better: Direction
    pass_at: tuple[int, ...] = ()
    maj_at: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """Problems for models, with sampling settings and scorers.

    Attributes:
        name: unique among an evaluation's tasks.
        problems: the problems.
        metrics: the scores of completions.
        sampling: the sampling settings.
        samples: completions per problem.
        system: a system prompt, or None.
        template: text around the problem's question, with ``{problem}`` in it.
        chat: whether the model's chat template is applied; else it is given plain text.
        preset: the name of the preset that its settings start from, or None.
    """

    name: str
    problems: tuple[Problem, ...]
    metrics: tuple[Metric, ...]
    sampling: Sampling = Sampling()  # noqa: RUF009
    samples: int = 1
    system: str | None = None
    template: str = PROBLEM
    chat: bool = True
    preset: str | None = None

    def prompt(self, problem: Problem) -> Prompt:
        """What a model is given of a problem."""
        asked = self.template.replace(PROBLEM, problem.question)
        messages: list[Message] = list(problem.messages) or [{"role": "user", "content": asked}]
        if self.system is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system})
        if self.chat:
            return messages
        return "\n\n".join(message["content"] for message in messages)


# -- the language ----------------------------------------------------------------------------------


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


class TaskEntry(TaskPart):
    """A task as its author wrote it."""

    name: str | None = Field(default=None, pattern=r"^[\w.+-]+$")
    problems: str
    scorers: list[str | ScorerEntry] = Field(min_length=1)
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
        document: of a file, or made in Python.
        path: of the block in it; empty for the whole document.
        kind: :class:`Evaluate`, or one with more keys.

    Raises:
        RecipeError: with file, line and key of the first thing that is wrong.
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


def make_tasks(
    block: Evaluate, document: Document, path: tuple[str | int, ...], folder: Path | None
) -> list[Task]:
    """Return the tasks of a block, with its problems and scorers loaded.

    Args:
        block: the parsed block.
        document, path: the block's document and path, for messages.
        folder: the folder that its relative paths start at; None for the current one.

    Raises:
        MerganserError: of the kind that fits, with file and line of what is wrong.
    """
    made: list[Task] = []
    for index, entry in enumerate(block.tasks):
        place = (*path, "tasks", index)
        task = _task(entry, document, place, folder or Path())
        if task.name in [other.name for other in made]:
            raise document.error(
                f"{key_name(place)}: two tasks are called {task.name!r}; give each a name", place
            )
        made.append(task)
    return made


RECIPE_KEYS = frozenset({"merge_method", "models", "slices", "modules"})
"""Keys that distinguish a recipe from a file of tasks."""


def load(file: str | Path, kind: type[Kind]) -> tuple[Kind, list[Task], Path | None]:
    """Return the tasks of a file of tasks, or of a sweep's ``evaluate:`` block.

    Args:
        file: of YAML.
        kind: :class:`Evaluate`, or one with more keys.

    Returns:
        The block, its tasks, and the file's folder.

    Raises:
        MerganserError: of the kind that fits.
    """
    if Path(file).is_dir():
        raise RecipeError(
            f"{file}: is a folder, and the tasks are a YAML file; the model goes first"
        )
    documents, folder = recipe.read_documents(file)
    document = documents[0]
    document.check_repeated()
    keys = set(document.data) if isinstance(document.data, dict) else set()
    if keys & RECIPE_KEYS and "evaluate" not in keys:
        raise document.error(
            "is a recipe, and holds no tasks; to score its merge, give it as the model, and a file of "
            "tasks after it"
        )
    inside = isinstance(document.data, dict) and "evaluate" in document.data
    path: tuple[str | int, ...] = ("evaluate",) if inside else ()
    block = read_block(document, path, kind)
    return block, make_tasks(block, document, path, folder), folder


def _task(entry: TaskEntry, document: Document, place: tuple[str | int, ...], folder: Path) -> Task:
    preset = PRESETS.get(entry.preset, None) if entry.preset is not None else {}
    if preset is None:
        raise document.error(
            f"{key_name(place)}.preset: {entry.preset!r} is none; there are {', '.join(PRESETS)}",
            (*place, "preset"),
        )
    settings = dict(preset)
    for key in ("temperature", "top_p", "max_tokens", "template"):
        if (value := getattr(entry, key)) is not None:
            settings[key] = value
    template = settings.pop("template", PROBLEM)
    if PROBLEM not in template:
        raise document.error(
            f"{key_name(place)}.template: write {PROBLEM} where the problem belongs",
            (*place, "template"),
        )
    metrics: list[Metric] = []
    for index, given in enumerate(entry.scorers):
        where = (*place, "scorers", index)
        asked = ScorerEntry(scorer=given) if isinstance(given, str) else given
        try:
            metrics.append(_metric(asked, entry.samples, folder))
        except RecipeError as error:
            raise document.error(f"{key_name(where)}: {error}", where) from None
        if metrics[-1].name in [metric.name for metric in metrics[:-1]]:
            raise document.error(
                f"{key_name(where)}: two scores are called {metrics[-1].name!r}; give one a name",
                where,
            )
    file = folder / os.path.expanduser(entry.problems)  # noqa: PTH111 (which takes unknown homes)
    if not recipe.exists(str(file)):
        slip = suggestions.nearest_in(file.parent, file.name)
        hint = f"; did you mean {slip!r}?" if slip else ""
        where = (*place, "problems")
        with document.addressed(where):
            raise InputError(f"{key_name(where)}: there is no file {file}{hint}")
    found = problem_files.load(file, entry.limit)
    check(metrics, found)
    task = Task(
        entry.name or file.stem,
        tuple(found),
        tuple(metrics),
        Sampling(stop=tuple(entry.stop), seed=entry.seed, **settings),
        entry.samples,
        entry.system,
        template,
        entry.chat,
        entry.preset,
    )
    for index, metric in enumerate(metrics):
        where = (*place, "scorers", index)
        if not metric.scorer.is_built_in:
            try:
                _try_on_a_completion(metric.scorer, task)
            except MerganserError as error:
                reason = f"{key_name(where)}: tried on a made-up completion: {error}"
                raise document.error(reason, where) from error
    return task


def _try_on_a_completion(scorer: scorers.Scorer, task: Task) -> None:
    """Run a scorer on a sample completion, so that a broken scorer fails before any generation."""
    problem = task.problems[0]
    text = f"The answer is \\boxed{{{problem.answer or 1}}}."
    sample = Sample(task.name, problem.id, 0, task.prompt(problem), text, 8, "stop")
    scorer.judge(problem, [replace(sample, sample=number) for number in range(task.samples)])


def check(metrics: Sequence[Metric], problems: Sequence[Problem]) -> None:
    """Ask the scorers whether they can judge problems, before anything is generated.

    Raises:
        MerganserError: what a problem lacks, with file and line.
    """
    for metric in metrics:
        if metric.scorer.check is not None:
            for problem in problems:
                metric.scorer.check(problem, **metric.scorer.parameters)


def _metric(entry: ScorerEntry, samples: int, folder: Path) -> Metric:
    found = scorers.get(entry.scorer, entry.parameters, folder)
    for key, several in (("pass_at", entry.pass_at), ("maj_at", entry.maj_at)):
        for k in several:
            if not 0 < k <= samples:
                raise RecipeError(
                    f"{key}: {k} of {samples} samples cannot be; samples: {k} or more"
                )
    if found.name == "length" and found.group and samples < 2:
        raise RecipeError("length compares the samples of a problem: give samples: 2 or more")
    return Metric(
        entry.name or found.name,
        found,
        entry.better or found.better,
        tuple(entry.pass_at),
        tuple(entry.maj_at),
    )


def score_names(tasks: Sequence[Task]) -> dict[str, Direction]:
    """Return all scores of some tasks, in order, and whether more or less of each is better."""
    found: dict[str, Direction] = {}
    for task in tasks:
        prefix = f"{task.name}/" if len(tasks) > 1 else ""
        for metric in task.metrics:
            found[prefix + metric.name] = metric.better
            for k in metric.pass_at:
                found[f"{prefix}{metric.name}_pass@{k}"] = "max"
            for k in metric.maj_at:
                found[f"{prefix}{metric.name}_maj@{k}"] = "max"
    return found


def describe(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """Return the settings of generation and scoring, as plain data for results."""
    return [
        {
            "task": task.name,
            "problems": len(task.problems),
            "problems_digest": problem_files.digest_all(task.problems),
            "samples": task.samples,
            "preset": task.preset,
            "temperature": task.sampling.temperature,
            "top_p": task.sampling.top_p,
            "max_tokens": task.sampling.max_tokens,
            "stop": list(task.sampling.stop),
            "seed": task.sampling.seed,
            "system": task.system,
            "template": task.template,
            "chat": task.chat,
            "scorers": {
                metric.name: {"scorer": metric.scorer.name, **metric.scorer.parameters}
                for metric in task.metrics
            },
        }
        for task in tasks
    ]
