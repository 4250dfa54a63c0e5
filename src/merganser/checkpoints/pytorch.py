"""PyTorch's files: ``pytorch_model.bin``, alone or in shards with an index, or any single file.

A single file contains a state dict, possibly under a key such as ``state_dict``. Nothing in it is
run: see :mod:`merganser.checkpoints.torch_pickle`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merganser.checkpoints import torch_pickle
from merganser.checkpoints.sidecar_files import read_config, read_index
from merganser.checkpoints.stored import StoredCheckpoint, StoredTensor
from merganser.checkpoints.torch_pickle import PickledTensor
from merganser.checkpoints.wrapped_names import unwrapped
from merganser.errors import InputError
from merganser.tensors import TensorSpec

INDEX = "pytorch_model.bin.index.json"
SINGLE = "pytorch_model.bin"

NESTS = ("state_dict", "model_state_dict", "model", "module", "model_state", "params", "app")
"""Keys under which files with other contents store the state dict, tried in this order."""


def open_folder(path: Path, label: str) -> StoredCheckpoint | None:
    """Open a folder or file of PyTorch's; None if it is not one.

    Raises:
        InputError: when an index, archive or pickle is invalid, or the pickle uses unlisted names.
    """
    if path.is_file():
        if re.search(r"_rank_\d+\.pt$", path.name):
            raise InputError(f"{path}: holds the part of one rank; name the folder with all parts")
        return _build(label, path, [path], None, {})
    if (path / INDEX).is_file():
        wanted = read_index(path / INDEX)
        files = [path / name for name in sorted(set(wanted.values()))]
    elif (path / SINGLE).is_file():
        wanted, files = None, [path / SINGLE]
    else:
        wanted, files = None, sorted(path.glob("pytorch_model-*-of-*.bin"))
    if not files:
        return None
    config = read_config(path)
    return _build(label, path, files, wanted, config)


def _build(
    label: str,
    path: Path,
    files: Sequence[Path],
    wanted: Mapping[str, str] | None,
    config: Mapping[str, Any],
) -> StoredCheckpoint:
    tensors: dict[str, StoredTensor] = {}
    notes: dict[str, None] = {}
    for file in files:
        in_file, nest = state_dict(file, torch_pickle.load(file))
        if nest:
            notes[f"{label}: the weights are those under {nest!r}"] = None
        for name, tensor in in_file.items():
            if name in tensors:
                other = tensors[name].pieces[0].file.name
                raise InputError(f"{file}: tensor {name!r} is also in {other}")
            if wanted is None or wanted.get(name) == file.name:
                spec = TensorSpec(tensor.dtype, tensor.size)
                tensors[name] = StoredTensor.of_pieces(spec, [tensor.piece()])
    for name, file_name in (wanted or {}).items():
        if name not in tensors:
            raise InputError(
                f"{path / file_name}: lacks tensor {name!r}, which {INDEX} says is there"
            )
    return StoredCheckpoint(
        label, path, tensors, format="PyTorch", files=files, config=config, notes=[*notes]
    )


def state_dict(file: Path, content: Any, leaf: type = PickledTensor) -> tuple[dict[str, Any], str]:
    """Return the tensors of a file by their names in the model, and the key of their state dict.

    Args:
        file: the file, for messages.
        content: the unpickled content.
        leaf: the type of tensors in it.

    Raises:
        InputError: when there is no state dict, or an incomplete one.
    """
    nest: list[str] = []
    while isinstance(content, dict):
        tensors = {str(name): v for name, v in content.items() if isinstance(v, leaf)}
        if tensors:
            names = unwrapped(tensors, file)
            return {names[name]: t for name, t in tensors.items()}, ".".join(nest)
        if any(isinstance(value, torch_pickle.Record) for value in content.values()):
            break
        inner = next((n for n in NESTS if isinstance(content.get(n), dict)), None)
        if inner is None:
            known = ", ".join(repr(str(name))[:40] for name in list(content)[:5])
            raise InputError(
                f"{file}: holds neither tensors by name nor a state dict under {', '.join(NESTS)}; "
                f"its keys are {known or 'none'}"
            )
        nest.append(inner)
        content = content[inner]
    raise InputError(f"{file}: holds no state dict; save model.state_dict() as safetensors")
