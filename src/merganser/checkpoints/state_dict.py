"""A state dict in memory as a checkpoint, for ``merge_tensors`` and ``merge_state_dicts``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merganser.checkpoints.locators import Locator
from merganser.checkpoints.protocol import Stamp
from merganser.tensors import BY_NAME, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import torch


class MemoryCheckpoint:
    """A state dict as a :class:`merganser.checkpoints.Checkpoint`.

    Tensors are never changed, and copied only if they are not contiguous or on a device.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], label: str = "memory") -> None:
        self.label = label
        self.path: Path | None = None
        self.home: Path | None = None
        self.format = "state dict"
        self.notes: tuple[str, ...] = ()
        self.config: Mapping[str, Any] = {}
        self.files: Mapping[str, int] = {}
        self.stamps: Mapping[Path, Stamp] = {}
        self.specs: Mapping[str, TensorSpec] = {
            name: TensorSpec(BY_NAME[str(tensor.dtype).removeprefix("torch.")], tuple(tensor.shape))
            for name, tensor in tensors.items()
        }
        self.header_digest = hashlib.sha256(repr(self.specs).encode()).hexdigest()
        self.locator: Locator | None = None
        self._tensors = tensors
        self._bytes: dict[str, np.ndarray[Any, np.dtype[np.uint8]]] = {}

    def read(self, name: str, start: int, into: memoryview) -> None:
        """See :meth:`merganser.checkpoints.Checkpoint.read`."""
        stored = self._bytes.get(name)
        if stored is None:
            import torch

            flat = self._tensors[name].detach().cpu().contiguous().reshape(-1)
            flat = flat.as_strided(flat.shape, (1,))  # a single element may have any stride
            stored = self._bytes[name] = flat.view(torch.uint8).numpy()
        into[:] = stored[start : start + len(into)].data

    def view(self, name: str, start: int, length: int) -> memoryview | None:
        """None: the tensors belong to the caller, and the engine may write to views."""
        return None

    def close(self) -> None:
        """Do nothing: no file is open."""
