"""PyTorch's archives with something in them changed."""

from __future__ import annotations

import enum
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def rezipped(source: Path, target: Path, change: Callable[[str, bytes], bytes], **how: Any) -> Path:
    """An archive with its entries changed; target may be source."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(buffer, "w", **how) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
    target.write_bytes(buffer.getvalue())
    return target


def edited(source: Path, target: Path, change: Callable[[bytes], bytes]) -> Path:
    """An archive with its pickle changed, which must be one that the change changes."""

    def only_pickles(name: str, data: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return data
        changed = change(data)
        assert changed != data
        return changed

    return rezipped(source, target, only_pickles)


def by_name(member: enum.Enum, _protocol: int) -> tuple[Any, ...]:
    """How Python 3.11.0 to 3.11.3 pickle a member of an enumeration."""
    return getattr, (type(member), member.name)


def by_value(member: enum.Enum, _protocol: int) -> tuple[Any, ...]:
    """How all other releases do."""
    return type(member), (member.value,)
