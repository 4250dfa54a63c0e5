"""Kinds of scorers: batches, async, timeouts, exceptions; and judgements that are stored."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from merganser import cli
from merganser.errors import InputError, RecipeError
from merganser.evaluation import exit_guard, judgement_file, judging, running, scorers, tasks
from merganser.evaluation.generation import Completion, Sampling
from merganser.evaluation.judgement_file import JudgementFile
from merganser.evaluation.judging import Item
from merganser.evaluation.problems import Problem
from merganser.evaluation.samples import Sample
from merganser.evaluation.scorer_calls import ScorerError
from merganser.evaluation.scorer_registry import Judgement, Scorer
from messages import assert_one_line
from pages import page

MINE = """
import asyncio, time
from merganser.evaluation.scorers import scorer

def lengths(completions, problems, factor: int = 1):
    return [factor * len(c) + len(p["problem"]) for c, p in zip(completions, problems)]

running = 0
most = 0

async def slowly(completion, problem):
    global running, most
    running += 1
    most = max(most, running)
    await asyncio.sleep(0.3 if "late" in completion else 0.002)
    running -= 1
    return len(completion)

def hang(completion, problem):
    while "late" in completion:
        pass
    return len(completion)

def inner(completion):
    return completion / 2

def broken(completion, problem):
    return inner(completion)

def nothing(completion, problem):
    return None

def quoting(completion, problem):
    raise ValueError(completion)

def leaving(completion, problem):
    raise SystemExit(3)

def vanishing(completion, problem):
    import os
    os._exit(4)

@scorer("declared", batch=True, better="min")
def declared(samples, problems):
    return [s.tokens + len(p.question) for s, p in zip(samples, problems)]
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def items(*texts: str, problems: int = 1) -> list[Item]:
    """Samples of problems in turn: ``problems`` of them have an equal share."""
    each = len(texts) // problems
    found = []
    for index in range(problems):
        problem = Problem(
            str(index), "?" * (index + 1), (), "1", {"problem": "?" * (index + 1)}, f"p:{index + 1}"
        )
        for n, text in enumerate(texts[index * each : (index + 1) * each]):
            found.append(Item(problem, index, Sample("task", str(index), n, "?", text, 3, "stop")))
    return found


def scores(judged: Sequence[Judgement]) -> list[float | None]:
    return [each.score for each in judged]


def test_batches(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = scorers.get("mine.py:lengths", {"factor": 2}, mine, batch=True)
    found = items("a", "bb", "ccc", "", problems=2)
    assert scores(judging.judge_all(own, found)) == [3, 5, 8, 2]
    monkeypatch.setattr(judging, "BATCH", 3)
    assert scores(judging.judge_all(own, found)) == [3, 5, 8, 2]
    declared = scorers.get("mine.py:declared", {}, mine)
    assert (declared.batch, declared.better) == (True, "min")
    assert scores(judging.judge_all(declared, found)) == [4, 4, 5, 5]
    with pytest.raises(RecipeError, match="its declaration says whether it takes batches"):
        scorers.get("mine.py:declared", {}, mine, batch=False)


def test_async_scorers_run_at_once_but_not_too_many(mine: Path) -> None:
    own = scorers.get("mine.py:slowly", {}, mine, concurrency=4)
    texts = [str(n) * (n % 3 + 1) for n in range(9)]
    assert scores(judging.judge_all(own, items(*texts))) == [len(t) for t in texts]
    assert own.function.__globals__["most"] == 4

    async def in_a_notebook() -> list[Judgement]:
        return judging.judge_all(own, items("a"))

    assert scores(asyncio.run(in_a_notebook())) == [1]
    with pytest.raises(RecipeError, match="concurrency is for an async function"):
        scorers.get("mine.py:hang", {}, mine, concurrency=2)


def test_a_sample_that_takes_too_long_fails_and_the_others_count(mine: Path) -> None:
    late = replace(scorers.get("mine.py:slowly", {}, mine), timeout=0.05)
    assert judging.judge_all(late, items("a", "late", "cc")) == [
        Judgement(1.0),
        Judgement(None, "took longer than 0.05 s"),
        Judgement(2.0),
    ]


@pytest.mark.slow
def test_a_scorer_that_hangs_is_stopped(mine: Path) -> None:
    own = scorers.get("mine.py:hang", {}, mine, timeout=2)
    found = judging.judge_all(own, items("a", "late", "cc"))
    assert found == [Judgement(1.0), Judgement(None, "took longer than 2 s"), Judgement(2.0)]
    broken = scorers.get("mine.py:broken", {}, mine, timeout=20)
    with pytest.raises(ScorerError, match=r"failed on p:1 \(TypeError") as refused:
        judging.judge_all(broken, items("a"))
    assert "in inner" in refused.value.details


def test_an_exception_shows_the_last_frames(mine: Path) -> None:
    own = scorers.get("mine.py:broken", {}, mine)
    with pytest.raises(ScorerError) as refused:
        judging.judge_all(own, items("a", "b", problems=2)[1:])
    assert_one_line(str(refused.value), "scorer broken: failed on p:2 (TypeError: unsupported")
    lines = refused.value.details.splitlines()
    assert lines[0] == "scorer broken, problem 1 (id 1), sample 0; last frames:"
    assert [line.strip() for line in lines if "return" in line] == [
        "return inner(completion)",
        "return completion / 2",
    ]
    assert lines[-1].startswith("TypeError: unsupported operand")
    assert not any("merganser" in line for line in lines)
    with pytest.raises(ScorerError) as refused:
        judging.judge_all(scorers.get("mine.py:quoting", {}, mine), items("\x1b[2Jgone"))
    assert refused.value.details.endswith("ValueError: \\x1b[2Jgone")


def test_a_scorer_that_gives_no_number_is_named_without_our_code(mine: Path) -> None:
    with pytest.raises(ScorerError) as refused:
        judging.judge_all(scorers.get("mine.py:nothing", {}, mine), items("gone"))
    assert_one_line(str(refused.value), "scorer nothing: failed on", "gave [None] in place of")
    assert "scorer_calls" not in f"{refused.value}{refused.value.details}"


def test_a_scorer_that_exits_fails_like_any_other(mine: Path) -> None:
    with pytest.raises(ScorerError) as refused:
        judging.judge_all(scorers.get("mine.py:leaving", {}, mine), items("gone"))
    assert_one_line(str(refused.value), "scorer leaving: failed on", "SystemExit: 3")
    with pytest.raises(ScorerError) as refused:
        judging.judge_all(scorers.get("mine.py:vanishing", {}, mine), items("gone"))
    assert_one_line(str(refused.value), "scorer vanishing: failed on", "SystemExit: os._exit(4)")


def test_other_threads_exit_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(exit_guard, "_leave", left.append)
    with exit_guard.exit_raises():
        thread = threading.Thread(target=os._exit, args=(5,))
        thread.start()
        thread.join()
    os._exit(6)
    assert left == [5, 6]


def test_the_command_shows_the_traceback(mine: Path) -> None:
    (mine / "p.jsonl").write_text('{"problem": "1+1?", "answer": "2"}\n')
    tasks_file = mine / "tasks.yml"
    tasks_file.write_text("tasks: [{problems: p.jsonl, scorers: ['mine.py:broken']}]")
    (mine / "s.jsonl").write_text("")
    done = CliRunner().invoke(cli.main, ["eval", "--from", str(mine / "s.jsonl"), str(tasks_file)])
    *details, line = done.stderr.splitlines()
    assert done.exit_code != 0
    assert_one_line(line, f"{tasks_file}:1: ", "failed on a test completion: scorer broken")
    assert "    return completion / 2" in details


# -- stored judgements -----------------------------------------------------------------------------


def costly(version: int, calls: list[str]) -> Scorer:
    def function(
        samples: Sequence[Sample], problems: Sequence[Problem]
    ) -> Iterator[tuple[int, Judgement]]:
        for place, sample in enumerate(samples):
            calls.append(sample.completion)
            if sample.completion == "stop":
                raise InputError("the server is gone")
            failed = sample.completion == "late"
            yield place, Judgement(None, "too late") if failed else Judgement(1.0, reply="good")

    return Scorer(
        "costly",
        function,
        batch=True,
        streams=True,
        identity={"version": version},
        reference="costly",
    )


def test_costly_judgements_are_made_once(tmp_path: Path) -> None:
    calls: list[str] = []
    path = tmp_path / "m.judged.jsonl"

    counts: list[tuple[str, int, int]] = []

    def run(found: Sequence[Item], version: int = 1) -> list[float | None]:
        calls.clear()
        counts.clear()
        with judgement_file.judgements_beside(tmp_path / "m.jsonl") as file:
            judged = judging.judge_all(
                costly(version, calls), found, file, "score", lambda *count: counts.append(count)
            )
            return scores(judged)

    assert run(items("a", "late")) == [1.0, None]
    assert counts == [("score", 1, 2), ("score", 2, 2)]
    assert run(items("a", "late")) == [1.0, None]
    assert calls == []
    assert run(items("b", "late", "a")) == [1.0, None, 1.0]
    assert calls == ["b"]
    assert counts == [("score", 3, 3)]
    stored = [json.loads(line) for line in path.read_text().splitlines()]
    [late] = [each for each in stored if each["score"] is None]
    assert (late["note"], late["scorer"], late["problem"]) == ("too late", "score", "0")
    assert {each["reply"] for each in stored} == {None, "good"}
    run(items("a"), version=2)
    assert calls == ["a"]
    assert len(path.read_text().splitlines()) == 1
    assert run(items("a", problems=1), version=2) == [1.0]
    assert calls == []


def test_an_interrupted_judge_goes_on(tmp_path: Path) -> None:
    calls: list[str] = []
    samples = tmp_path / "m.jsonl"
    with (
        pytest.raises(InputError, match="the server is gone"),
        judgement_file.judgements_beside(samples) as file,
    ):
        judging.judge_all(costly(1, calls), items("a", "b", "stop"), file)
    path = judgement_file.path_of(samples)
    with path.open("a") as stream:
        stream.write('{"task": "cut')
    calls.clear()
    with judgement_file.judgements_beside(samples) as file:
        assert scores(judging.judge_all(costly(1, calls), items("a", "b", "c"), file)) == [1, 1, 1]
    assert calls == ["c"]
    assert len(JudgementFile(path)._stored) == 3
    path.write_text("[]\n{}\n")
    with pytest.raises(InputError, match=r"m\.judged\.jsonl:1: no judgement"):
        JudgementFile(path)


def test_failed_samples_count_as_the_task_says(mine: Path) -> None:
    def answer(requests: Any, _sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        return ((i, Completion(("ab", "late")[i % 2], 2, "stop")) for i in range(len(requests)))

    def run(scorer: Mapping[str, Any]) -> running.Evaluation:
        entry = {"problems": "p.jsonl", "scorers": [{"scorer": "mine.py:slowly", **scorer}]}
        (mine / "tasks.yml").write_text(json.dumps({"tasks": [entry]}))
        _, found, _ = tasks.load(mine / "tasks.yml", tasks.Evaluate)
        return running.evaluate(answer, found, key={"m": "m"}, samples=mine / "s.jsonl")

    (mine / "p.jsonl").write_text('{"problem": "a"}\n{"problem": "b"}\n')
    found = run({"timeout": 0.1})
    assert [s.scores["slowly"] for s in found.samples] == [2, 0]
    assert found.scores["slowly"].mean == 1
    assert found.scores["slowly"].failed == {"took longer than 0.1 s": 1}
    [line] = (mine / "s.judged.jsonl").read_text().splitlines()
    assert json.loads(line)["note"] == "took longer than 0.1 s"
    assert run({"timeout": 0.1, "failed": -4}).scores["slowly"].mean == -1
    with pytest.raises(RecipeError, match="failed: NUMBER"):
        run({"timeout": 0.1, "better": "min"})
    assert run({"timeout": 9, "better": "min", "failed": 99}).scores["slowly"].failed == {}
    assert not (mine / "s.judged.jsonl").exists()


def test_the_functions_of_the_page_on_scorers(tmp_path: Path) -> None:
    (tmp_path / "my_scorers.py").write_text(page("scorers.md", "python")[0])
    (tmp_path / "tasks.yml").write_text(page("scorers.md", "yaml")[0])
    (tmp_path / "problems.jsonl").write_text('{"problem": "7+5?", "answer": "12"}\n')
    _, found, _ = tasks.load(tmp_path / "tasks.yml", tasks.Evaluate)

    def answer(requests: Any, _sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        yield 0, Completion("it is 12", 4, "stop")

    judged = running.evaluate(answer, found, key={"m": "m"})
    assert {n: s.mean for n, s in judged.scores.items()} == {"shortness": 0.9, "looked_up": 1.0}
    assert found[0].metrics[1].scorer.concurrency == 32
