"""Evaluate a model on tasks: reuse stored completions, generate missing ones, score all."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from merganser.errors import InputError, MerganserError
from merganser.evaluation import samples as kept_samples
from merganser.evaluation.generation import Backend, Prompt, Request
from merganser.evaluation.judgement_file import JudgementFile, judgements_beside
from merganser.evaluation.judging import Count, Item, judge_all
from merganser.evaluation.problems import Problem
from merganser.evaluation.samples import Sample
from merganser.evaluation.scorers import answer_of
from merganser.evaluation.statistics import Score, maj_at, pass_at, summarize
from merganser.evaluation.tasks import Metric, Task, score_names

Progress = Callable[[int, int], None]
"""Called with the number of finished completions and the total number."""

SampleKey = tuple[str, str, int]
"""A sample's task name, problem id, and number among the problem's samples."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of evaluating one model.

    Attributes:
        scores: scores by name: the scorer's name; with several tasks, ``task/scorer``.
        samples: all completions with their scores, in the order of tasks, problems and samples.
        generated: number of samples that this evaluation generated; the others were stored.
    """

    scores: Mapping[str, Score]
    samples: tuple[Sample, ...]
    generated: int


def evaluate(
    backend: Backend,
    tasks: Sequence[Task],
    *,
    key: Mapping[str, str],
    samples: Path | None = None,
    on_progress: Progress = lambda _done, _all: None,
    on_judged: Count = lambda _name, _done, _all: None,
) -> Evaluation:
    """Return the scores of one model.

    Stored completions of the same model, prompt and settings are reused and scored again, so a change of
    scorers does not require the model.

    Args:
        backend: completes prompts; it is not called if all completions are stored.
        tasks: the tasks.
        key: everything about the model that determines its completions, by name.
        samples: the file that stores completions as they arrive; None to store none.
        on_progress: called with the number of finished completions and their total.
        on_judged: called with the progress of costly scorers.

    Raises:
        MerganserError: one of its subclasses, by cause.
    """
    wanted = {place: (prompt, digest) for place, prompt, digest in _wanted(tasks, key)}
    there = _there(samples, wanted)
    samples_by_place = {
        place: each for place, each in there.items() if each.key == wanted[place][1]
    }
    reused = len(samples_by_place)
    on_progress(reused, len(wanted))
    with _appending(samples, list(samples_by_place.values())) as add:
        for task in tasks:
            places = [p for p in wanted if p[0] == task.name and p not in samples_by_place]
            if not places:
                continue
            answers = {problem.id: problem.answer for problem in task.problems}
            requests = [Request(wanted[place][0], place[2]) for place in places]
            for index, completion in backend(requests, task.sampling):
                place = places[index]
                prompt, digest = wanted[place]
                samples_by_place[place] = Sample(
                    *place,
                    prompt,
                    completion.text,
                    completion.tokens,
                    completion.finish,
                    answer=answers[place[1]],
                    key=digest,
                )
                add(samples_by_place[place])
                on_progress(len(samples_by_place), len(wanted))
            if lost := [place for place in places if place not in samples_by_place]:
                raise InputError(f"task {task.name}: the backend gave no answer to {lost[0][1]!r}")
    try:
        with judgements_beside(samples) as file:
            judged = judge(tasks, [samples_by_place[place] for place in wanted], file, on_judged)
    except MerganserError as error:
        if samples is not None:
            error.add_note(
                f"the completions are stored in {samples} and are reused by the next run"
            )
        raise
    if samples is not None:
        kept_samples.write(judged.samples, samples)
    return Evaluation(scores(tasks, judged), judged.samples, len(wanted) - reused)


def to_redo(tasks: Sequence[Task], *, key: Mapping[str, str], samples: Path) -> Counter[str]:
    """Return the number of stored completions that are outdated, by cause, such as a changed prompt.

    Args:
        tasks, key, samples: as in :func:`evaluate`.

    Raises:
        InputError: the file cannot be read.
    """
    wanted = {place: (prompt, digest) for place, prompt, digest in _wanted(tasks, key)}
    labels = [*key, "the prompt or the sampling", "the revision of the problems"]
    return Counter(
        _changed(each.key, wanted[place][1], labels)
        for place, each in _there(samples, wanted).items()
        if each.key != wanted[place][1]
    )


def is_complete(tasks: Sequence[Task], *, key: Mapping[str, str], samples: Path) -> bool:
    """Whether a file contains a valid completion for every sample that tasks require of a model.

    Args:
        tasks: the tasks.
        key: the model's key; see :func:`evaluate`.
        samples: the file; it need not exist.

    Raises:
        InputError: the file cannot be read.
    """
    wanted = {place: digest for place, _, digest in _wanted(tasks, key)}
    there = _there(samples, wanted)
    return len(there) == len(wanted) and all(each.key == wanted[p] for p, each in there.items())


def digest_of(tasks: Sequence[Task]) -> str:
    """A digest of the completions that tasks require: problems, prompts and sampling."""
    wanted = [(*place, digest) for place, _, digest in _wanted(tasks, {})]
    return _short(json.dumps(wanted))


def _changed(before: str, now: str, labels: Sequence[str]) -> str:
    """Return the difference between two keys, as a sentence."""
    old, new = before.split("-"), now.split("-")
    if len(old) != len(new):
        return "they are of another recipe or version"
    pairs = zip(labels, old, new, strict=False)  # only problems of the Hub have a revision
    return " and ".join(label for label, a, b in pairs if a != b) + " changed"


def _there(samples: Path | None, wanted: Collection[SampleKey]) -> dict[SampleKey, Sample]:
    """The stored completions of the wanted samples, valid or outdated."""
    if samples is None or not samples.is_file():
        return {}
    stored = kept_samples.read(samples, cut_off=True)
    by_place = {(each.task, each.problem, each.sample): each for each in stored}
    return {place: each for place, each in by_place.items() if place in wanted}


@dataclass(frozen=True, slots=True)
class Judged:
    """Samples with their scores.

    Attributes:
        samples: in the order of tasks, problems and samples.
        failed: numbers of samples without a score, by (task, scorer) and then by reason.
    """

    samples: tuple[Sample, ...]
    failed: Mapping[tuple[str, str], Mapping[str, int]]


def judge(
    tasks: Sequence[Task],
    samples: Sequence[Sample],
    file: JudgementFile | None = None,
    on_judged: Count = lambda _name, _done, _all: None,
) -> Judged:
    """Return samples with the scores of the tasks' scorers.

    If a scorer fails on a sample, the sample gets the metric's ``failed`` score.

    Args:
        tasks: the tasks.
        samples: all samples of the tasks' problems.
        file: stores judgements of costly scorers; None to store none.
        on_judged: called with the progress of costly scorers.

    Raises:
        InputError: a problem has no samples.
        MerganserError: a scorer raises an exception.
    """
    judged: list[Sample] = []
    failed: dict[tuple[str, str], Mapping[str, int]] = {}
    for task in tasks:
        items = [
            Item(problem, index, sample)
            for index, (problem, group) in enumerate(_groups(task, samples))
            for sample in group
        ]
        columns: dict[str, list[float]] = {}
        for metric in task.metrics:
            judgements = judge_all(metric.scorer, items, file, metric.name, on_judged)
            columns[metric.name] = [
                metric.failed if j.score is None else j.score for j in judgements
            ]
            if reasons := Counter(j.note for j in judgements if j.score is None):
                failed[task.name, metric.name] = dict(sorted(reasons.items()))
        judged += [
            replace(item.sample, scores={name: column[i] for name, column in columns.items()})
            for i, item in enumerate(items)
        ]
    return Judged(tuple(judged), failed)


def _groups(task: Task, samples: Sequence[Sample]) -> list[tuple[Problem, list[Sample]]]:
    """A task's problems, each with its samples.

    Raises:
        InputError: a problem has no samples.
    """
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.task == task.name:
            groups.setdefault(sample.problem, []).append(sample)
    for problem in task.problems:
        if problem.id not in groups:
            raise InputError(f"task {task.name}: there are no samples of problem {problem.id!r}")
    return [(problem, groups[problem.id]) for problem in task.problems]


def scores(tasks: Sequence[Task], judged: Judged) -> dict[str, Score]:
    """The mean scores of judged samples, by the names of :func:`merganser.evaluation.tasks.score_names`."""
    all_scores: dict[str, Score] = {}
    for task in tasks:
        groups = [group for _, group in _groups(task, judged.samples)]
        prefix = f"{task.name}/" if len(tasks) > 1 else ""
        for metric in task.metrics:
            failed = judged.failed.get((task.name, metric.name), {})
            all_scores |= {
                prefix + name: replace(score, failed=failed)
                for name, score in _scores(metric, groups).items()
            }
    assert list(all_scores) == list(score_names(tasks))
    return all_scores


def _scores(metric: Metric, groups: Sequence[Sequence[Sample]]) -> dict[str, Score]:
    values = [[sample.scores[metric.name] for sample in group] for group in groups]
    named = {metric.name: summarize([sum(v) / len(v) for v in values])}
    verdicts = [[value >= 1.0 for value in v] for v in values]
    for k in metric.pass_at:
        named[f"{metric.name}_pass@{k}"] = summarize([pass_at(k, v) for v in verdicts])
    for k in metric.maj_at:
        answers = [[answer_of(sample.completion) for sample in group] for group in groups]
        votes = [maj_at(k, a, v) for a, v in zip(answers, verdicts, strict=True)]
        named[f"{metric.name}_maj@{k}"] = summarize(votes)
    return named


def _wanted(tasks: Sequence[Task], key: Mapping[str, str]) -> list[tuple[SampleKey, Prompt, str]]:
    """Return the place, prompt and key of every sample that tasks require.

    A key consists of digests: of each value of the model's key, of prompt and sampling, and, for problems
    on the Hub, of the data set's revision.
    """
    wanted: list[tuple[SampleKey, Prompt, str]] = []
    model = "".join(f"{_short(value)}-" for value in key.values())
    for task in tasks:
        settings = asdict(task.sampling)
        if task.sampling.temperature == 0:
            settings |= {"top_p": 1.0, "seed": 0}
        for problem in task.problems:
            prompt = task.prompt(problem)
            digest = model + _short(json.dumps([settings, prompt], sort_keys=True))
            digest += "" if task.source is None else f"-{_short(task.source)}"
            wanted += [((task.name, problem.id, i), prompt, digest) for i in range(task.samples)]
    return wanted


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _appending(
    file: Path | None, begun: Sequence[Sample]
) -> AbstractContextManager[Callable[[Sample], None]]:
    """Reduce the file of samples to ``begun``, and return a context with a function that appends to it."""
    if file is None:
        return nullcontext(lambda _sample: None)
    kept_samples.write(begun, file)
    return kept_samples.appending(file)
