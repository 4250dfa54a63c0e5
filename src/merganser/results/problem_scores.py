"""Scores of a study's models on each problem and sample, as arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from merganser.errors import InputError
from merganser.evaluation import samples as kept_samples
from merganser.evaluation.samples import Verdict
from merganser.evaluation.scorers import answer_of
from merganser.evaluation.statistics import (
    Direction,
    maj_at,
    maj_at_spread,
    pass_at,
    pass_at_variance,
)
from merganser.results.scores import Results

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class ScoreTable:
    """One score of several models, on the problems that all of them share.

    Attributes:
        score: the score's name in the study.
        scorer: the score's name without the task.
        task: the task's name.
        direction: ``max`` if more is better, else ``min``.
        models: names of the compared models.
        problems: the problems that all models have.
        left_out: problems that only some models have.
        values: the score of each problem, float64 [models, problems].
        spread: sampling variance of each value, float64 [models, problems]; NaN if there are too few samples.
        counts: numbers of samples, [models, problems].
        grain: N such that all differences of values are multiples of 1/N; 0 if there is no such N.
        is_mean: whether a problem's value is the mean over its samples; False for pass@k and maj@k.
    """

    score: str
    scorer: str
    task: str
    direction: Direction
    models: tuple[str, ...]
    problems: tuple[str, ...]
    left_out: int
    values: Array
    spread: Array
    counts: Array
    grain: int
    is_mean: bool

    @property
    def is_rate(self) -> bool:
        """Whether all values are between 0 and 1."""
        return bool(((self.values >= 0) & (self.values <= 1)).all())

    def row(self, model: str) -> Array:
        """Return a model's score of each problem, float64 [problems]."""
        row: Array = self.values[self.models.index(model)]
        return row


def sample_file(results: Results, folder: Path, name: str) -> Path | None:
    """Return the file of an entry's samples; None if it has none.

    Raises:
        InputError: it is outside the folder.
    """
    entry = next(entry for entry in results.entries if entry.name == name)
    if entry.samples is None:
        return None
    file = (folder / entry.samples).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise InputError(f"{entry.samples}: samples of {name} are outside of {folder}")
    return file


Answers = Mapping[tuple[str, str, int], str | None]
"""A model's extracted answers, by task, problem and sample."""


def load(results: Results, folder: Path) -> dict[str, ScoreTable]:
    """Return the tables of a study's scores that are computed from samples, by score.

    Raises:
        InputError: a file is missing, empty, broken, or outside of the folder.
    """
    verdicts: dict[str, list[Verdict]] = {}
    answers: dict[str, Answers] = {}
    votes = any("_maj@" in name for name in results.directions)
    for entry in results.entries:
        file = sample_file(results, folder, entry.name)
        if file is None:
            continue
        if votes:
            full = kept_samples.read(file)
            answers[entry.name] = {
                (s.task, s.problem, s.sample): answer_of(s.completion) for s in full
            }
        verdicts[entry.name] = kept_samples.read_verdicts(file)
        if not verdicts[entry.name]:
            raise InputError(f"{file}: is empty; run the study again to score {entry.name}")
    tasks = {verdict.task for listed in verdicts.values() for verdict in listed}
    by_task: dict[str, dict[str, _Asked]] = {}
    for model, listed in verdicts.items():
        for task in tasks:
            mine = [verdict for verdict in listed if verdict.task == task]
            if mine:
                by_task.setdefault(task, {})[model] = _Asked(mine)
    loaded: dict[str, ScoreTable] = {}
    for name, direction in results.directions.items():
        task, _, scorer = (
            name.rpartition("/") if len(tasks) > 1 else (next(iter(tasks), ""), "", name)
        )
        table = _table(by_task.get(task, {}), scorer, answers)
        if table is not None:
            loaded[name] = ScoreTable(name, scorer, task, direction, *table)
    return loaded


class _Asked:
    """A model's scored samples of one task, by problem."""

    def __init__(self, verdicts: Sequence[Verdict]) -> None:
        self.verdicts = sorted(verdicts, key=lambda verdict: verdict.sample)
        self.places: dict[str, int] = {}
        rows = [self.places.setdefault(v.problem, len(self.places)) for v in self.verdicts]
        self.rows = np.array(rows)
        self.counts = np.bincount(self.rows)
        order = np.argsort(self.rows, kind="stable")
        starts = np.cumsum(self.counts) - self.counts
        self.columns = np.empty(len(rows), np.int64)
        self.columns[order] = np.arange(len(rows)) - np.repeat(starts, self.counts)

    def samples(self, scorer: str, problems: Sequence[str]) -> Array | None:
        """Return a score of each sample, float64 [problems, samples], padded with NaN; None if samples lack
        the score."""
        try:
            values = np.array([verdict.scores[scorer] for verdict in self.verdicts], np.float64)
        except KeyError:
            return None
        grid = np.full((len(self.counts), int(self.counts.max())), np.nan)
        grid[self.rows, self.columns] = values
        return grid[[self.places[problem] for problem in problems]]

    def answers(self, problems: Sequence[str], answer_of: Answers) -> list[list[str | None]]:
        """Return the answers to each problem, in the order of its samples."""
        rows: list[list[str | None]] = [[] for _ in self.places]
        for verdict, row in zip(self.verdicts, self.rows.tolist(), strict=True):
            rows[row].append(answer_of[verdict.task, verdict.problem, verdict.sample])
        return [rows[self.places[problem]] for problem in problems]


def _table(
    asked: Mapping[str, _Asked], scorer: str, answers: Mapping[str, Answers]
) -> tuple[Any, ...] | None:
    """Return the fields of a :class:`ScoreTable` from ``models`` on; None without shared problems."""
    known = {name for questions in asked.values() for name in questions.verdicts[0].scores}
    base, kind, k = scorer, "", 0
    for mark in ("_pass@", "_maj@"):
        before, separator, after = scorer.rpartition(mark)
        if scorer not in known and separator and before in known and after.isdecimal():
            base, kind, k = before, mark, int(after)
    having = {
        name: questions for name, questions in asked.items() if base in questions.verdicts[0].scores
    }
    if not having:
        return None
    first = next(iter(having.values()))
    problems = [
        p for p in first.places if all(p in questions.places for questions in having.values())
    ]
    every = {p for questions in having.values() for p in questions.places}
    values, spreads, counts, grains = [], [], [], {1}
    for name, questions in having.items():
        samples = questions.samples(base, problems)
        if samples is None or not problems:
            return None
        count = (~np.isnan(samples)).sum(axis=1)
        if kind == "_maj@":
            value, spread = _majority(k, questions.answers(problems, answers[name]), samples)
        elif kind == "_pass@":
            value, spread = _passes(k, samples)
        else:
            value = np.nansum(samples, axis=1) / count
            squares = np.nansum((samples - value[:, None]) ** 2, axis=1)
            spread = np.where(count > 1, squares / np.maximum(1, count - 1) / count, np.nan)
            integers = bool((np.mod(samples[~np.isnan(samples)], 1) == 0).all())
            grains |= set(count.tolist()) if integers else {0}
        values.append(value)
        spreads.append(spread)
        counts.append(count)
    grain = 0 if kind else math.lcm(*grains)
    return (
        tuple(having),
        tuple(problems),
        len(every) - len(problems),
        np.stack(values),
        np.stack(spreads),
        np.stack(counts),
        grain if grain <= 10_000 else 0,
        not kind,
    )


def _passes(k: int, samples: Array) -> tuple[Array, Array]:
    """Return pass@k of each problem, and its variance over samples."""
    total = (~np.isnan(samples)).sum(axis=1).tolist()
    right = (samples >= 1.0).sum(axis=1).tolist()
    known: dict[tuple[int, int], tuple[float, float]] = {}
    for n, c in set(zip(total, right, strict=True)):
        verdicts = [True] * c + [False] * (n - c)
        variance = pass_at_variance(k, verdicts)
        known[n, c] = pass_at(k, verdicts), math.nan if variance is None else variance
    pairs = np.array([known[counts] for counts in zip(total, right, strict=True)])
    return pairs[:, 0], pairs[:, 1]


def _majority(
    k: int, answer_rows: Sequence[Sequence[str | None]], samples: Array
) -> tuple[Array, Array]:
    """Return maj@k of each problem, and its variance by the bootstrap over samples."""
    pairs = []
    for answers, row in zip(answer_rows, samples, strict=True):
        correct = [value >= 1.0 for value in row[: len(answers)].tolist()]
        share = maj_at(k, answers, correct)
        pairs.append((share, maj_at_spread(k, answers, correct)[1] if k > 1 else math.nan))
    numbers = np.array(pairs)
    return numbers[:, 0], numbers[:, 1]
