"""Problems by name and by address, from a stand-in of the Hub: cached, offline afterwards, keyed by revision."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from hubs import StandIn, stand_in, use
from merganser.errors import InputError, MerganserError, RecipeError
from merganser.evaluation import hub_problems, presets, running, tasks
from merganser.evaluation.generation import Completion, Sampling
from merganser.evaluation.tasks import Task
from merganser.hub.datasets import CONVERTED
from messages import assert_one_line
from pages import DOCS, page

DOCS_PROBLEMS = (DOCS / "problems.md").read_text()

Rows = Sequence[Mapping[str, Any]]

GSM8K = [
    {"question": "How many?", "answer": "2 + 2 = <<2+2=4>>4\nThey are 4.\n#### 4"},
    {"question": "And how much?", "answer": "It is a lot.\n#### 1,080"},
]


def table(rows: Rows) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), out)
    return out.getvalue()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    with stand_in() as server:
        use(server, monkeypatch, tmp_path / "cache")
        yield server


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def load(folder: Path, *entries: Mapping[str, Any]) -> list[Task]:
    (folder / "tasks.yml").write_text(json.dumps({"tasks": entries}))
    return tasks.load(folder / "tasks.yml", tasks.Evaluate)[1]


def publish(hub: StandIn, name: str, rows: Rows) -> str:
    """A preset's data set, as the Hub converts it."""
    reference = hub_problems.parse(presets.PROBLEM_SETS[name].source)
    path = f"{reference.config}/{reference.split}/0000.parquet"
    return hub.put(f"datasets/{reference.repository}", {path: table(rows)}, CONVERTED)


def test_a_preset_is_problems_template_and_scorer_and_works_offline(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = publish(hub, "gsm8k", GSM8K)
    [task] = load(tmp_path, {"preset": "gsm8k"})
    assert (task.name, task.preset, task.sampling.max_tokens) == ("gsm8k", "gsm8k", 4096)
    assert task.source == f"hub://openai/gsm8k/main@{commit}:test#question,answer"
    assert [p.answer for p in task.problems] == ["4", "1,080"]
    assert [p.question for p in task.problems] == ["How many?", "And how much?"]
    assert task.problems[1].record == GSM8K[1]
    assert task.problems[1].address == "hub://openai/gsm8k:test row 1"
    assert [m.name for m in task.metrics] == ["accuracy"]
    [message] = task.prompt(task.problems[0])
    assert message["content"].startswith("How many?\n\n")  # type: ignore[index]
    assert "\\boxed{}" in message["content"]  # type: ignore[index]
    asked = len(hub.requests)
    go_offline(monkeypatch)
    assert load(tmp_path, {"preset": "gsm8k"}) == [task]
    assert len(hub.requests) == asked
    assert tasks.describe([task])[0]["source"] == task.source


def test_the_hub_out_of_reach_is_as_good_as_offline(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, "gsm8k", GSM8K)
    [task] = load(tmp_path, {"problems": "gsm8k", "scorers": ["exact"]})
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert load(tmp_path, {"problems": "gsm8k", "scorers": ["exact"]}) == [task]


def test_the_revision_is_part_of_the_key(hub: StandIn, tmp_path: Path) -> None:
    def four(requests: Any, _sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        return ((i, Completion("\\boxed{4}", 3, "stop")) for i in range(len(requests)))

    publish(hub, "gsm8k", GSM8K)
    [task] = load(tmp_path, {"preset": "gsm8k"})
    file = tmp_path / "samples.jsonl"
    first = running.evaluate(four, [task], key={"the model": "m"}, samples=file)
    assert first.scores["accuracy"].mean == 0.5
    publish(hub, "gsm8k", [{**GSM8K[0], "note": "checked"}, GSM8K[1]])
    [moved] = load(tmp_path, {"preset": "gsm8k"})
    assert moved.source != task.source
    assert running.to_redo([moved], key={"the model": "m"}, samples=file) == {
        "the revision of the problems changed": 2
    }
    assert running.to_redo([task], key={"the model": "m"}, samples=file) == {}


def test_open_rs_is_the_study(hub: StandIn, tmp_path: Path) -> None:
    for name in presets.PRESETS["open-rs"].problems:
        reference = hub_problems.parse(presets.PROBLEM_SETS[name].source)
        assert reference.question
        assert reference.answer
        publish(hub, name, [{reference.question: f"{name}?", reference.answer: "$5$"}])
    found = load(tmp_path, {"preset": "open-rs", "limit": 3})
    names = ["aime-2024", "math-500", "amc-2023", "minerva", "olympiadbench"]
    assert [task.name for task in found] == names
    assert {task.sampling for task in found} == {Sampling(0.6, 0.95, 32768)}
    assert {(task.samples, task.system, task.chat) for task in found} == {(1, None, True)}
    assert [task.metrics[0].scorer.name for task in found] == ["accuracy"] * 5
    [prompt] = found[0].prompt(found[0].problems[0])
    assert prompt["content"].endswith("\n\naime-2024?")  # type: ignore[index]
    [own] = load(tmp_path, {"preset": "open-rs", "problems": "minerva", "name": "mine"})
    assert (own.name, own.sampling.top_p) == ("mine", 0.95)
    with pytest.raises(RecipeError, match=r"preset open-rs is 5 tasks.*leave name out"):
        load(tmp_path, {"preset": "open-rs", "name": "mine"})


def test_every_preset_names_its_parts() -> None:
    for known in presets.PROBLEM_SETS.values():
        reference = hub_problems.parse(known.source)
        assert str(reference) == known.source
        assert None not in (reference.config, reference.split, reference.question, reference.answer)


def test_an_address_names_config_revision_split_and_columns(hub: StandIn, tmp_path: Path) -> None:
    rows = [{"Problem": "1+1?", "Answer": 2, "year": 2024, "id": "a"}]
    old = hub.put("datasets/org/sums", {"data/train-00000-of-00001.parquet": table(rows)})
    parts = {
        f"easy/test-0000{n}-of-00002.parquet": table([{"ask": f"{n}?", "gold": [str(n)]}])
        for n in range(2)
    }
    hub.put("datasets/org/sums", parts)
    reference = hub_problems.parse(f"hub://org/sums@{old}")
    [problem], settled = hub_problems.load(reference)
    assert str(settled) == f"hub://org/sums/default@{old}:train#Problem,Answer"
    assert (problem.question, problem.answer, problem.id) == ("1+1?", "2", "0")
    [first, second], settled = hub_problems.load(hub_problems.parse("hub://org/sums/easy#ask,gold"))
    assert (settled.config, settled.split) == ("easy", "test")
    assert (first.answer, second.question, second.answer) == ("0", "1?", "1")
    assert len(hub_problems.load(hub_problems.parse("hub://org/sums/easy#ask,gold"), 1)[0]) == 1
    [task] = load(tmp_path, {"problems": "hub://org/sums/easy:test#ask,gold", "scorers": ["exact"]})
    assert task.name == "sums"


def test_answers_may_be_missing_and_bytes_are_left_out(hub: StandIn) -> None:
    rows = [{"prompt": [{"role": "user", "content": "draw"}], "picture": b"\x89PNG", "n": None}]
    hub.put("datasets/org/art", {"train.parquet": table(rows)})
    [problem], settled = hub_problems.load(hub_problems.parse("hub://org/art"))
    assert (problem.answer, settled.answer) == (None, None)
    assert problem.messages == ({"role": "user", "content": "draw"},)
    assert list(problem.record) == ["prompt", "n"]


@pytest.mark.parametrize(
    ("problems", "told"),
    [
        ("hub://org/sums:tset#answer", "no split 'tset'; there are test, train; did you mean"),
        ("hub://org/sums#answer", "has several splits; choose one of test, train"),
        ("hub://org/sums/hard:test", "no config 'hard'; there are default"),
        ("hub://org/sums:test#anwser", "no column 'anwser'; there are what, answer; did you mean"),
        ("hub://org/sums:test#answer", "which column is the question? There are what, answer"),
        ("hub://org/sums@v9:test", "has no revision 'v9'"),
        ("hub://org/none:test", "the Hub has no such data set for this account"),
        ("hub://org/text:test", "has no parquet files, and the Hub has not converted it"),
        ("hub://org/bad:test", "bad.parquet cannot be read as parquet"),
        ("hub://sums", "are written hub://ORG/NAME[/CONFIG]"),
        ("gsm8", "there is no file"),
        ("s3://bucket/sums.jsonl", "object stores are not read; mount the bucket"),
        ("gsm8", "did you mean 'gsm8k'?"),
    ],
)
def test_what_is_missing_is_one_line(
    hub: StandIn, tmp_path: Path, problems: str, told: str
) -> None:
    rows = table([{"what": "1+1?", "answer": "2"}])
    files = {f"default/{split}/0000.parquet": rows for split in ("test", "train")}
    hub.put("datasets/org/sums", files, CONVERTED)
    hub.put("datasets/org/text", {"README.md": b"nothing"})
    hub.put("datasets/org/bad", {"bad.parquet": b"PAR1 not really"})
    told_of = problems.replace("org/bad:test", "org/bad:bad")
    with pytest.raises(MerganserError) as refused:
        load(tmp_path, {"problems": told_of, "scorers": ["exact"]})
    assert_one_line(str(refused.value), f"{tmp_path / 'tasks.yml'}:1: ", told)


def test_what_is_not_cached_is_one_line(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = {"preset": "gsm8k"}
    publish(hub, "gsm8k", GSM8K)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError) as refused:
        load(tmp_path, task)
    assert_one_line(str(refused.value), "hub://openai/gsm8k", "the Hub cannot be reached")
    go_offline(monkeypatch)
    with pytest.raises(InputError) as refused:
        load(tmp_path, task)
    assert_one_line(str(refused.value), "not in the Hub's cache (HF_HUB_OFFLINE is set)")


def test_a_part_in_the_cache_is_not_taken_for_all(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = table([{"question": "?", "answer": "1"}])
    hub.put("datasets/org/two", {f"default/test/000{n}.parquet": rows for n in (0, 1)}, CONVERTED)
    reference = hub_problems.parse("hub://org/two")
    assert len(hub_problems.load(reference)[0]) == 2
    go_offline(monkeypatch)
    [part] = (tmp_path / "cache").rglob("snapshots/*/default/test/0001.parquet")
    part.unlink()
    with pytest.raises(InputError, match="only a part of split test"):
        hub_problems.load(reference)


def test_without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(MerganserError, match=r"this needs pyarrow.*merganser\[eval\]"):
        hub_problems.load(hub_problems.parse("hub://org/sums"))


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ({"preset": "gsm-8k"}, "preset: 'gsm-8k' is none; did you mean 'gsm8k'?"),
        ({"preset": "greedy"}, "problems is missing: a file, hub://org/name, or one of math-500"),
        ({"problems": "sums.jsonl"}, "scorers: give one or more, such as accuracy"),
    ],
)
def test_unfinished_tasks(tmp_path: Path, task: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load(tmp_path, task)
    assert_one_line(str(refused.value), told)


def test_the_tasks_of_the_page_on_problems(hub: StandIn, tmp_path: Path) -> None:
    publish(hub, "math-500", [{"problem": "?", "answer": "1"}])
    publish(hub, "aime-2025", [{"problem": "?", "answer": "1"}])
    hub.put("datasets/openai/gsm8k", {"main/train/0000.parquet": table(GSM8K)}, CONVERTED)
    (tmp_path / "tasks.yml").write_text(page("problems.md", "yaml")[0])
    _, found, _ = tasks.load(tmp_path / "tasks.yml", tasks.Evaluate)
    assert [(task.name, task.samples) for task in found] == [
        ("math-500", 1),
        ("aime-2025", 4),
        ("gsm8k", 1),
    ]
    listed = re.findall(r"^\| `([\w-]+)` \| .* \| ([\d,]+) \| (\S+),", DOCS_PROBLEMS, re.M)
    assert {
        name: (int(size.replace(",", "")), repository) for name, size, repository in listed
    } == {
        name: (known.size, hub_problems.parse(known.source).repository)
        for name, known in presets.PROBLEM_SETS.items()
    }
