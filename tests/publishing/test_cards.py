"""Cards of a study's points say what ``results.json`` says, and the library reads them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from huggingface_hub import ModelCard, parse_eval_result_entries

import merganser
from checkpoints_on_disk import tree
from merganser import cli
from merganser.publishing import study_cards
from merganser.results import scores
from merganser.results.scores import Entry, Results, Score
from messages import assert_one_line
from recipe_files import RecipeFile
from sweeps import SWEEP

SCORES = {
    "acc": {
        "accuracy": Score(0.612345, 0.0212345, 0.57, 0.653, 200),
        "tokens": Score(911.25, 12.5, 886, 935, 200),
    },
    "w": {
        "accuracy": Score(0.5871, 0.02, 0.5479, 0.6263, 200),
        "tokens": Score(503.75, 8, 488.5, 519.5, 200),
    },
}


@pytest.fixture
def study(pair: tuple[Path, Path], recipe_file: RecipeFile, tmp_path: Path) -> Path:
    """A sweep whose folder has results."""
    home = tmp_path / "points"
    merganser.sweep(recipe_file(SWEEP), home, public=True)
    found = Results(
        name="acc and b",
        recipe=SWEEP,
        directions={"accuracy": "max", "tokens": "min"},
        settings={"tasks": [{"task": "sums", "temperature": 0.6, "top_p": 0.95, "samples": 4}]},
        entries=(
            Entry("base", "base", str(tmp_path), scores=SCORES["acc"]),
            Entry("a", "expert", str(tmp_path / "a"), scores=SCORES["acc"]),
            Entry("m_w0.3", "point", values={"w": 0.3}, scores=SCORES["acc"], folder="m_w0.3"),
            Entry("m_w0.7", "point", values={"w": 0.7}, scores=SCORES["w"], folder="m_w0.7"),
        ),
        chosen={"m_w0.7": "the knee of the front"},
    )
    scores.write(found, home)
    return home


def test_the_numbers_are_those_of_the_results(study: Path) -> None:
    folder = study / "m_w0.7"
    before = tree(folder)
    study_cards.rewrite(folder)
    card = ModelCard.load(folder / "README.md")
    written = json.loads((study / "results.json").read_text())
    [entry] = [each for each in written["entries"] if each["name"] == "m_w0.7"]
    shown = {result.metric_name: result for result in card.data.eval_results}
    assert set(shown) == set(entry["scores"])
    for name, score in entry["scores"].items():
        assert shown[name].metric_value == score["mean"]
        assert shown[name].metric_args == {
            "standard_error": score["error"],
            "interval_95": [score["low"], score["high"]],
            "problems": score["problems"],
        }
    rows = re.findall(r"^\| (.*) \| (.*) \| (.*) \|$", card.text.split("## Scores")[1], re.M)
    assert rows[0] == ("model", "accuracy ↑", "tokens ↓")
    named = {"`base` (base)": "base", "`a` (expert)": "a", "**this model**": "m_w0.7"}
    for label, *cells in rows[1:4]:
        name = named.pop(label)
        [entry] = [each for each in written["entries"] if each["name"] == name]
        for cell, score in zip(cells, entry["scores"].values(), strict=True):
            numbers = re.findall(r"-?\d+\.?\d*", cell)
            wanted = [score[part] for part in ("mean", "error", "low", "high")]
            for number, value in zip(numbers, wanted, strict=True):
                decimals = len(number.partition(".")[2])
                assert float(number) == pytest.approx(value, abs=0.5000001 * 10**-decimals)
    assert named == {}
    assert "Chosen as: the knee of the front." in card.text
    assert "Completions: 4 a problem, temperature 0.6, top-p 0.95." in card.text
    assert "One of 2 merges of the study `acc and b`, with w = 0.7." in card.text
    assert str(study.parent) not in card.text
    assert "![" in card.text
    assert (folder / "front.png").read_bytes().startswith(b"\x89PNG")
    after = tree(folder)
    assert {name for name in after if after[name] != before.get(name)} == {
        "README.md",
        "front.png",
        "merge_manifest.json",
    }
    assert merganser.verify(folder) == []


def test_a_card_without_a_study_is_the_one_that_the_merge_wrote(
    tmp_path: Path, linear: Path
) -> None:
    merganser.merge(linear, tmp_path / "out")
    before = tree(tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text("mine\n")
    study_cards.rewrite(tmp_path / "out")
    assert tree(tmp_path / "out") == before


def test_benchmarks_of_the_hub(study: Path) -> None:
    run = CliRunner().invoke(
        cli.main, ["card", str(study / "m_w0.7"), "--benchmark", "accuracy=org/math:test"]
    )
    assert run.exit_code == 0, run.output
    data = yaml.safe_load((study / "m_w0.7" / ".eval_results" / "merganser.yaml").read_text())
    [entry] = parse_eval_result_entries(data)
    assert (entry.dataset_id, entry.task_id) == ("org/math", "test")
    assert entry.value == SCORES["w"]["accuracy"].mean
    assert merganser.verify(study / "m_w0.7") == []


@pytest.mark.parametrize("value", ["accuracy", "accuracy=math", "speed=org/math:test"])
def test_benchmarks_that_cannot_be(study: Path, value: str) -> None:
    run = CliRunner().invoke(cli.main, ["card", str(study / "m_w0.7"), "--benchmark", value])
    assert run.exit_code == 2
    assert_one_line(run.output.strip(), "benchmark")


def test_what_no_merge_wrote_has_no_card(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    run = CliRunner().invoke(cli.main, ["card", str(pair[0])])
    assert run.exit_code == 3
    assert_one_line(run.output.strip(), "merge_manifest.json")
