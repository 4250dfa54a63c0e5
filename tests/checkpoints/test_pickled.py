"""PyTorch's own files as checkpoints: which are found, what in them is the model, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints_on_disk import change_config, make_model, tree, write_json
from merganser.checkpoints import open_checkpoint
from merganser.errors import InputError
from merganser.merging.merge import merge
from messages import assert_one_line
from recipe_files import RecipeFile
from sources import model, save_pickles

INDEX = "pytorch_model.bin.index.json"
T = torch.arange(4.0)


def saved(file: Path, content: Any) -> Path:
    torch.save(content, file)
    return file


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(InputError) as error:
        open_checkpoint(path)
    assert_one_line(str(error.value), str(path), *parts)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
@pytest.mark.parametrize(
    ("content", "nest"),
    [
        ({"w": T}, ""),
        ({"w": T, "step": 3, "notes": ["x", None, {"y": 1.5}]}, ""),
        ({"state_dict": {"w": T}, "epoch": 3}, "state_dict"),
        ({"model": {"w": T}, "optimizer": {"state": {0: {"exp_avg": T}}}}, "model"),
        ({"module": {"w": T}}, "module"),
        ({"state_dict": {"model": {"w": T}}, "model": {"v": T}}, "state_dict.model"),
        ({"module.w": T}, ""),
        ({"_orig_mod.w": T}, ""),
        ({"_fsdp_wrapped_module._orig_mod.w": T}, ""),
        ({"module._orig_mod.w": T}, ""),
    ],
)
def test_a_state_dict_is_found(tmp_path: Path, suffix: str, content: Any, nest: str) -> None:
    checkpoint = open_checkpoint(saved(tmp_path / f"m{suffix}", content))
    assert list(checkpoint.specs) == ["w"]
    assert (checkpoint.format, checkpoint.config) == ("PyTorch", {})
    assert len(checkpoint.notes) == bool(nest)
    assert all(repr(nest) in note for note in checkpoint.notes)


def test_a_module_called_module_keeps_its_name(tmp_path: Path) -> None:
    file = saved(tmp_path / "m.pt", {"module.w": T, "other.w": T})
    assert list(open_checkpoint(file).specs) == ["module.w", "other.w"]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({}, ["neither tensors by name", "none"]),
        ({"step": 3, "args": {"w": 1}}, ["neither tensors by name", "'step', 'args'"]),
        ({"model": {"step": 3}}, ["'step'"]),
        ([T], ["no state dict"]),
        (T, ["no state dict"]),
        (3, ["no state dict"]),
        ({"w": T, "_orig_mod.w": T}, ["'w'", "twice"]),
        (torch.nn.Linear(2, 2), ["asks for torch.nn.modules.linear.Linear"]),
        ({"w": T.to_sparse()}, ["asks for torch._utils._rebuild_sparse_tensor"]),
    ],
)
def test_what_is_no_state_dict(tmp_path: Path, content: Any, parts: list[str]) -> None:
    refused(saved(tmp_path / "m.pt", content), *parts)


def test_one_rank_is_not_a_model(tmp_path: Path) -> None:
    refused(saved(tmp_path / "model_world_size_2_rank_0.pt", {"w": T}), "rank", "folder")


def test_safetensors_go_before_pickles(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    saved(folder / "pytorch_model.bin", {"w": T})
    assert open_checkpoint(folder).format == "safetensors"


def test_what_lies_beside_a_model_is_not_read(tmp_path: Path) -> None:
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth"):
        (tmp_path / name).write_bytes(b"no archive")
    saved(tmp_path / "pytorch_model.bin", {"w": T})
    assert list(open_checkpoint(tmp_path).files) == ["pytorch_model.bin"]


def test_shards_without_an_index(tmp_path: Path) -> None:
    save_pickles(tmp_path, model(), 3)
    (tmp_path / INDEX).unlink()
    assert set(open_checkpoint(tmp_path).specs) == set(model())
    saved(tmp_path / "pytorch_model-00004-of-00004.bin", {"model.norm.weight": T})
    with pytest.raises(InputError) as error:
        open_checkpoint(tmp_path)
    assert_one_line(str(error.value), "'model.norm.weight'", "00004-of-00004", "of-00003")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda m: m | {"model.norm.weight": "../m.bin"}, ["outside", "model.norm.weight"]),
        (lambda m: m | {"model.norm.weight": "/etc/passwd"}, ["outside"]),
        (lambda m: m | {"model.norm.weight": "no.bin"}, ["no.bin", "missing"]),
        (lambda m: m | {"a tensor": "pytorch_model-00001-of-00003.bin"}, ["'a tensor'"]),
        (lambda m: {}, ["weight_map"]),
    ],
)
def test_an_index_that_lies(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], parts: list[str]
) -> None:
    save_pickles(tmp_path, model(), 3)
    data = open_json(tmp_path / INDEX)
    write_json(tmp_path / INDEX, {"weight_map": change(data["weight_map"])})
    refused(tmp_path, *parts)


def open_json(file: Path) -> Any:
    return json.loads(file.read_text())


@pytest.mark.parametrize("tied", [False, True])
def test_merging_pickles_gives_the_bytes_that_safetensors_give(
    tmp_path: Path, recipe_file: RecipeFile, tied: bool
) -> None:
    """Transposed weights and tied embeddings included."""
    from safetensors.torch import load_file

    for i, name in enumerate("ab"):
        plain = make_model(tmp_path / name, seed=i, tied=tied)
        tensors = load_file(plain / "model.safetensors")
        folder = make_model(tmp_path / f"p{name}", seed=i, tied=tied)
        (folder / "model.safetensors").unlink()
        content = {n: t.t().contiguous().t() if t.dim() == 2 else t for n, t in tensors.items()}
        if tied:
            content["lm_head.weight"] = content["model.embed_tokens.weight"]
        saved(folder / "pytorch_model.bin", content)
    outs = []
    for prefix in ("", "p"):
        recipe = recipe_file(
            f"""
            merge_method: linear
            models:
              - model: ./{prefix}a
                parameters: {{weight: 0.25}}
              - model: ./{prefix}b
                parameters: {{weight: 0.75}}
            """
        )
        merge(recipe, tmp_path / f"out{prefix}")
        outs.append(tree(tmp_path / f"out{prefix}"))
    for name in ("model.safetensors", "config.json", "tokenizer.json", "generation_config.json"):
        assert outs[0][name] == outs[1][name]


def test_the_donor_of_config_and_tokenizer_may_be_pickled(
    tmp_path: Path, recipe_file: RecipeFile
) -> None:
    folder = change_config(make_model(tmp_path / "m"), vocab_size=32)
    (folder / "model.safetensors").unlink()
    saved(folder / "pytorch_model.bin", model())
    recipe = recipe_file("merge_method: passthrough\nmodels: [{model: ./m}]\n")
    result = merge(recipe, tmp_path / "out")
    assert result.plan.dtype.name == "float32"
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert open_json(tmp_path / "out" / "config.json")["torch_dtype"] == "float32"
