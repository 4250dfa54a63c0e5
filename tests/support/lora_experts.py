"""LoRA experts of one base, written as PEFT writes them, and sweeps of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from checkpoints_on_disk import write_json

SWEEP = """
name: m_w{{ w }}
sweep: {w: [0.25, 0.5, 0.75]}
merge_method: linear
models:
  - {model: ./base+one, parameters: {weight: "{{ 1 - w }}"}}
  - {model: ./base+two, parameters: {weight: "{{ w }}"}}
dtype: float32
"""


def write_adapter(
    base: Path,
    folder: Path,
    modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj"),
    *,
    seed: int = 0,
    rank: int = 4,
    scale: float = 0.3,
    more: dict[str, torch.Tensor] | None = None,
    **settings: Any,
) -> Path:
    """Write a random adapter of some linear modules of a base."""
    chance = torch.Generator().manual_seed(seed)
    tensors = dict(more or {})
    ranks: dict[str, int] = settings.get("rank_pattern", {})
    for name, weight in load_file(base / "model.safetensors").items():
        module = name.removesuffix(".weight")
        last = module.rpartition(".")[2]
        if last in modules and name.endswith(".weight"):
            own = ranks.get(last, rank)
            shapes = {"A": (own, weight.shape[1]), "B": (weight.shape[0], own)}
            for key, shape in shapes.items():
                numbers = scale * torch.randn(shape, generator=chance)
                tensors[f"base_model.model.{module}.lora_{key}.weight"] = numbers
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    write_json(
        folder / "adapter_config.json",
        {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 6,
         "target_modules": list(modules), "bias": "none", "base_model_name_or_path": None} | settings,
    )  # fmt: skip
    return folder


def write_experts(base: Path, scale: float = 0.3) -> None:
    """Two adapters of different ranks, modules and scales, next to the base."""
    home = base.parent
    write_adapter(base, home / "one", seed=1, scale=scale)
    write_adapter(
        base, home / "two", ("q_proj", "v_proj", "up_proj"), seed=2, rank=3, scale=scale,
        use_rslora=True, rank_pattern={"v_proj": 6}, alpha_pattern={"up_proj": 11},
    )  # fmt: skip


def write_sweep(home: Path, text: str = SWEEP) -> Path:
    file = home / "loras.yml"
    file.write_text(text.lstrip("\n"))
    return file
