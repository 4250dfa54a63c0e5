"""Times of the compiled kernels alone, one thread, a tile of 1,048,576 elements: the least of many calls.

``python bench/kernels.py [LEVEL]``; ``LEVEL`` is an instruction level, such as ``x86_64_v3``, or ``none`` for numpy.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from merganser.kernels import (
    CELL,
    CODES,
    LANES,
    WIDTHS,
    library,
    measuring,
    merging,
    selecting,
    steps,
)
from merganser.kernels import rules as rule
from merganser.kernels.arguments import Inputs

COUNT = 16 * CELL
SINGLE = np.dtype(np.float32)
RANDOM = np.random.default_rng(0)


def inputs(k: int, dtype: str) -> Inputs:
    """A base and models near it, of which three elements of ten are the base's."""
    base = (RANDOM.standard_normal(COUNT) * 0.02).astype(np.float32)
    rows = [base]
    for _ in range(k - 1):
        change = RANDOM.standard_normal(COUNT) * 1e-3 * (RANDOM.random(COUNT) < 0.7)
        rows.append(base + change.astype(np.float32))
    if dtype == "bfloat16":
        rows = [(row.view(np.uint32) >> 16).astype(np.uint16) for row in rows]
    return Inputs.of((row.view(np.uint8) for row in rows), [CODES[dtype]] * k)


def rules(k: int, kind: int) -> rule.Rules:
    """The same rule for all models, without ties."""
    ties = np.zeros((k - 1, 2, COUNT // CELL), np.int64)
    cuts = np.array([rule.ABSENT, np.float32(5e-4).view(np.uint32)], np.uint32)
    return rule.Rules(
        np.full(k - 1, kind),
        np.tile(cuts, (k - 1, 1)),
        ties,
        ties,
        np.full(k - 1, 2**63, np.uint64),
        np.arange(k - 1).astype(np.uint64),
        np.zeros((k - 1, COUNT // 8 + LANES), np.uint8),
    )


def merge(
    k: int, dtype: str, out: str, how: Callable[[], steps.How], stochastic: bool = False
) -> Callable[[], Any]:
    """A merge with its report."""
    tile, sums = inputs(k, dtype), steps.Sums.zeros(COUNT // CELL, k)
    data = np.zeros(COUNT * WIDTHS[CODES[out]], np.uint8)
    outputs = [steps.Output(data, how(), 3, sums)]
    return lambda: merging.merge(
        library.kernels(), tile, COUNT, 0, SINGLE, out, stochastic, outputs
    )


def linear(k: int) -> Callable[[], steps.How]:
    """With different coefficients."""
    return lambda: steps.Linear(np.linspace(0.1, 0.9, k).astype(np.float32))


def sparse(k: int, kind: int) -> Callable[[], steps.How]:
    """With signs elected and the weights that count as divisor, as ties has it."""
    numbers = np.linspace(0.9, 0.3, k - 1).astype(np.float32)
    return lambda: steps.Sparse(rules(k, kind), numbers, numbers, True, "counted", 1.0, 1.0)


def ranks() -> Callable[[], Any]:
    """Masks by rank in rows of 4,096."""
    tile, mask = inputs(2, "bfloat16"), np.zeros(COUNT // 8 + LANES, np.uint8)
    shape = COUNT // 4096, 4096
    return lambda: selecting.draw_by_rank(tile, SINGLE, 0, *shape, 0.5, 0.1, 7, 0, mask)


def cases() -> dict[str, Callable[[], Any]]:
    """What is timed."""
    half, single = "bfloat16", "float32"
    found = {f"linear, {k} models": merge(k, half, half, linear(k)) for k in (2, 3, 5, 8)}
    found["linear, 2 models, to float32"] = merge(2, half, single, linear(2))
    found["linear, 2 models, stochastic"] = merge(2, half, half, linear(2), True)
    for k in (2, 3, 5, 7):
        found[f"ties, base + {k - 1}"] = merge(k, half, half, sparse(k, rule.BETWEEN))
    found["ties, base + 2, to float32"] = merge(3, half, single, sparse(3, rule.BETWEEN))
    found["ties, base + 2, stochastic"] = merge(3, half, half, sparse(3, rule.BETWEEN), True)
    found["dare_ties, base + 2"] = merge(3, half, half, sparse(3, rule.DRAWN))
    found["nearswap"] = merge(2, half, half, lambda: steps.NearSwap(1e-3))
    found["ram, base + 2"] = merge(3, half, half, lambda: steps.Ram(1e-5))
    for k in (2, 3, 5):
        gram, tile = np.zeros((COUNT // CELL, k, k)), inputs(k, half)
        found[f"Gram matrix, {k} models"] = lambda t=tile, g=gram: measuring.measure(
            t, COUNT, False, g
        )
    found["ranks (della)"] = ranks()
    return found


def main() -> None:
    """Print milliseconds."""
    if len(sys.argv) > 1:
        library.use(sys.argv[1])
    print(library.description())
    for name, work in cases().items():
        times = []
        until = time.perf_counter() + 0.3
        while len(times) < 5 or time.perf_counter() < until:
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
        print(f"{name:32} {min(times) * 1e3:8.3f} ms")


if __name__ == "__main__":
    main()
