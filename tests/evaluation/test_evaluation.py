"""Scorers against their definitions' own examples, statistics against closed forms, a stand-in server."""

from __future__ import annotations

import itertools
import json
import math
import statistics as textbook
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from endpoints import echo, serving
from merganser.errors import InputError, MerganserError, RecipeError, ResourceError
from merganser.evaluation import (
    grader,
    judging,
    problems,
    running,
    samples,
    scorers,
    statistics,
    tasks,
)
from merganser.evaluation.endpoint import Endpoint
from merganser.evaluation.generation import Completion, Request, Sampling
from merganser.evaluation.problems import Problem
from merganser.evaluation.samples import Sample
from messages import assert_one_line

THOUGHT = "7+5\n</think>\n12"


def problem(answer: str | None = "12", **record: Any) -> Problem:
    return Problem(
        "0", "7+5?", (), answer, {"problem": "7+5?", "answer": answer, **record}, "p.jsonl:1"
    )


def sample(text: str, number: int = 0, tokens: int = 3) -> Sample:
    return Sample("task", "0", number, "7+5?", text, tokens, "stop")


def judge(name: str, text: str, gold: str | None = "12", **parameters: Any) -> float:
    [found] = judging.judge(scorers.get(name, parameters), problem(gold), [sample(text)])
    return found


@pytest.mark.parametrize(
    ("gold", "text", "sound", "as_open_rs"),
    [
        ("12", "anything", 0, 1),
        ("12", r"so \boxed{12}", 1, 1),
        ("$12$", "the answer is 12", 0, 0),
        ("$5$", r"\boxed{x=5}", 1, 1),
        ("$12$", "Therefore, the final answer is: $12$", 1, 1),
        ("$12$", "$12$", 0, 0),
        ("$12$", r"\boxed{13}", 0, 0),
        (r"$\frac{1}{2}$", r"\boxed{0.5}", 1, 1),
        (r"long solution \boxed{3}", r"Therefore, the final answer is: $\boxed{3}$. I hope", 1, 1),
    ],
)
def test_accuracy(gold: str, text: str, sound: float, as_open_rs: float) -> None:
    assert judge("accuracy", text, gold) == sound
    assert judge("accuracy", text, gold, rule="open-rs") == as_open_rs


def test_a_gold_that_cannot_be_read_is_refused() -> None:
    found = scorers.get("accuracy")
    assert found.check is not None
    with pytest.raises(InputError, match=r"p\.jsonl:1: math-verify cannot read the answer ''"):
        found.check(problem(""))
    with pytest.raises(InputError, match="has no answer"):
        found.check(problem(None))
    scorers.get("accuracy", {"rule": "open-rs"}).check(problem(""), rule="open-rs")  # type: ignore[misc]


def test_accuracy_off_the_main_thread_and_after_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.append(judge("accuracy", r"\boxed{12.0}")))
    thread.start()
    thread.join()
    assert found == [1.0]
    own = grader._Grader()
    monkeypatch.setattr(grader, "PATIENCE", 0.0)
    assert own.ask(["12", r"\boxed{12}", "sound"]) == 0.0
    monkeypatch.setattr(grader, "PATIENCE", 60.0)
    assert own.ask(["12", r"\boxed{12}", "sound"]) == 1.0
    own.close()


@pytest.mark.parametrize(
    ("text", "format_", "strict", "count"),
    [
        (THOUGHT, 1, 0, 0.5),
        ("<think>\na\n</think>\nb", 1, 0, 1.0),
        ("<think>a</think><answer>b</answer>", 0, 1, 0.0),
        ("<think>\na\n</think>\n<answer>b</answer>\n", 1, 1, 1.0),
        ("<think>a</think><answer>b</answer> more", 0, 0, 0.0),
        ("<think>a</think></think><answer>b</answer>", 0, 0, 0.0),
        ("\n</think>\n and \n</think>\n", 0, 0, 0.0),
        ("", 0, 0, 0.0),
    ],
)
def test_formats(text: str, format_: float, strict: float, count: float) -> None:
    assert judge("format", text) == format_
    assert judge("think_answer", text) == strict
    assert judge("tag_count", text) == count


def test_cosine_and_its_trap() -> None:
    """Right answers fall from 1 to 0.5, wrong ones rise from -1 to -0.5; open-rs's turns back beyond."""
    right = r"\boxed{12}"
    wrong = r"\boxed{13}"

    def padded(text: str, size: int) -> str:
        return " " * (size - len(text)) + text

    assert judge("cosine", padded(right, 1000)) == pytest.approx(0.5)
    assert judge("cosine", padded(right, 500)) == pytest.approx(0.75)
    assert judge("cosine", padded(wrong, 1000)) == pytest.approx(-0.5)
    assert judge("cosine", padded(wrong, 500)) == pytest.approx(-0.75)
    assert judge("cosine", padded(right, 2000)) == pytest.approx(0.5)
    assert judge("cosine", padded(right, 2000), clamp=False) == pytest.approx(1.0)
    recipe = {"min_value_wrong": 0.0, "max_value_wrong": -0.5}
    assert judge("cosine", padded(wrong, 1000), **recipe) == pytest.approx(-0.5)


def test_length_of_kimi() -> None:
    texts = [r"\boxed{12}", r"\boxed{12}" + " " * 10, r"\boxed{13}" + " " * 20, r"\boxed{13}"]
    group = [sample(text, i) for i, text in enumerate(texts)]
    assert judging.judge(scorers.get("length"), problem(), group) == [0.5, 0.0, -0.5, 0.0]
    assert judging.judge(scorers.get("length"), problem(), [group[0], group[0]]) == [0.0, 0.0]
    with pytest.raises(RecipeError, match="samples: 2"):
        judging.judge(scorers.get("length"), problem(), group[:1])


def test_others() -> None:
    assert judge("repetition", "a b c a b c") == pytest.approx(-0.25)
    assert judge("repetition", "A b") == 0.0
    assert judge("reasoning_steps", "Step 1: x\n- y") == pytest.approx(2 / 3)
    assert judge("reasoning_steps", "1. First, Second, Next, Finally,") == 1.0
    assert judge("tokens", "a b") == 3
    assert judge("characters", "a b") == 3
    assert judge("exact", "<answer> 12 </answer>") == 1
    assert judge("exact", r"12 and \boxed{\frac{1}{2}}", r"so \boxed{\frac{1}{2}}") == 1
    assert judge("exact", "it is 11, no: 12") == 1
    assert judge("exact", "nothing") == 0
    assert {scorers.get(name).better for name in ("tokens", "characters")} == {"min"}


def test_scorers_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from merganser.evaluation.scorers import scorer\n"
        "def plain(completion, problem, factor: float = 1.0):\n"
        "    return factor * (completion == problem['word'])\n"
        "@scorer('declared', better='min', group=True)\n"
        "def declared(samples, problem):\n"
        "    return range(len(samples))\n"
        "def broken(completion, problem):\n"
        "    return completion / 2\n"
    )
    plain = scorers.get("mine.py:plain", {"factor": 2}, tmp_path)
    assert judging.judge(plain, problem(word="x"), [sample("x"), sample("y")]) == [2.0, 0.0]
    own = scorers.get("mine.py:declared", {}, tmp_path)
    assert (own.name, own.better) == ("declared", "min")
    assert judging.judge(own, problem(), [sample("x"), sample("y")]) == [0.0, 1.0]
    assert scorers.get("operator:countOf").name == "countOf"
    with pytest.raises(MerganserError, match=r"scorer broken: failed on p\.jsonl:1 \(TypeError"):
        judging.judge(scorers.get("mine.py:broken", {}, tmp_path), problem(), [sample("x")])
    for reference, parameters, told in [
        ("mine.py:none", {}, "there is no function 'none'"),
        ("no.such.module:f", {}, "cannot be loaded"),
        ("mine.py:plain", {"fcator": 1}, "has no parameter 'fcator'; it has factor"),
        ("mine.py:plain", {"factor": "x"}, "factor: "),
        ("unknown", {}, "there is no scorer 'unknown'"),
    ]:
        with pytest.raises(RecipeError) as error:
            scorers.get(reference, parameters, tmp_path)
        assert_one_line(str(error.value), told)


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys; import merganser.study.evaluate;"
        "print([m for m in ('torch', 'transformers', 'math_verify', 'sympy') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# -- statistics --------------------------------------------------------------------------------------

numbers = st.lists(st.floats(-100, 100), min_size=2, max_size=30)


@given(numbers)
def test_means_and_errors(values: list[float]) -> None:
    assume(set(values) not in ({0.0}, {1.0}))
    found = statistics.summarize(values)
    assert found.mean == pytest.approx(textbook.fmean(values), abs=1e-9)
    assert found.error == pytest.approx(textbook.stdev(values) / math.sqrt(len(values)), abs=1e-9)
    assert found.low <= found.mean + 1e-9
    assert found.mean <= found.high + 1e-9
    assert statistics.summarize(values) == found


@pytest.mark.parametrize("count", [1, 4, 30])
def test_equal_scores_of_zero_or_one_have_the_interval_of_wilson(count: int) -> None:
    z = textbook.NormalDist().inv_cdf(0.975)
    none, every = (statistics.summarize([value] * count) for value in (0.0, 1.0))
    assert (none.mean, none.low, every.mean, every.high) == (0.0, 0.0, 1.0, 1.0)
    assert none.high == pytest.approx(z**2 / (count + z**2))
    assert every.low == pytest.approx(count / (count + z**2))
    assert none.error == every.error == pytest.approx((none.high - none.low) / (2 * z))
    assert statistics.summarize([0.5] * count) == statistics.Score(0.5, 0.0, 0.5, 0.5, count)


def test_scores_have_no_digits_of_rounding_errors() -> None:
    found = statistics.summarize([0.1, 0.2, 0.6])
    assert json.dumps([found.mean, statistics.digits(0.1 + 0.2)]) == "[0.3, 0.3]"
    assert all(len(repr(number)) <= 16 for number in (found.error, found.low, found.high))


def test_the_interval_of_a_share_is_about_two_errors_wide() -> None:
    found = statistics.summarize([1.0] * 60 + [0.0] * 140)
    assert found.high - found.low == pytest.approx(2 * 1.96 * found.error, rel=0.05)
    assert statistics.summarize([3.0]) == statistics.Score(3.0, 0.0, 3.0, 3.0, 1)
    for wrong in ([], [math.nan]):
        with pytest.raises(ValueError, match="finite"):
            statistics.summarize(wrong)


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_pass_at_k_is_the_mean_over_all_choices(correct: list[bool], data: Any) -> None:
    k = data.draw(st.integers(1, len(correct)))
    choices = list(itertools.combinations(correct, k))
    assert statistics.pass_at(k, correct) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_majorities() -> None:
    assert statistics.maj_at(3, ["1", "2", "2"], [True, False, False]) == 0
    assert statistics.maj_at(2, ["1", "2", "2"], [True, False, False]) == 0.5
    assert statistics.maj_at(1, ["1", "2", "2"], [True, False, False]) == 1
    assert statistics.maj_at(3, [None, None, "1"], [False, False, True]) == 1
    assert statistics.maj_at(2, [None, None], [False, False]) == 0


# -- tasks and running -------------------------------------------------------------------------------


def made_tasks(folder: Path, *entries: dict[str, Any]) -> list[tasks.Task]:
    lines = [{"problem": f"{n}+1?", "answer": str(n + 1)} for n in range(3)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "tasks.yml").write_text(
        json.dumps({"tasks": [{"problems": "sums.jsonl", **entry} for entry in entries]})
    )
    return tasks.load(folder / "tasks.yml", tasks.Evaluate)[1]


def test_a_key_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tasks.yml").write_text("tasks: []\ntasks: [{preset: open-rs}]\n")
    with pytest.raises(RecipeError, match=r"tasks\.yml:2: the key 'tasks' is given twice"):
        tasks.load(tmp_path / "tasks.yml", tasks.Evaluate)


def counting(requests: Any, sampling: Sampling) -> Iterator[tuple[int, Completion]]:
    """The right answer in every other sample, in reverse order."""
    for i in reversed(range(len(requests))):
        asked = requests[i].prompt[-1]["content"]
        right = int(asked.split("+")[0][-1]) + 1
        yield i, Completion(f"it is {right if requests[i].sample % 2 else 0}", 4, "stop")


def test_several_samples_and_tasks(tmp_path: Path) -> None:
    exact = {"scorer": "exact", "pass_at": [1, 2], "maj_at": [3]}
    one, two = made_tasks(
        tmp_path,
        {"name": "one", "scorers": [exact], "samples": 4, "temperature": 1.0},
        {"name": "two", "scorers": ["tokens"], "limit": 2, "preset": "open-rs"},
    )
    assert two.sampling == Sampling(0.6, 0.95, 32768)
    prompt = two.prompt(two.problems[0])
    assert isinstance(prompt, list)
    assert [message["role"] for message in prompt] == ["user"]
    line = r"Therefore, the final answer is: $\boxed{ANSWER}$. I hope it is correct"
    assert line in prompt[0]["content"]
    assert prompt[0]["content"].endswith("\n\n0+1?")
    file = tmp_path / "kept.jsonl"
    found = running.evaluate(counting, [one, two], key={"the recipe": "m"}, samples=file)
    assert {name: score.mean for name, score in found.scores.items()} == pytest.approx(
        {
            "one/exact": 0.5,
            "one/exact_pass@1": 0.5,
            "one/exact_pass@2": 5 / 6,
            "one/exact_maj@3": 0.0,
            "two/tokens": 4.0,
        }
    )
    assert list(found.scores) == list(tasks.score_names([one, two]))
    assert found.generated == 14
    assert samples.read(file) == list(found.samples)
    again = running.evaluate(counting, [one, two], key={"the recipe": "m"}, samples=file)
    assert (again.generated, again.scores) == (0, found.scores)
    assert (
        running.evaluate(counting, [one, two], key={"the recipe": "other"}, samples=file).generated
        == 14
    )


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    with (
        pytest.raises(ResourceError, match=r"full: cannot be written \(No space left on device\)"),
        samples.appending(tmp_path / "full") as add,
    ):
        add(sample("a"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        samples.write([sample("a")], tmp_path / "file" / "x.jsonl")


def test_problems_of_several_forms(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    lines = [{"prompt": "a", "solution": 3}, {"messages": talk}, {"prompt": talk[:1], "id": 7}]
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    first, second, third = problems.load(file)
    assert (first.question, first.answer, first.id) == ("a", "3", "0")
    assert second.messages == third.messages == ({"role": "user", "content": "a"},)
    assert third.id == "7"
    assert len(problems.load(file, 2)) == 2
    [task] = made_tasks(tmp_path, {"scorers": ["tokens"], "system": "be brief", "chat": False})
    assert task.prompt(second) == "be brief\n\na"


# -- a server ----------------------------------------------------------------------------------------


def test_a_server_answers() -> None:
    with serving([(503, "busy"), (429, "slow"), echo]) as (url, asked):
        endpoint = Endpoint(url, "m", token="secret", concurrency=1)
        talk = [{"role": "user", "content": "hello"}]
        sampling = Sampling(0.6, 0.95, 7, ("END",), 3)
        found = dict(endpoint([Request(talk, 0), Request("plain", 1)], sampling))
    assert found == {0: Completion("hello", 5, "length"), 1: Completion("plain", 5, "length")}
    assert [each["path"] for each in asked[-2:]] == ["/v1/chat/completions", "/v1/completions"]
    first, second = asked[-2:]
    assert len(asked) == 4
    assert first["token"] == "Bearer secret"
    assert (first["temperature"], first["top_p"], first["max_tokens"]) == (0.6, 0.95, 7)
    assert first["stop"] == ["END"]
    assert first["seed"] != second["seed"]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((404, "no model m"), "says 404: no model m"),
        ((500, "broken"), "says 500: broken"),
        ("not json", "not JSON"),
        ({"choices": []}, "the form of OpenAI's API"),
        (
            {"choices": [{"message": {"content": "a", "reasoning_content": "b"}}]},
            "without a reasoning parser",
        ),
    ],
)
def test_a_server_that_is_no_help(answer: Any, told: str) -> None:
    with serving([answer]) as (url, _), pytest.raises(InputError) as error:
        list(Endpoint(url, "m", retries=1, pause=0)([Request("x")], Sampling()))
    assert_one_line(str(error.value), url, told)


def test_no_server() -> None:
    with pytest.raises(InputError, match="cannot be reached"):
        list(Endpoint("http://127.0.0.1:9/v1", "m", retries=0)([Request("x")], Sampling()))
    with pytest.raises(RecipeError, match="write it like"):
        Endpoint("file:///etc", "m")
