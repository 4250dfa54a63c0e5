"""What a study found is read back as it was written."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from merganser.cli import score_table
from merganser.errors import InputError, ResourceError
from merganser.results import scores
from merganser.results.scores import Direction, Entry, Results, Score

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
    scores.write(STUDY, tmp_path)
    assert scores.read(tmp_path) == STUDY
    rows = list(csv.DictReader((tmp_path / scores.CSV_NAME).read_text().splitlines()))
    assert [row["accuracy_mean"] for row in rows] == ["0.5", ""]
    assert rows[1]["w"] == "0.9"
    assert [row["acc_weight"] for row in rows] == ["", "0.9"]
    assert [row["acc_effective"] for row in rows] == ["", "0.98"]
    assert [row["chosen"] for row in rows] == ["", "best accuracy"]


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    (tmp_path / scores.JSON_NAME).symlink_to("/dev/full")
    with pytest.raises(ResourceError, match=r"cannot be written \(No space left on device\)"):
        scores.write(STUDY, tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "entries": 3}'])
def test_what_is_not_results_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / scores.JSON_NAME).write_text(text)
    with pytest.raises(InputError, match=r"results\.json"):
        scores.read(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        scores.read(tmp_path / "elsewhere")


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
        (("entries", 1, "folder"), "a\0b", "entries: 'a\\x00b'"),
        (("entries", 0, "samples"), "a\0b", "entries: 'a\\x00b'"),
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
    scores.write(STUDY, tmp_path)
    file = tmp_path / scores.JSON_NAME
    content = part = json.loads(file.read_text())
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    file.write_text(json.dumps(content))
    with pytest.raises(InputError) as refused:
        scores.read(tmp_path)
    assert str(refused.value).startswith(f"{file}: ")
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("number", ["1e999", "1" + 400 * "0"], ids=["float", "integer"])
def test_a_number_beyond_all_floats_is_refused(number: str, tmp_path: Path) -> None:
    scores.write(STUDY, tmp_path)
    file = tmp_path / scores.JSON_NAME
    file.write_text(file.read_text().replace('"error": 0.1', f'"error": {number}'))
    with pytest.raises(InputError, match=rf"results\.json: .*{number[:20]} is not a number"):
        scores.read(tmp_path)


def test_models_in_unknown_homes_keep_their_names(tmp_path: Path) -> None:
    found = replace(STUDY, places=(".",))
    for model in ("~no.such.user/acc", "~no.such.user/acc+runs/lora"):
        assert scores.reference(found, tmp_path, model).text == model


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_table_of_scores_fits_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names by what sets them apart, numbers whole; scores that find no room come below."""
    names = [f"merge_accfmt_MRL4096_ROLLOUT4_LR2e-6_w{w / 10}_linear" for w in range(1, 10)]
    directions: dict[str, Direction] = {f"score_{n}": "min" if n % 2 else "max" for n in range(6)}
    score = Score(0.86, 0.0142, 0.8, 0.9, 200)
    found = replace(
        STUDY,
        directions=directions,
        entries=(
            replace(STUDY.entries[0], scores=dict.fromkeys(directions, score)),
            *(
                Entry(name, "point", values={"w": 0.1}, scores=dict.fromkeys(directions, score))
                for name in names
            ),
        ),
        chosen={names[6]: "best score_0"},
    )
    monkeypatch.setattr(score_table, "stdout", lambda: Console(width=width))
    score_table.show_scores(found)
    *lines, chosen = capsys.readouterr().out.splitlines()
    assert chosen == f"* chosen, best score_0: {names[6]}"
    assert max(map(len, lines)) <= width
    assert sum(line.count("0.860 ±0.014") for line in lines) == 60
    assert sum(line.count("↑") + line.count("↓") for line in lines) == 6
    assert any(line.startswith("* w0.7 ") for line in lines)
    assert lines.count("") == {60: 2, 80: 1, 100: 1}[width]
