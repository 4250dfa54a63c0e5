"""Open weights with the module of the format that recognises them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from merganser import weight_formats
from merganser.checkpoints.protocol import Checkpoint

TRAINING: tuple[str, ...] = ("training.fsdp", "training.dcp", "training.deepspeed")
"""Modules of this package that try to open the shards of a training run, in this order."""


def open_weights(path: Path, label: str) -> Checkpoint | None:
    """Open a folder, or a file by its suffix; None if no format recognises it."""
    modules = [
        each.module
        for each in weight_formats.FORMATS
        if path.is_dir() or path.suffix in each.suffixes
    ]
    return _first_known(modules, path, label)


def open_training(folder: Path, label: str) -> Checkpoint | None:
    """Open the shards of a training run, adapters included; None if there are no shards."""
    return _first_known(TRAINING, folder, label)


def _first_known(modules: Sequence[str], path: Path, label: str) -> Checkpoint | None:
    for module in modules:
        opener = importlib.import_module(f"merganser.checkpoints.{module}")
        checkpoint: Checkpoint | None = opener.open_folder(path, label)
        if checkpoint is not None:
            return checkpoint
    return None
