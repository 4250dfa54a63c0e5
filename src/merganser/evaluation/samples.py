"""Completions and their scores, stored as JSON lines so that no completion is generated twice."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from merganser.errors import InputError, ResourceError, reraise_os_errors
from merganser.evaluation.generation import Finish, Prompt


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion of one problem.

    Attributes:
        task: the task's name.
        problem: the problem's id.
        sample: the sample's number among those of its problem, from 0.
        prompt: the model's input: a text, or a conversation.
        completion: the model's output, without special tokens.
        tokens: number of generated tokens.
        finish: ``stop`` for an end token or stop text, ``length`` for the maximum number of tokens.
        scores: scores by the names of metrics.
        answer: the right answer, for readers of the file.
        key: digests of everything that determines the completion, in the order of
            :func:`merganser.study.live_model.model_key`, then of prompt and sampling; the completion is
            reused only if all are equal.
    """

    task: str
    problem: str
    sample: int
    prompt: Prompt
    completion: str
    tokens: int
    finish: Finish
    scores: Mapping[str, float] = field(default_factory=dict)
    answer: str | None = None
    key: str = ""


def line(sample: Sample) -> str:
    """The JSON line of a sample."""
    text = json.dumps(asdict(sample), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace").decode() + "\n"


def write(samples: Iterable[Sample], file: Path) -> None:
    """Write all samples to a file, replacing it atomically.

    Raises:
        ResourceError: when the file cannot be written.
    """
    with reraise_os_errors(ResourceError, "written", file):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(file.name + ".partial")
        partial.write_text("".join(map(line, samples)), encoding="utf-8")
        partial.replace(file)


@contextmanager
def appending(file: Path) -> Iterator[Callable[[Sample], None]]:
    """Yield a function that appends a sample to a file and flushes it.

    Raises:
        ResourceError: when the file cannot be written; the yielded function raises it too.
    """
    with reraise_os_errors(ResourceError, "written", file):
        stream = file.open("a", encoding="utf-8")

    def add(sample: Sample) -> None:
        with reraise_os_errors(ResourceError, "written", file):
            stream.write(line(sample))
            stream.flush()

    try:
        yield add
    finally:
        with suppress(OSError):  # every sample was flushed
            stream.close()


def read(file: Path, *, cut_off: bool = False) -> list[Sample]:
    """Read samples.

    Args:
        file: a file of JSON lines.
        cut_off: ignore an incomplete last line, which an interrupted run leaves.

    Raises:
        InputError: with file and line of the first mistake.
    """
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: samples cannot be read ({str(error)[:120]})") from None
    samples: list[Sample] = []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            samples.append(_sample(json.loads(text)))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if cut_off and number == len(lines):
                break
            raise InputError(f"{file}:{number}: no sample ({str(error)[:80]})") from None
    return samples


class Verdict(NamedTuple):
    """The scores of a sample, without its texts."""

    task: str
    problem: str
    sample: int
    scores: Mapping[str, float]


_PROMPT, _TOKENS = b', "prompt": ', b', "tokens": '

_TEXT = rb'"(?:[^"\\]|\\.)*"'
_VERDICT = re.compile(
    rb'(?m)^\{"task": (%(t)s), "problem": (%(t)s), "sample": (\d+), "tokens": \d+, "finish": %(t)s, '
    rb'"scores": (\{[^{}]*\}), "answer": (?:null|%(t)s), "key": %(t)s\}$' % {b"t": _TEXT}
)
"""A line in the form of :func:`line`, after removal of prompt and completion."""


class _Parsed(dict[bytes, Any]):
    """Parsed values by their JSON texts; equal texts are parsed once."""

    def __missing__(self, text: bytes) -> Any:
        self[text] = value = json.loads(text)
        return value


def read_verdicts(file: Path) -> list[Verdict]:
    """Read the scores of samples, without prompts and completions.

    Prompts and completions take most of a file, so they are removed before the rest is parsed. JSON
    escapes the quotation marks in strings, so a search for the keys around the texts is unambiguous. A
    file in another form than that of :func:`line` is parsed completely.

    Raises:
        InputError: with file and line of the first mistake.
    """
    try:
        text = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: samples cannot be read ({error.strerror})") from None
    parts: list[bytes] = []
    end, lines = 0, 0
    while end < len(text):
        prompt = text.find(_PROMPT, end)
        tokens = text.find(_TOKENS, prompt)
        if prompt < 0 or tokens < 0:
            break
        parts.append(text[end:prompt])
        end = text.find(b"\n", tokens) + 1 or len(text)
        parts.append(text[tokens:end])
        lines += 1
    parts.append(text[end:])
    matches = _VERDICT.findall(b"".join(parts))
    parsed = _Parsed()
    try:
        verdicts = [Verdict(parsed[t], parsed[p], int(n), parsed[s]) for t, p, n, s in matches]
    except (ValueError, RecursionError):
        verdicts = []
    if len(verdicts) != lines or text[end:].strip():
        verdicts = [Verdict(s.task, s.problem, s.sample, s.scores) for s in read(file)]
    return verdicts


def _sample(record: dict[str, Any]) -> Sample:
    sample = Sample(**record)
    good = (
        isinstance(sample.completion, str)
        and isinstance(sample.tokens, int)
        and isinstance(sample.sample, int)
        and isinstance(sample.prompt, str | list)
        and isinstance(sample.scores, dict)
    )
    if not good:
        raise ValueError("a field has another type")
    return sample
