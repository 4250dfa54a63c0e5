"""What every wrapper of a checkpoint must keep: the laws of sources, for tests only."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from merganser.checkpoints import Checkpoint
from merganser.checkpoints.computed.derived import SCRATCH


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


def assert_tiles_are_cheap(checkpoint: Checkpoint, name: str) -> None:
    """Reading tile by tile takes a few tiles of memory, and no long time: the bound is far below
    what is measured, and time is the thread's own, so that other work on the machine is no matter."""
    size, tile = checkpoint.specs[name].nbytes, 2**22
    buffer = memoryview(bytearray(tile))
    tracemalloc.start()
    began = time.thread_time()
    for start in range(0, size, tile):
        checkpoint.read(name, start, buffer[: min(tile, size - start)])
    seconds, (_, peak) = time.thread_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 6 * tile
    assert peak < SCRATCH * tile
    assert size / seconds > 60e6


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
