"""LoRA adapters in the shards of a training run.

A trainer's state dict contains the base model (``q_proj.base_layer.weight``) and the adapter's factors
(``q_proj.lora_A.default.weight``), or the factors alone. Rank and alpha are in a file next to the
shards.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merganser.checkpoints.computed.adapted import applied
from merganser.checkpoints.computed.adapter import Adapter
from merganser.checkpoints.computed.derived import DerivedCheckpoint
from merganser.checkpoints.formats import open_training
from merganser.checkpoints.protocol import Checkpoint
from merganser.checkpoints.sidecar_files import read_json
from merganser.checkpoints.training.training_runs import locate
from merganser.errors import InputError

SETTINGS = ("lora_adapter/adapter_config.json", "adapter_config.json", "lora_train_meta.json")
"""Files with rank and alpha, in a step's folder or the folder of its shards."""

_PREFIX = "base_model.model."


def merged(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """Apply the adapter in training shards to the model in them; return shards without adapter as they are.

    Args:
        checkpoint: the shards.
        folder: their folder.

    Raises:
        InputError: when they contain no base model, or no file states rank and alpha.
    """
    if not _factors(checkpoint):
        return checkpoint
    settings = _settings(folder)
    if not any(".base_layer." in name for name in checkpoint.specs):
        raise InputError(
            f"{folder}: holds a LoRA adapter only; merge its base model with it: BASE+{folder}"
        )
    factors = {name: name for name in _factors(checkpoint)}
    model = {
        name.removeprefix(_PREFIX).replace(".base_layer.", "."): name
        for name in checkpoint.specs
        if name not in factors
    }
    return applied(_part(checkpoint, model), Adapter(folder, settings, _part(checkpoint, factors)))


def find(folder: Path) -> tuple[Mapping[str, Any], Checkpoint] | None:
    """The settings and tensors of a training step's adapter; None if it has no adapter.

    Args:
        folder: the folder of a step, or of a run, for its last step.

    Raises:
        InputError: when shards are missing, or no file states rank and alpha.
    """
    place = locate(folder, "shards")
    checkpoint = open_training(place.folder, str(folder)) if place.shards else None
    if checkpoint is None or not _factors(checkpoint):
        return None
    names = checkpoint.specs
    if any(".base_layer." in name for name in names):  # the other tensors are the base model's
        names = {name: spec for name, spec in names.items() if name in _factors(checkpoint)}
    return _settings(place.folder), _part(checkpoint, {name: name for name in names})


def _factors(checkpoint: Checkpoint) -> set[str]:
    return {name for name in checkpoint.specs if ".lora_" in name}


def _part(checkpoint: Checkpoint, names: Mapping[str, str]) -> Checkpoint:
    """Some tensors of a checkpoint under new names."""
    return DerivedCheckpoint(
        checkpoint, dict(names), checkpoint.config, "part", format=checkpoint.format
    )


def _settings(folder: Path) -> Mapping[str, Any]:
    """The adapter's settings, with rank and alpha.

    Raises:
        InputError: when no file states them, or it states 0, as a converter of verl writes.
    """
    homes = (folder, *folder.absolute().parents[:2])
    for file in (home / name for home in homes for name in SETTINGS):
        if not file.is_file():
            continue
        settings = read_json(file)
        alpha, rank = settings.get("lora_alpha"), settings.get("r")
        if not alpha or not rank:
            raise InputError(
                f"{file}: says lora_alpha {alpha!r} and r {rank!r}, with which the adapter does "
                "nothing; set both to the values of the training"
            )
        return settings
    raise InputError(
        f"{folder}: holds a LoRA adapter, but no file states its lora_alpha and r; write "
        '{"r": …, "lora_alpha": …} to lora_train_meta.json there'
    )
