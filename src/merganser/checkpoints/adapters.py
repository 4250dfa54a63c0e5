"""Open LoRA adapters: in folders that PEFT saves, and in the shards of a training step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merganser.checkpoints.computed.adapted import applied
from merganser.checkpoints.computed.adapter import CONFIG, WEIGHTS, Adapter
from merganser.checkpoints.formats import open_weights
from merganser.checkpoints.locators import Adapted, after
from merganser.checkpoints.protocol import Checkpoint
from merganser.checkpoints.sidecar_files import read_json
from merganser.checkpoints.training import lora_shards
from merganser.errors import InputError, reraise_os_errors

_REFUSED = (
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
"""Options of PEFT that change the adapter's computation in unsupported ways."""

_CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of ``init_lora_weights`` with which PEFT also changes the base model's weights."""


def open_adapter(folder: Path) -> Adapter:
    """Open the LoRA adapter in a folder, or in the shards of a training step, reading headers only.

    Raises:
        InputError: when there is no adapter, or it is not a supported LoRA adapter.
    """
    label = str(folder)
    settings, weights = _opened(folder, label)
    kind = str(settings.get("peft_type", "LORA"))
    if kind.upper() != "LORA":
        raise InputError(
            f"{label}: is an adapter of type {kind} (peft_type); only LORA can be merged"
        )
    for key in _REFUSED:
        if settings.get(key):
            raise InputError(
                f"{label}: its {CONFIG} has {key}, which is not supported; "
                "merge it with PEFT (merge_and_unload) and use the model that this gives"
            )
    begun = str(settings.get("init_lora_weights")).lower()
    if begun.startswith(_CHANGED_BASES):
        raise InputError(
            f"{label}: was initialised by {begun}, which also changes the base model's weights; convert it to a "
            "plain LoRA with PEFT (save_pretrained with path_initial_model_for_weight_conversion)"
        )
    return Adapter(folder, settings, weights or _open_weights(folder, label))


def _opened(folder: Path, label: str) -> tuple[Mapping[str, Any], Checkpoint | None]:
    """An adapter's settings, and its tensors if they are in training shards (None for PEFT's files)."""
    if (folder / CONFIG).is_file():
        return read_json(folder / CONFIG), None
    trained = lora_shards.find(folder)
    if trained is None:
        raise InputError(f"{label}: holds no adapter ({CONFIG} is missing)")
    return trained


def _open_weights(folder: Path, label: str) -> Checkpoint:
    """Open the weights file of a folder that PEFT saved."""
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise InputError(f"{folder}: holds an {CONFIG} but no weights ({WEIGHTS[0]})")
    with reraise_os_errors(InputError, "read", folder):
        weights = open_weights(file, label)
    if weights is None:
        raise InputError(f"{label}: {file.name} is neither safetensors nor a PyTorch file")
    return weights


def describe(folder: Path) -> dict[str, Any]:
    """Return ``rank``, ``alpha`` and the number of ``tensors`` of the adapter in a folder.

    Raises:
        InputError: when there is no adapter, or it is not a supported LoRA adapter.
    """
    adapter = open_adapter(folder)
    rank, alpha = adapter.config.get("r", 8), adapter.config.get("lora_alpha", 8)
    return {"rank": rank, "alpha": alpha, "tensors": len(adapter.weights.specs)}


def adapted(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """Return a checkpoint of a model with an adapter applied to its weights.

    Args:
        checkpoint: the model, dequantised.
        folder: the adapter's folder.

    Raises:
        InputError: when there is no adapter, or it does not fit the model.
    """
    made = applied(checkpoint, open_adapter(folder))
    made.locator = after(Adapted, checkpoint.locator, folder)
    return made
