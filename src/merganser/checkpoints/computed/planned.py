"""A model that is decided and not yet made, as a checkpoint: for planning what builds on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merganser.checkpoints.locators import Locator
from merganser.checkpoints.protocol import Stamp
from merganser.errors import InputError
from merganser.tensors import TensorSpec


class NotMergedYet(InputError):
    """The weights are asked for before they are merged."""


@dataclass
class PlannedCheckpoint:
    """See :class:`merganser.checkpoints.Checkpoint`; there are no weights to read yet.

    ``path`` is the folder that its tokenizer will be copied from.
    """

    label: str
    path: Path | None
    specs: Mapping[str, TensorSpec]
    config: Mapping[str, Any]
    files: Mapping[str, int]
    header_digest: str
    home: Path | None = None
    format: str = "planned"
    notes: tuple[str, ...] = ()
    stamps: Mapping[Path, Stamp] = field(default_factory=dict)
    locator: Locator | None = None

    def read(self, name: str, start: int, into: memoryview) -> None:
        """There is nothing to read.

        Raises:
            NotMergedYet: always.
        """
        raise NotMergedYet(f"{self.label}: is planned, but not merged yet")

    def view(self, name: str, start: int, length: int) -> memoryview | None:
        """There is nothing to see."""
        return None

    def close(self) -> None:
        """Nothing to let go of."""
