"""Tasks with their problems, scorers and sampling settings, built from the entries of a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from merganser import hub, recipe, suggestions
from merganser.errors import InputError, MerganserError, RecipeError
from merganser.evaluation import hub_problems, judging, scorers
from merganser.evaluation import problems as problem_files
from merganser.evaluation.generation import Message, Prompt, Sampling
from merganser.evaluation.presets import PRESETS, PROBLEM_SETS, Preset
from merganser.evaluation.problems import Problem
from merganser.evaluation.samples import Sample
from merganser.evaluation.scorers import Scorer
from merganser.evaluation.statistics import Direction
from merganser.evaluation.task_entries import Evaluate, Kind, ScorerEntry, TaskEntry, read_block
from merganser.recipe import Document, key_name

PROBLEM = "{problem}"
"""The placeholder for the question in a task's template."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A score of a task.

    Attributes:
        name: its name in the results.
        scorer: the scorer of the samples.
        better: ``max`` if larger values are better, else ``min``.
        pass_at, maj_at: values of k for additional pass@k and maj@k scores; scores of at least 1 count
            as right.
        failed: the score of a sample on which the scorer fails.
    """

    name: str
    scorer: Scorer
    better: Direction
    pass_at: tuple[int, ...] = ()
    maj_at: tuple[int, ...] = ()
    failed: float = 0.0


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
        template: the text of a prompt, in which ``{problem}`` stands for the question.
        chat: whether to apply the model's chat template; else the prompt is plain text.
        preset: the name of the preset that its settings start from, or None.
        source: the reference of its data set on the Hub, including the commit; None for a file.
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
    source: str | None = None

    def prompt(self, problem: Problem) -> Prompt:
        """The model's prompt for a problem."""
        asked = self.template.replace(PROBLEM, problem.question)
        messages: list[Message] = list(problem.messages) or [{"role": "user", "content": asked}]
        if self.system is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system})
        if self.chat:
            return messages
        return "\n\n".join(message["content"] for message in messages)


def make_tasks(
    block: Evaluate, document: Document, path: tuple[str | int, ...], folder: Path | None
) -> list[Task]:
    """Return the tasks of a block, with its problems and scorers loaded.

    Args:
        block: the parsed block.
        document, path: the block's document and path, for messages.
        folder: the folder that the block's relative paths start at; None for the current folder.

    Raises:
        MerganserError: one of its subclasses, by cause, with file and line of the mistake.
    """
    made: list[Task] = []
    for index, entry in enumerate(block.tasks):
        place = (*path, "tasks", index)
        preset = _preset(entry, document, place)
        for problems in _problems(entry, preset, document, place):
            task = _task(entry, preset, problems, document, place, folder or Path())
            if task.name in [other.name for other in made]:
                raise document.error(
                    f"{key_name(place)}: two tasks are called {task.name!r}; give each a name",
                    place,
                )
            _check_code(task, block.allow_code, document, place)
            made.append(task)
    return made


def _check_code(
    task: Task, allowed: bool, document: Document, place: tuple[str | int, ...]
) -> None:
    """Raise if a task runs programs that models write and the user has not allowed it."""
    name = next((metric.name for metric in task.metrics if metric.scorer.runs_code), None)
    if name is not None and not allowed:
        where = (*place, "scorers")
        raise document.error(
            f"{key_name(where)}: {name} runs programs that models write; if this machine may, give "
            "allow_code: true in this block, or allow_code=True",
            where,
        )


RECIPE_KEYS = frozenset({"merge_method", "models", "slices", "modules"})
"""Keys that distinguish a recipe from a file of tasks."""


def load(
    file: str | Path, kind: type[Kind], *, allow_code: bool = False
) -> tuple[Kind, list[Task], Path | None]:
    """Return the tasks of a file of tasks, or of a sweep's ``evaluate:`` block.

    Args:
        file: the path of a YAML file.
        kind: :class:`Evaluate`, or a subclass with more keys.
        allow_code: allow scorers that run programs that models write, even if the file does not.

    Returns:
        The block, its tasks, and the folder that its relative paths start at.

    Raises:
        MerganserError: one of its subclasses, by cause.
    """
    if Path(file).is_dir():
        raise RecipeError(f"{file}: is a folder, but tasks are a YAML file; give the model first")
    documents, folder = recipe.read_documents(file)
    document = documents[0]
    document.check_repeated()
    keys = set(document.data) if isinstance(document.data, dict) else set()
    if keys & RECIPE_KEYS and "evaluate" not in keys:
        raise document.error(
            "is a recipe and holds no tasks; to score its merge, give it as the model, then a file of "
            "tasks"
        )
    inside = isinstance(document.data, dict) and "evaluate" in document.data
    path: tuple[str | int, ...] = ("evaluate",) if inside else ()
    block = read_block(document, path, kind)
    if allow_code:
        block = block.model_copy(update={"allow_code": True})
    return block, make_tasks(block, document, path, folder), folder


def _preset(entry: TaskEntry, document: Document, place: tuple[str | int, ...]) -> Preset:
    if entry.preset is None:
        return Preset({})
    if entry.preset not in PRESETS:
        raise document.error(
            f"{key_name(place)}.preset: {entry.preset!r} is none; "
            f"{suggestions.suggest(entry.preset, PRESETS)}",
            (*place, "preset"),
        )
    return PRESETS[entry.preset]


def _problems(
    entry: TaskEntry, preset: Preset, document: Document, place: tuple[str | int, ...]
) -> Sequence[str]:
    """The problems of an entry's tasks, one name, file or reference per task."""
    if entry.problems is not None:
        return [entry.problems]
    if not preset.problems:
        raise document.error(
            f"{key_name(place)}: problems is missing: a file, hub://org/name, or one of "
            f"{', '.join(PROBLEM_SETS)}",
            place,
        )
    if entry.name is not None and len(preset.problems) > 1:
        raise document.error(
            f"{key_name(place)}.name: preset {entry.preset} is {len(preset.problems)} tasks, which are "
            "called as their problems; leave name out",
            (*place, "name"),
        )
    return preset.problems


def _load(
    problems: str,
    limit: int | None,
    document: Document,
    where: tuple[str | int, ...],
    folder: Path,
) -> tuple[str, list[Problem], str | None]:
    """Load problems; return their name, the problems, and the Hub reference (None for a file)."""
    file = folder / os.path.expanduser(problems)  # noqa: PTH111 (which takes unknown homes)
    known = PROBLEM_SETS.get(problems)
    is_file = recipe.exists(str(file))
    if not is_file and (known is not None or problems.startswith(hub_problems.PREFIX)):
        try:
            reference = hub_problems.parse(problems if known is None else known.source)
        except RecipeError as error:
            raise document.error(f"{key_name(where)}: {error}", where) from None
        pattern = None if known is None else known.answer_pattern
        with document.addressed(where):
            loaded, settled = hub_problems.load(reference, limit, pattern)
        return reference.name if known is None else problems, loaded, str(settled)
    if not is_file:
        slip = suggestions.nearest_in(file.parent, file.name)
        slip = slip or suggestions.nearest(problems, PROBLEM_SETS)
        hint = f"; did you mean {slip!r}?" if slip else ""
        with document.addressed(where):
            hub.check_no_url(problems)
            raise InputError(f"{key_name(where)}: there is no file {file}{hint}")
    return file.stem, problem_files.load(file, limit), None


def _task(
    entry: TaskEntry,
    preset: Preset,
    problems: str,
    document: Document,
    place: tuple[str | int, ...],
    folder: Path,
) -> Task:
    settings = dict(preset.settings)
    for key in ("temperature", "top_p", "max_tokens", "template"):
        if (value := getattr(entry, key)) is not None:
            settings[key] = value
    template = settings.pop("template", PROBLEM)
    if PROBLEM not in template:
        raise document.error(
            f"{key_name(place)}.template: write {PROBLEM} where the problem belongs",
            (*place, "template"),
        )
    metrics = _metrics(entry, preset, document, place, folder)
    where = (*place, "preset" if entry.problems is None else "problems")
    name, loaded, source = _load(problems, entry.limit, document, where, folder)
    check(metrics, loaded)
    task = Task(
        entry.name or name,
        tuple(loaded),
        tuple(metrics),
        Sampling(stop=tuple(entry.stop), seed=entry.seed, **settings),
        entry.samples,
        entry.system,
        template,
        entry.chat,
        entry.preset,
        source,
    )
    for index, metric in enumerate(metrics):
        where = (*place, "scorers", index)
        if not metric.scorer.is_built_in:
            try:
                _try_on_a_completion(metric.scorer, task)
            except MerganserError as error:
                reason = f"{key_name(where)}: failed on a test completion: {error}"
                refused = document.error(reason, where)
                refused.details = error.details
                raise refused from error
    return task


def _metrics(
    entry: TaskEntry,
    preset: Preset,
    document: Document,
    place: tuple[str | int, ...],
    folder: Path,
) -> list[Metric]:
    metrics: list[Metric] = []
    scorers_key = (*place, "scorers")
    given = entry.scorers or preset.scorers
    if not given:
        raise document.error(
            f"{key_name(scorers_key)}: give one or more, such as accuracy", scorers_key
        )
    for index, each in enumerate(given):
        where = (*scorers_key, index)
        asked = ScorerEntry(scorer=each) if isinstance(each, str) else each
        try:
            metrics.append(_metric(asked, entry.samples, folder))
        except RecipeError as error:
            raise document.error(f"{key_name(where)}: {error}", where) from None
        if metrics[-1].name in [metric.name for metric in metrics[:-1]]:
            raise document.error(
                f"{key_name(where)}: two scores are called {metrics[-1].name!r}; give one a name",
                where,
            )
    return metrics


def _try_on_a_completion(scorer: scorers.Scorer, task: Task) -> None:
    """Run a scorer on an example completion, so that a faulty scorer fails before any generation."""
    problem = task.problems[0]
    text = f"The answer is \\boxed{{{problem.answer or 1}}}."
    sample = Sample(task.name, problem.id, 0, task.prompt(problem), text, 8, "stop")
    judging.judge(
        scorer, problem, [replace(sample, sample=number) for number in range(task.samples)]
    )


def check(metrics: Sequence[Metric], problems: Sequence[Problem]) -> None:
    """Check with the scorers' ``check`` functions that they can score the problems.

    Raises:
        MerganserError: a problem is unsuitable for a scorer; the message has its file and line.
    """
    for metric in metrics:
        if metric.scorer.check is not None:
            for problem in problems:
                metric.scorer.check(problem, **metric.scorer.parameters)


def _metric(entry: ScorerEntry, samples: int, folder: Path) -> Metric:
    scorer = scorers.get(
        entry.scorer,
        entry.parameters,
        folder,
        batch=entry.batch,
        timeout=entry.timeout,
        concurrency=entry.concurrency,
    )
    for key, several in (("pass_at", entry.pass_at), ("maj_at", entry.maj_at)):
        for k in several:
            if not 0 < k <= samples:
                raise RecipeError(
                    f"{key}: {k} of {samples} samples is impossible; give samples: {k} or more"
                )
    if scorer.name == "length" and scorer.group and samples < 2:
        raise RecipeError("length compares the samples of a problem: give samples: 2 or more")
    better = entry.better or scorer.better
    if entry.failed is None and better == "min" and (scorer.timeout or scorer.identity):
        raise RecipeError(
            f"scorer {scorer.name}: less of it is better, so say what a sample scores that it fails on: "
            "failed: NUMBER"
        )
    return Metric(
        entry.name or scorer.name,
        scorer,
        better,
        tuple(entry.pass_at),
        tuple(entry.maj_at),
        entry.failed or 0.0,
    )


def score_names(tasks: Sequence[Task]) -> dict[str, Direction]:
    """Return the names of all scores of tasks, in order, with ``max`` or ``min`` for the better direction."""
    directions: dict[str, Direction] = {}
    for task in tasks:
        prefix = f"{task.name}/" if len(tasks) > 1 else ""
        for metric in task.metrics:
            directions[prefix + metric.name] = metric.better
            for k in metric.pass_at:
                directions[f"{prefix}{metric.name}_pass@{k}"] = "max"
            for k in metric.maj_at:
                directions[f"{prefix}{metric.name}_maj@{k}"] = "max"
    return directions


def describe(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """Return each task's settings of generation and scoring, as plain data for results."""
    return [
        {
            "task": task.name,
            "problems": len(task.problems),
            "problems_digest": problem_files.digest_all(task.problems),
            **({} if task.source is None else {"source": task.source}),
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
                | ({"identity": metric.scorer.identity} if metric.scorer.identity else {})
                for metric in task.metrics
            },
        }
        for task in tasks
    ]
