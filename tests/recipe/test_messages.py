"""What is easily mistaken is answered by one line that says what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import merganser
from checkpoints_on_disk import make_model
from merganser.cli import main
from merganser.errors import RecipeError
from merganser.evaluation import scorers
from messages import assert_one_line

RECIPE = "merge_method: linear\nmodels: [{model: acc}, {model: accfmt}]\nparameters: {weight: 1}\n"
FILES = {
    "recipe.yml": RECIPE,
    "list.yml": RECIPE.replace("{model: acc}, {model: accfmt}", "acc, accfmt"),
    "mapping.yml": "merge_method: linear\nmodels: {acc: 0.5, accfmt: 0.5}\n",
    "sources.yml": "merge_method: linear\nslices: [{sources: [acc]}]\n",
    "tokens.yml": RECIPE + "tokenizer_source: unoin\n",
    "tokenizer.yml": RECIPE + "tokenizer: {source: bsae}\n",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two models, an adapter, some recipes, and a folder with a merge in it."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("acc", "accfmt")):
        make_model(tmp_path / name, seed=seed)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    make_adapter(tmp_path / "lora", {"base_model_name_or_path": "org/base"})
    return tmp_path


def make_adapter(folder: Path, config: Mapping[str, object]) -> None:
    folder.mkdir()
    whole = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(whole))
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {
        f"{name}.lora_A.weight": torch.ones(4, 16),
        f"{name}.lora_B.weight": torch.ones(16, 4),
    }
    save_file(factors, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("merge list.yml OUT", "list.yml:2: models[0]: write `- model: acc` in place of `- acc`"),
        ("merge sources.yml OUT", "write `- model: acc` in place of `- acc`"),
        ("merge mapping.yml OUT", "models: must be a list, with a line `- model: NAME` for each"),
        ("merge acc OUT", "acc: is a folder, and a recipe is a YAML file"),
        ("plan acc", "acc: is a folder, and a recipe is a YAML file"),
        ("merge merges/one OUT", "did you mean merges/one/mergekit_config.yml?"),
        ("eval acc recipe.yml", "recipe.yml:1: is a recipe and holds no tasks"),
        ("eval recipe.yml acc", "acc: is a folder, but tasks are a YAML file; give the model first"),
        ("card acc", "acc: has no merge_manifest.json: Merganser did not write this folder; merge and convert write"),
        ("card merges", "it contains merged folders; name one of them, such as merges/one"),
        ("verify recipe.yml", "recipe.yml: is a file, not a merged folder"),
        ("plan tokens.yml", "tokens.yml:4: tokenizer_source: there is no model 'unoin'; did you mean 'union'?"),
        ("plan tokenizer.yml", "tokenizer: there is no model 'bsae'; did you mean 'base'?"),
        ("convert lora OUT", "lora: is a LoRA adapter of org/base, not a model; write org/base+lora"),
        ("inspect recipe.yml", "recipe.yml: is a YAML file, not a model; plan and merge take recipes"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_by_what_to_do(place: Path, command: str, message: str) -> None:
    if "merges" in command:
        merganser.merge("recipe.yml", "merges/one")
    done = CliRunner().invoke(main, command.split())
    assert done.exit_code in (2, 3), done.exception
    assert_one_line(done.stderr, message)
    assert not (place / "OUT").exists()


def test_an_adapter_alone_shows_its_facts(place: Path) -> None:
    sheet = merganser.inspect("lora")
    shown = {
        name: sheet[name] for name in ("format", "base", "merge_as", "rank", "alpha", "targets")
    }
    assert shown == {
        "format": "LoRA adapter",
        "base": "org/base",
        "merge_as": "org/base+lora",
        "rank": 4,
        "alpha": 8,
        "targets": ["q_proj"],
    }
    assert (sheet["parameters"], sheet["tensors"]) == (128, 2)
    assert "org/base+lora" in CliRunner().invoke(main, ["inspect", "lora"]).stdout
    assert "128 parameters" in repr(sheet)
    assert merganser.inspect("acc+lora")["adapter"]["rank"] == 4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "is a LoRA adapter, not a model; write BASE+other"),
        ({"peft_type": "IA3"}, "is an adapter of type IA3"),
    ],
)
def test_an_adapter_without_a_base_or_of_another_kind(
    place: Path, config: dict[str, object], message: str
) -> None:
    make_adapter(place / "other", config)
    with pytest.raises(merganser.MerganserError) as caught:
        merganser.convert("other", "OUT")
    assert_one_line(str(caught.value), message)


# -- scorers in the current folder -------------------------------------------------------------------

SCORER = "def long(completion, problem):\n    return len(completion)\n"


def test_a_scorer_of_the_current_folder_is_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The installed command does not look for modules in the current folder by itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in ("", str(tmp_path))])
    (tmp_path / "mine_here.py").write_text(SCORER)
    (tmp_path / "rooms").mkdir()
    (tmp_path / "rooms" / "inner.py").write_text(SCORER)
    for reference in ("mine_here:long", "rooms.inner:long", "mine_here.py:long"):
        assert scorers.get(reference).name == "long"
    with pytest.raises(RecipeError) as caught:
        scorers.get("nowhere_here:long")
    assert_one_line(
        str(caught.value), "no such file nowhere_here.py in the current folder", "no installed"
    )
    with pytest.raises(
        RecipeError, match=r"no such file gone\.py in .*recipes or the current folder$"
    ):
        scorers.get("gone.py:long", beside=tmp_path / "recipes")
    assert scorers.get("json:dumps").name == "dumps"


# -- output that is not UTF-8 ------------------------------------------------------------------------


def test_what_stdout_cannot_encode_is_replaced(place: Path) -> None:
    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "merganser", *arguments]
        environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
        done = subprocess.run(command, env=environment, capture_output=True, cwd=place)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode("ascii")

    shown = run("merge", "recipe.yml", "OUT")
    assert "acc" in shown
    assert "?" in shown  # a dash in the table
    (place / "acc").rename(place / "ac\u00e7")
    (place / "recipe.yml").write_text(RECIPE.replace("model: acc}", "model: ac\u00e7}"), "utf-8")
    planned = json.loads(run("plan", "recipe.yml", "--json"))
    assert planned["models"][0]["reference"] == "ac\u00e7"
