"""The protocol of checkpoints: tensors are listed from headers and read by ranges."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from merganser.errors import InputError
from merganser.tensors import TensorSpec

if TYPE_CHECKING:
    from merganser.checkpoints.locators import Locator

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
"""The weights to read of a training step with both shards and a Hugging Face folder. ``auto`` reads the
weights in the named folder if there are any, else the shards, which are more precise."""


class Stamp(NamedTuple):
    """Size, time and inode of a file, to detect changes without reading it."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """The stamp of a file from the result of ``os.stat``."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


class Described(Protocol):
    """A model's headers and small JSON files, of an open checkpoint or as plain data."""

    @property
    def label(self) -> str:
        """Its name in messages."""

    @property
    def home(self) -> Path | None:
        """The folder or file of its weights, which no output may overwrite; None in memory."""

    @property
    def path(self) -> Path | None:
        """The folder with its ``config.json`` and tokenizer; None in memory."""

    @property
    def format(self) -> str:
        """The storage format, as text."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Decisions made while opening it that the user should know."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Dtype and shape of every tensor, in the order in which they are stored."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's ``config.json``, or an empty mapping."""

    @property
    def files(self) -> Mapping[str, int]:
        """The weight files and their sizes in bytes."""

    @property
    def header_digest(self) -> str:
        """A digest of all headers."""

    @property
    def stamps(self) -> Mapping[Path, Stamp]:
        """The weight files as they were when their headers were read."""

    @property
    def locator(self) -> Locator | None:
        """The data to open it again; None for a checkpoint that cannot be reopened."""


@dataclass(frozen=True)
class Headers:
    """A model's headers and small files as data; see :class:`Described`."""

    label: str
    home: Path | None
    path: Path | None
    format: str
    notes: tuple[str, ...]
    specs: Mapping[str, TensorSpec] = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    files: Mapping[str, int] = field(repr=False)
    header_digest: str
    stamps: Mapping[Path, Stamp] = field(repr=False)
    locator: Locator | None = field(repr=False)

    @classmethod
    def of(cls, model: Described) -> Headers:
        """The headers of a model, without open files."""
        return cls(
            model.label,
            model.home,
            model.path,
            model.format,
            model.notes,
            dict(model.specs),
            dict(model.config),
            dict(model.files),
            model.header_digest,
            dict(model.stamps),
            model.locator,
        )


class Checkpoint(Described, Protocol):
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
    locator: Locator | None

    def read(self, name: str, start: int, into: memoryview) -> None:
        """Fill a buffer with a tensor's bytes from byte ``start`` on. This method is thread-safe.

        Raises:
            InputError: when the file is shorter than its header says, or cannot be read.
        """

    def view(self, name: str, start: int, length: int) -> memoryview | None:
        """Return ``length`` bytes of a tensor as memory, which saves a copy; None if they must be read.

        The memory is aligned to the element size. Writes to it do not change the file.
        """

    def close(self) -> None:
        """Close the files."""


def check_unchanged(checkpoint: Described) -> None:
    """Check that a checkpoint's files have not changed since their headers were read.

    Raises:
        InputError: when a file has changed or is missing.
    """
    for file, stamp in checkpoint.stamps.items():
        try:
            current = Stamp.of(file.stat())
        except OSError as error:
            raise InputError(f"{file}: cannot be read any more ({error.strerror})") from None
        if current != stamp:
            raise InputError(
                f"{file}: changed while it was read; merge again when nothing writes to it"
            )
