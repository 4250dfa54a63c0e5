"""Tasks of the lm-evaluation-harness on a live model, from local files, without a network."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

import peers
from conftest import RecipeFile
from merganser.errors import InputError
from merganser.evaluation import harness
from merganser.study.evaluating import evaluate, evaluate_sweep
from merganser.study.live import LiveModel

pytest.importorskip("lm_eval")

TASK = """
task: counting
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["4", "7"]
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""

SWEEP = """
name: m_w{{ w }}
sweep: {w: [0.5]}
merge_method: linear
models:
  - {model: ./a, parameters: {weight: "{{ 1 - w }}"}}
  - {model: ./b, parameters: {weight: "{{ w }}"}}
dtype: bfloat16
evaluate:
  lm_eval:
    - {task: counting, metric: acc, include: harness}
  experts: false
  keep: "best: counting/acc"
"""


@pytest.fixture
def file(tmp_path: Path, recipe_file: RecipeFile, monkeypatch: pytest.MonkeyPatch) -> Path:
    for seed, name in enumerate("ab"):
        peers.make_model(tmp_path / name, seed=seed, layers=1)
    folder = tmp_path / "harness"
    folder.mkdir()
    docs = [{"question": f"what is {n} + 1 =", "answer": n % 2} for n in range(5)]
    (folder / "data.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (folder / "counting.yaml").write_text(TASK.format(data=folder / "data.jsonl"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return recipe_file(SWEEP)


@pytest.mark.slow
def test_a_task_of_the_harness(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The score in memory is that of the written folder, and is kept."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the harness's own
        found = evaluate_sweep(file, tmp_path / "out")
        [point] = found.points
        score = point.scores["counting/acc"]
        assert score.problems == 5
        assert score.mean * 5 == pytest.approx(round(score.mean * 5))
        assert found.chosen == {"m_w0.5": "best: counting/acc"}
        written = evaluate(str(tmp_path / "out" / "m_w0.5"), file)
        assert written.entries[0].scores == point.scores
        file.write_text(file.read_text().replace("metric: acc", "metric: f1, name: counting/acc"))
        with pytest.raises(InputError, match=r"counting: has no metric f1 .* it has .* acc,none"):
            evaluate("./a", file)
    file.write_text(SWEEP.lstrip())
    monkeypatch.setattr(LiveModel, "become", None)
    assert evaluate_sweep(file, tmp_path / "out").points == found.points


def test_scores_that_cannot_be_read_are_measured_again(tmp_path: Path) -> None:
    for text in ("[" * 200_000, "[1]", '{"a": 1}', "{"):
        (tmp_path / "kept.json").write_text(text)
        assert (
            harness.read_kept(
                tmp_path / "kept.json", "", [harness.HarnessTask(task="a", metric="b")]
            )
            == {}
        )
