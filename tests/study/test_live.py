"""A live model gives what the written folder gives, whatever it was before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import merganser
import peers
from merganser.errors import InputError
from merganser.evaluation import tasks as languages
from merganser.evaluation.generation import Request, Sampling
from merganser.evaluation.tasks import Evaluate, Task
from merganser.planning import Plan, plan
from merganser.recipe import Document
from merganser.study.live_model import LiveModel, evaluate_plan

FAMILIES = ["qwen2", "llama", "gpt2"]
"""With a head of its own, a tied one, and weights that are transposed."""


def make_tasks(folder: Path, **entry: Any) -> list[Task]:
    lines = [
        {"problem": f"what is {a} + {b} =", "answer": f"{a + b}"}
        for a in range(3)
        for b in range(2)
    ]
    (folder / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {"tasks": [{"problems": "sums.jsonl", "scorers": ["exact", "tokens"], **entry}]}
    document = Document(data)
    block = languages.read_block(document, (), Evaluate)
    return languages.make_tasks(block, document, (), folder)


def linear(folder: Path, weight: float, dtype: str = "bfloat16") -> dict[str, Any]:
    models = [
        {"model": str(folder / "a"), "parameters": {"weight": weight}},
        {"model": str(folder / "b"), "parameters": {"weight": 1 - weight}},
    ]
    return {"merge_method": "linear", "models": models, "dtype": dtype}


def alone(folder: Path) -> Plan:
    return plan({"merge_method": "passthrough", "models": [{"model": str(folder)}]})


@pytest.fixture(params=FAMILIES)
def models(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    for seed, name in enumerate("ab"):
        peers.make_model(tmp_path / name, request.param, seed=seed)
    return tmp_path


def test_scores_in_memory_are_those_of_the_written_folder(models: Path) -> None:
    tasks = make_tasks(models, samples=2, temperature=1.0, top_p=0.9, max_tokens=8)
    live = LiveModel()
    for weight in (0.25, 0.75):
        found = evaluate_plan(plan(linear(models, weight)), tasks, live=live)
        merganser.merge(linear(models, weight), models / f"m{weight}")
        assert evaluate_plan(alone(models / f"m{weight}"), tasks) == found
    assert found["tokens"].problems == 6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_parameters_are_those_of_the_written_folder(models: Path, dtype: Any) -> None:
    """Also after it was another merge, in place; in the dtype of the merge the engine writes them."""
    live = LiveModel(dtype=dtype)
    live.become(plan(linear(models, 0.25)))
    module = live.module
    outcome = live.become(plan(linear(models, 0.75)))
    assert live.module is module
    assert outcome.report is not None
    merganser.merge(linear(models, 0.75), models / "m")
    assert_holds(live, models / "m", dtype)


def assert_holds(live: LiveModel, folder: Path, dtype: str = "float32") -> None:
    """The live model's parameters are those of a folder."""
    written = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    found = live.module.state_dict()
    for name, tensor in written.state_dict().items():
        assert torch.equal(tensor, found[name]), name


def test_experts_of_one_base_take_turns_in_one_model(tmp_path: Path) -> None:
    """Their files besides weights are equal; a tokenizer of its own is loaded anew."""
    for seed, name in enumerate("ab"):
        peers.make_model(tmp_path / name, seed=seed)
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    (tmp_path / "b" / "config.json").write_text(json.dumps(config | {"_name_or_path": "mine"}))
    live = LiveModel()
    live.become(alone(tmp_path / "a"))
    module = live.module
    live.become(alone(tmp_path / "b"))
    assert live.module is module
    assert_holds(live, tmp_path / "b")
    settings = tmp_path / "a" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"mine": True}))
    live.become(alone(tmp_path / "a"))
    assert live.module is not module
    assert_holds(live, tmp_path / "a")


def test_another_shape_is_loaded_anew(tmp_path: Path) -> None:
    peers.make_model(tmp_path / "a")
    peers.make_model(tmp_path / "b", layers=2)
    live = LiveModel()
    live.become(alone(tmp_path / "a"))
    live.become(alone(tmp_path / "b"))
    assert live.module.config.num_hidden_layers == 2


def test_greedy_completions_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    peers.make_model(tmp_path / "a")
    requests = [Request("what is " + "1 + " * n + "1 =") for n in range(7)]
    found = []
    for size in (1, 3, None):
        live = LiveModel(batch_size=size)
        live.become(alone(tmp_path / "a"))
        for sampling in (Sampling(max_tokens=6), Sampling(1.0, 0.9, max_tokens=6, seed=3)):
            found.append(dict(live.backend(requests, sampling)))
    assert found[0::2] == [found[0]] * 3
    assert found[1::2] == [found[1]] * 3
    assert found[0] != found[1]


def test_a_model_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    peers.make_model(tmp_path / "a")
    from safetensors.torch import load_file, save_file

    file = tmp_path / "a" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"model\.norm\.weight"):
        LiveModel().become(alone(tmp_path / "a"))
