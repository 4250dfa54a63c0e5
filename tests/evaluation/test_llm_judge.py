"""A language model as a judge: what it is asked, what its replies are worth, on a stand-in server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from endpoints import saying, serving
from merganser.errors import InputError, RecipeError
from merganser.evaluation import llm_judge, running, scorers, tasks
from merganser.evaluation.generation import Completion, Sampling
from merganser.evaluation.judgement_file import judgements_beside
from merganser.evaluation.judging import Item, judge_all
from merganser.evaluation.problems import Problem
from merganser.evaluation.samples import Sample
from merganser.evaluation.scorer_registry import Judgement
from messages import assert_one_line
from pages import page

PROBLEM = Problem("0", "7+5?", (), "12", {"problem": "7+5?", "answer": "12"}, "p.jsonl:1")


def item(text: str) -> Item:
    return Item(PROBLEM, 0, Sample("task", "0", 0, "7+5?", text, 3, "stop"))


@pytest.mark.parametrize(
    ("reply", "parse", "score"),
    [
        ("Good.\nScore: 7", "number", 7),
        ("**Score:** 8.5/10", "number", 8.5),
        ("It has 3 errors. [[4]]", "number", 4),
        ("Score: 2? No.\nFinal score is 9", "number", 9),
        ("10", "number", 10),
        ("I like 7 of the 9 steps.", "number", None),
        ("Score: 11", "number", None),
        ("", "number", None),
        ("It is right.\nVerdict: yes", "verdict", 1),
        ("**Verdict**: No.", "verdict", 0),
        ("[[yes]]", "verdict", 1),
        ("Yes", "verdict", 1),
        ("Yes and no", "verdict", None),
    ],
)
def test_replies(reply: str, parse: Any, score: float | None) -> None:
    found = llm_judge._read(reply, parse, None, (1, 10))
    assert (found.score, found.reply) == (score, reply)
    assert bool(found.note) == (score is None)


def test_what_the_judge_is_asked() -> None:
    with serving([(503, "busy"), saying("Score: 3")]) as (url, asked):
        judge = scorers.get("judge", {"url": url, "model": "j", "system": "Be strict.", "seed": 4})
        [found] = judge_all(judge, [item("it is {answer}, 12")])
    assert found == Judgement(3, "", "Score: 3")
    assert asked[-1]["path"] == "/v1/chat/completions"
    assert (asked[-1]["model"], asked[-1]["temperature"]) == ("j", 0)
    system, user = asked[-1]["messages"]
    assert system == {"role": "system", "content": "Be strict."}
    for part in ("7+5?", "Reference answer:\n12", "it is {answer}, 12", "from 1 (worst) to 10"):
        assert part in user["content"]


def test_a_prompt_and_a_pattern_of_ones_own() -> None:
    with serving([saying("grade=B so 0.25!")]) as (url, asked):
        parameters = {
            "url": url,
            "model": "j",
            "prompt": "Q {problem} A {completion}",
            "pattern": r"so (\S+)!",
            "scale": [0, 1],
        }
        judge = scorers.get("judge", parameters)
        [found] = judge_all(judge, [item("twelve")])
    assert found.score == 0.25
    assert asked[0]["messages"] == [{"role": "user", "content": "Q 7+5? A twelve"}]
    assert judge.identity["prompt"] == "Q {problem} A {completion}"
    other = scorers.get("judge", {**parameters, "prompt": "{completion}!"})
    assert other.identity["prompt_digest"] != judge.identity["prompt_digest"]


def test_a_judge_in_a_task_keeps_its_prompt_replies_and_failures(tmp_path: Path) -> None:
    def answer(requests: Any, _sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        return ((i, Completion(f"<{i}>", 2, "stop")) for i in range(len(requests)))

    def reply(body: dict[str, Any]) -> dict[str, Any]:
        number = body["messages"][-1]["content"].split("<")[1][0]
        return saying("no idea" if number == "1" else f"Score: {number}")

    lines = [{"problem": f"{n}?", "answer": "1"} for n in range(4)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with serving([reply]) as (url, asked):
        parameters = {"url": url, "model": "j", "scale": [0, 10]}
        entry = {
            "problems": "p.jsonl",
            "scorers": [{"scorer": "judge", "name": "quality", "parameters": parameters}],
        }
        (tmp_path / "tasks.yml").write_text(json.dumps({"tasks": [entry]}))
        _, found, _ = tasks.load(tmp_path / "tasks.yml", tasks.Evaluate)
        file = tmp_path / "s.jsonl"
        first = running.evaluate(answer, found, key={"m": "m"}, samples=file)
        again = running.evaluate(answer, found, key={"m": "m"}, samples=file)
    assert len(asked) == 4
    assert first.scores == again.scores
    assert first.scores["quality"].mean == 1.25  # 0, failed, 2, 3
    assert first.scores["quality"].failed == {llm_judge.UNPARSABLE: 1}
    stored = [json.loads(line) for line in (tmp_path / "s.judged.jsonl").read_text().splitlines()]
    assert [each["reply"] for each in stored if each["problem"] == "1"] == ["no idea"]
    described = tasks.describe(found)[0]["scorers"]["quality"]
    assert "{completion}" in described["identity"]["prompt"]


def test_a_judge_that_is_too_slow_is_asked_again_next_time(tmp_path: Path) -> None:
    def slow(_body: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.5)
        return saying("Score: 1")

    with serving([slow, saying("Score: 2"), saying("none")]) as (url, asked):
        judge = scorers.get("judge", {"url": url, "model": "j"}, timeout=0.1)

        def run(*texts: str) -> list[tuple[float | None, str]]:
            with judgements_beside(tmp_path / "s.jsonl") as file:
                return [(j.score, j.note) for j in judge_all(judge, list(map(item, texts)), file)]

        assert run("a") == [(None, "the judge took longer than 0.1 s")]
        assert run("a") == [(2, "")]
        assert run("a", "b") == [(2, ""), (None, llm_judge.UNPARSABLE)]
        assert run("a", "b") == [(2, ""), (None, llm_judge.UNPARSABLE)]
        assert len(asked) == 3


def test_a_judge_that_is_gone() -> None:
    with serving([(404, "no model j")]) as (url, _):
        judge = scorers.get("judge", {"url": url, "model": "j"})
        with pytest.raises(InputError, match="says 404: no model j"):
            judge_all(judge, [item("a")])


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"url": "localhost", "model": "j"}, "write it like http://127.0.0.1:8000/v1"),
        ({"prompt": "Is it good?"}, "prompt: write {completion} where the answer to judge belongs"),
        ({"scale": [5, 1]}, "scale: the worst score comes first"),
        ({"pattern": "("}, "pattern: no regular expression"),
        ({"pattern": r"\d"}, "pattern: one group is wanted"),
        ({"parse": "words"}, "parse: "),
    ],
)
def test_slips(parameters: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError) as refused:
        scorers.get("judge", {"url": "http://127.0.0.1:9/v1", "model": "j", **parameters})
    assert_one_line(str(refused.value), "scorer judge: ", told)


def test_the_judge_of_the_page_on_scorers(tmp_path: Path) -> None:
    (tmp_path / "problems.jsonl").write_text('{"problem": "7+5?", "answer": "12"}\n')
    (tmp_path / "tasks.yml").write_text(page("scorers.md", "yaml")[2])
    [task] = tasks.load(tmp_path / "tasks.yml", tasks.Evaluate)[1]
    assert task.metrics[0].name == "quality"
    assert task.metrics[0].scorer.parameters["timeout"] == 120
    assert task.metrics[0].scorer.identity["scale"] == [1, 10]
