"""Small models whose merges have several output files that can be split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

SHARDS = "45kB"
"""Size of an output file: five matrices."""

UNIT = 16_000
"""Size in bytes of a unit: two matrices."""


def make_models(home: Path, layers: int = 12) -> Path:
    """A base and two experts of matrices of two pages, and an odd tensor in the end."""
    for seed, name in enumerate(("base", "a", "b")):
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            f"layers.{i:02}.w": (0.05 * torch.randn(64, 64, generator=generator)).bfloat16()
            for i in range(layers)
        }
        tensors[f"layers.{layers - 1:02}.x"] = torch.randn(7, generator=generator).bfloat16()
        (home / name).mkdir(parents=True)
        save_file(tensors, home / name / "model.safetensors")
    return home


def write_recipe(home: Path, method: str = "linear", **more: Any) -> Path:
    models = [{"model": f"./{n}", "parameters": {"weight": w}} for n, w in (("a", 0.3), ("b", 0.7))]
    data = {"merge_method": method, "models": models, "dtype": "bfloat16", **more}
    if method != "linear":
        data["base_model"] = "./base"
    file = home / f"{method}.yml"
    file.write_text(yaml.safe_dump(data))
    return file


def contents(folder: Path) -> dict[str, Any]:
    """All files of a folder; of the manifest what does not tell of time and place."""
    found: dict[str, Any] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        found[file.relative_to(folder).as_posix()] = file.read_bytes()
    manifest = json.loads(found["merge_manifest.json"])
    log = manifest.pop("log")
    found["merge_manifest.json"] = manifest
    found["log"] = {key: log[key] for key in ("inputs", "contents", "recipe_folder")}
    return found
