"""What a checkpoint is: tensors listed from headers, read by ranges."""

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
