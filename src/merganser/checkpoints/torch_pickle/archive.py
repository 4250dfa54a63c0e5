"""The zip archive of a PyTorch file: the location of its pickle and its storages."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merganser.errors import InputError

MAX_DIRECTORY = 2**24
"""Maximum size of a zip archive's directory, in bytes; an entry takes about 80."""

MAGIC_OF_OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of files that PyTorch before 1.6 wrote."""


class FilePart(io.RawIOBase):
    """A part of a file as a file object."""

    def __init__(self, stream: io.BufferedReader, begin: int, end: int) -> None:
        self.begin = begin
        self.size = end - begin
        self._stream = stream
        self._position = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Read up to ``size`` bytes; raise an error if ``size`` exceeds :data:`MAX_DIRECTORY`."""
        if size > MAX_DIRECTORY:
            raise zipfile.BadZipFile
        return super().read(size) or b""

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move, relative to the part."""
        start = (0, self._position, self.size)[whence]
        if start + offset < 0:
            raise ValueError("before the beginning")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read, up to the part's end."""
        self._stream.seek(self.begin + self._position)
        left = max(0, self.size - self._position)
        count = self._stream.readinto(memoryview(buffer)[:left])
        self._position += count
        return count


def entries_of(file: Path, window: FilePart, start: bytes) -> dict[str, tuple[int, int]]:
    """Byte offset and size of every entry of a zip archive."""
    try:
        with zipfile.ZipFile(window) as archive:
            entries = {}
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                    raise InputError(
                        f"{file}: is a compressed archive, which PyTorch never writes; unzip it and zip "
                        "it again without compression (zip -0)"
                    )
                window.seek(info.header_offset)
                local = window.read(30) or b""
                if len(local) < 30 or local[:4] != b"PK\x03\x04":
                    raise zipfile.BadZipFile
                skip = int.from_bytes(local[26:28], "little") + int.from_bytes(
                    local[28:30], "little"
                )
                begin = info.header_offset + 30 + skip
                if begin + info.file_size > window.size:
                    raise zipfile.BadZipFile
                entries[info.filename] = (window.begin + begin, info.file_size)
            return entries
    except InputError:
        raise
    except Exception:  # zipfile raises many exceptions for damaged directories
        if start == MAGIC_OF_OLD:
            raise InputError(
                f"{file}: is in the format that PyTorch had before 1.6; save it again with "
                "torch.save(torch.load(FILE, weights_only=True), FILE)"
            ) from None
        raise InputError(
            f"{file}: is cut off, damaged, or not a PyTorch file; fetch it again"
        ) from None


def find_parts(
    file: Path, entries: Mapping[str, tuple[int, int]]
) -> tuple[tuple[int, int], dict[str, tuple[int, int]]]:
    """The pickle, and the storages by key."""
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise InputError(f"{file}: is a zip archive that PyTorch did not write")
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}constants.pkl" in entries:
        raise InputError(f"{file}: is a TorchScript program; save its state_dict() instead")
    order = entries.get(f"{prefix}byteorder")
    if order is not None and order[1] != len("little"):
        raise InputError(f"{file}: was written on a big-endian machine, which is not supported")
    inside = f"{prefix}data/"
    return entries[pickles[0]], {
        name.removeprefix(inside): place
        for name, place in entries.items()
        if name.startswith(inside)
    }
