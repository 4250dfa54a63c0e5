"""Copy and write the small files of a model, with an error that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from merganser.checkpoints.sidecar_files import check_link
from merganser.errors import InputError, ResourceError


def write_text(file: Path, text: str) -> None:
    """Write a file of the output.

    Raises:
        ResourceError: when it cannot be written.
    """
    write_bytes(file, text.encode("utf-8"))


def write_json(file: Path, data: Any, *, indent: int = 2) -> None:
    """Write an indented JSON file of the output.

    Raises:
        ResourceError: when it cannot be written.
    """
    write_text(file, json.dumps(data, indent=indent, ensure_ascii=False) + "\n")


def write_bytes(file: Path, data: bytes) -> None:
    """Write a file of the output.

    Raises:
        ResourceError: when it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    except OSError as error:
        raise ResourceError(f"{file}: cannot be written ({error.strerror})") from None


def copy(source: Path, target: Path) -> None:
    """Copy a file of an input to the output.

    Raises:
        InputError: when it cannot be read, or is a link that leaves its folder.
        ResourceError: when the copy cannot be written.
    """
    check_link(source)
    try:
        data = source.read_bytes()
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror})") from None
    write_bytes(target, data)
