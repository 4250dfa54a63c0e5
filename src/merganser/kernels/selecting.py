"""The kernels that select deltas: counts for a search by magnitude, and masks by rank in a row."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from merganser.kernels import CELL, LANES
from merganser.kernels.arguments import Array, Inputs, cells_of, checked
from merganser.kernels.library import kernels_for

_I64, _U64, _F64, _PTR = ctypes.c_int64, ctypes.c_uint64, ctypes.c_double, ctypes.c_void_p


class _TallyStruct(ctypes.Structure):
    _fields_ = (
        ("selections", _I64),
        ("what", _PTR),
        ("lows", _PTR),
        ("highs", _PTR),
        ("guesses", _PTR),
        ("above", _PTR),
        ("equal", _PTR),
        ("cells", _I64),
        ("found", _PTR),
        ("room", _I64),
        ("fill", _PTR),
    )


class _RanksStruct(ctypes.Structure):
    _fields_ = (
        ("rows", _I64),
        ("length", _I64),
        ("density", _F64),
        ("epsilon", _F64),
        ("seed", _U64),
        ("start", _I64),
        ("mask", _PTR),
    )


def tally(
    inputs: Inputs,
    count: int,
    work: np.dtype[Any],
    what: Array,
    lows: Array,
    highs: Array,
    guesses: Array,
    above: Array,
    equal: Array,
    found: Array,
    fill: Array,
) -> None:
    """For each of m searches, count the keys above its bracket, and collect those inside.

    Args:
        inputs, count: the tile, the base first.
        work: float32 or float64, the dtype of the deltas.
        what: int64 [m], the model of the deltas (0 is the first after the base), or VARIANCE.
        lows, highs: uint32 [m], the brackets, inclusive.
        guesses: uint32 [m, 2], distinct keys in or below the bracket that are only counted.
        above: int64 [m], incremented by the keys above the bracket.
        equal: int64 [m, 2, cells of the tile], incremented by the keys equal to the guesses.
        found: uint32 [m, room], output: the keys in the bracket except the guesses; room for the
            tile's elements plus LANES.
        fill: int64 [m], number of keys in ``found``; zero initially.
    """
    m, cells = len(what), equal.shape[2]
    if np.any(what >= len(inputs.rows) - 1) or np.any(what < -1) or fill.any():
        raise ValueError(f"no such models: {what}")
    struct = _TallyStruct(
        m,
        checked(what, np.int64, m),
        checked(lows, np.uint32, m),
        checked(highs, np.uint32, m),
        checked(guesses, np.uint32, m, 2),
        checked(above, np.int64, m),
        checked(equal, np.int64, m, 2, max(cells, cells_of(count))),
        cells,
        checked(found, np.uint32, m, found.shape[1]),
        found.shape[1],
        checked(fill, np.int64, m),
    )
    tile = ctypes.byref(inputs.struct(count))
    if found.shape[1] < count + LANES:
        raise ValueError(f"room for {found.shape[1]} keys, not for {count} and {LANES} more")
    if library := kernels_for(inputs):
        library.tally(tile, count, work == np.float64, ctypes.byref(struct))
        return
    from merganser.kernels import plain

    for m, model in enumerate(what.tolist()):
        keys = plain.change_keys(inputs, count, work, model)
        above[m] += np.count_nonzero(keys > highs[m])
        inside = (keys >= lows[m]) & (keys <= highs[m])
        for n, guess in enumerate(guesses[m]):
            cells = np.flatnonzero(keys == guess) // CELL
            equal[m, n] += np.bincount(cells, minlength=equal.shape[2])
            inside &= keys != guess
        fill[m] = np.count_nonzero(inside)
        found[m, : fill[m]] = keys[inside]


def sample_keys(inputs: Inputs, count: int, work: np.dtype[Any], model: int, into: Array) -> None:
    """Compute the keys of a sample of a model's deltas, or of VARIANCE, into uint32 [count]."""
    if not -1 <= model < len(inputs.rows) - 1:
        raise ValueError(f"no model {model}")
    place = checked(into, np.uint32, count)
    struct = ctypes.byref(inputs.struct(count))
    if library := kernels_for(inputs):
        library.sample_keys(struct, count, work == np.float64, model, place)
        return
    from merganser.kernels import plain

    into[:count] = plain.change_keys(inputs, count, work, model)


def count_shared(
    inputs: Inputs, count: int, work: np.dtype[Any], epsilon: float, counts: Array
) -> None:
    """For each model, count the deltas larger than epsilon: shared with other models, and alone.

    Args:
        inputs, count: the tile, the base first.
        work: float32 or float64, the dtype of the deltas.
        epsilon: a threshold, not negative.
        counts: int64 [2, models], incremented.
    """
    if not epsilon >= 0:
        raise ValueError(f"epsilon is {epsilon}")
    place = checked(counts, np.int64, 2, len(inputs.rows) - 1)
    struct = ctypes.byref(inputs.struct(count))
    library = kernels_for(inputs)
    if library is None:
        raise ValueError("without compiled kernels torch computes this step")
    library.count_shared(struct, count, work == np.float64, epsilon, place)


def draw_by_rank(
    inputs: Inputs,
    work: np.dtype[Any],
    model: int,
    rows: int,
    length: int,
    density: float,
    epsilon: float,
    seed: int,
    start: int,
    mask: Array,
) -> None:
    """Set the bits of deltas that are kept by their rank in the row.

    The rank ``r`` of a delta in its row, by ascending magnitude (equal ones share the mean of their
    ranks), gives it the probability ``density + epsilon (2 r / (length - 1) - 1)``.

    Args:
        inputs: complete rows, the base first.
        work: float32 or float64, the dtype of the deltas.
        model: the model of the deltas; 0 is the first after the base.
        rows, length: number of rows, and elements per row.
        density, epsilon: probabilities.
        seed: of the draws.
        start: first element in the tensor, a multiple of 8.
        mask: uint8, one bit per element of the tensor, zero initially, plus LANES / 8 bytes.
    """
    size = -(-(start + rows * length) // 8) + LANES // 8
    if start % 8 or length < 1 or not 0 <= model < len(inputs.rows) - 1:
        raise ValueError(f"no rows: {rows} of {length} from element {start}, of model {model}")
    struct = _RanksStruct(
        rows, length, density, epsilon, seed, start, checked(mask, np.uint8, size)
    )
    tile = ctypes.byref(inputs.struct(rows * length))
    if library := kernels_for(inputs):
        library.draw_by_rank(tile, work == np.float64, model, ctypes.byref(struct))
        return
    from merganser.kernels import plain

    keys = plain.change_keys(inputs, rows * length, work, model).reshape(rows, length)
    step = 2.0 * epsilon / (length - 1) if length > 1 else 0.0
    lowest = density - epsilon if length > 1 else density
    kept = np.empty((rows, length), bool)
    for n, row in enumerate(keys):
        ordered = np.sort(row)
        less = np.searchsorted(ordered, row, side="left")
        equal = np.searchsorted(ordered, row, side="right") - less
        chances = np.maximum(lowest + step * (less + 0.5 * (equal - 1)), 0.0)
        bounds = (np.where(chances >= 1.0, 0.0, chances) * 2.0**64).astype(np.uint64)
        bounds[chances >= 1.0] = np.uint64(2**64 - 1)
        kept[n] = plain.draws(seed, start + n * length, length) < bounds
    bits = np.packbits(kept.reshape(-1), bitorder="little")
    mask[start >> 3 : (start >> 3) + len(bits)] |= bits
