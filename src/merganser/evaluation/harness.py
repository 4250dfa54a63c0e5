"""Tasks of the lm-evaluation-harness (EleutherAI), on a transformers model in memory."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field

from merganser import extras
from merganser.errors import InputError, MerganserError, ResourceError
from merganser.evaluation.statistics import Direction, Score, Z, digits, summarize
from merganser.evaluation.task_entries import TaskPart


class HarnessTask(TaskPart):
    """A task of the harness.

    Attributes:
        task: its name, such as ``gsm8k``.
        metric: the metric to report, such as ``exact_match``.
        filter: the harness's filter of answers, after which the metric is taken.
        better: ``max`` if larger values are better, else ``min``.
        name: the score's name; ``task/metric`` if None.
        limit: use the first problems only.
        num_fewshot: number of examples in the prompt; the task's default if None.
        chat: whether to apply the model's chat template.
        include: a folder with the user's task files, relative to the study's file.
        seed: seed of the choice of examples.
    """

    task: str
    metric: str
    filter: str = "none"
    better: Direction = "max"
    name: str | None = None
    limit: int | None = Field(default=None, ge=1)
    num_fewshot: int | None = Field(default=None, ge=0)
    chat: bool = False
    include: str | None = None
    seed: int = Field(default=0, ge=0)

    @property
    def score(self) -> str:
        """The score's name."""
        return self.name or f"{self.task}/{self.metric}"


OF_SCORES = {"metric", "filter", "better", "name"}
"""Settings that select a score from the results of a run; tasks that differ only in these share a run."""


def runs(tasks: Sequence[HarnessTask]) -> list[list[HarnessTask]]:
    """Group tasks by runs of the harness: tasks of a group differ only in :data:`OF_SCORES`."""
    groups: dict[str, list[HarnessTask]] = {}
    for task in tasks:
        groups.setdefault(task.model_dump_json(exclude=OF_SCORES), []).append(task)
    return list(groups.values())


def run(
    model: Any,
    tokenizer: Any,
    task: HarnessTask,
    folder: Path,
    batch_size: int | None = None,
    *,
    quiet: bool = False,
) -> Any:
    """Run a task of the harness on a model.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer.
        task: the task.
        folder: the folder that ``include`` is relative to.
        batch_size: number of requests per batch; 8 if None.
        quiet: whether to discard the harness's progress bars and messages.

    Returns:
        The harness's results, for :func:`score`.

    Raises:
        InputError: when there is no such task, or its data cannot be loaded.
        MerganserError: when lm-eval is not installed.
    """
    harness = extras.load("lm_eval", "lm-eval")
    managers = extras.load("lm_eval.tasks", "lm-eval")
    models = extras.load("lm_eval.models.huggingface", "lm-eval")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        with _silence() if quiet else redirect_stdout(sys.stderr):
            return harness.simple_evaluate(
                model=models.HFLM(
                    pretrained=model,
                    tokenizer=tokenizer,
                    batch_size=batch_size or 8,
                    device=str(model.device),
                ),
                tasks=[task.task],
                num_fewshot=task.num_fewshot,
                limit=task.limit,
                apply_chat_template=task.chat,
                task_manager=managers.TaskManager(
                    include_path=str(folder / task.include) if task.include else None,
                    include_defaults=task.include is None,
                ),
                random_seed=task.seed,
                numpy_random_seed=task.seed,
                torch_random_seed=task.seed,
                fewshot_random_seed=task.seed,
                bootstrap_iters=1000,
                log_samples=True,
            )
    except MerganserError:
        raise
    except Exception as error:  # the harness and its tasks may raise anything
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"lm-eval task {task.task}: {type(error).__name__}: {reason}") from error


@contextmanager
def _silence() -> Iterator[None]:
    """Discard all output, including that of child processes (git)."""
    sys.stderr.flush()
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        stderr = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def score(task: HarnessTask, results: Any) -> Score:
    """The score of a task from the results of :func:`run`.

    Standard error and interval are computed from the metric's value on each problem. A metric without
    such values (perplexities, corpus scores) has the harness's standard error, and 1.96 times it as
    the interval.

    Raises:
        InputError: when there is no such metric.
    """
    metrics = (results or {}).get("results", {}).get(task.task, {})
    key = f"{task.metric},{task.filter}"
    if not isinstance(metrics.get(key), int | float):
        known = sorted(k for k, v in metrics.items() if isinstance(v, float) and "stderr" not in k)
        raise InputError(
            f"lm-eval task {task.task}: has no metric {task.metric} with the filter {task.filter}; "
            f"it has (metric,filter) {', '.join(known) or 'none'}"
        )
    rows = [r for r in results["samples"].get(task.task, []) if r["filter"] == task.filter]
    values = [row.get(task.metric) for row in rows]
    mean = float(metrics[key])
    if values and all(isinstance(value, int | float) for value in values):
        computed = summarize([float(value) for value in values])
        if abs(computed.mean - mean) < 1e-9:
            return computed
    error = metrics.get(f"{task.metric}_stderr,{task.filter}")
    error = float(error) if isinstance(error, int | float) else 0.0
    low, high = mean - Z * error, mean + Z * error
    return Score(digits(mean), digits(error), digits(low), digits(high), len(rows))


def read_kept(file: Path, key: str, tasks: Sequence[HarnessTask]) -> dict[str, Score]:
    """Read scores stored by :func:`keep` for the same model and tasks, by their names.

    Args:
        file: the file; if it is missing or broken, the result is empty.
        key: the model's key.
        tasks: the tasks.
    """
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        return {
            task.score: Score(**stored[task.score]["value"])
            for task in tasks
            if stored.get(task.score, {}).get("of") == [key, task.model_dump(mode="json")]
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def keep(file: Path, key: str, tasks: Sequence[HarnessTask], scores: dict[str, Score]) -> None:
    """Write scores to a JSON file, with the model's key and the tasks' settings.

    Raises:
        ResourceError: when the file cannot be written.
    """
    stored = {
        task.score: {"of": [key, task.model_dump(mode="json")], "value": asdict(scores[task.score])}
        for task in tasks
        if task.score in scores
    }
    try:
        file.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"{file}: cannot be written ({error.strerror})") from None
