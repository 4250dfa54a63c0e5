"""Distributed checkpoints of PyTorch: a folder with ``.metadata`` and ``*.distcp``.

``.metadata`` is a pickle with the dtype, shape and chunks of every tensor, and with the file and byte
range of every chunk, which is a complete PyTorch archive. FSDP, accelerate and TorchTitan write this
format; Megatron-core calls it ``torch_dist``, and names tensors differently.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from merganser.checkpoints import pytorch, torch_pickle
from merganser.checkpoints.sidecar_files import read_config
from merganser.checkpoints.stored import Parts, Piece, StoredCheckpoint, StoredTensor
from merganser.checkpoints.torch_pickle import Names, PickledTensor, Record, record
from merganser.checkpoints.training import megatron, run_folders
from merganser.checkpoints.training.run_folders import METADATA, Contents
from merganser.errors import InputError
from merganser.tensors import DType, TensorSpec

Metadata = record("Metadata")
TensorStorage = record("TensorStorageMetadata")

_OPTIMIZERS = ("optimizer.", "optim.", "optimizers.")


def _names() -> Names:
    checkpoint, sharded = "torch.distributed.checkpoint", "torch.distributed._shard.sharded_tensor"
    names: dict[tuple[str, str], Any] = {
        (f"{checkpoint}.metadata", "Metadata"): Metadata,
        (f"{checkpoint}.metadata", "TensorStorageMetadata"): TensorStorage,
    }
    for module, inert in (
        (f"{checkpoint}.metadata", "BytesStorageMetadata"),
        (f"{checkpoint}.metadata", "ChunkStorageMetadata"),
        (f"{checkpoint}.metadata", "MetadataIndex"),
        (f"{checkpoint}.metadata", "StorageMeta"),
        (f"{checkpoint}.metadata", "TensorProperties"),
        (f"{sharded}.metadata", "TensorProperties"),
        (f"{checkpoint}.filesystem", "_StorageInfo"),
        (f"{checkpoint}.filesystem", "_StoragePrefix"),
        ("megatron.core.dist_checkpointing.strategies.torch", "MCoreMetadata"),
        ("megatron.core.dist_checkpointing.strategies.torch", "MCoreSavePlan"),
    ):
        names[module, inert] = record(inert)
    for module in ("pathlib", "pathlib._local"):
        for inert in ("Path", "PosixPath", "WindowsPath"):
            names[module, inert] = record(inert)
    return {**names, **torch_pickle.GETATTR, **torch_pickle.MEMORY_FORMATS}


NAMES = _names()
"""Names that the pickle ``.metadata`` may use, in addition to tensors."""


def open_folder(path: Path, label: str) -> StoredCheckpoint | None:
    """Open a folder with a distributed checkpoint of PyTorch; None if it is not one.

    Raises:
        InputError: when files are missing or truncated, or chunks do not cover a tensor.
    """
    file = path / METADATA
    if not file.is_file():
        return None
    fields = _metadata(file)
    home = run_folders.companions(path)
    config = read_config(home)
    try:
        places = _places(path, fields["storage_data"])
        stored = _stored(fields)
        if stored and (reason := run_folders.why_no_model(path, _contents(stored))):
            raise InputError(f"{path}: {reason}")
        nested = _nested(stored, fields.get("planner_data"))
        parameters, nest = pytorch.state_dict(file, nested, str)
        parts = {
            name: _parts(file, name, stored[key].fields, places.get(key, {}))
            for name, key in parameters.items()
            if nest or not name.startswith(_OPTIMIZERS)
        }
    except torch_pickle.MALFORMED as error:
        raise InputError(f"{file}: does not say where its tensors are ({error})") from None
    kind = "distributed checkpoint"
    if megatron.is_megatron(parts):
        kind = "Megatron distributed checkpoint"
        parts = megatron.renamed(parts, config, file)
    tensors = {}
    for name, (spec, pieces) in parts.items():
        try:
            tensors[name] = StoredTensor.of_pieces(spec, pieces)
        except ValueError as error:
            raise InputError(
                f"{file}: the chunks of tensor {name!r} do not join ({error})"
            ) from None
    files = sorted({piece.file for tensor in tensors.values() for piece in tensor.pieces})
    if not tensors:
        raise InputError(f"{file}: holds no tensors of a model")
    _check_cut_off(files, places)
    return StoredCheckpoint(
        label,
        path,
        tensors,
        format=f"{kind} of {len(files)} file{'s' if len(files) > 1 else ''}",
        files=[file, *files],
        config=config,
        path=home,
        notes=[f"{label}: the weights are those under {nest!r}"]
        if nest not in ("", "model")
        else (),
    )


def contents(folder: Path) -> Contents:
    """The contents of a folder with ``.metadata``, by the names of its tensors.

    Raises:
        InputError: when ``.metadata`` cannot be read.
    """
    file = folder / METADATA
    try:
        return _contents(_stored(_metadata(file)))
    except torch_pickle.MALFORMED as error:
        raise InputError(f"{file}: does not say where its tensors are ({error})") from None


def _contents(names: Collection[str]) -> Contents:
    weights = [name for name in names if not name.startswith(_OPTIMIZERS)]
    if not weights:
        return "optimizer"
    adapted = megatron.is_megatron(weights) and any(".adapter." in name for name in weights)
    return "adapter" if adapted else "model"


def _metadata(file: Path) -> Mapping[str, Any]:
    """The fields of a ``.metadata`` file."""
    try:
        if file.stat().st_size > torch_pickle.MAX_PICKLE:
            raise InputError(f"{file}: too large for what it should be")
        content = torch_pickle.unpickle(file.read_bytes(), file, NAMES)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    if not isinstance(content, Metadata):
        raise InputError(f"{file}: holds no metadata of a distributed checkpoint")
    return content.fields


def _stored(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors among the entries of ``.metadata``."""
    entries = fields["state_dict_metadata"].items()
    return {name: entry for name, entry in entries if isinstance(entry, TensorStorage)}


StoredRange = tuple[Path, int, int]


def _places(
    folder: Path, storage: Mapping[Any, Any]
) -> dict[str, dict[tuple[int, ...], StoredRange]]:
    """File, offset and length of every chunk, by its tensor and its origin in the tensor."""
    places: dict[str, dict[tuple[int, ...], StoredRange]] = {}
    for index, info in storage.items():
        where, stored = index.fields, info.fields
        relative = Path(stored["relative_path"])
        if relative.is_absolute() or ".." in relative.parts:
            raise InputError(
                f"{folder / METADATA}: points outside the folder, to {str(relative)[:80]!r}"
            )
        if stored.get("transform_descriptors"):
            raise InputError(f"{folder / METADATA}: its chunks are compressed; save them without")
        at, length = torch_pickle.sizes_of((stored["offset"], stored["length"]))
        origin = torch_pickle.sizes_of(where.get("offset") or ())
        places.setdefault(where["fqn"], {})[origin] = folder / relative, at, length
    _check_overlap(folder, [place for chunks in places.values() for place in chunks.values()])
    return places


def _check_overlap(folder: Path, places: Sequence[StoredRange]) -> None:
    """Check that no byte belongs to two chunks, so that reading all chunks reads no byte twice."""
    for (file, at, length), (other, begin, _) in pairwise(sorted(places)):
        if file == other and begin < at + length:
            raise InputError(f"{folder / METADATA}: two chunks share bytes of {file.name!r}")


def _check_cut_off(
    files: Sequence[Path], places: Mapping[str, Mapping[tuple[int, ...], StoredRange]]
) -> None:
    """Check that no file is shorter than its chunks, including those of the optimizer at its end."""
    needed: dict[Path, int] = {}
    for chunks in places.values():
        for file, at, length in chunks.values():
            needed[file] = max(needed.get(file, 0), at + length)
    for file in files:
        size = file.stat().st_size
        if size < needed[file]:
            raise InputError(
                f"{file}: is cut off ({size} bytes, needs {needed[file]}); fetch it again"
            )


def _nested(stored: Mapping[str, Any], paths: Any) -> dict[str, Any]:
    """The nested state dict that was saved, with each tensor's key as its value."""
    nested: dict[str, Any] = {}
    for key in stored:
        path = paths.get(key) if isinstance(paths, dict) else None
        *parents, last = path if isinstance(path, tuple) and path else (key,)
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = key
    return nested


def _parts(
    file: Path, name: str, fields: Mapping[str, Any], places: Mapping[tuple[int, ...], StoredRange]
) -> Parts:
    dtype, shape = _dtype(fields["properties"]), torch_pickle.sizes_of(fields["size"])
    pieces: list[Piece] = []
    for chunk in fields["chunks"]:
        origin = torch_pickle.sizes_of(chunk.fields["offsets"])
        size = torch_pickle.sizes_of(chunk.fields["sizes"])
        if 0 in size:
            continue
        if origin not in places:
            raise InputError(
                f"{file}: does not say where the chunk of tensor {name!r} at {list(origin)} is stored"
            )
        source, at, length = places[origin]
        saved = torch_pickle.load(source, at=at, length=length)
        if not isinstance(saved, PickledTensor) or saved.size != size or saved.dtype != dtype:
            raise InputError(
                f"{source}: does not hold {dtype}{list(size)} of tensor {name!r} where it should; are all "
                "files of one step?"
            )
        pieces.append(saved.piece(origin))
    return TensorSpec(dtype, shape), pieces


def _dtype(properties: Record) -> DType:
    dtype = properties.fields.get("dtype")
    if dtype is None:
        dtype = properties.state[0]
    if not isinstance(dtype, DType):
        raise ValueError(f"{dtype!r} is not a dtype")
    return dtype
