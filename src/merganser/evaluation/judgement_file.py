"""Judgements that cost much or failed, stored as JSON lines next to the completions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from merganser.errors import InputError, ResourceError, reraise_os_errors
from merganser.evaluation.scorer_registry import Judgement

SUFFIX = ".judged.jsonl"


@dataclass(frozen=True, slots=True)
class StoredJudgement:
    """One line of the file.

    Attributes:
        task, problem, sample: which completion.
        scorer: the scorer's name in the task.
        key: digest of the scorer's identity, the problem, the prompt and the completion; empty if the
            judgement is not used again.
        judgement: the judgement.
    """

    task: str
    problem: str
    sample: int
    scorer: str
    key: str
    judgement: Judgement


class JudgementFile:
    """The judgements of one model.

    Args:
        path: the file; it need not exist.

    Raises:
        InputError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stored = _read(path)
        self._known = {each.key: each.judgement for each in self._stored if each.key}
        self._current: list[StoredJudgement] = []
        self._stream: IO[str] | None = None

    def known(self, key: str) -> Judgement | None:
        """The stored judgement of a key."""
        return self._known.get(key)

    def keep(self, record: StoredJudgement) -> None:
        """Say that a stored judgement still holds."""
        self._current.append(record)

    def add(self, record: StoredJudgement) -> None:
        """Store a new judgement at once, so that an interruption loses none."""
        self._current.append(record)
        with reraise_os_errors(ResourceError, "written", self.path):
            if self._stream is None:
                self._write(self._stored)  # without a last line that was cut off
                self._stream = self.path.open("a", encoding="utf-8")
            self._stream.write(_line(record))
            self._stream.flush()

    def settle(self) -> None:
        """Replace the file by the judgements that hold now; remove it if there are none."""
        with reraise_os_errors(ResourceError, "written", self.path):
            if not self._current:
                self.path.unlink(missing_ok=True)
                return
            self._write(self._current)

    def _write(self, records: list[StoredJudgement]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text("".join(map(_line, records)), encoding="utf-8")
        partial.replace(self.path)

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


@contextmanager
def judgements_beside(samples: Path | None) -> Iterator[JudgementFile | None]:
    """Yield the file of judgements next to a file of completions; None without one.

    The file is replaced at the end if nothing was raised; else it stays as it was added to.
    """
    if samples is None:
        yield None
        return
    file = JudgementFile(path_of(samples))
    try:
        yield file
        file.close()
        file.settle()
    finally:
        file.close()


def path_of(samples: Path) -> Path:
    """The file of the judgements of a file of completions: ``NAME.judged.jsonl``."""
    return samples.with_name(samples.name.removesuffix(".jsonl") + SUFFIX)


def _line(record: StoredJudgement) -> str:
    fields: dict[str, Any] = asdict(record)
    fields |= fields.pop("judgement")
    del fields["transient"]  # the empty key says it
    text = json.dumps(fields, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace").decode() + "\n"


def _read(path: Path) -> list[StoredJudgement]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: judgements cannot be read ({str(error)[:120]})") from None
    found: list[StoredJudgement] = []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            fields = json.loads(text)
            judgement = Judgement(fields.pop("score"), fields.pop("note"), fields.pop("reply"))
            found.append(StoredJudgement(**fields, judgement=judgement))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if number == len(lines):  # an interrupted run may leave an incomplete last line
                break
            raise InputError(f"{path}:{number}: no judgement ({str(error)[:80]})") from None
    return found
