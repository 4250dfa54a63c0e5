"""Safetensors: a folder with one file or an index of shards, or a single file.

The format: 8 bytes with the header's length (little-endian), a JSON header that gives each
tensor's dtype, shape and range of bytes, then the bytes. Headers are checked as the reference
implementation does: ranges must be inside the file, follow one another without gap or overlap, and
fit dtype and shape.

PyTorch's ``HuggingFaceStorageWriter`` also writes distributed checkpoints in this format. The
headers' metadata then give the origin of each rank's part of a tensor, and reading joins the parts.
"""

from __future__ import annotations

import hashlib
import math
import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merganser.architecture import infer, vocabulary_size
from merganser.checkpoints.sidecar_files import parse_json, read_config, read_index
from merganser.checkpoints.stored import MAX_TENSORS, Piece, StoredCheckpoint, StoredTensor
from merganser.checkpoints.training import run_folders
from merganser.checkpoints.wrapped_names import unwrapped
from merganser.errors import InputError
from merganser.tensors import BY_TAG, TensorSpec

MAX_HEADER = 100_000_000
"""The reference implementation's limit on a header's bytes."""

MAX_AXES = 16
"""Maximum number of axes, above that of any real tensor."""

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

SHARDED = "sharded"
"""The subfolder in which PyTorch stores the ranks' parts."""

_OFFSETS = "DCP_SHARDING_INFO"

Origins = Mapping[str, tuple[int, ...]]
"""For each part in a file, by the tensor's name, the index of its first element in the tensor."""


def open_folder(path: Path, label: str) -> StoredCheckpoint | None:
    """Open a folder or file of safetensors; None if it is not one.

    Raises:
        InputError: when an index or a header is invalid.
    """
    if path.is_file():
        return _build(label, path, [path], None, {})
    config = read_config(path)
    if (path / INDEX).is_file():
        wanted = read_index(path / INDEX)
        files = [path / name for name in sorted(set(wanted.values()))]
        return _build(label, path, files, wanted, config)
    if (path / SINGLE).is_file():
        return _build(label, path, [path / SINGLE], None, config)
    loose = sorted(path.glob("*.safetensors"))
    loose = [file for file in loose if not file.name.startswith(("adapter", "consolidated"))]
    loose = loose or sorted((path / SHARDED).glob("shard-*.safetensors"))
    loose = [file for file in loose if file.is_file()]  # opening a pipe would block
    return _build(label, path, loose, None, config) if loose else None


def _build(
    label: str,
    path: Path,
    files: list[Path],
    wanted: Mapping[str, str] | None,
    config: Mapping[str, Any],
) -> StoredCheckpoint:
    tensors: dict[str, StoredTensor] = {}
    parts: dict[str, list[StoredTensor]] = {}
    digest = hashlib.sha256()
    for file in files:
        in_file, origins = _read_header(file, digest)
        for name, tensor in in_file.items():
            if wanted is None and origins is not None:
                parts.setdefault(name, []).append(_at(tensor, origins[name]))
                continue
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
    home = path
    if parts:
        home = run_folders.companions(path) if path.is_dir() else path
        if home.is_dir() and (home / "config.json").is_file():
            config = read_config(home)
        tensors |= _joined(path, parts, config)
    return StoredCheckpoint(
        label,
        path,
        tensors,
        format=f"distributed checkpoint of {len(files)} safetensors" if parts else "safetensors",
        files=files,
        config=config,
        path=home,
        header_digest=digest.hexdigest(),
    )


# -- parts of ranks ----------------------------------------------------------------------------------


def _at(tensor: StoredTensor, origin: tuple[int, ...]) -> StoredTensor:
    """A rank's part, placed in its tensor with its first element at index ``origin``."""
    shape = tensor.spec.shape
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    [piece] = tensor.pieces
    placed = Piece(piece.file, piece.offset, shape, strides, origin)
    return StoredTensor(tensor.spec, (placed,), shape)


def _joined(
    path: Path, parts: Mapping[str, Sequence[StoredTensor]], config: Mapping[str, Any]
) -> dict[str, StoredTensor]:
    """Join the ranks' parts to tensors, whose shapes follow from the parts.

    Raises:
        InputError: when parts are missing, or belong to different models.
    """
    names = unwrapped(parts, path)
    plain = names.values()
    if all(n.startswith("model.") for n in plain) and any(
        n.startswith("model.model.") for n in plain
    ):
        names = {name: short.removeprefix("model.") for name, short in names.items()}
    joined = {}
    for name, rank_parts in parts.items():
        pieces = [piece for part in rank_parts for piece in part.pieces]
        dtypes = {part.spec.dtype for part in rank_parts}
        try:
            if len(dtypes) > 1 or len({len(piece.size) for piece in pieces}) > 1:
                raise ValueError("they differ in dtype or number of axes")
            corners = (map(operator.add, piece.origin, piece.size) for piece in pieces)
            spec = TensorSpec(dtypes.pop(), tuple(map(max, zip(*corners, strict=True))))
            joined[names[name]] = StoredTensor.of_pieces(spec, pieces)
        except ValueError as error:
            raise InputError(
                f"{path}: the ranks' parts of tensor {name!r} do not join ({error}); is a file missing?"
            ) from None
    specs = {name: tensor.spec for name, tensor in joined.items()}
    rows = vocabulary_size(config)
    for name, place in infer(specs, config).places.items():
        embedding = place.role == "embedding" and place.vocabulary
        if embedding and rows is not None and specs[name].shape[:1] < (rows,):
            raise InputError(
                f"{path}: tensor {name!r} is {specs[name]}, but config.json says {rows} "
                "rows; the files of the last ranks are missing"
            )
    return joined


# -- headers -----------------------------------------------------------------------------------------


def _check_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a name is given twice")
    return data


def _read_header(
    file: Path, digest: hashlib._Hash
) -> tuple[dict[str, StoredTensor], Origins | None]:
    """Read and check a file's header.

    Returns:
        The tensors in the order of their bytes; and the origins of ranks' parts, or None if the file
        contains complete tensors.
    """
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if size == 0:
                raise InputError(f"{file}: is empty")
            if size < 8 or length > min(MAX_HEADER, size - 8):
                raise InputError(
                    f"{file}: its header is longer than the file; the file is cut off, or not safetensors"
                )
            raw = stream.read(length)
        digest.update(raw)
        header = parse_json(raw, _check_duplicates)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"{file}: its header is not valid JSON ({str(error)[:100]})") from None
    if not isinstance(header, dict):
        raise InputError(f"{file}: its header is not a JSON object")
    metadata = header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise InputError(f"{file}: has {len(header)} tensors; at most {MAX_TENSORS} can be read")
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
    given = metadata.get(_OFFSETS) if isinstance(metadata, dict) else None
    return tensors, _origins(file, given, tensors) if isinstance(given, str) else None


def _origins(file: Path, given: str, tensors: Mapping[str, StoredTensor]) -> Origins:
    try:
        places = parse_json(given.encode())
        origins = {name: tuple(places[name]["saved_offsets"]) for name in tensors}
    except (ValueError, KeyError, TypeError):
        origins = {}
    for name, tensor in tensors.items():
        origin = origins.get(name)
        valid = origin is not None and all(type(n) is int and 0 <= n < 1 << 48 for n in origin)
        if origin is None or not valid or len(origin) != len(tensor.spec.shape):
            raise InputError(f"{file}: its {_OFFSETS} does not say where tensor {name!r} begins")
    return origins


def _entry(file: Path, name: str, entry: Any) -> tuple[TensorSpec, int, int]:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, end]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{file}: the header's entry of tensor {name!r} is malformed") from None
    sizes = all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**63 for n in numbers)
    if not sizes or end < begin or len(shape) > MAX_AXES:
        raise InputError(f"{file}: tensor {name!r} has an impossible shape or range")
    if not isinstance(dtype, str) or dtype not in BY_TAG:
        raise InputError(f"{file}: tensor {name!r} has the unknown dtype {str(dtype)[:20]!r}")
    spec = TensorSpec(BY_TAG[dtype], tuple(shape))
    if spec.nbytes != end - begin:
        raise InputError(
            f"{file}: tensor {name!r} is {spec}, {spec.nbytes} bytes, but has {end - begin} in the file"
        )
    return spec, begin, end
