"""Training names tensors by its modules, published models as transformers saves them: one set of names."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import merganser
from families import FAMILIES, Family

RENAMED = (
    "deepseek_v3",
    "gemma3",
    "glm4_moe",
    "gpt_neox",
    "granite_hybrid",
    "internvl",
    "jamba",
    "llava",
    "mistral3",
    "mixtral",
    "mllama",
    "nemotron_h",
    "qwen2_5_vl",
    "qwen2_moe",
    "qwen2_vl",
    "qwen3_next",
    "vit",
)
"""Families whose modules and files have other names."""

OTHERS = {
    "llava_next": Family(
        "LlavaNext",
        FAMILIES["llava"].options | {"image_grid_pinpoints": [[8, 8]]},
        "ForConditionalGeneration",
    ),
}

pytestmark = pytest.mark.filterwarnings("ignore")


def perturbed(model: Any, seed: int) -> dict[str, torch.Tensor]:
    """A model moved by random numbers; its tensors by the names of its modules."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in {id(t): t for t in (*model.parameters(), *model.buffers())}.values():
            if tensor.is_floating_point():
                tensor += 0.05 * torch.randn_like(tensor)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def pair(
    folder: Path, family: Family
) -> tuple[Any, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A published model ``a``, and a step of training with the tensors of a fine-tune of it."""
    transformers.utils.logging.disable_progress_bar()
    config = getattr(transformers, f"{family.config}Config")(**family.options)
    model = family.model_class(config).float()
    first = perturbed(model, 0)
    model.save_pretrained(folder / "a")
    second = perturbed(model, 1)
    actor = folder / "run/global_step_3/actor"
    (actor / "huggingface").mkdir(parents=True)
    torch.save(second, actor / "model_world_size_1_rank_0.pt")
    shutil.copy(folder / "a/config.json", actor / "huggingface")
    (folder / "run/latest_checkpointed_iteration.txt").write_text("3")
    return family.model_class, first, second


def recipe(folder: Path, *names: str) -> dict[str, Any]:
    weights = {"a": 0.7, "run": 0.3}
    models = [{"model": str(folder / n), "parameters": {"weight": weights[n]}} for n in names]
    return {"merge_method": "linear", "models": models, "dtype": "float32"}


@pytest.mark.parametrize("order", [("a", "run"), ("run", "a")], ids=["published", "trained"])
@pytest.mark.parametrize("name", [*RENAMED, *OTHERS])
def test_a_training_step_merges_with_a_published_model(
    tmp_path: Path, name: str, order: tuple[str, str]
) -> None:
    model_class, first, second = pair(tmp_path, (FAMILIES | OTHERS)[name])
    assert first.keys() - load_file(tmp_path / "a/model.safetensors").keys()
    merganser.merge(recipe(tmp_path, *order), tmp_path / "out")
    written = load_file(tmp_path / "out/model.safetensors")
    assert written.keys() == load_file(tmp_path / "a/model.safetensors").keys()
    model, info = model_class.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values())
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            expected = 0.7 * first[key].double() + 0.3 * second[key].double()
            assert torch.allclose(tensor.double(), expected, rtol=0, atol=1e-6), key
