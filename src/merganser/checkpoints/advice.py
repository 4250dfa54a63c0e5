"""Explain why a folder or file is not a checkpoint, and what to do."""

from __future__ import annotations

from pathlib import Path

from merganser import weight_formats
from merganser.checkpoints.computed import adapter
from merganser.checkpoints.sidecar_files import read_json
from merganser.recipe.run_steps import step_of


def what_is_there(path: Path) -> str:
    """Explain why a folder or file is not a checkpoint, and what to do."""
    if path.is_file():
        if path.name.endswith(".distcp"):
            return "is a part of a distributed checkpoint; name its folder"
        if path.suffix in (".yml", ".yaml"):
            return "is a YAML file, not a model; plan and merge take recipes"
        known = ", ".join(weight_formats.suffixes())
        return f"is not a checkpoint in a format that can be read ({known})"
    for folder in (path, path / "actor"):
        explanation = _of_training(folder) if folder.is_dir() else None
        if explanation is not None:
            return explanation
    names = sorted(entry.name for entry in path.iterdir())
    if adapter.CONFIG in names:
        return _adapter_alone(path, adapter.CONFIG)
    suffixes = weight_formats.suffixes()
    weights = [n for n in names if n.endswith(suffixes) and not n.startswith("adapter")]
    if weights:
        return f"holds no weights under a usual name; if {weights[0]} holds them, name that file"
    inner = next((n for n in names if (path / n / "config.json").is_file()), None)
    if "modules.json" in names and inner is not None and "config.json" not in names:
        return (
            f"is a sentence-transformers model with its transformer in {inner}, which cannot be merged "
            f"with its modules; name {path / inner} to merge the transformer alone"
        )
    if "config.json" in names:
        return "has a config.json but no weights (no *.safetensors file)"
    return "holds no model: neither config.json nor *.safetensors"


def _adapter_alone(path: Path, file: str) -> str:
    """Explain what to write instead of an adapter's folder."""
    config = read_json(path / file)
    kind, base = str(config.get("peft_type", "LORA")), config.get("base_model_name_or_path")
    what = "a LoRA adapter" if kind.upper() == "LORA" else f"an adapter of type {kind}"
    if isinstance(base, str) and base:
        return f"is {what} of {base}, not a model; write {base}+{path}"
    return (
        f"is {what}, not a model; write BASE+{path}, where BASE is the model that it was trained on"
    )


def _of_training(folder: Path) -> str | None:
    """Explain what a folder of a training run lacks; None if it is not one."""
    folders = {entry.name for entry in folder.iterdir() if entry.is_dir()}
    steps = {name: number for name in folders if (number := step_of(name)) is not None}
    if steps:
        last = max(steps, key=lambda name: steps[name])
        return f"holds the steps of a run, but no file that names the last step; name one, such as {last}"
    old = folders | {entry.name for entry in (folder / "model").glob("mp_rank_*")}
    if any(name.startswith("mp_rank_") for name in old):
        return (
            "holds a Megatron checkpoint of the older form (mp_rank_*), which cannot be read; "
            "save it as torch_dist, or export the model as safetensors"
        )
    for pattern, explanation in (
        (
            "optimizer/dist_ckpt/.metadata",
            "holds the optimizer's state, but no weights (model/huggingface/*.safetensors); fetch them",
        ),
        (
            "*_model_states.pt",
            "holds DeepSpeed's *_model_states.pt, but not the *_optim_states.pt in which the "
            "weights are float32; fetch them",
        ),
        (
            "optim_world_size_*_rank_*.pt",
            "holds the optimizer's state, but no weights (model_world_size_*_rank_*.pt)",
        ),
    ):
        if any(folder.glob(pattern)):
            return explanation
    return None
