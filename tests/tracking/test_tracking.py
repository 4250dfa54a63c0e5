"""Trackers: what they are sent, and that none of them stops a study."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, call

import pytest
from click.testing import CliRunner

from merganser import cli, tracking
from merganser.errors import MerganserError
from merganser.results.scores import Entry, Score
from merganser.tracking import Run, mlflow_runs
from merganser.tracking.metrics import Metrics
from messages import assert_one_line
from recipe_files import RecipeFile

RUN = Run("study", "0123456789ab", {"engine": "transformers", "sums/samples": 4})


def point(w: float, **values: Any) -> Entry:
    return Entry(
        f"m_w{w}",
        "point",
        values={"w": w, **values},
        scores={"exact": Score(w, 0.1, w - 0.2, w + 0.2, 9)},
        weights={"runs/a": 1 - w, "runs/b": w},
        effective={"runs/a": 1 - w - 0.01, "runs/b": w + 0.01},
    )


def fake(monkeypatch: pytest.MonkeyPatch, name: str) -> MagicMock:
    """A package that notes its calls."""
    module = MagicMock(spec=ModuleType(name))
    for function in ("init", "finish", "Settings", "Artifact", "set_experiment", "search_runs"):
        setattr(module, function, MagicMock())
    for function in ("start_run", "log_params", "log_metrics", "log_artifact", "end_run"):
        setattr(module, function, MagicMock())
    module.__spec__ = ModuleSpec(name, None)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def follow(name: Any, files: Sequence[Path] = ()) -> None:
    """A study of a base and two points, the second of which comes first."""
    warnings: list[str] = []
    base = Entry("base", "base", "runs/base", scores={"exact": Score(0.5, 0.0, 0.5, 0.5, 9)})
    with tracking.follow(tracking.choose(name, None), warnings.append) as following:
        following.start(RUN)
        following.point(0, base)
        following.point(2, point(0.75))
        following.point(1, point(0.25))
        following.point(1, point(0.25), "held_out/")
        following.finish(files)
    assert warnings == []


SENT: dict[str, float] = {
    "exact": 0.25,
    "exact_error": 0.1,
    "exact_low": 0.25 - 0.2,
    "exact_high": 0.25 + 0.2,
    "w": 0.25,
    "effective_w": 0.26,
    "weight_a": 0.75,
    "effective_a": 0.74,
    "weight_b": 0.25,
    "effective_b": 0.26,
}


def test_numbers_are_flat_and_keep_their_names() -> None:
    metrics = Metrics()
    found = metrics.of(point(0.25, density=[0.1, 1], method="ties", fast=True))
    assert found == pytest.approx(SENT | {"density[0]": 0.1, "density[1]": 1})
    assert metrics.of(point(0.5))["effective_w"] == 0.51  # b's, as before
    assert "effective_w" not in Metrics().of(point(0.5))  # a's or b's: nobody knows yet
    assert "effective_w" not in metrics.of(Entry("x", "point", values={"w": 0.9}))
    reference = Entry("acc", "expert", scores={"exact": Score(0.5, 0.0, 0.5, 0.5, 9)})
    assert set(metrics.of(reference)) == {
        f"acc/exact{part}" for part in ("", "_error", "_low", "_high")
    }
    assert set(metrics.of(point(0.25), "held_out/")) == {
        f"held_out/exact{part}" for part in ("", "_error", "_low", "_high")
    }
    infinite = Entry("x", "point", scores={"exact": Score(float("nan"), 0.0, 0.0, 0.0, 9)})
    assert "exact" not in metrics.of(infinite)


def test_trackio_logs_each_point_at_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    trackio = fake(monkeypatch, "trackio")
    follow("trackio")
    [begun] = trackio.init.call_args_list
    assert begun.kwargs["name"] == "study-0123456789ab"
    assert begun.kwargs["config"] == RUN.config
    assert begun.kwargs["resume"] == "allow"
    run = trackio.init.return_value
    assert [each.kwargs["step"] for each in run.log.call_args_list] == [0, 2, 1, 1]
    assert run.log.call_args_list[2].args[0] == pytest.approx(SENT)
    trackio.finish.assert_called_once_with()


def test_wandb_takes_points_in_any_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wandb = fake(monkeypatch, "wandb")
    file = tmp_path / "results.csv"
    file.write_text("name\n")
    follow("wandb", [file, tmp_path / "missing.csv"])
    [begun] = wandb.init.call_args_list
    assert begun.kwargs["id"] == "0123456789ab"
    assert begun.kwargs["resume"] == "allow"
    run = wandb.init.return_value
    assert run.define_metric.call_args_list[1] == call("*", step_metric="point")
    logged = [each.args[0] for each in run.log.call_args_list]
    assert [each["point"] for each in logged] == [0, 2, 1, 1]
    assert all(each.kwargs == {} for each in run.log.call_args_list)  # no step, which may not fall
    assert wandb.Artifact.return_value.add_file.call_args_list == [call(str(file))]
    run.finish.assert_called_once_with(exit_code=0)


@pytest.mark.parametrize("earlier", [False, True])
def test_mlflow_finds_the_run_of_the_same_study(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, earlier: bool
) -> None:
    mlflow = fake(monkeypatch, "mlflow")
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    for name in mlflow_runs.PATIENCE:
        monkeypatch.setenv(name, "1")
    file = tmp_path / "results.csv"
    file.write_text("name\n")
    info = SimpleNamespace(info=SimpleNamespace(run_id="r1"))
    mlflow.search_runs.return_value = [info] if earlier else []
    follow("mlflow", [file])
    [begun] = mlflow.start_run.call_args_list
    if earlier:
        assert begun == call(run_id="r1")
        assert not mlflow.log_params.called  # those of a run cannot change
    else:
        assert begun == call(run_name="study", tags={"merganser.study": "0123456789ab"})
        [params] = mlflow.log_params.call_args_list
        assert params.args[0] == {"engine": "transformers", "sums/samples": "4"}
    assert [each.kwargs["step"] for each in mlflow.log_metrics.call_args_list] == [0, 2, 1, 1]
    assert mlflow.log_artifact.call_args_list == [call(str(file))]
    mlflow.end_run.assert_called_once_with("FINISHED")
    mlflow.set_experiment.assert_called_once_with("merganser")


class Broken:
    """A tracker that fails at one step."""

    name = "broken"

    def __init__(self, at: str) -> None:
        self.at = at
        self.calls: list[str] = []

    def _note(self, step: str) -> None:
        self.calls.append(step)
        print("chatter")
        if step == self.at:
            raise ConnectionError("no route\nto host")

    def start(self, run: Run) -> None:
        self._note("start")

    def point(self, number: int, metrics: Mapping[str, float]) -> None:
        self._note("point")

    def finish(self, files: Sequence[Path], *, failed: bool) -> None:
        self._note("failed" if failed else "finish")


@pytest.mark.parametrize(
    ("at", "calls"),
    [
        ("start", ["start"]),
        ("point", ["start", "point"]),
        ("finish", ["start", "point", "point", "finish"]),
        ("", ["start", "point", "point", "finish"]),
    ],
)
def test_a_tracker_that_fails_is_one_warning(
    at: str, calls: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    warnings: list[str] = []
    tracker = Broken(at)
    with tracking.follow(tracker, warnings.append) as following:
        following.start(RUN)
        following.point(1, point(0.25))
        following.point(2, point(0.75))
    assert tracker.calls == calls
    told = "broken: no route to host; the study goes on without a tracker"
    assert warnings == ([told] if at else [])
    assert capsys.readouterr().out == ""


def interrupted(tracker: Broken, *points: Entry) -> None:
    """A study that is interrupted after some points."""
    with tracking.follow(tracker, print) as following:
        following.start(RUN)
        for number, each in enumerate(points, 1):
            following.point(number, each)
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("points", "calls"),
    [([point(0.25)], ["start", "point", "failed"]), ([], [])],  # nothing scored: there is no run
)
def test_a_study_that_fails_ends_its_run_as_failed(points: list[Entry], calls: list[str]) -> None:
    tracker = Broken("")
    with pytest.raises(KeyboardInterrupt):
        interrupted(tracker, *points)
    assert tracker.calls == calls


def test_a_tracker_that_is_not_installed_stops_a_study_before_it_begins(
    recipe_file: RecipeFile,
    pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    (tmp_path / "sums.jsonl").write_text('{"problem": "1 + 1 =", "answer": "2"}\n')
    file = recipe_file(
        """
name: m_w{{ w }}
sweep: {w: [0.3]}
merge_method: linear
models: [{model: ./a, parameters: {weight: "{{ w }}"}}]
evaluate: {tasks: [{problems: sums.jsonl, scorers: [exact]}], track: wandb}
"""
    )
    done = CliRunner().invoke(cli.main, ["sweep", str(file), str(tmp_path / "out")])
    assert done.exit_code == 1
    assert_one_line(done.stderr.strip(), "needs wandb", "pip install 'merganser[wandb]'")
    assert not (tmp_path / "out").exists()
    command = ["sweep", str(file), str(tmp_path / "out"), "--workers", "local:1"]
    assert "needs wandb" in CliRunner().invoke(cli.main, command).stderr
    assert not (tmp_path / "out").exists()
    other = CliRunner().invoke(
        cli.main, ["sweep", str(file), str(tmp_path / "out"), "--track", "none"]
    )
    assert other.stderr  # it came further: these models have no tokenizer
    assert "wandb" not in other.stderr
    assert tracking.choose("none", "wandb") is None
    with pytest.raises(
        MerganserError, match=r"needs wandb.*; the file has track: wandb, and track='none'"
    ):
        tracking.choose(None, "wandb")
    with pytest.raises(MerganserError, match=r"needs wandb.*wandb\]'$"):
        tracking.choose("wandb", None)


# -- the packages themselves, where they are installed ---------------------------------------------


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trackers that write into a folder, and reach no server."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def real(name: str) -> Any:
    missing = importlib.util.find_spec(name) is None
    return pytest.param(name, marks=[pytest.mark.slow, pytest.mark.skipif(missing, reason=name)])


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", [real("trackio"), real("wandb"), real("mlflow")])
def test_real_trackers_work_offline(name: str, offline: Path) -> None:
    file = offline / "results.csv"
    file.write_text("name\n")
    follow(name, [file])
    if name == "mlflow":
        with sqlite3.connect(offline / "mlflow.db") as database:
            rows = database.execute("select key, step, value from metrics").fetchall()
        assert ("effective_w", 1, 0.26) in rows
        assert ("base/exact", 0, 0.5) in rows
    elif name == "trackio":
        [path] = (offline / "trackio").glob("merganser*.db")
        with sqlite3.connect(path) as database:
            logged = database.execute("select step, metrics from metrics").fetchall()
        steps = {step: json.loads(text) for step, text in logged}
        assert steps[2]["effective_w"] == 0.76
    else:
        [stored] = (offline / "wandb").glob("offline-run-*-0123456789ab/*.wandb")
        until = time.monotonic() + 20  # its own process writes the file
        while b"effective_w" not in stored.read_bytes() and time.monotonic() < until:
            time.sleep(0.2)
        assert b"effective_w" in stored.read_bytes()
