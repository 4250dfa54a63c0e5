"""Tensors with a block for each layer: any range of what is joined, from any dtypes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from merganser.checkpoints import open_checkpoint
from merganser.checkpoints.computed.layer_blocks import Blocks, JoinedBlocks
from merganser.errors import InputError

LAYERS = [(0, 0), (0, 1), (1, 1), (1, 2), (0, 1), (1, 0)]
"""Of a joined tensor: which of two, and which layer of its three (the other has two)."""


def stored(
    folder: Path, shape: tuple[int, ...], axis: int, depth: int, dtype: torch.dtype
) -> Blocks:
    folder.mkdir()
    generator = torch.Generator().manual_seed(depth)
    tensor = torch.randn(shape, generator=generator).to(dtype)
    save_file({"per_layer": tensor}, folder / "model.safetensors")
    return Blocks(open_checkpoint(folder), "per_layer", axis, depth)


def whole(blocks: Blocks) -> torch.Tensor:
    spec = blocks.spec
    data = bytearray(spec.nbytes)
    blocks.checkpoint.read(blocks.name, 0, memoryview(data))
    return torch.frombuffer(data, dtype=getattr(torch, spec.dtype.name)).reshape(spec.shape)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("other", [torch.bfloat16, torch.float32])
def test_any_range_of_joined_blocks(tmp_path: Path, axis: int, other: torch.dtype) -> None:
    shapes = [(2 * 5, 7), (3 * 5, 7)] if axis == 0 else [(7, 2 * 5), (7, 3 * 5)]
    a = stored(tmp_path / "a", shapes[0], axis, 2, torch.bfloat16)
    b = stored(tmp_path / "b", shapes[1], axis, 3, other)
    tensors = [whole(a), whole(b)]
    joined = JoinedBlocks([a, b], LAYERS)
    blocks = [tensors[d].chunk((a, b)[d].depth, axis)[layer].to(other) for d, layer in LAYERS]
    wanted = torch.cat(blocks, axis).reshape(-1)
    assert joined.spec.shape == ((30, 7) if axis == 0 else (7, 30))
    size = joined.spec.dtype.itemsize
    bits = wanted.view(torch.int16 if size == 2 else torch.int32).numpy()
    for first in range(0, 210, 13):
        for count in (0, 1, 17, 30, 64, 210):
            count = min(count, 210 - first)
            out = np.zeros(count * size, np.uint8)
            joined.fill(first, out)
            assert (out.view(bits.dtype) == bits[first : first + count]).all()


def test_blocks_of_other_shapes_cannot_be_joined(tmp_path: Path) -> None:
    a = stored(tmp_path / "a", (7, 10), 1, 2, torch.float32)
    b = stored(tmp_path / "b", (7, 12), 1, 2, torch.float32)
    with pytest.raises(InputError, match=r"blocks of \[7, 6\].*are \[7, 5\]"):
        JoinedBlocks([a, b], LAYERS)
