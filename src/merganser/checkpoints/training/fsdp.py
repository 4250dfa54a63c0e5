"""Shards of FSDP as verl saves them: ``model_world_size_W_rank_R.pt``, one file a rank.

Each file is a pickle of its rank's part of the state dict. A value is a DTensor with the mesh of
ranks and the placement along each of its dimensions (FSDP2, FSDP1 over a mesh, HSDP); a
ShardedTensor with the place of every part (FSDP1); or a plain tensor that every rank has. One file
may mix them. Config and tokenizer are in ``huggingface/``.

Tensors are divided as by ``torch.chunk``: of n rows over W ranks each rank has ceil(n / W), the last
ones fewer or none. Class names differ between releases of PyTorch; those from 2.0 on are known.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merganser.checkpoints import torch_pickle
from merganser.checkpoints.protocol import Checkpoint
from merganser.checkpoints.sidecar_files import read_config, read_json
from merganser.checkpoints.stored import StoredCheckpoint, StoredTensor
from merganser.checkpoints.torch_pickle import Function, Names, PickledTensor, Record, record
from merganser.checkpoints.training import run_folders
from merganser.checkpoints.wrapped_names import unwrapped
from merganser.errors import InputError
from merganser.tensors import TensorSpec

_FILE = re.compile(r"model(?:_world_size_(\d+))?_rank_(\d+)\.pt")

SMALL = 2**12
"""Largest size in bytes of a replicated tensor that is compared between ranks."""

DTensor = record("DTensor")
ProcessGroupState = record("ProcessGroupState")
ShardedTensor = record("ShardedTensor", ProcessGroupState=lambda: ProcessGroupState)
Shard = record("Shard")
Replicate = record("Replicate")


def _names() -> Names:
    names: dict[tuple[str, str], Any] = {}
    layout = "torch.distributed._mesh_layout"
    for module in ("tensor", "_tensor", "tensor._api", "_tensor.api"):
        names[f"torch.distributed.{module}", "DTensor"] = DTensor
    for module in (
        "tensor._dtensor_spec",
        "tensor.placement_types",
        "_tensor._dtensor_spec",
        "_tensor.placement_types",
    ):
        for inert in ("DTensorSpec", "TensorMeta", "ShardOrderEntry", "Partial", "_Partial"):
            names[f"torch.distributed.{module}", inert] = record(inert)
        for inert in ("_StridedShard", "_MaskPartial", "MaskPartial"):
            names[f"torch.distributed.{module}", inert] = record(inert)
        names[f"torch.distributed.{module}", "Shard"] = Shard
        names[f"torch.distributed.{module}", "Replicate"] = Replicate
    for module in ("device_mesh", "_tensor.device_mesh", "tensor.device_mesh"):
        names[f"torch.distributed.{module}", "DeviceMesh"] = record("DeviceMesh")
    names |= {(layout, name): record(name) for name in ("_MeshLayout", "_FlatLayout")}
    sharded = "torch.distributed._shard"
    for module in ("sharded_tensor.api", "sharded_tensor"):
        names[f"{sharded}.{module}", "ShardedTensor"] = ShardedTensor
    for module, name in (
        ("sharded_tensor.shard", "Shard"),
        ("metadata", "ShardMetadata"),
        ("sharding_spec", "ShardMetadata"),
        ("sharding_spec.api", "EnumerableShardingSpec"),
        ("sharding_spec", "EnumerableShardingSpec"),
        ("sharding_spec.chunk_sharding_spec", "ChunkShardingSpec"),
        ("sharded_tensor.metadata", "ShardedTensorMetadata"),
        ("sharded_tensor.metadata", "TensorProperties"),
    ):
        names[f"{sharded}.{module}", name] = record(name)
    names["torch.distributed.remote_device", "_remote_device"] = record("_remote_device")
    return {**names, **torch_pickle.GETATTR, **torch_pickle.MEMORY_FORMATS}


NAMES = _names()
"""Names that the pickle of a rank may use, in addition to tensors."""


EXTRA_NAMES: Names = {
    ("_codecs", "encode"): Function(lambda text, _encoding: text),
    ("numpy", "ndarray"): record("ndarray"),
    ("numpy", "dtype"): record("dtype"),
    ("numpy.core.multiarray", "_reconstruct"): record("_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"): record("_reconstruct"),
}
"""Names in verl's files of scheduler and random states, which are next to the shards."""


def open_folder(path: Path, label: str) -> Checkpoint | None:
    """Open a folder of FSDP shards; None if it is not one.

    Raises:
        InputError: when ranks are missing, or their parts do not join.
    """
    files = _ranks(path) if path.is_dir() else []
    if not files:
        return None
    _check_different_steps(path)
    parts = [_part(file) for file in files]
    for file, part in zip(files, parts, strict=True):
        if part.keys() != parts[0].keys():
            odd = sorted(part.keys() ^ parts[0].keys())[0]
            raise InputError(
                f"{file}: tensor {odd!r} is in {'it' if odd in part else files[0].name} but not in "
                f"{files[0].name if odd in part else 'it'}; these are ranks of different runs"
            )
    tensors = {}
    for name in parts[0]:
        try:
            tensors[name] = _joined([part[name] for part in parts])
        except torch_pickle.MALFORMED as error:
            raise InputError(
                f"{path}: the ranks' parts of tensor {name!r} do not join ({error}); are they of one "
                "step of one run?"
            ) from None
    home = run_folders.companions(path)
    config = read_config(home)
    ranks = "1 rank" if len(files) == 1 else f"{len(files)} ranks"

    return StoredCheckpoint(
        label,
        path,
        tensors,
        format=f"FSDP shards of {ranks}",
        files=files,
        config=config,
        path=home,
    )


def _ranks(folder: Path) -> list[Path]:
    """The files of all ranks, in order."""
    by_world: dict[int | None, dict[int, Path]] = {}
    for file in folder.glob("model_*rank_*.pt"):
        if match := _FILE.fullmatch(file.name):
            world = int(match[1]) if match[1] else None
            by_world.setdefault(world, {})[int(match[2])] = file
    if len(by_world) > 1:
        worlds = " and ".join(str(world or "unknown") for world in sorted(by_world, key=str))
        raise InputError(
            f"{folder}: holds shards of runs on {worlds} ranks; keep those of one, and move the others away"
        )
    for world, ranks in by_world.items():
        missing = sorted(set(range(world or max(ranks) + 1)) - ranks.keys())
        if missing:
            raise InputError(
                f"{folder}: lacks the shards of {_listed(missing)} of {world or max(ranks) + 1}; "
                "fetch them, all are needed"
            )
        stated = _stated_world(folder)
        if stated is not None and stated != len(ranks):
            raise InputError(
                f"{folder / 'fsdp_config.json'}: says {stated} ranks, but there are shards of {len(ranks)}"
            )
        return [ranks[rank] for rank in sorted(ranks)]
    return []


def _check_different_steps(folder: Path) -> None:
    """Check that all ranks' files are of one step, by the scheduler states that verl saves with them."""
    steps: dict[Any, Path] = {}
    for file in sorted(folder.glob("extra_state_*rank_*.pt")):
        try:
            scheduler = torch_pickle.load(file, EXTRA_NAMES).get("lr_scheduler")
        except (InputError, AttributeError):  # the weights do not depend on this file
            continue
        if isinstance(scheduler, dict) and isinstance(scheduler.get("last_epoch"), int):
            steps.setdefault(scheduler["last_epoch"], file)
    if len(steps) > 1:
        (one, first), (other, second) = list(steps.items())[:2]
        raise InputError(
            f"{second}: is of step {other}, but {first.name} of step {one}; fetch all ranks' files of one step"
        )


def _listed(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:5])) + (" …" if len(ranks) > 5 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def _stated_world(folder: Path) -> int | None:
    file = folder / "fsdp_config.json"
    world = read_json(file).get("world_size") if file.is_file() else None
    return world if isinstance(world, int) else None


def _part(file: Path) -> dict[str, Any]:
    """One rank's part of every tensor, by the tensor's name in the model."""
    content = torch_pickle.load(file, NAMES)
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds no state dict")
    kinds = (PickledTensor, DTensor, ShardedTensor)
    parts = {str(name): value for name, value in content.items() if isinstance(value, kinds)}
    if not parts:
        raise InputError(f"{file}: holds no tensors")
    names = unwrapped(parts, file)
    return {names[name]: value for name, value in parts.items()}


def _joined(parts: Sequence[Any]) -> StoredTensor:
    """Join the ranks' parts to one tensor.

    Raises:
        ValueError: when the parts do not cover the tensor.
    """
    kinds = {type(part) for part in parts}
    if len(kinds) > 1:
        raise ValueError("some ranks hold all of the tensor, others a part")
    if kinds == {PickledTensor}:
        return _replicated(parts)
    join = _of_dtensors if kinds == {DTensor} else _of_sharded
    shape, placed = join(parts)
    dtypes = {tensor.dtype for tensor, _ in placed}
    if len(dtypes) > 1:
        raise ValueError(f"they are of {' and '.join(sorted(map(str, dtypes)))}")
    pieces = [tensor.piece(origin) for tensor, origin in placed]
    return StoredTensor.of_pieces(TensorSpec(dtypes.pop(), shape), pieces)


def _replicated(parts: Sequence[PickledTensor]) -> StoredTensor:
    """A tensor that every rank has: a buffer, or any tensor of a run on one rank."""
    first = parts[0]
    for part in parts:
        if (part.size, part.dtype) != (first.size, first.dtype):
            raise ValueError(f"{list(first.size)} in one, {list(part.size)} in another")
    spec = TensorSpec(first.dtype, first.size)
    if (
        len(parts) > 1
        and spec.nbytes <= SMALL
        and any(p.content() != first.content() for p in parts)
    ):
        raise ValueError("all ranks hold all of the tensor, but with different values")
    return StoredTensor.of_pieces(spec, [first.piece()])


Placed = list[tuple[PickledTensor, tuple[int, ...]]]


def _of_dtensors(parts: Sequence[Record]) -> tuple[tuple[int, ...], Placed]:
    """The global shape, and each rank's part with its origin; only the first of replicas."""
    spec = parts[0].fields["_spec"].fields
    shape = torch_pickle.sizes_of(spec["tensor_meta"].arguments[0])
    mesh_shape, ranks = _mesh(spec["mesh"], len(parts))
    placements = tuple(spec["placements"])
    kinds = [(type(p), p.fields.get("dim")) for p in placements]
    if len(placements) != len(mesh_shape):
        raise ValueError(f"{len(placements)} placements on a mesh of {len(mesh_shape)} dimensions")
    placed: Placed = []
    for coordinate, rank in zip(itertools.product(*map(range, mesh_shape)), ranks, strict=True):
        if rank >= len(parts):
            raise ValueError(f"its mesh has a rank {rank} of {len(parts)}")
        rank_spec = parts[rank].fields["_spec"].fields
        if tuple(rank_spec["tensor_meta"].arguments[0]) != shape:
            raise ValueError(f"rank {rank} has it as {list(rank_spec['tensor_meta'].arguments[0])}")
        if [(type(p), p.fields.get("dim")) for p in rank_spec["placements"]] != kinds:
            raise ValueError(f"rank {rank} has it in another placement")
        origin, size = [0] * len(shape), list(shape)
        replica = False
        for at, count, placement in zip(coordinate, mesh_shape, placements, strict=True):
            if isinstance(placement, Replicate):
                replica = replica or at > 0
            elif isinstance(placement, Shard):
                dim = placement.fields["dim"]
                step = -(-size[dim] // count)
                begin = min(at * step, size[dim])
                origin[dim] += begin
                size[dim] = min(step, size[dim] - begin)
            else:
                name = type(placement).__name__
                raise ValueError(f"its placement {name} is not supported; save a full state dict")
        local = parts[rank].fields["_local_tensor"]
        if not isinstance(local, PickledTensor) or local.size != tuple(size):
            raise ValueError(
                f"rank {rank} has {list(getattr(local, 'size', ()))} where {size} of {list(shape)} should be"
            )
        if not replica:
            placed.append((local, tuple(origin)))
    return shape, placed


def _mesh(mesh: Record, world: int) -> tuple[tuple[int, ...], list[int]]:
    """A mesh's shape, and its ranks in order.

    Raises:
        ValueError: when it has more ranks than ``world``.
    """
    fields = mesh.fields
    if "mesh" in fields:  # PyTorch up to 2.8
        mesh_shape, ranks = fields["mesh"].size, fields["mesh"].integers()
        if len(ranks) > world:
            raise ValueError(f"its mesh has more than {world} ranks")
        return mesh_shape, ranks
    axes = _axes(fields["_layout"].fields)
    if math.prod(n for axis in axes for n, _ in axis) > world:
        raise ValueError(f"its mesh has more than {world} ranks")
    known = fields["_rank_map"].integers()
    ranks = []
    for index in itertools.product(*(range(math.prod(n for n, _ in axis)) for axis in axes)):
        step = 0
        for i, axis in zip(index, axes, strict=True):
            for n, stride in reversed(axis):
                i, at = divmod(i, n)
                step += at * stride
        ranks.append(known[step])
    return tuple(math.prod(n for n, _ in axis) for axis in axes), ranks


def _axes(layout: Mapping[str, Any]) -> list[list[tuple[int, int]]]:
    """Each dimension of a mesh's layout as pairs (size, stride), the last one fastest."""
    if "axes" in layout:
        axes = [(axis.fields["shape"], axis.fields["stride"]) for axis in layout["axes"]]
    elif isinstance(layout["shape"], tuple):
        axes = list(zip(layout["shape"], layout["stride"], strict=True))
    else:
        axes = [(layout["shape"], layout["stride"])]
    return [list(zip(_flat(shape), _flat(stride), strict=True)) for shape, stride in axes]


def _flat(value: Any) -> list[int]:
    return [n for part in value for n in _flat(part)] if isinstance(value, tuple) else [value]


def _of_sharded(parts: Sequence[Record]) -> tuple[tuple[int, ...], Placed]:
    """The global shape, and each part with its origin; only the first of parts with one origin."""
    shapes = {torch_pickle.sizes_of(part.state[1].fields["size"]) for part in parts}
    if len(shapes) > 1:
        raise ValueError(f"some have it as {list(shapes.pop())}, others as {list(shapes.pop())}")
    placed: dict[tuple[int, ...], PickledTensor] = {}
    for part in parts:
        for shard in part.state[0]:
            tensor, where = shard.fields["tensor"], shard.fields["metadata"].fields
            if tensor.size != tuple(where["shard_sizes"]):
                raise ValueError(f"{list(tensor.size)} where {where['shard_sizes']} should be")
            if 0 not in tensor.size:
                placed.setdefault(torch_pickle.sizes_of(where["shard_offsets"]), tensor)
    return shapes.pop(), [(tensor, origin) for origin, tensor in placed.items()]
