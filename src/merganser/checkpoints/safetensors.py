"""Safetensors: a folder with one file or an index of shards, or a bare file.

The format: 8 bytes with the header's length (little-endian), a JSON header that gives each
tensor's dtype, shape and range of bytes, then the bytes. Headers are checked as the reference
implementation does: ranges must lie in the file, follow one another without gap or overlap, and
fit dtype and shape.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merganser.checkpoints import read_index, read_json
from merganser.checkpoints.stored import StoredCheckpoint, StoredTensor
from merganser.errors import InputError
from merganser.tensors import BY_TAG, TensorSpec

MAX_HEADER = 100_000_000
"""The reference implementation's limit on a header's bytes."""

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def open_folder(path: Path, label: str) -> StoredCheckpoint | None:
    """Open a folder or file of safetensors; None when it is none.

    Raises:
        InputError: when an index or a header is wrong.
    """
    if path.is_file():
        if path.suffix != ".safetensors":
            return None
        return _build(label, path, [path], None, {})
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if (path / INDEX).is_file():
        wanted = read_index(path / INDEX)
        files = [path / name for name in sorted(set(wanted.values()))]
        return _build(label, path, files, wanted, config)
    if (path / SINGLE).is_file():
        return _build(label, path, [path / SINGLE], None, config)
    loose = sorted(path.glob("*.safetensors"))
    loose = [file for file in loose if not file.name.startswith(("adapter", "consolidated"))]
    return _build(label, path, loose, None, config) if loose else None


def _build(
    label: str,
    path: Path,
    files: list[Path],
    wanted: Mapping[str, str] | None,
    config: Mapping[str, Any],
) -> StoredCheckpoint:
    tensors: dict[str, StoredTensor] = {}
    digest = hashlib.sha256()
    for file in files:
        for name, tensor in _read_header(file, digest).items():
            if name in tensors:
                other = tensors[name].pieces[0].file.name
                raise InputError(f"{file}: tensor {name!r} is also in {other}")
            if wanted is None or wanted.get(name) == file.name:
                tensors[name] = tensor
    for name, file_name in (wanted or {}).items():
        if name not in tensors:
            raise InputError(
                f"{path / file_name}: lacks tensor {name!r}, which {INDEX} says is there"
            )
    return StoredCheckpoint(
        label,
        path,
        tensors,
        format="safetensors",
        files=files,
        config=config,
        header_digest=digest.hexdigest(),
    )


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a name is given twice")
    return data


def _read_header(file: Path, digest: hashlib._Hash) -> dict[str, StoredTensor]:
    """Read and check one file's header; tensors in the order of their bytes."""
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(MAX_HEADER, size - 8):
                raise InputError(
                    f"{file}: its header does not fit in it; the file is cut off or no safetensors"
                )
            raw = stream.read(length)
        digest.update(raw)
        header = json.loads(raw, object_pairs_hook=_refuse_duplicates)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: its header is not valid JSON ({str(error)[:100]})") from None
    if not isinstance(header, dict):
        raise InputError(f"{file}: its header is no JSON object")
    header.pop("__metadata__", None)
    base = 8 + length
    entries = sorted(
        ((name, *_entry(file, name, entry)) for name, entry in header.items()),
        key=lambda e: (e[2], e[3]),
    )
    position = 0
    tensors = {}
    for name, spec, begin, end in entries:
        if begin != position:
            raise InputError(f"{file}: the bytes of tensor {name!r} overlap others or leave a gap")
        position = end
        tensors[name] = StoredTensor.dense(spec, file, base + begin)
    if base + position != size:
        state = "is cut off" if base + position > size else "has bytes that belong to no tensor"
        raise InputError(f"{file}: {state} ({size} bytes, its header needs {base + position})")
    return tensors


def _entry(file: Path, name: str, entry: Any) -> tuple[TensorSpec, int, int]:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = [*shape, begin, end]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{file}: the header's entry of tensor {name!r} is malformed") from None
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in whole) or end < begin:
        raise InputError(f"{file}: tensor {name!r} has an impossible shape or range")
    if not isinstance(dtype, str) or dtype not in BY_TAG:
        raise InputError(f"{file}: tensor {name!r} is of the unknown type {str(dtype)[:20]!r}")
    spec = TensorSpec(BY_TAG[dtype], tuple(shape))
    if spec.nbytes != end - begin:
        raise InputError(
            f"{file}: tensor {name!r} is {spec}, {spec.nbytes} bytes, but has {end - begin} in the file"
        )
    return spec, begin, end
