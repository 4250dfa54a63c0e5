"""The demonstration: its world, its rewards, and that what it trains is what it says, twice the same."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

import merganser
from merganser.recipe.sweep_file import load_points
from merganser.results import front, scores
from merganser.results.simplex import triangles
from merganser.sinks import StateDictSink

DEMO = Path(__file__).parents[2] / "examples" / "demo"

TRAIN = """
import sys
from dataclasses import replace
from pathlib import Path

import torch

import train_experts as demo

out = Path(sys.argv[1])
demo.train_base(out, demo.Pretraining(steps=3, batch=4), 0)
model, tokenizer = demo.load_base(out)
expert = replace(demo.EXPERTS[1], steps=2, problems=2)
demo.reinforce(model, tokenizer, expert, 0)
demo.save_step(model, tokenizer, out / expert.run, expert.steps)
torch.save(model.state_dict(), out / "whole.pt")
for expert in (*demo.EXPERTS, demo.MIXED):
    print(f"saves {expert.run}/global_step_{expert.steps}/actor")
"""


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(DEMO)
    import sums

    return sums


@pytest.fixture
def rewards(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(DEMO)
    import rewards

    return rewards


def test_working_is_true_and_mistakes_are_as_often_as_said(sums: ModuleType) -> None:
    rng = random.Random(0)
    right = 0
    for _ in range(2000):
        problem = sums.draw(rng)
        text = sums.human_reply(problem, rng)
        for terms, total in re.findall(r"([\d+]+)=(\d+)", text):
            assert sum(map(int, terms.split("+"))) == int(total)
        right += rf"\boxed{{{problem.answer}}}" in text
    assert right / 2000 == pytest.approx(1 - sums.MISTAKES, abs=0.04)


def test_held_out_problems_are_not_trained_on(sums: ModuleType, tmp_path: Path) -> None:
    sums.write_problems(tmp_path / "a.jsonl", 50)
    sums.write_problems(tmp_path / "b.jsonl", 50)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len({line["problem"] for line in lines}) == 50
    held = set()
    for line in lines:
        a, b = map(int, re.findall(r"\d+", line["problem"]))
        assert a + b == line["answer"]
        held.add(frozenset((a, b)))
    rng = random.Random(1)
    trained = [sums.draw(rng) for _ in range(20_000)]
    assert not held & {frozenset((problem.a, problem.b)) for problem in trained}


def test_rewards(rewards: ModuleType) -> None:
    def reply(text: str, tokens: int) -> object:
        return rewards.Reply(text, tokens)

    short = reply(r"\boxed{42}", 5)
    tagged = reply(r"<think>9+3=12</think><answer>\boxed{42}</answer>", 15)
    wrong = reply(r"<think></think><answer>\boxed{43}</answer>", 10)
    empty = reply(r"\boxed{}", 4)
    replies = [short, tagged, wrong, empty]
    assert rewards.acc(42, replies) == [1, 1, 0, 0]
    assert rewards.accfmt(42, replies) == [1, 2, 1, 0]
    span = 11
    assert rewards.length(42, replies) == pytest.approx(
        [1.5 - 1 / span, 1.5 - 11 / span, 0.5 - 6 / span, 0.0]
    )
    assert rewards.length(42, [short, short]) == [1.5, 1.5]
    assert rewards.mixed(42, replies) == pytest.approx(
        [1.25 - 0.5 / span, 1.25 - 5.5 / span, 0.25 - 3 / span, 0.0]
    )
    assert not reply(r"<think></think><answer>\boxed{42}", 9).is_strict()


def test_training_is_saved_as_verl_does_and_is_twice_the_same(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        command = [sys.executable, "-c", TRAIN, str(tmp_path / name)]
        done = subprocess.run(command, cwd=DEMO, check=True, capture_output=True, text=True)
    saved = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("saves ")}
    points = [point for file in DEMO.glob("*.yml") for point in load_points(file)]
    assert len(points) == 18 + 21
    merged = {m["model"] for point in points for m in point.recipe.data["models"]}
    blocks = [yaml.safe_load(file.read_text())["evaluate"] for file in DEMO.glob("*.yml")]
    compared = {each["model"] for block in blocks for each in block.get("references", [])}
    assert merged | compared == saved
    assert not merged & compared

    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()]
    for file in files:
        if file.suffix == ".pt":  # PyTorch pickles Python's hashes with shards, which are random
            continue
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    run = next((tmp_path / "a").glob("accfmt_*"))
    actor = run / "global_step_2" / "actor"
    assert sorted(p.name for p in actor.iterdir()) == [
        "fsdp_config.json",
        "huggingface",
        "model_world_size_2_rank_0.pt",
        "model_world_size_2_rank_1.pt",
    ]
    assert not list((actor / "huggingface").glob("*.safetensors"))
    wholes = [torch.load(tmp_path / n / "whole.pt", weights_only=True) for n in ("a", "b")]
    recipe = {"merge_method": "passthrough", "models": [{"model": str(run)}], "dtype": "float32"}
    plan = merganser.plan(recipe)
    sink = StateDictSink({job.name: job.spec for job in plan.jobs})
    merganser.run([plan], [sink], report=False)
    for whole in wholes:
        assert sink.tensors.keys() == whole.keys()
        assert all(torch.equal(sink.tensors[name], whole[name]) for name in whole)


@pytest.mark.slow
def test_the_experts_trade_off(tmp_path: Path) -> None:
    """The whole demo: each expert is better than the other at its own score, merges lie between."""
    subprocess.run([sys.executable, DEMO / "demo.py", tmp_path], check=True)
    for study, first, second, score in (
        ("acc_accfmt", "acc_", "accfmt_", "think_answer"),
        ("acc_len", "acc_", "len_", "tokens"),
    ):
        found = scores.read(tmp_path / study)
        experts = {
            run: entry
            for entry in found.entries
            if entry.role == "expert" and entry.model is not None
            for run in (first, second)
            if entry.model.startswith(run)
        }
        for better, worse, name in ((first, second, "accuracy"), (second, first, score)):
            one, other = experts[better].scores[name], experts[worse].scores[name]
            gain = (one.mean - other.mean) * (1 if found.directions[name] == "max" else -1)
            assert gain > 4 * (one.error**2 + other.error**2) ** 0.5, (study, name)
        planes = {name: found.directions[name] for name in ("accuracy", score)}
        assert sum(e.role == "point" for e in front.non_dominated(found.entries, planes)) >= 3
        assert (tmp_path / study / "report.html").is_file()
        [chosen] = found.chosen
        assert (tmp_path / study / chosen / "README.md").is_file()
    found = scores.read(tmp_path / "simplex")
    [triangle] = triangles(found)
    assert triangle.models == ("acc", "fmt", "len")
    assert len(triangle.points) == 21
    corners = {
        weights.index(1.0): entry.scores for weights, entry in triangle.points if 1.0 in weights
    }
    assert corners[0]["accuracy"].mean > corners[2]["accuracy"].mean + 0.1
    assert corners[1]["think_answer"].mean > corners[0]["think_answer"].mean + 0.3
    assert corners[2]["tokens"].mean < corners[0]["tokens"].mean - 4
    assert (tmp_path / "simplex" / "figures" / "ternary.png").is_file()
