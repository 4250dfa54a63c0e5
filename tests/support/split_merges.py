"""Small models whose merges have several output files that can be split."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import yaml

from merganser.errors import MerganserError
from merganser.workers import merge_driver, merge_worker
from merganser.workers.claims import Claims
from merganser.workers.merge_driver import SharedMerge, merge_with_workers

SHARDS = "45kB"
"""Size of an output file: five matrices."""

UNIT = 16_000
"""Size in bytes of a unit: two matrices."""


def make_models(home: Path, layers: int = 12) -> Path:
    """A base and two experts of matrices of two pages, and an odd tensor in the end."""
    import torch
    from safetensors.torch import save_file

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


def join(recipe: Path, out: Path, **options: Any) -> SharedMerge:
    options = {"unit_bytes": UNIT, "shard_size": SHARDS, "write_card": False} | options
    return merge_with_workers(recipe, out, "join", **options)


def join_hastily(recipe: Path, out: Path, slowly: float, ready: Any) -> None:
    """Join a merge, in a process that takes others for dead after a second."""
    defaults = Claims.__init__.__kwdefaults__
    assert defaults is not None
    defaults.update(beat=0.1, stale=1.0)
    merge_worker.WAIT = merge_driver.WAIT = 0.02
    run = merge_worker.engine.run

    def pause(*arguments: Any, **options: Any) -> Any:
        time.sleep(slowly)
        return run(*arguments, **options)

    merge_worker.engine.run = pause
    ready.set()
    for _ in range(3):  # a unit may have been given up
        try:
            join(recipe, out, threads=1)
            return
        except MerganserError as error:
            if "workers died" not in str(error):
                raise
