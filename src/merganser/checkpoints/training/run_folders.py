"""The folders of a training run: shards, published weights and config of a step."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from merganser.checkpoints.sidecar_files import read_json
from merganser.errors import InputError
from merganser.recipe.run_steps import step_of

Contents = Literal["model", "adapter", "optimizer"]
"""The contents of a distributed checkpoint: weights, Megatron's LoRA adapter, or neither."""

HUGGINGFACE = ("huggingface", "hf_config_and_tokenizer", "model/huggingface")
"""Subfolders of a step with config, tokenizer and sometimes weights."""

METADATA = ".metadata"
"""The file in a folder of PyTorch's distributed checkpoints that describes them."""

_SHARDS = ("", "dist_ckpt", "model/dist_ckpt", "pytorch_model_fsdp_0")

_RANK = re.compile(
    r"(?:model(?:_world_size_\d+)?_rank_\d+|(?:bf16_)?zero_pp_rank_\d+_mp_rank_\d+_optim_states)\.pt"
)


OPTIMIZER_ONLY = "holds only the state of the optimizer"
ADAPTER_ONLY = "holds a LoRA adapter in Megatron's form, which cannot be read"
EXPORT_ADAPTER = "export the adapter in PEFT's form and merge BASE+ADAPTER"


def companions(folder: Path) -> Path:
    """The folder with config and tokenizer of training shards; the shards' folder if there is no other."""
    for home in (folder, *folder.absolute().parents[:2]):
        for candidate in (home, *(home / name for name in HUGGINGFACE)):
            if (candidate / "config.json").is_file() and (home == folder or _is_model(candidate)):
                return candidate
    return folder


def _is_model(folder: Path) -> bool:
    """Whether a folder's ``config.json`` describes a model rather than the training."""
    try:
        config = read_json(folder / "config.json")
    except InputError:
        return False
    return "model_type" in config or "architectures" in config


def step_number(folder: Path) -> int | None:
    """The training step in the name of a folder or of one of its three nearest parents; else None."""
    numbers = map(step_of, reversed(folder.absolute().parts[-4:]))
    return next((number for number in numbers if number is not None), None)


def tracked_step(tracker: Path) -> Path:
    """The folder of the step that a run's tracker file names.

    Raises:
        InputError: when it is missing.
    """
    try:
        latest = tracker.read_text(encoding="utf-8")[:200].strip()
    except (OSError, ValueError) as error:
        raise InputError(f"{tracker}: cannot be read ({error})") from None
    if not latest:
        raise InputError(f"{tracker}: names no step; name one of the step folders next to it")
    names = [f"global_step_{latest}", f"iter_{int(latest):07d}"] if latest.isdecimal() else [latest]
    for name in names:
        step = tracker.parent / name
        with suppress(OSError, ValueError):  # the name is too long or contains NUL
            if Path(name).name == name and name not in ("", ".", "..") and step.is_dir():
                return step
    missing = tracker.parent / names[0][:60]
    raise InputError(f"{tracker}: names step {latest[:60]!r}, but {missing} is missing")


def training_shards(step: Path) -> Path | None:
    """The folder of a step's training shards: the step's, one below, or one next to its Hugging Face
    folder; None if there is none."""
    for folder in _shard_folders(step):
        if folder.is_dir() and holds_shards(folder):
            return folder
    return None


def _shard_folders(step: Path) -> Iterator[Path]:
    homes = [step]
    if step.name in HUGGINGFACE:
        homes += [step.parent, step.parent.parent]
    for home in homes:
        yield from (home / name for name in _SHARDS)
        if (home / "latest").is_file():
            with suppress(InputError):  # the step is often removed once its weights are exported
                yield tracked_step(home / "latest")


def holds_shards(folder: Path) -> bool:
    """Whether a folder contains shards of a training run."""
    return (folder / ".metadata").is_file() or any(
        _RANK.fullmatch(entry.name) for entry in folder.glob("*.pt")
    )


def published_weights(step: Path) -> Path | None:
    """The folder of a step with Hugging Face weights; None if there is none."""
    for folder in (step, *(step / name for name in HUGGINGFACE)):
        files = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
        if any(not file.name.startswith("adapter") for file in files):
            return folder
    return None


def why_no_model(folder: Path, contents: Contents) -> str | None:
    """Explain why a distributed checkpoint is not a model; None if it is one."""
    if contents == "model":
        return None
    home = next((home for home in folder.absolute().parents[:2] if published_weights(home)), None)
    published = published_weights(home) if home is not None else None
    if contents == "adapter":
        base = f", for the model in {published}" if published is not None else ""
        return f"{ADAPTER_ONLY}{base}; {EXPORT_ADAPTER}"
    where = (
        f"name {published}, which holds the weights"
        if published is not None
        else "the trainer exports the weights to huggingface/ next to it; fetch that folder"
    )
    return f"{OPTIMIZER_ONLY}; {where}"
