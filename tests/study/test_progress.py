"""Progress of a study: which model, how far, how fast; and threads that wait without spinning."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_evaluating import file  # noqa: F401 (a fixture)

import peers
from merganser import cli
from merganser.cli import progress_bars
from merganser.evaluation.generation import Completion, Request, Sampling
from merganser.evaluation.statistics import Score
from merganser.planning import plan
from merganser.study.live_model import LiveModel
from merganser.study.progress import Judging, Meter, Scored, Scoring, Sharing, Turn


def test_a_meter_tells_new_completions_from_reused_ones() -> None:
    events: list[object] = []
    meter = Meter(Turn("m", 3, 12), events.append)
    meter.completed(2, 6)
    meter.generated(4)
    meter.completed(3, 6)
    turn = Turn("m", 3, 12)
    assert events == [
        Scoring(turn, 2, 6, 0, 0),
        Scoring(turn, 2, 6, 0, 4),
        Scoring(turn, 3, 6, 1, 4),
    ]


def test_tokens_are_counted_within_a_batch_and_add_up(tmp_path: Path) -> None:
    peers.make_model(tmp_path / "a")
    live = LiveModel()
    requests = [Request("what is " + "1 + " * n + "1 =") for n in range(5)]
    steps: list[int] = []
    order: list[str] = []

    def count(tokens: int) -> None:
        steps.append(tokens)
        order.append("tokens")

    recipe = {"merge_method": "passthrough", "models": [{"model": str(tmp_path / "a")}]}
    backend = live.backend_of(plan(recipe), on_tokens=count)
    completions: list[Completion] = []
    for _, completion in backend(requests, Sampling(1.0, max_tokens=7, seed=3)):
        order.append("completion")
        completions.append(completion)
    assert order.index("completion") >= 2, "nothing is reported before the batch ends"
    assert steps[0] == len(requests)
    assert sum(steps) == sum(completion.tokens for completion in completions)


def test_lines_say_which_model_how_far_and_the_scores(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(progress_bars.time, "monotonic", lambda: now)
    lines = progress_bars.ScoringLines()
    turn = Turn("acc_w0.7", 3, 4)
    lines.listen(Scoring(turn, 0, 40, 0, 0))
    now = 10.0
    lines.listen(Scoring(turn, 10, 40, 10, 500))
    now = 20.0
    lines.listen(Judging(turn, "quality", 30, 40))
    lines.listen(Scored(turn, {"exact": Score(0.25, 0.1, 0.1, 0.4, 40)}, 40, 30))
    lines.listen(Scored(Turn("b", 4, 4), {"exact": Score(0.5, 0.1, 0.1, 0.4, 40)}, 40, 0))
    lines.listen(Sharing(3, 12, 2, 1250, 9600))
    now = 40.0
    lines.listen(Sharing(3, 12, 2, 1300, 9600))
    now = 50.0
    lines.listen(Sharing(3, 12, 2, 1300, 9600))
    said = capsys.readouterr().err
    assert said.count("models scored") == 1
    assert "3 of 12 models scored, 2 workers at work: 1,300 of 9,600 completions" in said
    how_far = "model 3 of 4, acc_w0.7: 10 of 40 completions, 50 tokens/s, about 70 s left"
    assert "model 3 of 4, acc_w0.7: quality of 30 of 40 completions" in said
    assert how_far in said  # 30 completions of this model and 40 of the next, 50 tokens each
    assert "model 3 of 4, acc_w0.7: exact 0.25 ±0.1 (40 completions, 10 of them reused)" in said
    assert "model 4 of 4, b: exact 0.5 ±0.1 (40 completions, all of them reused)" in said


def test_a_sweep_shows_scores_as_they_come(file: Path, tmp_path: Path) -> None:  # noqa: F811
    done = CliRunner().invoke(cli.main, ["sweep", str(file), str(tmp_path / "out"), "--no-write"])
    assert done.exit_code == 0, done.output
    said = [line for line in done.stderr.splitlines() if "exact 0" in line]
    assert [line.split(":")[0] for line in said] == [
        f"model {n} of 5, {name}"
        for n, name in enumerate(["base", "a", "b", "m_w0.3", "m_w0.7"], 1)
    ]
    assert all("tokens " in line for line in said)
    quiet = CliRunner().invoke(
        cli.main, ["sweep", str(file), str(tmp_path / "out"), "--no-write", "-q"]
    )
    assert "model 1" not in quiet.stderr


@pytest.mark.parametrize(
    ("code", "chosen", "policy"),
    [
        ("import merganser; merganser.Plan", None, "PASSIVE"),
        ("import merganser; merganser.Plan", "ACTIVE", "ACTIVE"),
        ("import torch, merganser; merganser.Plan", None, "None"),  # OpenMP has read it already
        (
            "from merganser import cli; cli.main(['methods'], standalone_mode=False)",
            None,
            "PASSIVE",
        ),
    ],
)
def test_openmp_waits_passively_unless_the_user_chose(
    code: str, chosen: str | None, policy: str
) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": chosen} if chosen else {}
    code += "; import os; print('policy', os.environ.get('OMP_WAIT_POLICY'))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == f"policy {policy}"
