"""Checkpoints of one architecture with and without the layers that predict further tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import merganser
from checkpoints_on_disk import change_config, make_model
from merganser.errors import InputError
from merganser.planning.heads import token_embedding
from messages import assert_one_line
from peers import different_bits, load

LAYERS = 2


def further(prefix: str, seed: int) -> dict[str, torch.Tensor]:
    """A layer for predicting further tokens, with an embedding and a head, as GLM-4.5 has it."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "eh_proj.weight": (16, 32),
        "embed_tokens.weight": (32, 16),
        "enorm.weight": (16,),
        "self_attn.q_proj.weight": (16, 16),
        "shared_head.head.weight": (32, 16),
    }
    return {
        prefix + name: torch.randn(shape, generator=generator).bfloat16()
        for name, shape in shapes.items()
    }


def recipe(method: str, base: Path, *models: Path) -> dict[str, Any]:
    listed = [{"model": str(model), "parameters": {"weight": 0.5}} for model in models]
    return {"merge_method": method, "base_model": str(base), "models": listed}


@pytest.mark.parametrize(
    ("prefix", "stated"),
    [(f"model.layers.{LAYERS}.", True), (f"model.layers.{LAYERS}.", False), ("mtp.", False)],
)
def test_the_base_gives_what_the_models_lack(tmp_path: Path, prefix: str, stated: bool) -> None:
    """Whether the config counts those layers or not."""
    extra = further(prefix, 1)
    base = make_model(tmp_path / "base", extra=extra)
    if stated:
        change_config(base, num_nextn_predict_layers=1)
    a, b = (make_model(tmp_path / name, seed=seed) for seed, name in enumerate("ab", 1))
    result = merganser.merge(recipe("ties", base, a, b), tmp_path / "out")
    out = load(tmp_path / "out")
    assert different_bits({name: out[name] for name in extra}, extra) == {}
    assert_one_line(result.warnings[0], f"{a}, {b} lack 5 tensors", f"copied unchanged from {base}")
    [source] = merganser.plan(recipe("linear", a, a)).sources
    assert token_embedding(source) == "model.embed_tokens.weight"


@pytest.mark.parametrize("prefix", [f"model.layers.{LAYERS}.", "mtp."])
def test_without_a_base_the_recipe_has_to_say(tmp_path: Path, prefix: str) -> None:
    a = make_model(tmp_path / "a", extra=further(prefix, 1))
    b = make_model(tmp_path / "b", seed=1)
    listed = [{"model": str(m), "parameters": {"weight": 0.5}} for m in (a, b)]
    linear = {"merge_method": "linear", "models": listed}
    with pytest.raises(InputError) as error:
        merganser.plan(linear)
    assert_one_line(
        str(error.value), str(b), "embed_tokens", "tensor_names='union'", "intersection"
    )
    union = merganser.plan(linear, tensor_names="union")
    assert set(further(prefix, 1)) <= {job.name for job in union.jobs}
    intersection = merganser.plan(linear, tensor_names="intersection")
    assert set(further(prefix, 1)).isdisjoint(job.name for job in intersection.jobs)


def test_a_base_that_lacks_them_cannot_be_compared_with(tmp_path: Path) -> None:
    extra = further(f"model.layers.{LAYERS}.", 1)
    base = make_model(tmp_path / "base")
    a = make_model(tmp_path / "a", seed=1, extra=extra)
    with pytest.raises(InputError) as error:
        merganser.plan(recipe("ties", base, a))
    assert_one_line(str(error.value), str(base), "has no tensor", "tensor_names='intersection'")
    merganser.plan(recipe("ties", base, a), tensor_names="intersection")


def test_the_embedding_of_such_a_layer_is_no_head(tmp_path: Path) -> None:
    """A tied head is the model's embedding, wherever the layer's own is stored."""
    extra = {f"model.layers.{LAYERS}.embed_tokens.weight": torch.zeros(32, 16).bfloat16()}
    a = make_model(tmp_path / "a", tied=True, extra=extra)
    tensors = load(a)
    first = {name: tensors[name] for name in sorted(tensors, key=lambda n: n not in extra)}
    save_file(first, a / "model.safetensors", {"format": "pt"})
    change_config(a, num_nextn_predict_layers=1)
    b = make_model(tmp_path / "b", seed=1)
    listed = [{"model": str(m), "parameters": {"weight": 0.5}} for m in (a, b)]
    plan = merganser.plan({"merge_method": "linear", "models": listed}, tensor_names="union")
    head = next(job for job in plan.jobs if job.name == "lm_head.weight")
    assert [read.name for read in head.reads] == ["model.embed_tokens.weight", "lm_head.weight"]
