"""What the models of a study said, problem by problem: for certainty, and to be read side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pvariance
from typing import Any

from merganser.errors import InputError
from merganser.study.results import Results

Kept = Mapping[str, Sequence[Mapping[str, Any]]]
"""Each entry's samples, as :class:`merganser.evaluation.samples.Sample` keeps them."""

MOST_PROBLEMS = 60
"""Problems that a page shows."""

MOST_BYTES = 4_000_000
"""Of completions that a page shows."""

LONGEST = 6_000
"""Characters of a completion that a page shows: its beginning and its end."""


def load(results: Results, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The samples of each entry that has some.

    Raises:
        InputError: a file is missing, broken, or outside of the folder.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    home = folder.resolve()
    for entry in results.entries:
        if entry.samples is None:
            continue
        file = (folder / entry.samples).resolve()
        if not file.is_relative_to(home):
            raise InputError(f"{entry.samples}: samples of {entry.name} lie outside of {folder}")
        found[entry.name] = _read(file)
    return found


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: samples cannot be read ({error})") from None
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            scores = {str(k): float(v) for k, v in record["scores"].items()}
            found.append({**record, "scores": scores, "problem": str(record["problem"])})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InputError(f"{file}:{number}: no sample ({str(error)[:80]})") from None
    return found


def per_problem(kept: Kept) -> dict[str, dict[str, dict[str, float]]]:
    """Each entry's mean of each score over a problem's samples, for :func:`merganser.study.front.certainty`."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    several = len({sample.get("task") for samples in kept.values() for sample in samples}) > 1
    for entry, samples in kept.items():
        groups: dict[tuple[str, str], list[float]] = {}
        for sample in samples:
            for name, value in sample["scores"].items():
                score = f"{sample.get('task')}/{name}" if several else name
                groups.setdefault((score, sample["problem"]), []).append(value)
        own = found.setdefault(entry, {})
        for (score, problem), values in groups.items():
            own.setdefault(score, {})[problem] = fmean(values)
    return found


def for_page(kept: Kept) -> list[dict[str, Any]]:
    """Problems with every entry's first completion, as plain data.

    Where there are more problems than a page holds, those are kept on which the models differ most.
    """
    groups: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for entry, samples in kept.items():
        for sample in samples:
            key = (str(sample.get("task", "")), sample["problem"])
            groups.setdefault(key, {}).setdefault(entry, sample)
    several = len({task for task, _ in groups}) > 1
    spread = sorted(groups, key=lambda key: -_spread(list(groups[key].values())))
    size = 0
    shown: set[tuple[str, str]] = set()
    for key in spread[:MOST_PROBLEMS]:
        size += sum(min(len(str(s.get("completion"))), LONGEST) for s in groups[key].values())
        if size > MOST_BYTES and shown:
            break
        shown.add(key)
    return [
        {
            "title": (f"{key[0]}: " if several else "") + key[1],
            "question": _cut(_question(next(iter(answers.values())).get("prompt", ""))),
            "answer": _answer(next(iter(answers.values())).get("answer")),
            "completions": [
                {
                    "name": entry,
                    "scores": sample["scores"],
                    "tokens": sample.get("tokens"),
                    "cut": sample.get("finish") == "length",
                    "text": _cut(str(sample.get("completion", ""))),
                }
                for entry, sample in answers.items()
            ],
        }
        for key, answers in groups.items()
        if key in shown
    ]


def _spread(samples: Sequence[Mapping[str, Any]]) -> float:
    """How much the models differ on a problem: the variance of each score, next to its largest value."""
    total = 0.0
    for name in samples[0]["scores"]:
        values = [sample["scores"].get(name, 0.0) for sample in samples]
        total += pvariance(values) / (max(map(abs, values)) ** 2 or 1.0)
    return total


def _question(prompt: Any) -> str:
    """A prompt as a text; of a conversation, who says what."""
    if not isinstance(prompt, list):
        return str(prompt)
    return "\n\n".join(
        f"{each.get('role')}: {each.get('content')}" for each in prompt if isinstance(each, dict)
    )


def _answer(answer: Any) -> str | None:
    return None if answer is None else _cut(str(answer))


def _cut(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    left = len(text) - LONGEST
    return f"{text[: LONGEST // 2]}\n[… {left} characters …]\n{text[-LONGEST // 2 :]}"
