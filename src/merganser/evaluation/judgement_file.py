"""Judgements of costly scorers, and those with notes, stored as JSON lines next to the completions."""

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
    """A judgement as the file stores it, one per line.

    Attributes:
        task, problem, sample: the completion's task, problem id and sample number.
        scorer: the scorer's name in the task.
        key: digest of the scorer's identity, the problem, the prompt and the completion; empty if the
            judgement must not be reused.
        judgement: the judgement.
    """

    task: str
    problem: str
    sample: int
    scorer: str
    key: str
    judgement: Judgement


class JudgementFile:
    """The stored judgements of one model's completions.

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
        """The stored judgement with a key; None if there is none."""
        return self._known.get(key)

    def keep(self, record: StoredJudgement) -> None:
        """Mark a stored judgement as valid, so that :meth:`settle` retains it."""
        self._current.append(record)

    def add(self, record: StoredJudgement) -> None:
        """Append a new judgement to the file immediately, so that an interruption loses none.

        Raises:
            ResourceError: when the file cannot be written.
        """
        self._current.append(record)
        with reraise_os_errors(ResourceError, "written", self.path):
            if self._stream is None:
                self._write(self._stored)  # removes an incomplete last line
                self._stream = self.path.open("a", encoding="utf-8")
            self._stream.write(_line(record))
            self._stream.flush()

    def settle(self) -> None:
        """Reduce the file to the judgements passed to :meth:`keep` and :meth:`add`; remove it if empty.

        Raises:
            ResourceError: when the file cannot be written.
        """
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
    """Yield the file of judgements next to a file of completions; None if ``samples`` is None.

    At the end of the ``with`` block the file is reduced to the judgements of this run; after an
    exception it retains the earlier judgements too.
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
    """The path of the judgements that belong to a file of completions: ``NAME.judged.jsonl``."""
    return samples.with_name(samples.name.removesuffix(".jsonl") + SUFFIX)


def _line(record: StoredJudgement) -> str:
    fields: dict[str, Any] = asdict(record)
    fields |= fields.pop("judgement")
    del fields["transient"]  # an empty key marks it
    text = json.dumps(fields, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace").decode() + "\n"


def _read(path: Path) -> list[StoredJudgement]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: judgements cannot be read ({str(error)[:120]})") from None
    judgements: list[StoredJudgement] = []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            fields = json.loads(text)
            judgement = Judgement(fields.pop("score"), fields.pop("note"), fields.pop("reply"))
            judgements.append(StoredJudgement(**fields, judgement=judgement))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if number == len(lines):  # an interrupted run may leave an incomplete last line
                break
            raise InputError(f"{path}:{number}: no judgement ({str(error)[:80]})") from None
    return judgements
