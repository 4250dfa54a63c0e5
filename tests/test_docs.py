"""What the documentation shows works: commands, recipes, code, and the Makefile that it names."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import merganser
from conftest import make_model
from merganser.sinks import NullSink

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
OUTPUT = (ROOT / "docs" / "output.md").read_text(encoding="utf-8")
ADDING = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The contents of a page's fenced blocks of one language."""
    parts = re.split(r"^```(\w*)\n", text, flags=re.MULTILINE)[1:]  # fence, content, fence, text …
    fences, contents = parts[0::2], parts[1::2]
    opening = range(0, len(fences), 2)
    return [contents[i] for i in opening if fences[i] == language]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the README's recipe, and small models where it looks for them."""
    monkeypatch.chdir(tmp_path)
    [recipe] = [block for block in blocks(README, "yaml") if "merge_method" in block]
    (tmp_path / "recipe.yml").write_text(recipe)
    for seed, path in enumerate(re.findall(r"model: (\S+)", recipe)):
        make_model(tmp_path / path, seed=seed)
    return tmp_path


def commands(text: str) -> list[str]:
    lines = [
        line.split("#")[0].strip() for block in blocks(text, "") for line in block.splitlines()
    ]
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


def test_the_python_of_the_readme_runs(workplace: Path) -> None:
    [code] = blocks(README, "python")
    folders = re.findall(r"model: (\S+)", (workplace / "recipe.yml").read_text())
    states = [{"t": torch.ones(3)}, {"t": torch.zeros(3)}]
    reader = merganser.open_checkpoint(folders[0])

    class Live(torch.nn.Module):
        def state_dict(self, **_options: object) -> dict[str, torch.Tensor]:  # type: ignore[override]
            return live

    live = {
        n: torch.empty(s.shape, dtype=getattr(torch, s.dtype.name)) for n, s in reader.specs.items()
    }
    scope = {
        "recipe": lambda w: {
            "merge_method": "linear",
            "models": [{"model": f, "parameters": {"weight": w}} for f in folders],
        },
        "sinks": [NullSink(), NullSink(), NullSink()],
        "model": Live(),
        "a": states[0],
        "b": states[1],
    }
    exec(code, scope)
    assert (workplace / "OUT" / "model.safetensors").is_file()


def test_the_methods_of_the_guide_merge(workplace: Path) -> None:
    voting, combining = blocks(ADDING, "python")
    (workplace / "my_methods.py").write_text(voting + combining)
    for method, base in (("sign_vote", True), ("shortest", False)):
        text = (workplace / "recipe.yml").read_text().replace("linear", method)
        models = re.findall(r"model: (\S+)", text)
        if base:
            text = text.replace("normalize: true", "lambda: 0.9") + f"base_model: {models[0]}\n"
        else:
            text = re.sub(r"\n *parameters:.*", "", text)
        (workplace / f"{method}.yml").write_text(text)
        run(f"merganser merge {method}.yml {method} --methods my_methods.py --strict")
    for command in commands(ADDING):
        if command.startswith("merganser methods"):
            run(command)
