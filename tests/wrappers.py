"""What every wrapper of a checkpoint must keep: the laws of sources, for tests only."""

from __future__ import annotations

import random
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from merganser.checkpoints import Checkpoint


def whole(checkpoint: Checkpoint, name: str) -> bytes:
    """All bytes of a tensor, read at once."""
    buffer = bytearray(checkpoint.specs[name].nbytes)
    checkpoint.read(name, 0, memoryview(buffer))
    return bytes(buffer)


def tensor(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """A tensor of a checkpoint as torch's."""
    spec = checkpoint.specs[name]
    read = torch.frombuffer(
        bytearray(whole(checkpoint, name)), dtype=getattr(torch, str(spec.dtype))
    )
    return read.reshape(spec.shape)


def tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint."""
    return {name: tensor(checkpoint, name) for name in checkpoint.specs}


def assert_ranges_agree(checkpoint: Checkpoint, seed: int = 0, cuts: int = 6) -> None:
    """Ranges, at elements and within them, are slices of the whole; two threads read the same."""
    chance = random.Random(seed)
    for name, spec in checkpoint.specs.items():
        stored, size = whole(checkpoint, name), spec.dtype.itemsize
        for unit in (size, 1):
            places = [chance.randrange(spec.nbytes // unit + 1) * unit for _ in range(cuts)]
            parts = b""
            for start, stop in pairwise(sorted([0, *places, spec.nbytes])):
                buffer = bytearray(stop - start)
                checkpoint.read(name, start, memoryview(buffer))
                parts += buffer
            assert parts == stored, name
    with ThreadPoolExecutor(4) as pool:
        names = list(checkpoint.specs) * 3
        for name, read in zip(names, pool.map(lambda n: whole(checkpoint, n), names), strict=True):
            assert read == whole(checkpoint, name)


def same_numbers(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    """Two state dicts are the same numbers, bit for bit."""
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].shape == tensor.shape, name
        np.testing.assert_array_equal(found[name].float().numpy(), tensor.float().numpy(), name)


def cut_off(file: Path, count: int = 4) -> None:
    """Take a file's last bytes away, behind the back of whoever has opened it."""
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - count)


def generator(seed: int) -> Any:
    """A seeded source of chance."""
    return torch.Generator().manual_seed(seed)
