"""Measurements for arcee_fusion: the divergences of a tensor's rows, and the importance
threshold."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from merganser.engine.running_plan import RunningPlan, Scratch
from merganser.kernels import fusion
from merganser.kernels.arguments import Array, Inputs
from merganser.kernels.steps import Fusion


def find_bound(part: RunningPlan, shape: tuple[int, ...]) -> Iterator[Any]:
    """Set ``part.counted`` to the part's step, with the rows' divergences and the threshold: the median
    importance plus 1.5 times the interquartile range."""
    size, length = math.prod(shape), shape[-1] if shape else 1
    if not size:
        part.counted = Fusion(np.zeros(0), 1, math.inf)
        return
    divergences = _Divergences(part, size, length)
    yield divergences
    places = [int(share * (size - 1)) for share in (0.25, 0.5, 0.75)]
    upper, ranks = fusion.at_ranks(divergences.counts, places)
    keys = _LowerBits(part, divergences, upper.astype(np.uint32))
    yield keys
    quartiles = np.empty(3, np.uint32)
    for i, (bits, rank) in enumerate(zip(keys.upper, ranks, strict=True)):
        counts = keys.counts[i]
        counts[0] += (
            divergences.counts[bits] - counts.sum()
        )  # zeros, which the kernel does not count
        ((lower,), _) = fusion.at_ranks(counts, [rank])
        quartiles[i] = bits << fusion.LOW | lower
    first, median, third = quartiles.view(np.float32)
    with np.errstate(all="ignore"):
        bound = median + np.float32(1.5) * (third - first)
    part.counted = Fusion(divergences.rows, length, float(bound))


class _Divergences:
    """The first pass: divergences of rows, and counts of the keys' upper bits."""

    cut: Literal["rows"] = "rows"

    def __init__(self, part: RunningPlan, size: int, length: int) -> None:
        self.part = part
        self.length = length
        self.rows = np.zeros(size // length)
        self.counts = np.zeros(1 << 16, np.int64)
        self._lock = threading.Lock()

    def add(self, inputs: Inputs, start: int, count: int, scratch: Scratch) -> None:
        here: Array = self.rows[start // self.length : (start + count) // self.length]
        counts = np.zeros((2, 1 << 16), np.int64)
        fusion.diverge(inputs, self.part.wide, self.length, here, counts)
        with self._lock:
            self.counts += counts.sum(axis=0)


class _LowerBits:
    """The second pass: counts of the lower bits of keys with the quartiles' upper bits."""

    cut: Literal["cells"] = "cells"

    def __init__(self, part: RunningPlan, known: _Divergences, upper: Array) -> None:
        self.part = part
        self.upper = upper
        self.counts = np.zeros((3, 1 << fusion.LOW), np.int64)
        self._known = known
        self._lock = threading.Lock()

    def add(self, inputs: Inputs, start: int, count: int, scratch: Scratch) -> None:
        counts = np.zeros_like(self.counts)
        known = self._known.rows, self._known.length
        fusion.count_keys(inputs, count, self.part.wide, start, *known, self.upper, counts)
        with self._lock:
            self.counts += counts
