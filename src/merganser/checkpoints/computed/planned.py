"""A planned merge as a checkpoint, to plan merges that use its result."""

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
    """Weights were read before their merge ran."""


@dataclass
class PlannedCheckpoint:
    """A :class:`merganser.checkpoints.Checkpoint` of a merge that has not run, with headers only.

    ``path`` is the folder from which the merge takes its tokenizer.
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
        """Raise an error, since the weights do not exist yet.

        Raises:
            NotMergedYet: always.
        """
        raise NotMergedYet(f"{self.label}: is planned, but not merged yet")

    def view(self, name: str, start: int, length: int) -> memoryview | None:
        """Return None."""
        return None

    def close(self) -> None:
        """Do nothing: no file is open."""
