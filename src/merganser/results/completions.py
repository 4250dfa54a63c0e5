"""Completions of a study's models by problem, for resampling and for reading side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pvariance
from typing import Any

from merganser.errors import InputError
from merganser.evaluation import samples
from merganser.evaluation.generation import Prompt
from merganser.evaluation.samples import Sample
from merganser.results.scores import Results

Kept = Mapping[str, Sequence[Sample]]
"""Samples by the entry's name."""

MOST_PROBLEMS = 60
"""Maximum number of problems on a page."""

MOST_BYTES = 4_000_000
"""Maximum total size of the completions on a page, in bytes."""

LONGEST = 6_000
"""Longer completions are shortened on a page to this many characters, their beginning and end."""


def load(results: Results, folder: Path) -> dict[str, list[Sample]]:
    """Return the samples of the entries that have some, by name.

    Raises:
        InputError: a file is missing, broken, or outside of the folder.
    """
    completions: dict[str, list[Sample]] = {}
    home = folder.resolve()
    for entry in results.entries:
        if entry.samples is None:
            continue
        file = (folder / entry.samples).resolve()
        if not file.is_relative_to(home):
            raise InputError(f"{entry.samples}: samples of {entry.name} are outside of {folder}")
        completions[entry.name] = samples.read(file)
    return completions


def per_problem(completions: Kept) -> dict[str, dict[str, dict[str, float]]]:
    """Return means over a problem's samples, by entry, score and problem, for
    :func:`merganser.results.front.certainty`."""
    means: dict[str, dict[str, dict[str, float]]] = {}
    several = len({sample.task for listed in completions.values() for sample in listed}) > 1
    for entry, answers in completions.items():
        groups: dict[tuple[str, str], list[float]] = {}
        for sample in answers:
            for name, value in sample.scores.items():
                score = f"{sample.task}/{name}" if several else name
                groups.setdefault((score, sample.problem), []).append(value)
        listed = means.setdefault(entry, {})
        for (score, problem), values in groups.items():
            listed.setdefault(score, {})[problem] = fmean(values)
    return means


def for_page(completions: Kept) -> list[dict[str, Any]]:
    """Return problems with the first completion of every entry, as plain data.

    If there are more problems than fit on a page, those on which the models differ most remain.
    """
    groups: dict[tuple[str, str], dict[str, Sample]] = {}
    for entry, listed in completions.items():
        for sample in listed:
            groups.setdefault((sample.task, sample.problem), {}).setdefault(entry, sample)
    several = len({task for task, _ in groups}) > 1
    spread = sorted(groups, key=lambda key: -_spread(list(groups[key].values())))
    size = 0
    shown: set[tuple[str, str]] = set()
    for key in spread[:MOST_PROBLEMS]:
        size += sum(min(len(s.completion), LONGEST) for s in groups[key].values())
        if size > MOST_BYTES and shown:
            break
        shown.add(key)
    return [
        {
            "title": (f"{key[0]}: " if several else "") + key[1],
            "question": _cut(_question(next(iter(answers.values())).prompt)),
            "answer": _answer(next(iter(answers.values())).answer),
            "completions": [
                {
                    "name": entry,
                    "scores": sample.scores,
                    "tokens": sample.tokens,
                    "cut": sample.finish == "length",
                    "text": _cut(sample.completion),
                }
                for entry, sample in answers.items()
            ],
        }
        for key, answers in groups.items()
        if key in shown
    ]


def _spread(samples: Sequence[Sample]) -> float:
    """Return a measure of the models' differences on a problem: the sum of the scores' variances, scaled
    by their largest values."""
    total = 0.0
    for name in samples[0].scores:
        values = [sample.scores.get(name, 0.0) for sample in samples]
        total += pvariance(values) / (max(map(abs, values)) ** 2 or 1.0)
    return total


def _question(prompt: Prompt) -> str:
    """Return a prompt as text; a conversation with the role of each message."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message.get('role')}: {message.get('content')}" for message in prompt)


def _answer(answer: str | None) -> str | None:
    return None if answer is None else _cut(answer)


def _cut(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    left = len(text) - LONGEST
    return f"{text[: LONGEST // 2]}\n[… {left} characters …]\n{text[-LONGEST // 2 :]}"
