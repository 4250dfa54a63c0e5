"""The header of a GGUF file: typed keys, and the location of each tensor."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from merganser.checkpoints.gguf import ggml
from merganser.errors import InputError
from merganser.tensors import BY_NAME

MAX_HEADER = 256 * 2**20
"""Maximum size of the header in bytes; real ones, with their vocabularies, take 10 MB."""

MAX_ENTRIES = 1 << 21
"""Maximum number of strings; real vocabularies and their merges have under 2^20."""

MAX_NAMED = 1 << 16
"""Maximum number of keys, and of tensors."""

_SCALARS = dict(enumerate(["B", "b", "H", "h", "I", "i", "f", "?"])) | {10: "Q", 11: "q", 12: "d"}
"""Types of numeric values, as :mod:`struct` names them."""

_TEXT, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor of a GGUF file.

    Attributes:
        file: the file.
        kind: ggml's type number.
        shape: its shape, outermost axis first.
        offset: byte offset of its data in the file.
    """

    file: Path
    kind: int
    shape: tuple[int, ...]
    offset: int


class _Stream:
    """Reads a header from start to end, within the file."""

    def __init__(self, file: Path, stream: BinaryIO) -> None:
        self.file = file
        self.stream = stream
        self.size = os.fstat(stream.fileno()).st_size
        self.position = 0
        self.texts = 0

    def wrong(self, what: str) -> InputError:
        return InputError(f"{self.file}: {what}")

    def take(self, count: int) -> bytes:
        if not self.size:
            raise self.wrong("is empty")
        if count > self.size - self.position:
            raise self.wrong("its header is longer than the file; the file is cut off, or not GGUF")
        if self.position + count > MAX_HEADER:
            raise self.wrong(f"its header is larger than {MAX_HEADER >> 20} MiB")
        raw = self.stream.read(count)
        if len(raw) < count:
            raise self.wrong("was cut off while it was read")
        self.position += count
        return raw

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        self.texts += 1
        if self.texts > MAX_ENTRIES:
            raise self.wrong(f"its header has more than {MAX_ENTRIES} texts")
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """A key's value: a number, a string, a list of strings, or an array of numbers."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY:
            raise self.wrong(f"a key has the unknown type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner in _SCALARS:
            code = _SCALARS[inner]
            return np.frombuffer(self.take(count * struct.calcsize(f"<{code}")), f"<{code}")
        if inner != _TEXT:
            raise self.wrong(f"an array has elements of the type {inner}, which is unknown")
        if count > MAX_ENTRIES or 8 * count > self.size:
            raise self.wrong(f"an array says that it has {count} texts")
        return [self.text() for _ in range(count)]


def read_header(file: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    """Read the keys of a GGUF file, and its tensors in the order of their bytes.

    Raises:
        InputError: when it is not a GGUF file, is truncated, or its tensors overlap.
    """
    try:
        with file.open("rb") as opened:
            stream = _Stream(file, opened)
            if stream.size < 24 or stream.take(4) != b"GGUF":
                raise stream.wrong("does not begin like a GGUF file; fetch it again")
            version = stream.number("I")
            if version not in (2, 3):
                swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3)
                what = (
                    "has its bytes in big-endian order" if swapped else f"is of version {version}"
                )
                raise stream.wrong(f"{what}; GGUF of versions 2 and 3, little-endian, can be read")
            tensors, count = stream.number("Q"), stream.number("Q")
            if max(tensors, count) > MAX_NAMED:
                raise stream.wrong(
                    f"its header says that it has {tensors} tensors and {count} keys, too many"
                )
            keys = {}
            for _ in range(count):
                name = stream.text()
                keys[name] = stream.value(stream.number("I"))
            infos = [_info(stream) for _ in range(tensors)]
            return keys, _entries(stream, keys, infos)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None


def _info(stream: _Stream) -> tuple[str, tuple[int, ...], int, int]:
    name, axes = stream.text(), stream.number("I")
    if not 0 < axes <= 4:
        raise stream.wrong(f"tensor {name[:80]!r} has {axes} axes")
    shape = tuple(reversed([stream.number("Q") for _ in range(axes)]))
    return name, shape, stream.number("I"), stream.number("Q")


def _entries(
    stream: _Stream, keys: Mapping[str, Any], infos: Sequence[tuple[str, tuple[int, ...], int, int]]
) -> dict[str, GgufTensor]:
    """Check that tensors are inside the file and do not overlap."""
    alignment = keys.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
        raise stream.wrong(f"general.alignment is {str(alignment)[:40]!r}")
    start = -(-stream.position // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    end = 0
    for name, shape, kind, offset in sorted(infos, key=lambda info: info[3]):
        if name in tensors:
            raise stream.wrong(f"has tensor {name!r} twice")
        if offset < end:
            raise stream.wrong(f"the bytes of tensor {name!r} overlap others")
        end = offset + _bytes_of(stream, name, shape, kind)
        if start + end > stream.size:
            raise stream.wrong(
                f"is cut off within tensor {name!r} ({stream.size} bytes of at least {start + end}); "
                "fetch it again"
            )
        tensors[name] = GgufTensor(stream.file, kind, shape, start + offset)
    return tensors


def _bytes_of(stream: _Stream, name: str, shape: tuple[int, ...], kind: int) -> int:
    numel = math.prod(shape)
    if kind in ggml.PLAIN:
        return numel * BY_NAME[ggml.PLAIN[kind]].itemsize
    form = ggml.FORMATS.get(kind)
    if form is None:
        known = ", ".join(f.name for f in ggml.FORMATS.values())
        raise stream.wrong(
            f"tensor {name!r} is of type {ggml.OTHERS.get(kind, kind)}, which cannot be read; "
            f"take the model in F32, F16, BF16 or one of {known}"
        )
    if shape[-1] % form.count:
        raise stream.wrong(
            f"tensor {name!r}: {form.name} cannot store rows of {shape[-1]} elements"
        )
    return numel // form.count * form.size
