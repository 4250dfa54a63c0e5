"""Read the small files of a checkpoint: JSON, indices, texts.

Their author is untrusted, so their size, depth, numbers and targets of links are checked.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from merganser.errors import InputError

MAX_BYTES = 64 * 2**20
"""Maximum size of a JSON file in bytes; the largest tokenizers have 35 MB."""

SMALL = 2**20
"""Maximum size in bytes of a JSON file that is parsed only to check it."""

MAX_ENTRIES = 1 << 22
"""Maximum number of entries in all lists and mappings of a file; the largest tokenizers have 2 million."""

MAX_DEPTH = 64
"""Maximum nesting depth of lists and mappings."""

MAX_DIGITS = 40
"""Maximum number of digits of an integer; ``model_max_length`` is often 10^30."""

MAX_TEXT = 16 * 2**20
"""Maximum size in bytes of a text file, such as a chat template."""

Pairs = Callable[[list[tuple[str, Any]]], Any]


def parse_json(raw: bytes, pairs: Pairs | None = None) -> Any:
    """Parse JSON within limits of size and depth.

    Args:
        raw: the file's bytes.
        pairs: builds a mapping from keys and values; if None, a dict in which the last of equal keys
            wins.

    Raises:
        ValueError: when it is not JSON, or beyond the limits.
    """
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > MAX_ENTRIES:
        raise ValueError(f"more than {MAX_ENTRIES} entries")
    try:
        data = json.loads(raw.decode("utf-8"), object_pairs_hook=pairs, parse_int=_whole)
    except RecursionError:
        raise ValueError("nested too deep") from None
    level: list[Any] = [[data]]
    for _ in range(MAX_DEPTH + 2):
        entries = (part.values() if isinstance(part, dict) else part for part in level)
        level = [each for part in entries for each in part if isinstance(each, dict | list)]
    if level:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    if re.search(rb"\\u[dD][89a-fA-F]", raw):  # a lone surrogate cannot be written to a file
        json.dumps(data, ensure_ascii=False).encode("utf-8")
    return data


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a small file of a checkpoint.

    Raises:
        InputError: when the file is missing, broken, too large, not an object, or a foreign link.
    """
    try:
        check_link(path)
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: too large for what it should be")
        with path.open("rb") as stream:
            data = parse_json(stream.read(MAX_BYTES + 1))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({str(error)[:120]})") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: holds no JSON object")
    return data


def check_json(file: Path) -> None:
    """Check that a JSON file can be parsed; of a file above 1 MiB only that it is not cut off.

    Raises:
        InputError: when it is not JSON, or cannot be read.
    """
    try:
        with file.open("rb") as stream:
            if file.stat().st_size <= SMALL:
                parse_json(stream.read())
                return
            stream.seek(-64, os.SEEK_END)
            if not stream.read().rstrip().endswith((b"}", b"]")):
                raise ValueError("the file is cut off")
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not readable as JSON ({str(error)[:120]})") from None


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a folder, or an empty mapping if there is none.

    Raises:
        InputError: when it is broken, or ``architectures`` or ``model_type`` has a wrong type.
    """
    file = folder / "config.json"
    if not file.is_file():
        return {}
    config = read_json(file)
    classes = config.get("architectures")
    if classes is not None and not _is_texts(classes):
        raise InputError(f"{file}: architectures is not a list of names")
    if not isinstance(config.get("model_type", ""), str | NoneType):
        raise InputError(f"{file}: model_type is not a name")
    return config


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def read_index(file: Path) -> dict[str, str]:
    """Read the file of each tensor from an index of shards.

    Raises:
        InputError: when it names files that are missing, or outside the folder.
    """
    weight_map = read_json(file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{file}: has no weight_map")
    existing: set[str] = set()
    for name, shard in weight_map.items():
        if isinstance(shard, str) and shard in existing:
            continue
        if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".", ".."):
            target = repr(shard)[:80]
            raise InputError(f"{file}: tensor {name[:80]!r} points outside the folder, to {target}")
        if not _is_file(file.parent / shard):
            raise InputError(f"{file}: names the file {shard[:80]!r}, which is missing")
        existing.add(shard)
    return weight_map


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except (OSError, ValueError):  # the name is too long or contains NUL
        return False


def read_text(file: Path) -> str:
    """Read a text file, such as a chat template.

    Raises:
        InputError: when it is not text, too large, or a foreign link.
    """
    try:
        check_link(file)
        if file.stat().st_size > MAX_TEXT:
            raise InputError(f"{file}: too large for what it should be")
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not readable as a text ({str(error)[:120]})") from None


def check_link(file: Path) -> None:
    """Check that a file is not a link out of its folder, which could copy any file into an output.

    Links into the blobs of the Hub's cache are allowed, and so are links to files of the same name, with
    which users store models in another folder.

    Raises:
        InputError: for any other link.
    """
    if not file.is_symlink():
        return
    home, target = file.parent.resolve(), file.resolve()
    inside = target.is_relative_to(home) or target.name == file.name
    if not inside and target.parent not in _blobs([home, *home.parents]):
        raise InputError(
            f"{file}: is a link out of its folder, to {target}; if that is meant, put the file itself there"
        )


def _blobs(folders: Sequence[Path]) -> list[Path]:
    """The folders in which a Hub cache stores the files of its snapshots."""
    return [folder.parent / "blobs" for folder in folders if folder.name == "snapshots"]
