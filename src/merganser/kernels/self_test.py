"""A short test of a newly loaded library, against known bytes."""

from __future__ import annotations

import ctypes
import hashlib

import numpy as np

from merganser.kernels import merging, steps
from merganser.kernels import rules as rule
from merganser.kernels.arguments import Inputs

EXPECTED = "1c75c872432f63af"
"""The expected digest of :func:`made`."""


def problem(library: ctypes.CDLL) -> str | None:
    """A description of what is wrong with a library; None if its digest is the expected one."""
    return None if made(library) == EXPECTED else "computes other numbers than it should"


def made(library: ctypes.CDLL | None) -> str:
    """The digest of a few merges with every kind of arithmetic; with numpy if there is no
    library."""
    count = 77
    rows = [
        (0x3F00 + np.arange(count) * (2 * seed + 37) * 61 % 4096).astype(np.uint16)
        for seed in range(3)
    ]
    inputs = Inputs.of((row.view(np.uint8) for row in rows), [0, 0, 0])
    ties = np.zeros((2, 2, 1), np.int64)
    rules = rule.Rules(
        np.array([rule.BETWEEN, rule.DRAWN]),
        np.array([[rule.ABSENT, 0x3F000000]] * 2, np.uint32),
        ties,
        ties,
        np.full(2, 2**63, np.uint64),
        np.array([5, 6], np.uint64),
        np.zeros((2, 0), np.uint8),
    )
    digest = hashlib.sha256()
    for work in (np.dtype(np.float32), np.dtype(np.float64)):
        numbers = np.array([0.7, 0.45, -0.3], work)
        hows: tuple[steps.How, ...] = (
            steps.Linear(numbers, 0.85),
            steps.Sparse(rules, numbers[:2], numbers[:2], True, "counted", 1.0, 0.75),
        )
        for how in hows:
            for dtype, stochastic in (("bfloat16", False), ("float16", True), ("float32", False)):
                out = np.zeros(count * np.dtype(np.float32).itemsize, np.uint8)
                arguments = inputs, count, 0, work, dtype, stochastic
                merging.merge(library, *arguments, [steps.Output(out, how, 11)])
                digest.update(out.tobytes())
    return digest.hexdigest()[:16]
