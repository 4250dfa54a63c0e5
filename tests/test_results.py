"""What a study found is read back as it was written."""

from __future__ import annotations

import csv
from pathlib import Path

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
