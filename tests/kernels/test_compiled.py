"""The compiled kernels against the same in numpy, to the bit: every dtype, number of models, size and level."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import merganser
from merganser.kernels import (
    CELL,
    CODES,
    LANES,
    WIDTHS,
    build,
    library,
    measuring,
    merging,
    plain,
    selecting,
    self_test,
    steps,
    storage,
)
from merganser.kernels import rules as rule
from merganser.kernels.arguments import Inputs
from merganser.methods import selection

Array = np.ndarray[Any, Any]


class InNumpy:
    """All kernels that look for the library as they are where none is compiled."""

    def __getattr__(self, name: str) -> Any:
        modules = (measuring, selecting, storage)
        kernel = next(getattr(module, name) for module in modules if hasattr(module, name))

        def call(*arguments: Any) -> Any:
            loaded = library._loaded[:]
            library._loaded[:] = [(None, "numpy")]
            try:
                return kernel(*arguments)
            finally:
                library._loaded[:] = loaded

        return call


numpy = InNumpy()
SIZES = [0, 1, LANES - 1, LANES, LANES + 1, 4095, 4096, 4097, CELL - 1, CELL + 1, CELL + 4096 + 37]
SPECIAL = np.array(
    [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1.2e-38, 3e-5, 6e-8, 3.4e38, -3.4e38, 65504]
)
pytestmark = pytest.mark.skipif(not library.levels(), reason="no kernels are built")


@pytest.fixture(params=library.levels(), autouse=True)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test runs at every level that this processor has."""
    library.use(request.param)
    assert library.description() == request.param
    yield request.param
    library.use(None)


def as_stored(numbers: Array, dtype: str) -> Array:
    return plain.narrowed(numbers.astype(np.float64), dtype, False, 0, 0)


def inputs_of(random: np.random.Generator, dtypes: list[str], count: int, special: bool) -> Inputs:
    """A base and models near it, some of whose numbers are equal, zero or, if wanted, no numbers."""
    base = random.standard_normal(count)
    rows = [base]
    for _ in dtypes[1:]:
        changed = random.random(count) < 0.7
        rows.append(base + random.standard_normal(count) * 0.02 * changed)
    if special:
        for row in rows:
            places = random.random(count) < 0.1
            row[places] = random.choice(SPECIAL, int(places.sum()))
    return Inputs.of(
        (as_stored(row, dtype) for row, dtype in zip(rows, dtypes, strict=True)),
        [CODES[dtype] for dtype in dtypes],
    )


def rules_of(
    random: np.random.Generator, kind: int, models: int, count: int, start: int = 0
) -> rule.Rules:
    """The same rule for all models; ties at both cuts."""
    varied = kind == rule.VARIANCE
    kinds, cells = models + varied, -(-count // CELL)
    present = random.integers(0, 4, (kinds, 2, cells))
    cuts = np.tile(np.array([0.03125, 0.015625], np.float32).view(np.uint32), (kinds, 1))
    masks = random.integers(0, 256, (models, count // 8 + 4), np.uint8)
    return rule.Rules(
        np.full(kinds, rule.BETWEEN if varied else kind),
        cuts,
        np.minimum(random.integers(0, 4, (kinds, 2, cells)), present),
        present,
        np.full(models, 2**62, np.uint64),
        random.integers(0, 2**63, models, np.uint64),
        masks if kind in (rule.MASKED, rule.DRAWN) else np.zeros((models, 0), np.uint8),
    )


def same(one: Array, other: Array) -> None:
    np.testing.assert_array_equal(one, other)


def run(
    inputs: Inputs, count: int, work: Any, dtype: str, stochastic: bool, hows: list[Any]
) -> None:
    """Compiled and in numpy: the same bytes and digests, the same report but for the order of its sums."""
    k, cells = len(inputs.rows) - hows[0].extra, -(-count // CELL)
    results = []
    for kernels in (library.kernels(), None):
        sizes = [*map(len, inputs.rows[1:]), count * WIDTHS[CODES[dtype]]]
        digests = [np.zeros(-(-size // CELL), np.uint64) for size in sizes]
        outputs = []
        for p, how in enumerate(hows):
            vector = (cells, k - 1)
            shared = (np.zeros((*vector, k - 1)), np.zeros(vector)) if p == 0 else (None, None)
            sums = steps.Sums(*shared, *(np.zeros(vector) for _ in range(2)), np.zeros(cells))
            data = np.zeros(sizes[-1], np.uint8)
            outputs.append(steps.Output(data, how, 7 + p, sums, None if p else digests[-1]))
        of_inputs = [None, *digests[:-1]] if count else []
        merging.merge(
            kernels, inputs, count, 0, np.dtype(work), dtype, stochastic, outputs, of_inputs
        )
        results.append(outputs)
        for row, digest in zip([*inputs.rows[1:], outputs[0].data], digests, strict=True):
            alone = np.zeros_like(digest)
            numpy.digest(row, alone)
            same(digest, alone)
    for mine, wanted in zip(*results, strict=True):
        same(mine.data, wanted.data)
        for one, other in zip(mine.sums, wanted.sums, strict=True):
            if one is not None and np.isfinite(other).all() and abs(other).max(initial=0) < 1e30:
                np.testing.assert_allclose(
                    one, other, rtol=3e-4, atol=2e-3 * max(1, abs(other).max(initial=0)) ** 0.5
                )


DTYPES = st.sampled_from(["bfloat16", "float16", "float32", "float64"])


@st.composite
def tiles(draw: Any, least: int = 1) -> dict[str, Any]:
    k = draw(st.integers(least, 7))
    dtypes = [draw(DTYPES)] * k
    if draw(st.booleans()):
        dtypes[draw(st.integers(0, k - 1))] = draw(DTYPES)
    count = draw(st.sampled_from(SIZES))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    work = np.float64 if "float64" in dtypes and draw(st.booleans()) else np.float32
    return {
        "random": random,
        "k": k,
        "inputs": inputs_of(random, dtypes, count, draw(st.booleans())),
        "count": count,
        "work": work,
        "dtype": draw(DTYPES),
        "stochastic": draw(st.booleans()),
    }


# One test case takes milliseconds; the instances are some hundred.
many = settings(max_examples=12, deadline=None, derandomize=True)


@given(tile=tiles(), divisor=st.sampled_from([1.0, 1.7]), plus=st.sampled_from([-0.0, 0.0]))
@many
def test_linear(tile: dict[str, Any], divisor: float, plus: float) -> None:
    hows = [
        steps.Linear(tile["random"].normal(size=tile["k"]).astype(tile["work"]), divisor, plus)
        for _ in range(2)
    ]
    run(tile["inputs"], tile["count"], tile["work"], tile["dtype"], tile["stochastic"], hows)


KINDS = [rule.ALL, rule.NOTHING, rule.BETWEEN, rule.DRAWN, rule.MASKED, rule.VARIANCE]


@given(
    tile=tiles(2),
    kind=st.sampled_from(KINDS),
    elect=st.booleans(),
    divide=st.sampled_from(["no", "weights", "counted"]),
    least=st.integers(0, 2),
)
@many
def test_sparse(tile: dict[str, Any], kind: int, elect: bool, divide: str, least: int) -> None:
    random, models, work = tile["random"], tile["k"] - 1, tile["work"]
    factors, weights, slack = (random.normal(size=models).astype(work) for _ in range(3))
    how = steps.Sparse(
        rules_of(random, kind, models, tile["count"]),
        *(factors, weights, elect, divide, 1.3, float(work(0.8)), least, abs(slack)),
    )
    run(tile["inputs"], tile["count"], work, tile["dtype"], tile["stochastic"], [how])


@given(tile=tiles(2))
@many
def test_given(tile: dict[str, Any]) -> None:
    run(
        tile["inputs"],
        tile["count"],
        tile["work"],
        tile["dtype"],
        tile["stochastic"],
        [steps.Given()],
    )


@given(
    tile=tiles(2),
    name=st.sampled_from(["nearswap", "ram", "ramplus_tl"]),
    near=st.sampled_from([0.0, 1e-3, 0.02]),
)
@many
def test_steps_of_methods_in_torch(tile: dict[str, Any], name: str, near: float) -> None:
    """Against the method itself, rounded in numpy."""
    count, inputs, work = tile["count"], tile["inputs"], np.dtype(tile["work"])
    if name == "nearswap":
        inputs = inputs.take([0, 1])
    base, *models = (
        torch.from_numpy(plain.widened(inputs, i, count, work)) for i in range(len(inputs.rows))
    )
    if name == "nearswap":
        how: steps.How = steps.NearSwap(near)
        exact = selection.nearswap(models, base, t=near)
    elif name == "ram":
        how, exact = steps.Ram(near), selection.ram(models, base, epsilon=near)
    else:
        facts = selection.count_shared(models, base, epsilon=near)
        counts = np.zeros((2, len(models)), np.int64)
        selecting.count_shared(inputs, count, work, near, counts)
        same(counts, facts.numpy())
        factors = selection.boosts(*counts.tolist(), r=0.7, alpha=0.6, epsilon=near)
        how = steps.Ram(near, np.array(factors, work))
        exact = selection.ramplus_tl(models, base, facts, r=0.7, alpha=0.6, epsilon=near)
    out = np.zeros(count * WIDTHS[CODES[tile["dtype"]]], np.uint8)
    output = steps.Output(out, how, 3)
    arguments = inputs, count, 0, work, tile["dtype"], tile["stochastic"], [output]
    merging.merge(library.kernels(), *arguments)
    same(out, plain.narrowed(exact.numpy(), tile["dtype"], tile["stochastic"], 3, 0))


def test_what_shares_all_or_nothing_divides_by_no_zero() -> None:
    factors = selection.boosts([0, 3, 5], [0, 0, 10], r=0.5, alpha=0.6, epsilon=0.0)
    assert factors == [1.0, 1.3, 1.25]


@given(tile=tiles(2), changes=st.booleans(), length=st.sampled_from([1, 5, 96, 1000, 5000]))
@many
def test_gram_matrices(tile: dict[str, Any], changes: bool, length: int) -> None:
    # Short rows are many, and numpy takes them one by one.
    count, m = min(tile["count"], 600 * length + 1), tile["k"] - changes
    inputs, cells = tile["inputs"], -(-count // CELL)
    results = []
    for kernels in (measuring, numpy):
        gram, columns = np.zeros((cells, m, m)), np.zeros((length, m, m))
        rows, heads = np.zeros((-(-count // length), m, m)), np.zeros((cells, m, m))
        kernels.measure(inputs, count, changes, gram)
        kernels.measure_rows(inputs, count, changes, length, 0, rows, heads)
        kernels.measure_columns(inputs, count, changes, length, 0, columns)
        results.append([gram, rows, heads, columns])
    for mine, wanted in zip(*results, strict=True):
        same(mine, wanted)


@given(tile=tiles(2), by_rows=st.booleans(), length=st.sampled_from([1, 5, 96, 5000]))
@many
def test_coefficients_of_rows_and_columns(tile: dict[str, Any], by_rows: bool, length: int) -> None:
    count, k, work = tile["count"], tile["k"], tile["work"]
    vectors = max(1, -(-count // length)) if by_rows else length
    coefficients = tile["random"].normal(size=(k, vectors)).astype(work)
    mine, wanted = np.zeros(count, work), np.zeros(count, work)
    measuring.combine_each(tile["inputs"], count, coefficients, length, by_rows, 0, mine)
    numpy.combine_each(tile["inputs"], count, coefficients, length, by_rows, 0, wanted)
    same(mine, wanted)


@given(
    tile=tiles(2), kind=st.sampled_from(KINDS), norm=st.sampled_from([rule.L1, rule.L2, rule.LINF])
)
@many
def test_norms(tile: dict[str, Any], kind: int, norm: int) -> None:
    count, models = tile["count"], tile["k"] - 1
    rules = rules_of(tile["random"], kind, models, count)
    results = []
    for kernels in (measuring, numpy):
        mine, sums = (
            rules._replace(masks=rules.masks.copy()),
            np.zeros((-(-count // CELL), models, 2)),
        )
        kernels.norms(tile["inputs"], count, np.dtype(tile["work"]), mine, norm, 0, sums)
        bits = np.unpackbits(mine.masks, axis=1, bitorder="little")
        results.append([sums, bits[:, :count]])
    for one, other in zip(*results, strict=True):
        same(one, other)


@pytest.mark.parametrize("more", [0, 1])
def test_the_lower_half_of_a_draw_decides_where_the_upper_one_equals_the_chance(more: int) -> None:
    """Draws are compared by their upper halves first."""
    count, seed, place = 3 * LANES, 7, 2 * LANES + 3
    chance = plain.draws(seed, 0, count)[place] + np.uint64(more)
    rows = [np.zeros(count, np.float32), np.ones(count, np.float32)]
    inputs = Inputs.of((row.view(np.uint8) for row in rows), [CODES["float32"]] * 2)
    ties = np.zeros((1, 2, 1), np.int64)
    rules = rule.Rules(
        np.array([rule.DRAWN]),
        np.array([[rule.ABSENT, 0]], np.uint32),
        ties,
        ties,
        np.array([chance]),
        np.array([seed], np.uint64),
        np.zeros((1, count // 8 + LANES), np.uint8),
    )
    measuring.norms(inputs, count, np.dtype(np.float32), rules, rule.L1, 0, np.zeros((1, 1, 2)))
    kept = np.unpackbits(rules.masks[0], bitorder="little", count=count).astype(bool)
    assert np.array_equal(kept, plain.draws(seed, 0, count) < chance)
    assert kept[place] == bool(more)


@given(tile=tiles(2), varied=st.booleans())
@many
def test_counts_for_a_selection(tile: dict[str, Any], varied: bool) -> None:
    count, inputs, work = tile["count"], tile["inputs"], np.dtype(tile["work"])
    what = np.array([0, -1 if varied else tile["k"] - 2])
    lows, highs = np.full((2, 2), np.array([0.01, 0.05], np.float32).view(np.uint32)).T.copy()
    keys = np.zeros(count, np.uint32)
    selecting.sample_keys(inputs, count, work, 0, keys)
    wanted = np.zeros(count, np.uint32)
    numpy.sample_keys(inputs, count, work, 0, wanted)
    same(keys, wanted)
    inside = np.append(keys[(keys >= lows[0]) & (keys <= highs[0])], lows[0])
    guesses = np.array([[inside[0], 0xFFFFFFFF], [0x3C800000, 0]], np.uint32)
    results = []
    for kernels in (selecting, numpy):
        above, fill, equal = (
            np.zeros(2, np.int64),
            np.zeros(2, np.int64),
            np.zeros((2, 2, -(-count // CELL)), np.int64),
        )
        found = np.zeros((2, count + LANES), np.uint32)
        kernels.tally(inputs, count, work, what, lows, highs, guesses, above, equal, found, fill)
        results.append([above, equal, fill, found[0, : fill[0]], found[1, : fill[1]]])
    for one, other in zip(*results, strict=True):
        same(one, other)


@given(tile=tiles(2), length=st.sampled_from([1, 5, 16, 96, 1000, 4112]), coarse=st.booleans())
@many
def test_draws_by_rank(tile: dict[str, Any], length: int, coarse: bool) -> None:
    inputs = tile["inputs"]
    if coarse:  # many ties
        rows = [plain.widened(inputs, i, tile["count"], np.float64) for i in range(tile["k"])]
        inputs = Inputs.of(
            [as_stored(np.round(row * 4) / 4, "float32") for row in rows], [2] * tile["k"]
        )
    rows, work = tile["count"] // length, np.dtype(tile["work"])
    masks = [np.zeros(rows * length // 8 + 5, np.uint8) for _ in range(2)]
    for kernels, mask in zip((selecting, numpy), masks, strict=True):
        kernels.draw_by_rank(inputs, work, 0, rows, length, 0.5, 0.4, 77, 0, mask)
    same(*masks)


@given(tile=tiles(3), based=st.booleans())
@many
def test_comparisons(tile: dict[str, Any], based: bool) -> None:
    count, inputs = tile["count"], tile["inputs"].take([0, 1, 2] if based else [0, 1])
    results = []
    for kernels in (storage, numpy):
        sums = np.zeros((-(-count // CELL), storage.FIGURES))
        histogram = np.zeros((len(sums), storage.BUCKETS), np.int64)
        kernels.compare(inputs, count, sums, histogram)
        results.append((sums, histogram))
    same(results[0][1], results[1][1])
    if np.isfinite(results[1][0]).all():
        np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-9)


@given(tile=tiles(), data=st.binary(max_size=300))
@many
def test_stored_numbers(tile: dict[str, Any], data: bytes) -> None:
    count, inputs = tile["count"], tile["inputs"]
    row, code = inputs.rows[0], int(inputs.codes[0])
    into = np.zeros(count, tile["work"])
    storage.widen(row, code, count, into)
    same(into, plain.widened(inputs, 0, count, tile["work"]))
    assert storage.count_nonfinite(row, code) == numpy.count_nonfinite(row, code)
    for each in (row, np.frombuffer(data, np.uint8)):
        mine, wanted = (np.zeros(-(-len(each) // CELL), np.uint64) for _ in range(2))
        storage.digest(each, mine)
        numpy.digest(each, wanted)
        same(mine, wanted)


@given(
    shape=st.tuples(
        st.integers(1, 9), st.integers(1, 5), st.sampled_from([1, 15, 16, 33, 256, 300, 515])
    ),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    work=st.sampled_from([np.float32, np.float64]),
    own=st.sampled_from([np.float32, np.float64]),
)
@many
def test_products(
    shape: tuple[int, int, int], cut: tuple[float, float], work: Any, own: Any
) -> None:
    rows, rank, columns = shape
    random = np.random.default_rng(rows * columns)
    left, right = (
        random.normal(size=s).astype(np.float32) for s in ((rows, rank), (rank, columns))
    )
    skipped = int(cut[0] * (columns - 1))
    count = int(cut[1] * (rows * columns - skipped))
    weights, by_row, by_column = (
        random.normal(size=count).astype(own),
        random.normal(size=rows),
        random.normal(size=columns),
    )
    mine, wanted = np.zeros(count, work), np.zeros(count, work)
    arguments = (weights, left, right, 0.37, skipped, by_row, by_column)
    storage.add_product(*arguments, mine)
    numpy.add_product(*arguments, wanted)
    same(mine, wanted)
    squares = [np.zeros(columns), np.zeros(columns)]
    values = random.normal(size=(rows, columns))
    storage.add_squares(values, True, squares[0])
    numpy.add_squares(values, True, squares[1])
    same(*squares)


@given(
    shape=st.tuples(st.integers(1, 5), st.sampled_from([1, 15, 16, 33, 300])),
    width=st.sampled_from([1, 7, 16, 128, 300]),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
@many
def test_codes_with_scales(shape: tuple[int, int], width: int, cut: tuple[float, float]) -> None:
    rows, columns = shape
    random = np.random.default_rng(rows * columns)
    skipped = int(cut[0] * (columns - 1))
    count = int(cut[1] * (rows * columns - skipped))
    codes, table = random.integers(0, 256, count, np.uint8), random.normal(size=256)
    scales = random.normal(size=(3, -(-columns // width))).astype(np.float32)
    arguments = (table.astype(np.float32), scales, random.integers(0, 3, rows), width, columns)
    mine, wanted = np.zeros(count, np.float32), np.zeros(count, np.float32)
    storage.look_up(codes, *arguments, skipped, mine)
    numpy.look_up(codes, *arguments, skipped, wanted)
    same(mine, wanted)


def test_scales_that_do_not_fit_are_refused() -> None:
    codes, table, into = np.zeros(8, np.uint8), np.zeros(256, np.float32), np.zeros(8, np.float32)
    scales, lines = np.ones((2, 2), np.float32), np.zeros(2, np.int64)
    storage.look_up(codes, table, scales, lines, 2, 4, 0, into)
    for wrong in (
        (codes, table[:255], scales, lines, 2, 4, 0, into),
        (codes, table, scales, lines + 2, 2, 4, 0, into),
        (codes, table, scales, lines - 1, 2, 4, 0, into),
        (codes, table, scales, lines[:1], 2, 4, 0, into),
        (codes, table, scales, lines, 1, 4, 0, into),
        (codes, table, scales, lines, 2, 4, 4, into),
        (codes, table, scales, lines, 2, 4, 0, into[:7]),
    ):
        with pytest.raises(ValueError, match=r"scales|array"):
            storage.look_up(*wrong)


# -- what must not reach C++ -------------------------------------------------------------------------


def tile(count: int = 40) -> tuple[Inputs, Array]:
    row = np.zeros(2 * count, np.uint8)
    return Inputs.of((row, row, row), (0, 0, 0)), np.zeros(2 * count, np.uint8)


F32 = np.dtype(np.float32)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": 39},  # an input that is too short
        {"codes": (0, 0, 4)},
        {"codes": (0, 0, -1)},
        {"codes": (0, 0)},
        {"out": 79},
        {"work": np.dtype(np.float64)},  # coefficients of another dtype
        {"coefficients": 2},
        {"sums": 2},
        {"start": -1},
        {"count": -1},
    ],
)
def test_arguments_that_do_not_fit_are_refused(wrong: dict[str, Any]) -> None:
    row = np.zeros(2 * wrong.get("rows", 40), np.uint8)
    inputs = Inputs.of((row, row, row), wrong.get("codes", (0, 0, 0)))
    how = steps.Linear(np.ones(wrong.get("coefficients", 3), np.float32))
    sums = steps.Sums.zeros(1, wrong.get("sums", 3))
    output = steps.Output(np.zeros(wrong.get("out", 80), np.uint8), how, 0, sums)
    count, start, work = wrong.get("count", 40), wrong.get("start", 0), wrong.get("work", F32)
    with pytest.raises(ValueError, match=r"input|array|dtype|tile|elements"):
        merging.merge(library.kernels(), inputs, count, start, work, "bfloat16", False, [output])


@pytest.mark.parametrize(
    "wrong",
    [
        {"kinds": np.zeros(3, np.int64)[:1]},
        {"kinds": np.zeros(2, np.int32)},
        {"cuts": np.zeros((2, 1), np.uint32)},
        {"allowed": np.zeros((2, 2, 0), np.int64)},
        {"seeds": np.zeros(1, np.uint64)},
        {"kinds": np.full(2, rule.MASKED)},  # without masks
        {"masks": np.zeros((2, 5), np.uint8)},  # without room for a vector
    ],
)
def test_rules_that_do_not_fit_are_refused(wrong: dict[str, Any]) -> None:
    inputs, out = tile()
    rules = rules_of(np.random.default_rng(0), rule.BETWEEN, 2, 40)._replace(**wrong)
    ones = np.ones(2, np.float32)
    output = steps.Output(out, steps.Sparse(rules, ones, ones, True, "no", 1.0, 1.0))
    with pytest.raises(ValueError, match=r"array|rules|masks|ties"):
        merging.merge(library.kernels(), inputs, 40, 0, F32, "bfloat16", False, [output])
    with pytest.raises(ValueError, match=r"array|rules|masks|ties"):
        measuring.norms(inputs, 40, F32, rules, rule.L1, 0, np.zeros((1, 2, 2)))


def test_kernels_read_and_write_nothing_beyond_their_arrays(level: str) -> None:
    """Arrays that end where the next page must not be touched."""
    import ctypes
    import mmap

    libc, page = ctypes.CDLL(None), mmap.PAGESIZE

    def guarded(size: int) -> Array:
        pages = -(-size // page) * page
        memory = mmap.mmap(-1, pages + page)
        whole = np.frombuffer(memory, np.uint8)
        assert libc.mprotect(ctypes.c_void_p(whole.ctypes.data + pages), page, 0) == 0
        return whole[pages - size : pages]

    for count in (1, 15, 17, 4095, 4097):
        for dtypes in (["bfloat16"] * 3, ["float32"] * 3, ["float16", "float32", "bfloat16"]):
            rows = [guarded(count * WIDTHS[CODES[dtype]]) for dtype in dtypes]
            inputs = Inputs.of(rows, [CODES[dtype] for dtype in dtypes])
            ones, random = np.ones(2, np.float32), np.random.default_rng(0)
            for kind in KINDS:
                rules = rules_of(random, kind, 2, count)
                hows = [steps.Linear(np.ones(3, np.float32))]
                hows += [steps.Sparse(rules, ones, ones, True, "counted", 1.0, 1.0)]
                for how in hows:
                    out = steps.Output(guarded(2 * count), how, 0, steps.Sums.zeros(1, 3))
                    merging.merge(library.kernels(), inputs, count, 0, F32, "bfloat16", True, [out])
                measuring.norms(inputs, count, F32, rules, rule.L2, 0, np.zeros((1, 2, 2)))
            measuring.measure(inputs, count, True, np.zeros((1, 2, 2)))
            selecting.sample_keys(inputs, count, F32, -1, guarded(4 * count).view(np.uint32))
            storage.compare(inputs, count, np.zeros((1, 10)), np.zeros((1, 18), np.int64))
            storage.digest(inputs.rows[0], np.zeros(1, np.uint64))
            storage.widen(
                inputs.rows[1], int(inputs.codes[1]), count, guarded(8 * count).view(np.float64)
            )


# -- which library is used -----------------------------------------------------------------------------


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the libraries, which is used from now on."""
    folder = tmp_path / "built"
    folder.mkdir()
    for _, path in library._libraries():
        shutil.copy(path, folder / path.name)
    monkeypatch.setattr(build, "BUILT", folder)
    monkeypatch.setattr(build, "CACHE", tmp_path / "none")
    return folder


def is_refused(problem: str) -> bool:
    """Whether no library is used, and one line says why."""
    library.use(None)
    warning = library.warning()
    assert warning is not None
    assert "\n" not in warning
    return library.kernels() is None and problem in warning


def test_a_library_that_is_of_other_sources_or_wrong_is_not_used(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(self_test, "EXPECTED", "other")
        assert is_refused("computes other numbers")
    with monkeypatch.context() as patched:
        patched.setattr(build, "source_digest", lambda: "other")
        assert is_refused("is built from other sources")
    with monkeypatch.context() as patched:
        patched.setitem(library.SIGNATURES, "no_such_kernel", "p")
        assert is_refused("has no function no_such_kernel")
    with monkeypatch.context() as patched:
        patched.setattr(library, "_processor_flags", lambda: {"sse2"})
        assert is_refused("this processor is older than")


def test_a_library_that_does_not_load_is_not_used(built: Path) -> None:
    for path in built.iterdir():  # loading such a file would kill the process
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert is_refused("does not load" if sys.platform != "linux" else "the file is not complete")
    for path in built.iterdir():
        path.write_bytes(b"no library")
    assert is_refused("does not load")
    for path in list(built.iterdir()):
        path.unlink()
    assert is_refused(f"none are in {built} or {built.parent / 'none'}")


def test_without_kernels_a_merge_has_the_same_bytes(
    linear: Path, tmp_path: Path, built: Path
) -> None:
    merganser.merge(linear, tmp_path / "fast")
    for path in list(built.iterdir()):
        path.unlink()
    library.use(None)
    result = merganser.merge(linear, tmp_path / "slow")
    assert "the compiled kernels are not used" in result.warnings[-1]
    names = [path.name for path in (tmp_path / "fast").glob("*.safetensors")]
    assert names
    for name in names:
        assert (tmp_path / "fast" / name).read_bytes() == (tmp_path / "slow" / name).read_bytes()
