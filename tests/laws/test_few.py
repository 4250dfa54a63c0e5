"""The kernels for a few models give the same bits as those for any number of models.

An input that is stored in a wider dtype than the others holds the same numbers, and takes the kernels for
any number of models.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from merganser.kernels import BLOCK, CELL, LANES, library, measuring, merging, selecting, steps
from merganser.kernels import rules as loops
from merganser.kernels.arguments import Inputs

COUNT = CELL + BLOCK + 48
Array = np.ndarray[Any, Any]


def numbers(k: int) -> list[Array]:
    """Rows that bfloat16 can hold: a base, and others that differ from it in most places."""
    random = np.random.default_rng(k)
    base = random.standard_normal(COUNT).astype(np.float32)
    rows = [base]
    for _ in range(k - 1):
        moved = random.standard_normal(COUNT) * 0.02 * (random.random(COUNT) < 0.7)
        rows.append(base + moved.astype(np.float32))
    rows[0][7], rows[-1][9], rows[-1][11] = -0.0, np.nan, np.inf
    return [((row.view(np.uint32) >> 16) << 16).view(np.float32) for row in rows]


def stored(rows: list[Array], codes: list[int]) -> Inputs:
    """The rows as bytes: bfloat16 (0) or float32 (2)."""
    halves = [(row.view(np.uint32) >> 16).astype(np.uint16) for row in rows]
    each = zip(codes, rows, halves, strict=True)
    return Inputs.of(
        ((row if code == 2 else half).view(np.uint8) for code, row, half in each), codes
    )


def rules_of(kind: int, k: int, room: bool) -> loops.Rules:
    """The same rule for all models, cuts at keys that occur, of which some are above."""
    cells, models = -(-COUNT // CELL), k - 1
    allowed, present = (
        np.zeros((models, 2, cells), np.int64),
        np.zeros((models, 2, cells), np.int64),
    )
    present[:, :, 1], allowed[:, 0, 1] = 3, 2  # ties must be counted in the second cell
    keys = [0.03125, 0.015625]
    return loops.Rules(
        np.full(models, kind),
        np.tile(np.array(keys, np.float32).view(np.uint32), (models, 1)),
        allowed,
        present,
        np.full(models, 2**62, np.uint64),
        np.arange(11, 11 + models).astype(np.uint64),
        np.zeros((models, COUNT // 8 + 32 if room or kind == loops.MASKED else 0), np.uint8),
    )


def masked(rules: loops.Rules) -> loops.Rules:
    random = np.random.default_rng(3)
    rules.masks[:] = random.integers(0, 256, rules.masks.shape)
    return rules


def merge(rows: list[Array], codes: list[int], rules: loops.Rules, how: tuple[bool, str]) -> Any:
    inputs, k = stored(rows, codes), len(rows)
    elect, divide = how
    factors = np.linspace(0.9, 0.3, k - 1).astype(np.float32)
    weights = np.linspace(0.7, 0.2, k - 1).astype(np.float32)
    out, sums = np.zeros(2 * COUNT, np.uint8), steps.Sums.zeros(-(-COUNT // CELL), k)
    scale = float(np.float32(0.8))
    sparse = steps.Sparse(rules, factors, weights, elect, divide, 1.3, scale)
    output = steps.Output(out, sparse, 3, sums)
    work = np.dtype(np.float32)
    merging.merge(library.kernels(), inputs, COUNT, 0, work, "bfloat16", False, [output])
    halves = out.view(np.uint16)
    halves[(halves & 0x7FFF) > 0x7F80] &= 0x7FFF
    return [out, rules.masks, *sums]


def same(first: list[Array], second: list[Array]) -> None:
    """To the last bit, but for the signs of what is not a number."""
    for one, other in zip(first, second, strict=True):
        if one.dtype == np.float64:
            assert np.array_equal(np.isnan(one), np.isnan(other))
            one, other = (np.where(np.isnan(x), 0.0, x).view(np.uint64) for x in (one, other))
        np.testing.assert_array_equal(one, other)


KINDS = [loops.ALL, loops.NOTHING, loops.BETWEEN, loops.DRAWN, loops.MASKED]


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "how", [(True, "counted"), (True, "no"), (False, "counted"), (False, "weights")]
)
def test_merging(k: int, kind: int, how: tuple[bool, str]) -> None:
    rows = numbers(k)
    room = how[0]
    results = [
        merge(rows, codes, masked(rules) if kind == loops.MASKED else rules, how)
        for codes in ([0] * k, [2] * k, [2] + [0] * (k - 1))
        for rules in [rules_of(kind, k, room)]
    ]
    same(results[0], results[2])
    same(results[1], results[2])


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", [loops.L1, loops.L2])
def test_norms(k: int, kind: int, norm: int) -> None:
    rows = numbers(k)
    rows[-1][[9, 11]] = rows[0][[9, 11]]
    found = []
    for codes in ([0] * k, [2] * k, [2] + [0] * (k - 1)):
        inputs = stored(rows, codes)
        rules = rules_of(kind, k, room=True)
        if kind == loops.MASKED:
            rules = masked(rules)
        sums = np.zeros((-(-COUNT // CELL), k - 1, 2))
        measuring.norms(inputs, COUNT, np.dtype(np.float32), rules, norm, 0, sums)
        found.append([sums, rules.masks])
        assert np.all(np.isfinite(sums))
    same(found[0], found[2])
    same(found[1], found[2])


def test_selection() -> None:
    """Against a count of all keys."""
    rows = numbers(3)
    changes = [np.abs(row - rows[0]).view(np.uint32) & 0x7FFFFFFF for row in rows[1:]]
    low, high = np.array([0.01, 0.05], np.float32).view(np.uint32)
    inside = changes[0][(changes[0] >= low) & (changes[0] <= high)]
    values, counts = np.unique(inside, return_counts=True)
    guesses = values[np.argsort(counts)[-2:]]
    what = np.array([0, 1, 0])
    bracket = np.full(3, low), np.full(3, high), np.tile(guesses, (3, 1))
    for codes in ([0, 0, 0], [2, 2, 2], [2, 0, 0]):
        inputs = stored(rows, codes)
        above, fill = np.zeros(3, np.int64), np.zeros(3, np.int64)
        equal, found = np.zeros((3, 2, 2), np.int64), np.zeros((3, COUNT + LANES), np.uint32)
        work = np.dtype(np.float32)
        selecting.tally(inputs, COUNT, work, what, *bracket, above, equal, found, fill)
        for m, model in enumerate(what):
            change = changes[model]
            keep = (change >= low) & (change <= high) & ~np.isin(change, guesses)
            assert above[m] == np.sum((change > high) & ~np.isin(change, guesses))
            np.testing.assert_array_equal(found[m, : fill[m]], change[keep])
            for n, guess in enumerate(guesses):
                cells = [np.sum(change[c * CELL : (c + 1) * CELL] == guess) for c in (0, 1)]
                np.testing.assert_array_equal(equal[m, n], cells)


def draw(seed: int, places: Array) -> Array:
    """Splitmix64, from its paper."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + (places.astype(np.uint64) + np.uint64(1)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@pytest.mark.parametrize("length", [1, 5, 16, 96, 1000, 4112])
@pytest.mark.parametrize("codes", [[0, 0], [2, 2], [2, 0]])
def test_draws_by_rank(length: int, codes: list[int]) -> None:
    """Against ranks by sorting, and the same draws."""
    rows, size = 8, 8 * length
    base, moved = (row.copy() for row in numbers(2))
    moved[[9, 11]] = 0.5
    coarse = np.arange(COUNT) // length % 2 == 1  # every other row has many ties
    moved[coarse] = base[coarse] + np.round(moved[coarse] * 4) / 4
    moved = ((moved.view(np.uint32) >> 16) << 16).view(np.float32)
    inputs = stored([base, moved], codes)
    mask = np.zeros(size // 8 + 8, np.uint8)
    density, epsilon, seed, work = 0.5, 0.4, 77, np.dtype(np.float32)
    selecting.draw_by_rank(inputs, work, 0, rows, length, density, epsilon, seed, 0, mask)
    change = np.abs(moved - base)[:size].reshape(rows, length)
    less = np.array([np.searchsorted(np.sort(r), r, side="left") for r in change])
    more = np.array([np.searchsorted(np.sort(r), r, side="right") for r in change])
    rank = (less + more - 1) / 2
    chance = density + (epsilon * (2 * rank / (length - 1) - 1) if length > 1 else 0.0)
    drawn = draw(seed, np.arange(size)).reshape(rows, length) / 2.0**64
    kept = np.unpackbits(mask, bitorder="little")[:size].reshape(rows, length)
    clear = np.abs(drawn - chance) > 1e-12
    np.testing.assert_array_equal(kept[clear], (drawn < chance)[clear])
    assert clear.mean() > 0.99
