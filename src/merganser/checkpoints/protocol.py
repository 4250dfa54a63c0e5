"""The protocol of checkpoints: tensors are listed from headers and read by ranges."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from merganser.errors import InputError
from merganser.tensors import TensorSpec

VOCABULARIES: tuple[str, ...] = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""Files that may hold a tokenizer's vocabulary; transformers 5 writes the first."""

Weights = Literal["auto", "shards", "huggingface"]
"""The weights to read of a training step that has both shards and a Hugging Face folder. ``auto`` is
the named folder's weights if it has any, else the shards, which are more precise."""


class Stamp(NamedTuple):
    """Size, time and inode of a file, to detect changes without reading it."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """The stamp of a file from the result of ``os.stat``."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


class Checkpoint(Protocol):
    """A stored model. Everything except ``read`` and ``view`` comes from headers and small JSON files.

    Attributes:
        label: its name in messages.
        home: the folder or file of its weights, which no output may overwrite; None in memory.
        path: the folder of its ``config.json`` and tokenizer: usually ``home``, or a temporary folder
            that is removed with the checkpoint; None in memory.
        format: the storage format in words.
        notes: decisions made while opening it that the user should know.
        specs: dtype and shape of every tensor, in storage order.
        config: the model's ``config.json``, or an empty mapping.
        files: the weight files and their sizes in bytes, for fact sheets and manifests.
        header_digest: a digest of all headers, which changes with any tensor's name, dtype, shape or
            offset.
        stamps: the stamp of each weight file at the time its header was read.
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
        """Fill a buffer with a tensor's bytes from byte ``start`` on. Threads may call this at once.

        Raises:
            InputError: when the file is shorter than its header says, or cannot be read.
        """

    def view(self, name: str, start: int, length: int) -> memoryview | None:
        """Return a tensor's bytes as memory, to save a copy; None if they must be read.

        The memory is aligned to the size of an element. Writes to it do not reach the file.
        """

    def close(self) -> None:
        """Close the files."""


def refuse_changed(checkpoint: Checkpoint) -> None:
    """Check that a checkpoint's files have not changed since their headers were read.

    Raises:
        InputError: when one has changed, or is gone.
    """
    for file, stamp in checkpoint.stamps.items():
        try:
            current = Stamp.of(file.stat())
        except OSError as error:
            raise InputError(
                f"{file}: was there and cannot be read now ({error.strerror})"
            ) from None
        if current != stamp:
            raise InputError(f"{file}: changed while it was read; merge again when it is at rest")
