"""Score the models of a study, and store their completions."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from merganser import engine
from merganser.errors import InputError, ResourceError
from merganser.evaluation import engines, harness, running
from merganser.evaluation import tasks as languages
from merganser.evaluation.harness import HarnessTask
from merganser.evaluation.statistics import Score
from merganser.evaluation.tasks import Task
from merganser.planning import Plan
from merganser.recipe import model_references
from merganser.results.scores import Entry
from merganser.sinks import NullSink
from merganser.study import sweep
from merganser.study.evaluate_block import Study
from merganser.study.live_model import Live, LiveModel
from merganser.study.participants import (
    SAMPLES,
    StudyModel,
)
from merganser.study.progress import Listener, Meter, Scored, Turn
from merganser.version import VERSION


def to_redo(
    models: Sequence[StudyModel], tasks: Sequence[Task], live: Live, home: Path
) -> list[str]:
    """Return the reasons why stored completions are out of date, one line each, with the models' names.

    Raises:
        InputError: completions or an input cannot be read.
    """
    counts: dict[str, dict[str, int]] = {}
    for model in models:
        file = home / SAMPLES / f"{model.entry.name}.jsonl"
        if file.is_file():
            key = live.key(model.plan, model.entry.name)
            for why, count in running.to_redo(tasks, key=key, samples=file).items():
                counts.setdefault(why, {})[model.entry.name] = count
    return [redone(sum(names.values()), why, list(names)) for why, names in counts.items()]


def redone(count: int, why: str, names: Sequence[str]) -> str:
    """Return a line that reports stored completions that are generated again."""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{count:,} stored completions of {shown} are generated again and replaced: {why}"


def score(
    model: StudyModel,
    tasks: Sequence[Task],
    live: Live,
    home: Path,
    on_progress: Listener,
    turn: Turn,
    more: Callable[[], Mapping[str, Score]] = dict,
) -> Entry:
    """Return the scores of one model, and store its completions in an existing folder of ``home``.

    Args:
        model: the model.
        tasks: the tasks to score it on.
        live: the live model that becomes this model.
        home: the study's folder.
        on_progress: called with an event at each step.
        turn: the model's position among all models, for the events.
        more: returns further scores of the model, after its tasks.

    Raises:
        MerganserError: one of its subclasses, by cause.
    """
    outcome: list[engine.Outcome] = []
    file = f"{SAMPLES}/{model.entry.name}.jsonl"
    meter = Meter(turn, on_progress)
    result = running.evaluate(
        live.backend_of(
            model.plan,
            outcome.append if model.point is not None else None,
            meter.generated,
            model.entry.name,
        ),
        tasks,
        key=live.key(model.plan, model.entry.name),
        samples=home / file if tasks else None,
        on_progress=meter.completed,
        on_judged=meter.judged,
    )
    scores = {**result.scores, **more()}
    on_progress(Scored(turn, scores, len(result.samples), result.generated))
    entry = replace(model.entry, scores=scores, samples=file if tasks else None)
    return _weighed(entry, model, outcome[0]) if outcome else entry


def harness_scores(
    plan: Plan,
    block: Study,
    live: Live,
    beside: Path,
    file: Path | None = None,
    *,
    quiet: bool,
) -> dict[str, Score]:
    """Return scores on tasks of the lm-evaluation-harness, reusing those stored in a file.

    Raises:
        InputError: a task cannot run or lacks a metric; the scores of its other metrics are stored.
    """
    key = "-".join(live.key(plan).values()) if file is not None else ""
    scores = harness.read_kept(file, key, block.lm_eval) if file is not None else {}
    for tasks in harness.runs([task for task in block.lm_eval if task.score not in scores]):
        assert isinstance(live, LiveModel)
        live.settle(plan)
        outcome = harness.run(
            live.module, live.tokenizer, tasks[0], beside, block.batch_size, quiet=quiet
        )
        errors = []
        for task in tasks:
            try:
                scores[task.score] = harness.score(task, outcome)
            except InputError as error:
                errors.append(error)
        if file is not None:
            harness.keep(file, key, block.lm_eval, scores)
        if errors:
            raise errors[0]
    return {task.score: scores[task.score] for task in block.lm_eval}


def measured(
    entries: Sequence[Entry], models: Sequence[StudyModel], threads: int | None
) -> list[Entry]:
    """Return entries with weights also for points that were not merged because of stored completions."""
    missing = [i for i, m in enumerate(models) if m.point and not entries[i].weights]
    plans = [models[i].plan for i in missing]
    result = list(entries)
    for start in range(0, len(plans), sweep.MOST_TOGETHER):
        some = plans[start : start + sweep.MOST_TOGETHER]
        outcomes = engine.run(some, [NullSink() for _ in some], threads=threads)
        for i, outcome in zip(missing[start:], outcomes, strict=False):
            result[i] = _weighed(result[i], models[i], outcome)
    return result


def _weighed(entry: Entry, model: StudyModel, outcome: engine.Outcome) -> Entry:
    """Return an entry with its requested and effective weights, except the base's."""
    if outcome.report is None:
        return entry
    written = model.plan.recipe.recipe
    inputs = [written.models or [], written.slices or [], written.modules or {}]
    merged = {r.text for _, r in model_references(inputs)}
    merged_models = [m for m in outcome.report.models if m.model in merged]
    return replace(
        entry,
        weights={m.model: m.requested for m in merged_models if m.requested is not None},
        effective={m.model: m.effective for m in merged_models if m.effective is not None},
    )


def describe(
    tasks: Sequence[Task], live: Live, lm_eval: Sequence[HarnessTask] = ()
) -> dict[str, Any]:
    """Return the settings that completions were generated with, for the results."""
    versions = {"merganser": VERSION}
    names = ["torch", "transformers", "math-verify"]
    names += list(engines.VLLM_PACKAGES) if live.engine_name.startswith("vllm") else []
    for name in (*names, *(["lm-eval"] if lm_eval else [])):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "tasks": languages.describe(tasks),
        "lm_eval": [task.model_dump(mode="json") for task in lm_eval],
        "engine": live.engine_name,
        "device": live.device,
        "dtype": live.computing,
        "versions": versions,
    }


def make_folder(folder: Path) -> None:
    """Create a folder and its parents.

    Raises:
        ResourceError: the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be created ({error.strerror})") from None
