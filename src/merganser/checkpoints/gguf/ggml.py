"""Dequantise the block formats of GGUF files.

A format divides a tensor's rows into blocks of 32 or 256 numbers, and stores for each block some
scales and a few bits per number. The formats are ggml's. Numbers are computed in float32 in the
order of its reference, so the bits are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """A format of quantised weights.

    Attributes:
        name: ggml's name.
        count: numbers per block.
        size: bytes per block.
        numbers: converts blocks, uint8 [n, size], to numbers, float32 [n, count] in any shape.
    """

    name: str
    count: int
    size: int
    numbers: Callable[[Array], Array]


def _halves(blocks: Array, at: int) -> Array:
    """Each block's float16 at a byte offset: float32 [n, 1]."""
    return blocks[:, at : at + 2].view(np.float16).astype(np.float32)


def _nibbles(bytes_: Array) -> Array:
    """Low halves of bytes [..., k], then high halves: uint8 [..., 2 k]."""
    return np.concatenate((bytes_ & 15, bytes_ >> 4), axis=-1)


def _bits(blocks: Array, at: int) -> Array:
    """The 32 bits at a byte offset, lowest first: uint8 [n, 32]."""
    return np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little")


def _q4_0(blocks: Array) -> Array:
    made: Array = _halves(blocks, 0) * (_nibbles(blocks[:, 2:]).view(np.int8) - np.int8(8))
    return made


def _q4_1(blocks: Array) -> Array:
    return _halves(blocks, 0) * _nibbles(blocks[:, 4:]) + _halves(blocks, 2)


def _q5_0(blocks: Array) -> Array:
    codes = _nibbles(blocks[:, 6:]) | _bits(blocks, 2) << 4
    made: Array = _halves(blocks, 0) * (codes.view(np.int8) - np.int8(16))
    return made


def _q5_1(blocks: Array) -> Array:
    codes = _nibbles(blocks[:, 8:]) | _bits(blocks, 4) << 4
    made: Array = _halves(blocks, 0) * codes + _halves(blocks, 2)
    return made


def _q8_0(blocks: Array) -> Array:
    return _halves(blocks, 0) * blocks[:, 2:].view(np.int8)


def _pairs(bytes_: Array) -> Array:
    """Two-bit codes; a byte [n, 64] holds one code of each of four runs of 32: uint8 [n, 16,
    16]."""
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    return (bytes_.reshape(-1, 2, 1, 32) >> shifts & 3).reshape(-1, 16, 16)


def _q2_k(blocks: Array) -> Array:
    scales = blocks[:, :16]
    steps = _halves(blocks, 80) * (scales & 15)
    lows = _halves(blocks, 82) * (scales >> 4)
    made: Array = steps[:, :, None] * _pairs(blocks[:, 16:80]) - lows[:, :, None]
    return made


def _q3_k(blocks: Array) -> Array:
    shifts = np.arange(8, dtype=np.uint8)[:, None]
    high = (blocks[:, None, :32] >> shifts & 1).reshape(-1, 16, 16)
    codes = (_pairs(blocks[:, 32:96]) | high << 2).view(np.int8) - np.int8(4)
    packed = blocks[:, 96:108]
    upper = (packed[:, None, 8:] >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3).reshape(-1, 16)
    scales = (_nibbles(packed[:, :8]) | upper << 4).view(np.int8) - np.int8(32)
    made: Array = (_halves(blocks, 108) * scales)[:, :, None] * codes
    return made


def _six_bits(packed: Array) -> tuple[Array, Array]:
    """Eight scales and eight minima of six bits each in 12 bytes: uint8 [n, 8] twice."""
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate((first & 63, rest & 15 | first >> 6 << 4), axis=1)
    return scales, np.concatenate((second & 63, rest >> 4 | second >> 6 << 4), axis=1)


def _by_runs(blocks: Array, codes: Array) -> Array:
    """Q4_K and Q5_K: codes [n, 8, 32] by the scale and minimum of each run of 32."""
    scales, minima = _six_bits(blocks[:, 4:16])
    steps, lows = _halves(blocks, 0) * scales, _halves(blocks, 2) * minima
    made: Array = steps[:, :, None] * codes - lows[:, :, None]
    return made


def _q4_k(blocks: Array) -> Array:
    return _by_runs(blocks, _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32))


def _q5_k(blocks: Array) -> Array:
    codes = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    high = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    return _by_runs(blocks, codes | high << 4)


def _q6_k(blocks: Array) -> Array:
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 16, 16)
    codes = (low | _pairs(blocks[:, 128:192]) << 4).view(np.int8) - np.int8(32)
    scales = _halves(blocks, 208) * blocks[:, 192:208].view(np.int8)
    made: Array = scales[:, :, None] * codes
    return made


FORMATS: dict[int, BlockFormat] = {
    2: BlockFormat("Q4_0", 32, 18, _q4_0),
    3: BlockFormat("Q4_1", 32, 20, _q4_1),
    6: BlockFormat("Q5_0", 32, 22, _q5_0),
    7: BlockFormat("Q5_1", 32, 24, _q5_1),
    8: BlockFormat("Q8_0", 32, 34, _q8_0),
    10: BlockFormat("Q2_K", 256, 84, _q2_k),
    11: BlockFormat("Q3_K", 256, 110, _q3_k),
    12: BlockFormat("Q4_K", 256, 144, _q4_k),
    13: BlockFormat("Q5_K", 256, 176, _q5_k),
    14: BlockFormat("Q6_K", 256, 210, _q6_k),
}
"""Formats by ggml's type number."""

PLAIN: dict[int, str] = {0: "float32", 1: "float16", 28: "float64", 30: "bfloat16"}
"""Types that are stored without quantisation."""

OTHERS: dict[int, str] = {
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}
"""Names of unsupported types, for messages."""


def dequantise(form: BlockFormat, stored: Array) -> Array:
    """Dequantise blocks: uint8 [n * size] to float32 [n * count]."""
    with np.errstate(all="ignore"):  # a scale may be infinite, as in ggml
        numbers = form.numbers(stored.reshape(-1, form.size))
    return numbers.reshape(-1)
