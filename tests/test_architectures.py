"""Models of every architecture merge, stack, and load again in transformers without a complaint."""

from __future__ import annotations

import functools
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import merganser
from families import FAMILIES, LAYERS, Family
from merganser.architecture import Architecture, infer
from merganser.checkpoints import open_checkpoint
from peers import different_bits, load

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two models of a family, made once a session: one by transformers, one a little away from it."""
    root = tmp_path_factory.mktemp("architectures")

    @functools.cache
    def pair(name: str) -> tuple[Path, Path]:
        a, b = root / name / "a", root / name / "b"
        with quiet():
            FAMILIES[name].make(a)
        shutil.copytree(a, b)
        tensors = load_file(a / "model.safetensors")
        generator = torch.Generator().manual_seed(1)
        for tensor in tensors.values():
            if tensor.dtype.is_floating_point:
                noise = 0.01 * torch.randn(tensor.shape, generator=generator)
                tensor.copy_(tensor + noise.to(tensor.dtype))
        save_file(tensors, b / "model.safetensors", {"format": "pt"})
        return a, b

    return pair


class quiet(warnings.catch_warnings):
    """Other people's warnings are not what is tested."""

    def __enter__(self) -> Any:
        found = super().__enter__()
        warnings.simplefilter("ignore")
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        return found


def shape_of(folder: Path) -> Architecture:
    checkpoint = open_checkpoint(folder)
    return infer(checkpoint.specs, checkpoint.config)


def config_of(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return data


def average(*models: Path, **keys: Any) -> dict[str, Any]:
    listed = [{"model": str(model), "parameters": {"weight": 0.5}} for model in models]
    return {"merge_method": "linear", "models": listed, **keys}


def slices(*cuts: tuple[Path, int, int]) -> list[dict[str, Any]]:
    return [{"sources": [{"model": str(m), "layer_range": [i, j]}]} for m, i, j in cuts]


def stack(*cuts: tuple[Path, int, int], module: str | None = None, **keys: Any) -> dict[str, Any]:
    listed = {"slices": slices(*cuts)}
    form = listed if module is None else {"modules": {module: listed}}
    return {"merge_method": "passthrough", **form, **keys}


def check_loads(family: Family, folder: Path) -> Any:
    """Nothing is missing or unexpected, and a forward pass gives finite numbers."""
    with quiet(), torch.no_grad():
        model, info = family.model_class.from_pretrained(folder, output_loading_info=True)
        assert {kind: keys for kind, keys in info.items() if keys} == {}
        ids = torch.tensor([[10, 11, 12, 13]])
        inputs = {
            "input_ids": ids,
            "decoder_input_ids": ids,
            "input_features": torch.ones(1, 8, 32, dtype=model.dtype),
            "pixel_values": torch.ones(1, 3, 8, 8, dtype=model.dtype),
        }
        output = model.eval()(**{name: inputs[name] for name in family.inputs})
    assert torch.isfinite(output[0]).all()
    return model


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_family_merges_stacks_and_loads(zoo: Any, tmp_path: Path, name: str) -> None:
    family, (a, b) = FAMILIES[name], zoo(name)
    x, y = load(a), load(b)
    merged = merganser.merge(average(a, b), tmp_path / "merged")
    assert merged.warnings == (f"{a} has no tokenizer, so the output has none",)
    wanted = {
        n: ((x[n].double() + y[n].double()) / 2).to(x[n].dtype)
        if x[n].dtype.is_floating_point
        else x[n]
        for n in x
    }
    assert different_bits(load(tmp_path / "merged"), wanted) == {}
    check_loads(family, tmp_path / "merged")
    assert config_of(tmp_path / "merged") == config_of(a)

    shape = shape_of(a)
    module = shape.main
    assert module.depth == LAYERS or name == "t5_gated"
    several = len(shape.modules) > 1
    recipe = stack((a, 0, 3), (b, 1, 4), module=module.name if several else None)
    stacked = merganser.merge(recipe, tmp_path / "stacked")
    origins = [(x, 0), (x, 1), (x, 2), (y, 1), (y, 2), (y, 3)]
    wanted = {}
    for key, place in shape.places.items():
        if place.module != module.name or place.layer is None:
            last = place.module == module.name and place.after_layers
            wanted[key] = (y if last else x)[key]
    for i, (tensors, layer) in enumerate(origins):
        prefix = f"{module.stack}{layer}."
        for key in x:
            if key.startswith(prefix) and shape.places[key].layer is not None:
                wanted[f"{module.stack}{i}.{key[len(prefix) :]}"] = tensors[key]
    assert different_bits(load(tmp_path / "stacked"), wanted) == {}
    assert [name in w for w in stacked.warnings for name in shape.modules if "not name" in w].count(
        True
    ) == len(shape.modules) - 1
    check_loads(family, tmp_path / "stacked")
    assert shape_of(tmp_path / "stacked").main.depth == 6
