"""What the documentation shows works: commands, recipes, code, and the Makefile that it names."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import merganser
import peers
from checkpoints_on_disk import make_model
from merganser import cli, methods, weight_formats
from merganser.checkpoints.state_dict import MemoryCheckpoint
from merganser.evaluation import samples
from merganser.evaluation.samples import Sample
from merganser.sinks import NullSink, StateDictSink
from merganser.study.evaluate_model import judge_again
from merganser.tensors import BY_NAME, TensorSpec
from pages import blocks

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OUTPUT = (ROOT / "docs" / "output.md").read_text(encoding="utf-8")
ADDING = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
PYTHON = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the README's recipe, and small models where it looks for them."""
    monkeypatch.chdir(tmp_path)
    [recipe] = [block for block in blocks(README, "yaml") if "merge_method" in block]
    (tmp_path / "recipe.yml").write_text(recipe)
    for seed, path in enumerate(re.findall(r"model: ([^\s,}]+)", recipe)):
        make_model(tmp_path / path, seed=seed)
    return tmp_path


def commands(text: str) -> list[str]:
    typed = re.findall(r"^\$ (.*)", "".join(blocks(text, "console")), re.MULTILINE)
    inline = re.findall(r"`(merganser [^`]*recipe\.yml[^`]*)`", text)
    lines = [
        line.split("#")[0].strip() for block in blocks(text, "") for line in block.splitlines()
    ]
    lines += [*inline, *typed]
    return [line for line in lines if line.startswith(("merganser ", "make "))]


def run(command: str) -> None:
    words = shlex.split(command)
    done = subprocess.run(
        [sys.executable, "-m", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100"},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("workplace")
def test_the_commands_of_the_readme_run() -> None:
    found = [command for command in commands(README) if command.startswith("merganser ")]
    assert len(found) >= 3
    for command in found:
        run(command)


def test_the_digest_of_an_input_is_computed_as_described(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    file = model / "model.safetensors"
    tensors = load_file(file) | {"model.odd.weight": torch.arange(40_003).to(torch.bfloat16)}
    save_file(tensors, file, metadata={"format": "pt"})
    recipe = {"merge_method": "passthrough", "models": [{"model": str(model)}]}
    [stated] = merganser.merge(recipe, tmp_path / "out").manifest["inputs"]
    [code] = blocks(OUTPUT, "python")
    command = [sys.executable, "-c", code, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == stated["digest"]


def test_the_targets_that_the_readme_names_are_in_the_makefile() -> None:
    targets = set(re.findall(r"`?make ([\w-]+)`?", README))
    assert {"demo", "test", "bench"} <= targets
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets <= set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


METHODS, NPY, SINK, SCORER, COMMAND = (
    blocks(ADDING, "python")[:3],
    *blocks(ADDING, "python")[3:],
)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("sign_vote", "lambda: 0.9"), ("shortest", None), ("largest_changes", "density: 0.3")],
)
def test_the_methods_of_the_guide_merge(
    workplace: Path, method: str, parameters: str | None
) -> None:
    (workplace / "my_methods.py").write_text("".join(METHODS))
    text = (workplace / "recipe.yml").read_text().replace("linear", method)
    if parameters is not None:
        make_model(workplace / "base", seed=9)
        text = text.replace("normalize: true", parameters) + "base_model: base\n"
    else:
        text = re.sub(r"(\n|, )parameters: \{.*?\}", "", text)
    (workplace / "own.yml").write_text(text)
    run("merganser merge own.yml OUT --methods my_methods.py --strict")


def test_the_commands_of_the_guide_run(workplace: Path) -> None:
    (workplace / "my_methods.py").write_text("".join(METHODS))
    found = [command for command in commands(ADDING) if command.startswith("merganser methods")]
    assert found
    for command in found:
        run(command)


def test_the_format_of_the_guide_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("merganser.checkpoints.npy")
    exec(NPY, module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    npy = weight_formats.WeightFormat("npy", (".npy",))
    monkeypatch.setattr(weight_formats, "FORMATS", (*weight_formats.FORMATS, npy))
    numbers = np.arange(6, dtype=np.float32).reshape(2, 3)
    for name, scale in (("a", 1), ("b", 3)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "layer.weight.npy", scale * numbers)
    models = [{"model": str(tmp_path / name), "parameters": {"weight": 1}} for name in "ab"]
    merganser.merge({"merge_method": "linear", "models": models}, tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(merged["layer.weight"], torch.from_numpy(2 * numbers))


@pytest.mark.usefixtures("workplace")
def test_the_sink_of_the_guide_is_filled() -> None:
    scope: dict[str, Any] = {}
    exec(SINK, scope)
    plan = merganser.plan("recipe.yml")
    assert set(scope["sink"].checksums) == {job.name for job in plan.jobs}


def test_the_scorer_of_the_guide_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_scorers.py").write_text(SCORER)
    [tasks] = blocks(ADDING, "yaml")
    (tmp_path / "tasks.yml").write_text(tasks)
    (tmp_path / "problems.jsonl").write_text('{"id": "n", "problem": "7+5?", "answer": "12"}\n')
    said = [
        Sample("problems", "n", 0, "7+5?", text, 3, "stop") for text in ("so 12 .", "12 is it ?")
    ]
    for sample, worth in zip(said, (1.0, 0.0), strict=True):
        samples.write([sample], tmp_path / "said.jsonl")
        [entry] = judge_again(tmp_path / "said.jsonl", "tasks.yml").entries
        assert [score.mean for score in entry.scores.values()] == [worth]


def test_the_command_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scope: dict[str, Any] = {}
    exec(COMMAND, scope)
    monkeypatch.setitem(cli.main.commands, "count", scope["count"])
    make_model(tmp_path / "a")
    done = CliRunner().invoke(cli.main, ["count", str(tmp_path / "a")])
    assert done.exit_code == 0
    assert done.stdout == f"{merganser.inspect(str(tmp_path / 'a'))['parameters']:,}\n"
    gone = CliRunner().invoke(cli.main, ["count", str(tmp_path / "nowhere")])
    assert gone.exit_code == 3
    assert gone.stderr.startswith("merganser: ")


class Live(torch.nn.Module):
    """A module with the tensors of a checkpoint."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        specs = merganser.open_checkpoint(folder).specs
        self.live = {
            name: torch.empty(spec.shape, dtype=getattr(torch, spec.dtype.name))
            for name, spec in specs.items()
        }

    def state_dict(self, **_options: object) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return self.live


def test_the_python_of_the_api_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        peers.make_model(tmp_path / name, seed=seed, layers=1)
    (tmp_path / "tasks.yml").write_text(
        "tasks: [{problems: p.jsonl, scorers: [exact], max_tokens: 4}]\n"
    )
    (tmp_path / "p.jsonl").write_text('{"problem": "1 + 2 =", "answer": "3"}\n')
    model = Live("a")
    scope: dict[str, Any] = {
        "recipe_with": lambda w: {
            "merge_method": "linear",
            "models": [
                {"model": name, "parameters": {"weight": weight}}
                for name, weight in (("a", w), ("b", 1 - w))
            ],
        },
        "sinks": [NullSink(), NullSink(), NullSink()],
        "module": model,
    }
    for block in blocks(PYTHON, "python"):
        exec(block, scope)
    assert scope["problems"] == []
    assert torch.equal(scope["merged"]["w"], torch.full((4,), 0.25))
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    for name, tensor in model.live.items():
        mean = (a[name].double() + b[name].double()) / 2
        assert torch.equal(tensor, mean.to(torch.bfloat16)), name
    assert scope["results"].entries[0].scores["exact"].problems == 1
    assert "Plan(linear of 2 models" in capsys.readouterr().out


def test_the_python_of_the_page_of_plans_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        make_model(tmp_path / name, seed=seed)
    models = [{"model": name, "parameters": {"weight": 0.5}} for name in "ab"]
    recipe = {"merge_method": "linear", "models": models}
    files, memory = blocks((ROOT / "docs" / "plans.md").read_text(encoding="utf-8"), "python")
    specs = {job.name: job.spec for job in merganser.plan(recipe).jobs}
    scope: dict[str, Any] = {"recipe": recipe, "sinks": [StateDictSink(specs)]}
    exec(files, scope)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in scope["sinks"][0].tensors.items():
        assert torch.equal(tensor, merged[name]), name
    first, second = ({"w": torch.full((4,), float(value))} for value in (1, 3))
    scope |= {"MemoryCheckpoint": MemoryCheckpoint, "first": first, "second": second}
    scope["sinks"] = [StateDictSink({"w": TensorSpec(BY_NAME["float32"], (4,))})]
    exec(memory, scope)
    assert torch.equal(scope["sinks"][0].tensors["w"], torch.full((4,), 2.0))


def test_the_readme_names_every_command() -> None:
    names = cli.main.list_commands(click.Context(cli.main))
    assert len(names) > 15
    assert [name for name in names if f"`{name}`" not in README] == []


def test_the_readme_counts_the_methods() -> None:
    [count] = re.findall(r"^\| methods \| (\d+) \|", README, re.MULTILINE)
    assert int(count) == len(methods.names())


def test_the_readme_shows_what_its_commands_print() -> None:
    command = [sys.executable, str(ROOT / "docs" / "console.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
