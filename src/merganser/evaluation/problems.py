"""Problems: questions with answers, from JSON lines and other records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merganser.errors import InputError
from merganser.evaluation.generation import Message

QUESTIONS = ("prompt", "problem", "question")
ANSWERS = ("answer", "solution")


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem.

    Attributes:
        id: unique among a task's problems.
        question: the question; empty if there are ``messages``.
        messages: the conversation to continue; empty if there is a ``question``.
        answer: the right answer; None if there is none.
        record: all fields of its line in a file, or of its row in a data set.
        address: its origin in messages: ``file:line``, or the data set and row.
    """

    id: str
    question: str
    messages: tuple[Message, ...]
    answer: str | None
    record: Mapping[str, Any]
    address: str


def load(file: Path, limit: int | None = None) -> list[Problem]:
    """Read problems, one JSON object per line.

    The question is a text in ``prompt``, ``problem`` or ``question``, or a list of messages in ``prompt``
    or ``messages``. The answer is a text or number in ``answer`` or ``solution``. ``id`` is optional, and
    other fields are available to scorers. Assistant messages at the end of a list are removed, since
    they are answers.

    Args:
        file: a file of JSON lines.
        limit: maximum number of problems, from the first on; None for all.

    Raises:
        InputError: with file and line of the first mistake.
    """
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for address, record in _records(file):
        if limit is not None and len(problems) >= limit:
            break
        problem = from_record(record, address, str(len(problems)))
        other = seen.setdefault(problem.id, address)
        if other != address:
            raise InputError(f"{address}: id {problem.id!r} is that of {other} too")
        problems.append(problem)
    if not problems:
        raise InputError(f"{file}: holds no problems")
    return problems


def digest(problem: Problem) -> str:
    """A digest of all fields of a problem."""
    text = json.dumps(problem.record, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def digest_all(problems: Iterable[Problem]) -> str:
    """A digest of a sequence of problems; it depends on their order."""
    return hashlib.sha256(" ".join(map(digest, problems)).encode()).hexdigest()[:16]


def _records(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                address = f"{file}:{number}"
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{address}: not JSON ({str(error)[:80]})") from None
                if not isinstance(record, dict):
                    raise InputError(f"{address}: a problem is a JSON object")
                yield address, record
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)[:120]
        raise InputError(f"{file}: problems cannot be read ({reason})") from None


def from_record(
    record: dict[str, Any],
    address: str,
    default_id: str,
    *,
    questions: Sequence[str] = (*QUESTIONS, "messages"),
    answers: Sequence[str] = ANSWERS,
) -> Problem:
    """Return the problem that a record describes.

    Args:
        record: its fields.
        address: the record's origin, for messages.
        default_id: the problem's id if the record has none.
        questions: names of fields for the question; the first one present is used.
        answers: names of fields for the answer; the first one present is used.

    Raises:
        InputError: with the address, when a field is missing or of another type.
    """
    asked = [key for key in questions if record.get(key) is not None]
    if not asked:
        raise InputError(f"{address}: nothing is asked; give problem, prompt or messages")
    question = record[asked[0]]
    messages: tuple[Message, ...] = ()
    if isinstance(question, list):
        messages, question = _messages(question, asked[0], address), ""
    elif not isinstance(question, str) or not question.strip():
        raise InputError(f"{address}: {asked[0]} is a text that is not empty")
    given = [record[key] for key in answers if record.get(key) is not None]
    answer = given[0] if given else None
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
        raise InputError(f"{address}: the answer is a text or a number")
    identifier = record.get("id", default_id)
    if isinstance(identifier, bool) or not isinstance(identifier, str | int):
        raise InputError(f"{address}: id is a text or a whole number")
    answer = None if answer is None else str(answer)
    return Problem(str(identifier), question, messages, answer, record, address)


def _messages(entries: list[Any], key: str, address: str) -> tuple[Message, ...]:
    for entry in entries:
        good = isinstance(entry, dict) and all(
            isinstance(entry.get(part), str) for part in ("role", "content")
        )
        if not good:
            raise InputError(f'{address}: {key} is a list of {{"role": …, "content": …}}')
    while entries and entries[-1]["role"] == "assistant":
        entries = entries[:-1]
    if not entries:
        raise InputError(f"{address}: {key} asks nothing")
    return tuple({"role": entry["role"], "content": entry["content"]} for entry in entries)
