"""Problems of a data set on the Hub: ``hub://org/name/config@revision:split#answer``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from merganser import extras, suggestions
from merganser.errors import InputError, RecipeError
from merganser.evaluation import problems
from merganser.evaluation.problems import Problem
from merganser.hub import datasets

PREFIX = "hub://"

FORM = "hub://ORG/NAME[/CONFIG][@REVISION][:SPLIT][#ANSWER or #QUESTION,ANSWER]"

QUESTIONS = ("problem", "question", "prompt", "messages", "query", "instruction", "input")
"""Names of columns recognised as the question, the first one preferred."""

ANSWERS = ("answer", "final_answer", "solution", "ground_truth", "expected_answer", "target")
"""Names of columns recognised as the answer, the first one preferred."""

_PARTS = re.compile(
    r"hub://(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<config>[^@:#]+))?(?:@(?P<revision>[^:#]+))?"
    r"(?::(?P<split>[^#]+))?(?:#(?:(?P<question>[^,]+),)?(?P<answer>[^,]+))?"
)


@dataclass(frozen=True, slots=True)
class HubReference:
    """A reference to problems on the Hub.

    A field that is None is filled in by :func:`load` if the choice is unambiguous.

    Attributes:
        repository: the data set, ``org/name``.
        config: the configuration.
        revision: branch, tag or commit.
        split: the split.
        question: the column of questions.
        answer: the column of answers.
    """

    repository: str
    config: str | None = None
    revision: str | None = None
    split: str | None = None
    question: str | None = None
    answer: str | None = None

    def __str__(self) -> str:
        columns = ",".join(filter(None, (self.question, self.answer)))
        parts = ("/", self.config), ("@", self.revision), (":", self.split), ("#", columns)
        return PREFIX + self.repository + "".join(sign + part for sign, part in parts if part)

    @property
    def name(self) -> str:
        """The data set's name, without its owner."""
        return self.repository.partition("/")[2]


def parse(text: str) -> HubReference:
    """Parse a reference, ``hub://org/name/config@revision:split#question,answer``.

    Raises:
        RecipeError: when the text does not have this form.
    """
    match = _PARTS.fullmatch(text)
    if match is None:
        raise RecipeError(f"{text}: problems of the Hub are written {FORM}")
    return HubReference(**match.groupdict())


def load(
    reference: HubReference, limit: int | None = None, answer_pattern: str | None = None
) -> tuple[list[Problem], HubReference]:
    """Read the problems of a data set on the Hub.

    Args:
        reference: the data set, split and columns.
        limit: maximum number of problems, from the first on; None for all.
        answer_pattern: a regular expression whose first group is the answer in its column.

    Returns:
        The problems, and the reference with all fields filled in; its revision is a commit.

    Raises:
        InputError: when the data set, split or column does not exist; the message lists existing ones.
        MerganserError: when pyarrow is not installed.
    """
    parquet = extras.load("pyarrow.parquet", "eval")
    hub_files = datasets.find_parquet(
        reference.repository, reference.config, reference.split, reference.revision
    )
    settled = replace(
        reference, config=hub_files.config, split=hub_files.split, revision=hub_files.commit
    )
    name = f"{PREFIX}{reference.repository}:{hub_files.split}"
    loaded: list[Problem] = []
    question, answer = "", reference.answer
    for row, (columns, record) in enumerate(_rows(parquet, hub_files, name)):
        if row == 0:
            question = _column(reference.question, QUESTIONS, columns, name) or ""
            answer = _column(reference.answer, ANSWERS, columns, name)
            if not question:
                raise InputError(
                    f"{name}: which column is the question? There are {', '.join(columns)}; write "
                    "hub://…#QUESTION,ANSWER"
                )
            settled = replace(settled, question=question, answer=answer)
        if limit is not None and row >= limit:
            break
        address = f"{name} row {row}"
        asked = {
            "question": record[question],
            "answer": _answer(record.get(answer or ""), answer_pattern, address),
        }
        problem = problems.from_record(asked, address, str(row))
        loaded.append(replace(problem, record=record))
    if not loaded:
        raise InputError(f"{name}: holds no problems")
    return loaded, settled


def _rows(
    parquet: Any, hub_files: datasets.HubFiles, name: str
) -> Iterator[tuple[Sequence[str], dict[str, Any]]]:
    """Yield the columns and the record of each row, without binary columns such as images."""
    for path in hub_files.files:
        try:
            with parquet.ParquetFile(path) as file:
                texts = [f.name for f in file.schema_arrow if "binary" not in str(f.type)]
                for batch in file.iter_batches(batch_size=256, columns=texts):
                    for record in batch.to_pylist():
                        yield texts, json.loads(json.dumps(record, default=str))
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            raise InputError(f"{name}: {path.name} cannot be read as parquet ({reason})") from None


def _column(
    given: str | None, usual: Sequence[str], columns: Sequence[str], name: str
) -> str | None:
    """The given column, else the first of the usual ones that exists; None if there is none."""
    if given is None:
        folded = {column.lower(): column for column in columns}
        return next((folded[column] for column in usual if column in folded), None)
    if given not in columns:
        slip = suggestions.nearest(given, columns)
        hint = f"; did you mean {slip!r}?" if slip else ""
        raise InputError(
            f"{name}: there is no column {given!r}; there are {', '.join(columns)}{hint}"
        )
    return given


def _answer(value: Any, pattern: str | None, address: str) -> Any:
    """The answer in a value: the pattern's first group, or the only element of a list."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if pattern is None or value is None:
        return value
    match = re.search(pattern, str(value))
    if match is None:
        raise InputError(f"{address}: the answer has not the form {pattern}")
    return match[1].strip()
