"""Assign tensors to output files and write their headers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from merganser.planning.plan_data import Shard, TensorJob

ALIGNMENT = 4096
"""Alignment in bytes of the data in a shard, for direct I/O; headers are padded."""


def folder_of(name: str, folders: Sequence[str]) -> str:
    """The folder of a tensor's module; empty for the main model."""
    home = name.rpartition("/")[0]
    return home if home and any(f"{home}/".startswith(f"{other}/") for other in folders) else ""


def deal(jobs: Sequence[TensorJob], limit: int, folders: Sequence[str] = ()) -> Iterator[Shard]:
    """Assign tensors to output files in order, and yield the files with their headers.

    Args:
        jobs: the tensors; those of modules in folders come last.
        limit: maximum size of a file in bytes.
        folders: module folders; their tensors are stored there, under names without the folder.
    """
    homes = {job.name: folder_of(job.name, folders) for job in jobs}
    runs: list[list[TensorJob]] = [[]]
    size = 0
    for job in jobs:
        if homes[job.name]:
            continue
        if runs[-1] and 0 < limit < size + job.spec.nbytes:
            runs.append([])
            size = 0
        runs[-1].append(job)
        size += job.spec.nbytes
    for i, run in enumerate(runs, 1):
        file = (
            "model.safetensors"
            if len(runs) == 1
            else f"model-{i:05d}-of-{len(runs):05d}.safetensors"
        )
        yield shard_of(file, run)
    for home in dict.fromkeys(filter(None, homes.values())):
        members = [job for job in jobs if homes[job.name] == home]
        yield shard_of(f"{home}/model.safetensors", members, f"{home}/")


def shard_of(file: str, jobs: Sequence[TensorJob], prefix: str = "") -> Shard:
    """The output file of some tensors; their names in the file are without ``prefix``."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    begins = {}
    for job in jobs:
        begins[job.name] = position
        end = position + job.spec.nbytes
        entries[job.name.removeprefix(prefix)] = {
            "dtype": job.spec.dtype.tag,
            "shape": list(job.spec.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    return Shard(
        file, header, {n: len(header) + b for n, b in begins.items()}, len(header) + position
    )
