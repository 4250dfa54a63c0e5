"""What a model said and what it was worth, kept as JSON lines so that nothing is run twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from merganser.errors import InputError, ResourceError, reraise_os_errors
from merganser.evaluation.generation import Finish, Prompt


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion of one problem.

    Attributes:
        task: the task's name.
        problem: the problem's id.
        sample: which sample of the problem it is, from 0.
        prompt: what the model was given: a text, or a conversation.
        completion: what it said, without special tokens.
        tokens: how many tokens that took.
        finish: ``stop`` where it came to an end, ``length`` where it was cut off.
        scores: by the scorers' names.
        answer: the right answer, for those who read the file.
        key: digests of all that decided the completion, in the order of
            :func:`merganser.study.live_model.model_key`, then of prompt and sampling; the completion is taken
            again only where all are the same.
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
    """A sample as it is kept."""
    text = json.dumps(asdict(sample), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace").decode() + "\n"


def write(samples: Iterable[Sample], file: Path) -> None:
    """Write all samples, in place of what was there, at once.

    Raises:
        ResourceError: when they cannot be written.
    """
    with reraise_os_errors(ResourceError, "written", file):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(file.name + ".partial")
        partial.write_text("".join(map(line, samples)), encoding="utf-8")
        partial.replace(file)


@contextmanager
def appending(file: Path) -> Iterator[Callable[[Sample], None]]:
    """Give a function that adds a sample to a file; it is in the file when that returns.

    Raises:
        ResourceError: when it cannot be written, by that function too.
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
        with suppress(OSError):  # what it holds is told of already
            stream.close()


def read(file: Path, *, cut_off: bool = False) -> list[Sample]:
    """Read samples.

    Args:
        file: of JSON lines.
        cut_off: forgive a last line that was cut off while it was written.

    Raises:
        InputError: with file and line of what is wrong.
    """
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: samples cannot be read ({str(error)[:120]})") from None
    found: list[Sample] = []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            found.append(_sample(json.loads(text)))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if cut_off and number == len(lines):
                break
            raise InputError(f"{file}:{number}: no sample ({str(error)[:80]})") from None
    return found


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a sample is worth, without what was said."""

    task: str
    problem: str
    sample: int
    scores: Mapping[str, float]


_PROMPT, _TOKENS = b', "prompt": ', b', "tokens": '
_WITHOUT_TEXTS = [f for f in Sample.__dataclass_fields__ if f not in ("prompt", "completion")]


def read_verdicts(file: Path) -> list[Verdict]:
    """Read what samples are worth.

    Prompts and completions, nearly all of a file, are cut out before the rest is parsed: inside of a JSON
    string no quotation mark stands without a backslash, so the keys around them are found by theirs. A
    file that is not as :func:`line` writes it is parsed whole.

    Raises:
        InputError: with file and line of what is wrong.
    """
    try:
        lines = [line for line in file.read_bytes().split(b"\n") if line]
    except OSError as error:
        raise InputError(f"{file}: samples cannot be read ({error.strerror})") from None
    cut = [line[: line.find(_PROMPT)] + line[line.find(_TOKENS) :] for line in lines]
    try:
        records = json.loads(b"[" + b",".join(cut) + b"]")
        found = [Verdict(r["task"], r["problem"], r["sample"], r["scores"]) for r in records]
    except (ValueError, TypeError, KeyError, RecursionError):
        found = records = []
    good = all(list(record) == _WITHOUT_TEXTS for record in records)
    if not good or len(found) != len(lines) or not all(type(v.scores) is dict for v in found):
        found = [Verdict(s.task, s.problem, s.sample, s.scores) for s in read(file)]
    return found


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
