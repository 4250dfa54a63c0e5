"""Checkpoints: tensors listed from headers, read by ranges. One format, one file.

A new format is one module with a class that keeps :class:`Checkpoint`, and one line in ``FORMATS``.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from merganser.checkpoints.small_files import read_config, read_index, read_json
from merganser.errors import InputError, told_as
from merganser.tensors import TensorSpec

__all__ = [
    "FORMATS",
    "TRAINING",
    "VOCABULARIES",
    "Checkpoint",
    "Stamp",
    "Weights",
    "as_numbers",
    "open_checkpoint",
    "read_config",
    "read_index",
    "read_json",
]

FORMATS: tuple[str, ...] = ("safetensors", "pickled", "gguf")
"""Modules of this package that are asked in turn; the first whose ``open_folder`` takes it has it."""

TRAINING: tuple[str, ...] = ("fsdp", "dcp", "deepspeed")
"""The same for what a training run saves of its own."""


VOCABULARIES: tuple[str, ...] = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""Files that a tokenizer's vocabulary may lie in, the first one as transformers has it now."""

Weights = Literal["auto", "shards", "huggingface"]
"""Which weights of a training step are taken where it has both its own shards and a Hugging Face
folder. ``auto``: those of the folder that is named, if it holds weights; else the shards, which are
of higher precision."""


class Stamp(NamedTuple):
    """What tells that a file is another than before, without reading it."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """That of a file, from what the system says of it."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


class Checkpoint(Protocol):
    """A model at rest. Everything but ``read`` comes from headers and small JSON files.

    Attributes:
        label: its name in messages.
        home: the folder or file that its weights lie in, which no output may touch; None in memory.
        path: the folder with its ``config.json`` and tokenizer, mostly ``home``, or a temporary one that
            is there as long as the checkpoint; None in memory.
        format: what it is stored as, in words.
        notes: what was decided in opening it that its user should know.
        specs: dtype and shape of every tensor, in the order in which they are stored.
        config: the model's ``config.json``, or an empty mapping.
        files: the weight files and their sizes in bytes, for fact sheets and manifests.
        header_digest: a digest of all headers, which changes when any tensor's name, dtype,
            shape or place does.
        stamps: the weight files as they were when their headers were read.
    """

    label: str
    home: Path | None
    path: Path | None
    format: str
    notes: tuple[str, ...]
    specs: Mapping[str, TensorSpec]
    config: Mapping[str, Any]
    files: Mapping[str, int]
    header_digest: str
    stamps: Mapping[Path, Stamp]

    def read(self, name: str, start: int, into: memoryview) -> None:
        """Fill a buffer with a tensor's stored bytes from byte ``start`` on; any thread may call.

        Raises:
            InputError: when the file is shorter than its header says, or cannot be read.
        """

    def view(self, name: str, start: int, length: int) -> memoryview | None:
        """A tensor's stored bytes from byte ``start`` on where they lie in memory, which saves a copy.
        None where they must be read. The first begins at a multiple of its element's size; whatever is
        written into them is not kept."""

    def close(self) -> None:
        """Let go of files."""


def open_checkpoint(
    folder: str | Path, label: str | None = None, *, weights: Weights = "auto"
) -> Checkpoint:
    """Open the checkpoint in a local folder, reading its headers only.

    Args:
        folder: a Hugging Face model folder, a single file of weights, a step of a training run, or
            the run itself, which means its last step.
        label: the name to use in messages; the path if None.
        weights: what is taken where a step has both its shards and Hugging Face weights.

    Raises:
        InputError: when there is none, or its headers are wrong.
    """
    with told_as(InputError, "read", folder):
        return _opened(Path(folder), label or str(folder), weights)


def _opened(path: Path, name: str, weights: Weights) -> Checkpoint:
    from merganser.checkpoints.runs import locate, what_is_there

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
        from merganser.checkpoints.trained_lora import merged

        checkpoint = merged(checkpoint, place.folder)
    elif place.folder.is_dir():
        from merganser.checkpoints.sentence import with_modules

        checkpoint = with_modules(checkpoint, place.folder)
    checkpoint.notes = (*(f"{name}: {note}" for note in place.notes), *checkpoint.notes)
    return checkpoint


def open_training(folder: Path, label: str) -> Checkpoint | None:
    """Open the shards of a training run, the tensors of an adapter among them; None when there are none."""
    return first_known(TRAINING, folder, label)


def first_known(formats: Sequence[str], folder: Path, label: str) -> Checkpoint | None:
    """Open a folder or file in the first of some formats that it has; None if it has none of them."""
    for module in formats:
        opener = importlib.import_module(f"{__name__}.{module}")
        checkpoint: Checkpoint | None = opener.open_folder(folder, label)
        if checkpoint is not None:
            return checkpoint
    return None


def refuse_changed(checkpoint: Checkpoint) -> None:
    """Make sure that a checkpoint's files are still those whose headers were read.

    Raises:
        InputError: when one is gone, or is another.
    """
    for file, stamp in checkpoint.stamps.items():
        try:
            found = Stamp.of(file.stat())
        except OSError as error:
            raise InputError(
                f"{file}: was there and cannot be read now ({error.strerror})"
            ) from None
        if found != stamp:
            raise InputError(f"{file}: changed while it was read; merge again when it is at rest")


def as_numbers(checkpoint: Checkpoint, adapter: Path | None = None) -> Checkpoint:
    """A checkpoint as the numbers that its model computes with: dequantised, its adapter applied.

    Args:
        checkpoint: an open one.
        adapter: the folder of a LoRA adapter, or None.

    Raises:
        InputError: when it is quantised in a way that cannot be merged, or the adapter does not fit.
    """
    from merganser.checkpoints.quantised import dequantised

    made = dequantised(checkpoint)
    if adapter is None:
        return made
    from merganser.checkpoints.adapter import adapted

    return adapted(made, adapter)
