"""Checkpoints with tensors computed from other checkpoints during reading.

A wrapper (dequantisation, adapters, renamed experts) takes a checkpoint and returns one. Headers
alone determine its tensors. A range of a tensor is computed from ranges of its sources, so
memory use stays small, and readers see no difference from stored tensors. Planning needs only the
headers, so numpy is imported where tensors are read.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from merganser.checkpoints.locators import Locator
from merganser.checkpoints.protocol import Checkpoint, Stamp
from merganser.errors import InputError
from merganser.tensors import TensorSpec

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

T = TypeVar("T")

SCRATCH = 4
"""Limit for a wrapper's temporary memory during reading, in multiples of the range's size; this includes
cached factors."""


@dataclass(frozen=True, slots=True)
class Derived:
    """A computed tensor.

    Attributes:
        spec: dtype and shape of the result.
        fill: called with the index of the first element and a uint8 array [count * itemsize]; fills the
            array with the bytes of ``count`` elements. It is thread-safe, and the bits of an element do
            not depend on the range.
    """

    spec: TensorSpec
    fill: Callable[[int, Array], None]


class DerivedCheckpoint:
    """A :class:`merganser.checkpoints.Checkpoint` with computed tensors and tensors of another checkpoint.

    Args:
        inner: the source checkpoint; name, folders and files are taken from it.
        tensors: all tensors by name, in order: a computed tensor, or the name of a tensor in ``inner``.
        config: the result's ``config.json``.
        depends_on: a text that identifies the computation, for the digest of headers.
        others: further source checkpoints; they are closed with it.
        format: a description of the storage format.
        notes: further notes for the user, in addition to those of ``inner``.
        locator: data to open it again; None if only an outer checkpoint has a locator.
    """

    def __init__(
        self,
        inner: Checkpoint,
        tensors: Mapping[str, Derived | str],
        config: Mapping[str, Any],
        depends_on: str,
        *,
        format: str,
        others: Sequence[Checkpoint] = (),
        notes: Sequence[str] = (),
        locator: Locator | None = None,
    ) -> None:
        self.label = inner.label
        self.home: Path | None = inner.home
        self.path: Path | None = inner.path
        self.format = format
        self.notes: tuple[str, ...] = (*inner.notes, *notes)
        self.config = config
        self.files: Mapping[str, int] = dict(inner.files) | {
            name: size for other in others for name, size in other.files.items()
        }
        self.specs: Mapping[str, TensorSpec] = {
            name: inner.specs[tensor] if isinstance(tensor, str) else tensor.spec
            for name, tensor in tensors.items()
        }
        specs = [(name, str(spec), str(spec.narrow)) for name, spec in self.specs.items()]
        digests = [checkpoint.header_digest for checkpoint in (inner, *others)]
        facts = repr((digests, depends_on, specs)).encode()
        self.header_digest = hashlib.sha256(facts).hexdigest()
        self.stamps: Mapping[Path, Stamp] = {
            file: stamp
            for checkpoint in (inner, *others)
            for file, stamp in checkpoint.stamps.items()
        }
        self.locator = locator
        self._inner = inner
        self._others = tuple(others)
        self._tensors = tensors

    def read(self, name: str, start: int, into: memoryview) -> None:
        """See :meth:`merganser.checkpoints.Checkpoint.read`."""
        tensor = self._tensors[name]
        if isinstance(tensor, str):
            self._inner.read(tensor, start, into)
            return
        import numpy as np

        size, stop = tensor.spec.dtype.itemsize, start + len(into)
        first, last = start // size, -(-stop // size)
        if first == last:
            return
        if start % size == 0 and stop % size == 0:
            tensor.fill(first, np.frombuffer(into, np.uint8))
            return
        rows = np.empty(
            (last - first) * size, np.uint8
        )  # the range starts or ends within an element
        tensor.fill(first, rows)
        into[:] = rows[start - first * size :][: len(into)].data

    def view(self, name: str, start: int, length: int) -> memoryview | None:
        """See :meth:`merganser.checkpoints.Checkpoint.view`. Computed tensors have no view."""
        tensor = self._tensors[name]
        return self._inner.view(tensor, start, length) if isinstance(tensor, str) else None

    def scratch(self, name: str) -> int:
        """Temporary bytes per element for reading a tensor, in addition to the result."""
        tensor = self._tensors[name]
        inner = self._inner
        if isinstance(tensor, str):
            return inner.scratch(tensor) if isinstance(inner, DerivedCheckpoint) else 0
        levels = 1
        while isinstance(inner, DerivedCheckpoint):  # each wrapper computes a range
            levels, inner = levels + 1, inner._inner
        return levels * SCRATCH * tensor.spec.dtype.itemsize

    def close(self) -> None:
        """Close the sources."""
        for checkpoint in (self._inner, *self._others):
            checkpoint.close()


def look(checkpoint: Checkpoint, name: str, start: int, buffer: Array) -> Array:
    """Return a tensor's stored bytes from byte ``start`` on, as many as ``buffer`` has: read-only uint8.

    The result is a view of mapped memory if possible, else the filled buffer.
    """
    seen = checkpoint.view(name, start, len(buffer)) if len(buffer) else None
    if seen is not None:
        import numpy as np

        return np.frombuffer(seen, np.uint8)
    if len(buffer):
        checkpoint.read(name, start, buffer.data)
    return buffer


def cached(function: Callable[..., T], most: int) -> Callable[..., T]:
    """Return a function that caches the ``most`` latest results of ``function``.

    Threads that need the same result wait for one call. This serves tiles whose computation needs more of
    a tensor than the tile itself.
    """
    latest, lock = lru_cache(maxsize=most)(function), threading.Lock()

    def call(*arguments: Hashable) -> T:
        with lock:
            return latest(*arguments)

    return call


def read_stored(checkpoint: Checkpoint, name: str, start: int, count: int) -> Array:
    """Elements ``start`` to ``start + count`` of a tensor as stored: uint8 [count * itemsize]."""
    import numpy as np

    size = checkpoint.specs[name].dtype.itemsize
    stored = np.empty(count * size, np.uint8)
    if count:
        checkpoint.read(name, start * size, stored.data)
    return stored


def read_numbers(checkpoint: Checkpoint, name: str, start: int, count: int) -> Array:
    """A range of a tensor as numbers: float32 [count], or float64 if stored as float64.

    Raises:
        InputError: when its dtype is not a float of 16 bits or more.
    """
    import numpy as np

    dtype = checkpoint.specs[name].dtype
    stored = read_stored(checkpoint, name, start, count)
    if dtype.name == "bfloat16":
        wide = stored.view(np.uint16).astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    if dtype.name == "float16":
        return stored.view(np.float16).astype(np.float32)
    if dtype.name in ("float32", "float64"):
        return stored.view(dtype.name)
    raise InputError(
        f"{checkpoint.label}: tensor {name!r} is {dtype}, which is not a dtype of weights"
    )
