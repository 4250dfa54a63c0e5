"""Tensors in pieces: those that overlap are refused, however many there are."""

from __future__ import annotations

import itertools
import math
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merganser.checkpoints.stored import Piece, StoredTensor
from merganser.tensors import FLOAT32, TensorSpec

Block = tuple[tuple[int, ...], tuple[int, ...]]


def joined(shape: tuple[int, ...], blocks: list[Block]) -> StoredTensor:
    """A tensor of blocks (origin, size), each stored by itself."""
    pieces = []
    for origin, size in blocks:
        strides = [math.prod(size[axis + 1 :]) for axis in range(len(size))]
        pieces.append(Piece(Path("x"), 0, size, tuple(strides), origin))
    return StoredTensor.of_pieces(TensorSpec(FLOAT32, shape), pieces)


def elements(origin: tuple[int, ...], size: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(at, at + n) for at, n in zip(origin, size, strict=True))))


@st.composite
def blocks_of(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Block]]:
    """A tensor cut in two again and again, then perhaps two of the parts moved."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    blocks: list[Block] = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 8))):
        origin, size = blocks.pop(draw(st.integers(0, len(blocks) - 1)))
        axis = draw(st.integers(0, len(shape) - 1))
        at = draw(st.integers(0, size[axis]))
        ends = (0, at), (at, size[axis])
        for begin, end in ends:
            first = tuple(o + (begin if a == axis else 0) for a, o in enumerate(origin))
            blocks.append(
                (first, tuple(end - begin if a == axis else n for a, n in enumerate(size)))
            )
    if draw(st.booleans()):
        index = draw(st.integers(0, len(blocks) - 1))
        origin, size = blocks[index]
        room = [n - m for n, m in zip(shape, size, strict=True)]
        blocks[index] = (tuple(draw(st.integers(0, n)) for n in room), size)
    return shape, draw(st.permutations(blocks))


@given(blocks_of())
def test_pieces_join_if_they_hold_each_element_once(
    case: tuple[tuple[int, ...], list[Block]],
) -> None:
    shape, blocks = case
    held = sorted(element for block in blocks for element in elements(*block))
    if held == elements((0,) * len(shape), shape):
        joined(shape, blocks)
    else:
        with pytest.raises(ValueError, match="overlap"):
            joined(shape, blocks)


def columns(n: int) -> list[Block]:
    return [((0, i), (2, 1)) for i in range(n)]


def mesh(n: int) -> list[Block]:
    return [((i, j, k), (1, 1, 2)) for i in range(n) for j in range(n) for k in (0, 2)]


@pytest.mark.parametrize(
    ("shape", "blocks"),
    [((2, 40_000), columns(40_000)), ((150, 150, 4), mesh(150))],
    ids=["columns", "mesh"],
)
def test_many_pieces_are_joined_in_no_time(shape: tuple[int, ...], blocks: list[Block]) -> None:
    began = time.process_time()
    joined(shape, blocks)
    origin, size = blocks[-2]
    with pytest.raises(ValueError, match="overlap"):
        joined(shape, [*blocks[:-1], (origin, size)])
    assert time.process_time() - began < 5


def test_pieces_that_would_take_long_to_look_at_are_refused() -> None:
    n = 3_000
    stairs: list[Block] = [((i, 0), (1, i + 1)) for i in range(n)]
    stairs += [((0, i + 1), (i + 1, 1)) for i in range(n - 1)]
    began = time.process_time()
    with pytest.raises(ValueError, match="too many different pieces"):
        joined((n, n), stairs)
    assert time.process_time() - began < 5
