"""Open a checkpoint with the first format that recognises its folder.

A new format is one module with a class that implements
:class:`~merganser.checkpoints.protocol.Checkpoint`, and one line in ``FORMATS``.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from merganser.checkpoints.locators import Folder
from merganser.checkpoints.protocol import Checkpoint, Weights
from merganser.errors import InputError, reraise_os_errors

FORMATS: tuple[str, ...] = ("safetensors", "pytorch", "gguf")
"""Modules of this package that are asked in turn; the first whose ``open_folder`` takes it has it."""

TRAINING: tuple[str, ...] = ("training.fsdp", "training.dcp", "training.deepspeed")
"""The same for the shards of training runs."""


def open_checkpoint(
    folder: str | Path, label: str | None = None, *, weights: Weights = "auto"
) -> Checkpoint:
    """Open the checkpoint in a local folder; only headers are read.

    Args:
        folder: a Hugging Face model folder, a single file of weights, a step of a training run, or
            the run itself, for its last step.
        label: its name in messages; the path if None.
        weights: the weights to read of a step that has both shards and Hugging Face weights.

    Raises:
        InputError: when there is no checkpoint, or its headers are invalid.
    """
    with reraise_os_errors(InputError, "read", folder):
        return _opened(Path(folder), label or str(folder), weights)


def _opened(path: Path, name: str, weights: Weights) -> Checkpoint:
    from merganser.checkpoints.training.training_runs import locate, what_is_there

    if not path.exists():
        raise InputError(f"{name}: no such model")
    if not path.is_file() and not path.is_dir():
        raise InputError(f"{name}: is neither a file nor a folder")
    place = locate(path, weights)
    checkpoint = (
        open_training(place.folder, name)
        if place.shards
        else first_known(FORMATS, place.folder, name)
    )
    if checkpoint is None:
        raise InputError(f"{name}: {what_is_there(place.folder)}")
    if place.shards:
        from merganser.checkpoints.training.lora_shards import merged

        checkpoint = merged(checkpoint, place.folder)
    elif place.folder.is_dir():
        from merganser.checkpoints.sentence_transformers import with_modules

        checkpoint = with_modules(checkpoint, place.folder)
    checkpoint.locator = Folder(path, name, weights)
    checkpoint.notes = (*(f"{name}: {note}" for note in place.notes), *checkpoint.notes)
    return checkpoint


def open_training(folder: Path, label: str) -> Checkpoint | None:
    """Open the shards of a training run, adapters included; None if there are no shards."""
    return first_known(TRAINING, folder, label)


def first_known(formats: Sequence[str], folder: Path, label: str) -> Checkpoint | None:
    """Open a folder or file with the first format that recognises it; None if none does."""
    for module in formats:
        opener = importlib.import_module(f"merganser.checkpoints.{module}")
        checkpoint: Checkpoint | None = opener.open_folder(folder, label)
        if checkpoint is not None:
            return checkpoint
    return None


def as_numbers(checkpoint: Checkpoint, adapter: Path | None = None) -> Checkpoint:
    """Return a checkpoint with the numbers that its model computes with: dequantised, adapter applied.

    Args:
        checkpoint: an open checkpoint.
        adapter: the folder of a LoRA adapter, or None.

    Raises:
        InputError: when its quantisation is not supported, or the adapter does not fit.
    """
    from merganser.checkpoints.computed.quantised import dequantised

    made = dequantised(checkpoint)
    if adapter is None:
        return made
    from merganser.checkpoints.computed.adapter import adapted

    return adapted(made, adapter)
