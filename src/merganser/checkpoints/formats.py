"""The table of formats; the first that recognises a folder or file reads it.

A new format is one module with a class that implements
:class:`~merganser.checkpoints.protocol.Checkpoint`, and one line in ``FORMATS``.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from merganser.checkpoints.protocol import Checkpoint

FORMATS: tuple[str, ...] = ("safetensors", "pytorch", "gguf")
"""Modules of this package that are asked in turn; the first whose ``open_folder`` takes it has it."""

TRAINING: tuple[str, ...] = ("training.fsdp", "training.dcp", "training.deepspeed")
"""The same for the shards of training runs."""


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
