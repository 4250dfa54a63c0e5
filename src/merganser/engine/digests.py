"""Digests of tensors (scheme ``mg1``, see ``docs/output.md``), computed from those of their
cells."""

from __future__ import annotations

import hashlib
from typing import Any, Protocol

import numpy as np

from merganser.kernels import CELL, storage
from merganser.tensors import TensorSpec

PIECE = 256 * CELL
"""Bytes read at a time."""


class Reader(Protocol):
    """Reads a tensor's bytes."""

    def __call__(self, start: int, into: memoryview) -> None:
        """Fill a buffer with the bytes from ``start`` on."""


def digest_of(spec: TensorSpec, cells: np.ndarray[Any, Any]) -> str:
    """A tensor's digest from the digests of its cells, uint64 [bytes / CELL, rounded up]."""
    data = str(spec).encode() + cells.tobytes()
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def read_digest(spec: TensorSpec, read: Reader) -> str:
    """The digest of a tensor, whose bytes are read in order through ``read``."""
    cells = np.zeros(-(-spec.nbytes // CELL), np.uint64)
    buffer = np.empty(min(PIECE, spec.nbytes), np.uint8)
    for start in range(0, spec.nbytes, PIECE):
        piece = buffer[: min(PIECE, spec.nbytes - start)]
        read(start, piece.data)
        first = start // CELL
        storage.digest(piece, cells[first : first - (-len(piece) // CELL)])
    return digest_of(spec, cells)
