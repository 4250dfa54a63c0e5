"""Tasks of the lm-evaluation-harness on a live model, from local files, without a network.

Where only the calls matter, a stand-in with two metrics and two filters answers for it.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import peers
from merganser.cli import main
from merganser.errors import InputError
from merganser.evaluation import harness
from merganser.study.evaluate import evaluate_sweep
from merganser.study.evaluate_model import evaluate
from merganser.study.live_model import LiveModel
from recipe_files import RecipeFile

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
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
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


STAND_IN = {
    "__init__.py": """
import subprocess, sys
from pathlib import Path

def simple_evaluate(*, model, tasks, limit=None, **_):
    with Path("calls").open("a") as file:
        file.write(f"{tasks[0]} {limit}\\n")
    print("printed by the harness")
    print("a bar of the harness", file=sys.stderr)
    subprocess.run([sys.executable, "-c", "import os; os.write(2, b'fatal: not a git repository')"])
    rows = [{"filter": f, "acc": n % 2, "f1": n / 8} for f in ("none", "strict") for n in range(4)]
    results = {f"{m},{f}": sum(r[m] for r in rows[:4]) / 4 for f in ("none", "strict") for m in ("acc", "f1")}
    return {"results": {tasks[0]: results}, "samples": {tasks[0]: rows}}
""",
    "tasks.py": """
class TaskManager:
    def __init__(self, **_):
        pass
""",
    "models/__init__.py": "",
    "models/huggingface.py": """
class HFLM:
    def __init__(self, **_):
        pass
""",
}

METRICS = """
    - {task: counting, metric: acc}
    - {task: counting, metric: f1, better: min}
    - {task: counting, metric: acc, filter: strict, name: strict}
    - {task: counting, metric: acc, limit: 3, name: few}
"""


@pytest.fixture
def stand_in(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A study with four scores of a stand-in for lm-eval."""
    for name, text in STAND_IN.items():
        part = tmp_path / "site" / "lm_eval" / name
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text)
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path / "site")
    one = "    - {task: counting, metric: acc, include: harness}\n"
    file.write_text(SWEEP.lstrip().replace(one, METRICS.lstrip("\n")))
    yield file
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        del sys.modules[name]


def test_the_metrics_of_a_task_are_one_run_of_it(stand_in: Path, tmp_path: Path) -> None:
    found = evaluate("./a", stand_in)
    assert {name: score.mean for name, score in found.entries[0].scores.items()} == {
        "counting/acc": 0.5,
        "counting/f1": 0.1875,
        "strict": 0.5,
        "few": 0.5,
    }
    assert (tmp_path / "calls").read_text().splitlines() == ["counting None", "counting 3"]


def test_a_metric_that_is_not_there_loses_no_other(stand_in: Path, tmp_path: Path) -> None:
    right = stand_in.read_text()
    stand_in.write_text(right.replace("metric: f1", "metric: f2"))
    with pytest.raises(InputError, match="has no metric f2"):
        evaluate_sweep(stand_in, tmp_path / "out")
    stand_in.write_text(right)
    evaluate_sweep(stand_in, tmp_path / "out")
    assert len((tmp_path / "calls").read_text().splitlines()) == 3  # f1, and the task with a limit


@pytest.mark.parametrize("arguments", [["-q"], ["--json"], []])
def test_quiet_is_quiet_with_the_harness(
    stand_in: Path, arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    main(["eval", "./a", str(stand_in), *arguments], standalone_mode=False)
    out, err = capfd.readouterr()
    assert "harness" not in out
    if arguments:
        assert err == ""
    else:
        assert "a bar of the harness" in err
        assert "printed by the harness" in err


def test_scores_that_cannot_be_read_are_measured_again(tmp_path: Path) -> None:
    for text in ("[" * 200_000, "[1]", '{"a": 1}', "{"):
        (tmp_path / "kept.json").write_text(text)
        assert (
            harness.read_kept(
                tmp_path / "kept.json", "", [harness.HarnessTask(task="a", metric="b")]
            )
            == {}
        )
