"""What a study found is read back as it was written."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from merganser.errors import InputError
from merganser.study import results
from merganser.study.results import Entry, Results, Score

STUDY = Results(
    name="pair",
    recipe="merge_method: linear\n",
    directions={"accuracy": "max", "tokens": "min"},
    settings={"seed": 0},
    entries=(
        Entry("acc", "expert", "runs/acc", scores={"accuracy": Score(0.5, 0.1, 0.3, 0.7, 20)}),
        Entry("w0.9", "point", values={"w": 0.9}, weights={"acc": 0.9}, effective={"acc": 0.98}),
    ),
    chosen={"w0.9": "best accuracy"},
)


def test_written_and_read(tmp_path: Path) -> None:
    results.write(STUDY, tmp_path)
    assert results.read(tmp_path) == STUDY
    rows = list(csv.DictReader((tmp_path / results.CSV_NAME).read_text().splitlines()))
    assert [row["accuracy_mean"] for row in rows] == ["0.5", ""]
    assert rows[1]["w"] == "0.9"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "entries": 3}'])
def test_what_is_not_results_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / results.JSON_NAME).write_text(text)
    with pytest.raises(InputError, match=r"results\.json"):
        results.read(tmp_path)
    with pytest.raises(InputError, match="not there"):
        results.read(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("entries", 0, "scores", "accuracy", "mean"), "high", "entries[0].scores.accuracy.mean"),
        (("entries", 0, "scores", "accuracy", "low"), float("nan"), "NaN"),
        (("entries", 0, "scores", "accuracy"), {"mean": 1}, "entries[0].scores.accuracy"),
        (("entries", 0, "scores"), [1], "entries[0].scores"),
        (("entries", 1, "values"), None, "entries[1].values"),
        (("entries", 1, "role"), "boss", "entries[1].role"),
        (("entries", 1, "folder"), 3, "entries[1].folder"),
        (("entries", 1, "weights", "acc"), "0.9", "entries[1].weights.acc"),
        (("entries", 1, "name"), "acc", "two are called 'acc'"),
        (("entries", 1), "w0.9", "entries[1]"),
        (("directions", "accuracy"), "up", "directions.accuracy"),
        (("settings", "tasks"), ["sums"], "settings.tasks"),
        (("chosen",), ["w0.9"], "chosen"),
        (("name",), None, "name"),
    ],
)
def test_a_wrong_type_is_told_with_file_and_key(
    tmp_path: Path, path: tuple[str | int, ...], value: Any, told: str
) -> None:
    results.write(STUDY, tmp_path)
    file = tmp_path / results.JSON_NAME
    content = part = json.loads(file.read_text())
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    file.write_text(json.dumps(content))
    with pytest.raises(InputError) as refused:
        results.read(tmp_path)
    assert str(refused.value).startswith(f"{file}: ")
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
