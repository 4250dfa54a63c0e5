"""DeepSpeed's ZeRO checkpoints: ``*_optim_states.pt`` and ``*_model_states.pt`` of every rank.

The optimizer's files contain the float32 weights as flat vectors, one per parameter group and rank.
Stages 1 and 2: the concatenation of the ranks' vectors is the group's parameters in the order of
``param_shapes``, with padding at the end (and, in newer releases, after each parameter). Stage 3: each
rank has an equal share of each parameter, padded at the last rank; several vectors are one after the
other. Buffers, frozen parameters and the names of shared parameters are in the model's files.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from merganser.checkpoints import torch_pickle
from merganser.checkpoints.sidecar_files import read_config
from merganser.checkpoints.stored import Piece, StoredCheckpoint, StoredTensor, cut
from merganser.checkpoints.torch_pickle import Function, Names, PickledTensor, enumeration, record
from merganser.checkpoints.training import run_folders
from merganser.checkpoints.wrapped_names import unwrapped
from merganser.errors import InputError
from merganser.tensors import DType, TensorSpec

_OPTIMIZER = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_MODEL = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt")

SCALERS = ("LossScaler", "DynamicLossScaler", "LossScalerBase")

NAMES: Names = {
    **{("deepspeed.runtime.fp16.loss_scaler", name): record(name) for name in SCALERS},
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"): enumeration(
        "ZeroStageEnum", disabled=0, optimizer_states=1, gradients=2, weights=3
    ),
    ("deepspeed.utils.tensor_fragment", "fragment_address"): record("fragment_address"),
    ("deepspeed.runtime.base_optimizer", "ZeROOptimizer"): record("ZeROOptimizer"),
    ("argparse", "Namespace"): record("Namespace"),
    ("builtins", "set"): Function(list),
    ("__builtin__", "set"): Function(list),
    **torch_pickle.GETATTR,
}
"""Names that the pickles in these files may use, in addition to tensors."""


def open_folder(path: Path, label: str) -> StoredCheckpoint | None:
    """Open a folder of DeepSpeed's ZeRO; None if it is not one.

    Raises:
        InputError: when ranks are missing, or their parts do not join.
    """
    optimizers = _ranks(path, _OPTIMIZER)
    if not optimizers:
        return None
    models = _ranks(path, _MODEL)
    if not models:
        raise InputError(
            f"{path}: has no *_model_states.pt, which states the parameters' shapes; fetch it"
        )
    states = [_content(file) for file in models]
    if any("param_shapes" not in state for state in states):
        raise InputError(f"{models[0]}: states no param_shapes; it is not a ZeRO checkpoint")
    groups = [_content(file).get("optimizer_state_dict") for file in optimizers]
    try:
        stage, vectors = _vectors(optimizers, groups)
        first: Mapping[str, Any] = groups[0] or {}
        if stage == 3 and len(models) != len(optimizers):
            raise InputError(
                f"{path}: has optimizer states of {len(optimizers)} ranks, but model states of {len(models)}"
            )
        parts = dict(_buffers(states[0]))
        parts |= dict(_frozen(states, stage))
        trained = _of_stage_3 if stage == 3 else _of_stage_2
        parts |= dict(trained(states[0]["param_shapes"], vectors, first))
        for alias, name in dict(states[0].get("shared_params") or {}).items():
            if name in parts:
                parts[alias] = parts[name]
        order = [name for name in states[0].get("module") or {} if name in parts]
        parts = {name: parts[name] for name in (*order, *parts)}
        names = unwrapped(parts, path)
        tensors = {names[n]: StoredTensor.of_pieces(*part) for n, part in parts.items()}
    except torch_pickle.MALFORMED as error:
        raise InputError(
            f"{path}: the ranks' parts do not join ({error}); are they of one step of one run?"
        ) from None
    home = run_folders.companions(path)
    config = read_config(home)
    ranks = "1 rank" if len(optimizers) == 1 else f"{len(optimizers)} ranks"
    return StoredCheckpoint(
        label,
        path,
        tensors,
        format=f"DeepSpeed ZeRO-{stage} of {ranks}",
        files=[*models, *optimizers],
        config=config,
        path=home,
    )


def _ranks(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """The files of all ranks, in order."""
    by_rank: dict[int, Path] = {}
    for file in folder.glob("*_states.pt") if folder.is_dir() else ():
        if match := pattern.fullmatch(file.name):
            if int(match[2]):
                raise InputError(
                    f"{file}: belongs to a run with model parallelism, which is not supported"
                )
            rank = int(match[1] or 0)
            if rank in by_rank:
                raise InputError(
                    f"{file}: is of the same rank as {by_rank[rank].name}; keep one of them"
                )
            by_rank[rank] = file
    missing = sorted(set(range(max(by_rank, default=-1) + 1)) - by_rank.keys())
    if missing:
        raise InputError(
            f"{folder}: lacks the {pattern_name(pattern)} of rank {missing[0]}; fetch it, all are needed"
        )
    return [by_rank[rank] for rank in sorted(by_rank)]


def pattern_name(pattern: re.Pattern[str]) -> str:
    """A pattern of file names, as text for messages."""
    return "*_optim_states.pt" if pattern is _OPTIMIZER else "*_model_states.pt"


def _content(file: Path) -> dict[str, Any]:
    content = torch_pickle.load(file, NAMES)
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds no DeepSpeed state")
    return content


def _vectors(files: Sequence[Path], groups: Sequence[Any]) -> tuple[int, list[list[PickledTensor]]]:
    """The ZeRO stage, and each rank's flat vectors by parameter group."""
    stages = set()
    vectors = []
    for file, state in zip(files, groups, strict=True):
        if not isinstance(state, dict) or "zero_stage" not in state:
            raise InputError(
                f"{file}: holds no state of a ZeRO optimizer; use the weights that the trainer exports"
            )
        counts = state["partition_count"]
        world = max(counts) if isinstance(counts, list) else counts
        if world != len(files):
            raise InputError(f"{file}: says {world} ranks, but there are files of {len(files)}")
        stage = state["zero_stage"]
        stages.add(stage.arguments[0] if isinstance(stage, torch_pickle.Record) else stage)
        key = "fp32_flat_groups" if stages == {3} else "single_partition_of_fp32_groups"
        vectors_of_rank = state[key]
        if not all(isinstance(v, PickledTensor) and len(v.size) == 1 for v in vectors_of_rank):
            raise ValueError(f"{file.name} holds no flat vectors")
        vectors.append(vectors_of_rank)
    if len(stages) > 1 or not stages <= {1, 2, 3}:
        raise ValueError(f"they are of the stages {stages}")
    return stages.pop(), vectors


def _shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple | list) or any(not isinstance(n, int) or n < 0 for n in shape):
        raise ValueError(f"{shape!r} is not a shape")
    return tuple(shape)


def _joined(vectors: Sequence[PickledTensor]) -> list[Piece]:
    """Concatenate flat vectors: pieces of one vector."""
    pieces, begin = [], 0
    for vector in vectors:
        pieces.append(vector.piece((begin,)))
        begin += vector.size[0]
    return pieces


def _cut(pieces: Sequence[Piece], begin: int, count: int, dtype: DType) -> list[Piece]:
    """Cut a range of elements from consecutive pieces."""
    first = bisect_right(pieces, begin, key=_start) - 1
    last = bisect_left(pieces, begin + count, key=_start)
    return cut(pieces[max(0, first) : last], (begin,), (count,), dtype.itemsize)


def _start(piece: Piece) -> int:
    return piece.origin[0]


Named = Iterator[tuple[str, tuple[TensorSpec, list[Piece], tuple[int, ...]]]]
"""Tensors by name: spec, pieces, and the shape that the pieces divide."""


def _buffers(state: Mapping[str, Any]) -> Named:
    """The buffers, which are complete in the model's file."""
    for name in state.get("buffer_names") or ():
        tensor = state["module"].get(name)
        if isinstance(tensor, PickledTensor):
            yield name, _whole(tensor)


def _whole(tensor: PickledTensor) -> tuple[TensorSpec, list[Piece], tuple[int, ...]]:
    return TensorSpec(tensor.dtype, tensor.size), [tensor.piece()], tensor.size


def _frozen(states: Sequence[Mapping[str, Any]], stage: int) -> Named:
    """The frozen parameters: complete, or in stage 3 a share in each rank's model file."""
    for name, stated in (states[0].get("frozen_param_shapes") or {}).items():
        shares = [state["frozen_param_fragments"][name] for state in states]
        if stage < 3:
            yield name, _whole(shares[0])
            continue
        spec = TensorSpec(shares[0].dtype, _shape(stated))
        block = _cut(_joined(shares), 0, spec.numel, spec.dtype)
        yield name, (spec, block, (spec.numel,))


def _of_stage_2(
    shapes: Sequence[Mapping[str, Any]],
    vectors: Sequence[Sequence[PickledTensor]],
    state: Mapping[str, Any],
) -> Named:
    paddings = state.get("param_alignment_paddings") or [None] * len(shapes)
    for index, (group, padding) in enumerate(zip(shapes, paddings, strict=True)):
        ranks = [rank[index] for rank in vectors]
        pieces, offset = _joined(ranks), 0
        available = sum(vector.size[0] for vector in ranks)
        for index, (name, stated) in enumerate(group.items()):
            shape = _shape(stated)
            count = math.prod(shape)
            if offset + count > available:
                raise ValueError(f"they end within {name!r}")
            dtype = ranks[0].dtype
            block = _cut(pieces, offset, count, dtype)
            yield name, (TensorSpec(dtype, shape), block, (count,))
            offset += count + (padding[index] if padding is not None else 0)
        unit = 2 * len(ranks)
        if -(-offset // unit) != -(-available // unit):
            raise ValueError(f"they hold {available} numbers, not {offset}")


def _of_stage_3(
    shapes: Sequence[Mapping[str, Any]],
    vectors: Sequence[Sequence[PickledTensor]],
    _state: Mapping[str, Any],
) -> Named:
    ranks = [_joined(parts) for parts in vectors]
    available = {sum(vector.size[0] for vector in parts) for parts in vectors}
    dtype, offset = vectors[0][0].dtype, 0
    for name, stated in ((name, shape) for group in shapes for name, shape in group.items()):
        spec = TensorSpec(dtype, _shape(stated))
        share = -(-spec.numel // len(ranks))
        block: list[Piece] = []
        for rank, pieces in enumerate(ranks):
            begin = rank * share
            count = max(0, min(share, spec.numel - begin))
            for piece in _cut(pieces, offset, count, dtype):
                block.append(replace(piece, origin=(piece.origin[0] + begin,)))
        yield name, (spec, block, (spec.numel,))
        offset += share
    if available != {offset}:
        raise ValueError(f"they hold {sorted(available)} numbers, not {offset}")
