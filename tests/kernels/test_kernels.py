"""The fused loops against torch, and against what rounding is by definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merganser.engine import reference
from merganser.kernels import CELL, CODES, library, measuring, merging, steps, storage
from merganser.kernels.arguments import Inputs
from merganser.methods import Combination

TORCH = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
EVERY_HALF = np.arange(65536, dtype=np.uint16)


def stored(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().view(torch.uint8).numpy()


def narrowed(
    numbers: np.ndarray, dtype: str, rounding: int = 0, seed: int = 0, start: int = 0
) -> torch.Tensor:
    out = np.zeros(len(numbers) * TORCH[dtype].itemsize, np.uint8)
    merging.narrow(library.kernels(), numbers, dtype, bool(rounding), seed, start, out)
    return torch.from_numpy(out).view(TORCH[dtype])


def combined(
    inputs: list[torch.Tensor], coefficients: list[float], work: type, out: torch.dtype
) -> torch.Tensor:
    rows = [stored(tensor) for tensor in inputs]
    name = str(inputs[0].dtype).removeprefix("torch.")
    n = inputs[0].numel()
    data = np.zeros(n * out.itemsize, np.uint8)
    output = steps.Output(data, steps.Linear(np.array(coefficients, work)))
    tile = Inputs.of(rows, [CODES[name]] * len(rows))
    dtype = str(out).removeprefix("torch.")
    merging.merge(library.kernels(), tile, n, 0, np.dtype(work), dtype, False, [output])
    return torch.from_numpy(data).view(out)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("work", [np.float32, np.float64])
def test_every_half_survives_widening_and_narrowing(dtype: str, work: type) -> None:
    tensor = torch.from_numpy(EVERY_HALF.copy()).view(TORCH[dtype])
    result = combined([tensor], [1.0], work, TORCH[dtype])
    finite = ~tensor.isnan()
    assert torch.equal(result.view(torch.int16)[finite], tensor.view(torch.int16)[finite])
    assert result[~finite].isnan().all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrowing_float32_is_torchs_rounding(dtype: str) -> None:
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2**32, 400_000, dtype=np.uint64).astype(np.uint32)
    numbers = bits.view(np.float32)[~np.isnan(bits.view(np.float32))]
    expected = torch.from_numpy(numbers).to(TORCH[dtype])
    assert torch.equal(narrowed(numbers, dtype).view(torch.int16), expected.view(torch.int16))


@pytest.mark.parametrize(("dtype", "digits"), [("bfloat16", 8), ("float16", 11)])
def test_float64_is_rounded_once(dtype: str, digits: int) -> None:
    """Just above and below a tie, by less than float32 can tell: rounding twice would get it wrong."""
    step = 2.0 ** (1 - digits)
    ties = 1.0 + (np.arange(64) + 0.5) * step
    above, below = ties * (1 + 2.0**-50), ties * (1 - 2.0**-50)
    low = 1.0 + np.arange(64) * step
    assert narrowed(below, dtype).double().numpy() == pytest.approx(low, abs=0)
    assert narrowed(above, dtype).double().numpy() == pytest.approx(low + step, abs=0)
    even = np.where(np.arange(64) % 2 == 0, low, low + step)
    assert narrowed(ties, dtype).double().numpy() == pytest.approx(even, abs=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("scale", [1.0, 3e-5])
def test_stochastic_rounding_is_unbiased_and_takes_a_neighbour(dtype: str, scale: float) -> None:
    work = np.float64 if dtype == "float32" else np.float32
    value = work(1.2345678901 * scale)
    drawn = narrowed(np.full(200_000, value, work), dtype, rounding=1, seed=7).double().numpy()
    neighbours = np.unique(drawn)
    assert len(neighbours) == 2
    assert neighbours[0] <= value <= neighbours[1]
    gap = neighbours[1] - neighbours[0]
    assert drawn.mean() == pytest.approx(float(value), abs=5 * gap / np.sqrt(len(drawn)))


def test_stochastic_rounding_depends_on_seed_and_element_only() -> None:
    numbers = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    whole = narrowed(numbers, "bfloat16", rounding=1, seed=3)
    second_half = narrowed(numbers[5000:], "bfloat16", rounding=1, seed=3, start=5000)
    assert torch.equal(whole[5000:], second_half)
    assert not torch.equal(whole, narrowed(numbers, "bfloat16", rounding=1, seed=4))


@pytest.mark.parametrize("value", [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, 3e38])
@pytest.mark.parametrize("rounding", [0, 1])
def test_special_values(value: float, rounding: int) -> None:
    result = narrowed(np.full(3, value, np.float32), "bfloat16", rounding)
    expected = torch.full((3,), value).bfloat16()
    if rounding == 0 or value in (0.0, 1.0) or not np.isfinite(value):
        assert result.tolist() == pytest.approx(expected.tolist(), nan_ok=True)
        assert np.isnan(value) or torch.equal(result.signbit(), expected.signbit())


@given(
    weights=st.lists(st.floats(-2, 2, width=32), min_size=2, max_size=5),
    size=st.integers(1, 9000),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None)
def test_combine_is_the_reference_to_the_bit(weights: list[float], size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(size, generator=generator).bfloat16() for _ in weights]
    for work, dtype in ((np.float32, torch.float32), (np.float64, torch.float64)):
        expected = reference.combine([x.to(dtype) for x in inputs], Combination(tuple(weights)))
        result = combined(inputs, weights, work, dtype)
        assert torch.equal(result, expected)
        bits = 24 if work is np.float32 else 53
        exact = sum(x.double() * w for x, w in zip(inputs, weights, strict=True))
        size_of = sum(abs(w) * x.double().abs() for x, w in zip(inputs, weights, strict=True))
        bound = len(weights) * (2.0 ** (1 - bits) * size_of + 2.0**-149)
        assert ((result.double() - exact).abs() <= bound).all()


def test_measure_is_the_gram_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(100_000, generator=generator).bfloat16() for _ in range(3)]
    cells = np.zeros((2, 3, 3))
    rows = [stored(tensor) for tensor in inputs]
    measuring.measure(Inputs.of(rows, [0, 0, 0]), 100_000, False, cells)
    matrix = torch.stack(inputs).double()
    expected = (matrix @ matrix.T).tril().numpy()
    assert np.allclose(cells.sum(axis=0), expected, rtol=1e-12)


@given(data=st.binary(min_size=1, max_size=300), flip=st.integers(0, 2**16))
@settings(max_examples=200, deadline=None)
def test_digest_sees_any_flipped_bit(data: bytes, flip: int) -> None:
    whole = np.frombuffer(data, np.uint8).copy()
    before, after = np.zeros(1, np.uint64), np.zeros(1, np.uint64)
    storage.digest(whole, before)
    whole[flip // 8 % len(whole)] ^= 1 << (flip % 8)
    storage.digest(whole, after)
    assert before[0] != after[0]


def test_digest_knows_order_and_length() -> None:
    def of(data: bytes) -> int:
        sums = np.zeros(1, np.uint64)
        storage.digest(np.frombuffer(data, np.uint8).copy(), sums)
        return int(sums[0])

    texts = [b"", b"\0", b"\0" * 8, b"\0" * 9, b"abcdefgh12345678", b"12345678abcdefgh"]
    assert len({of(text) for text in texts}) == len(texts)


def told(rows: np.ndarray, codes: list[int], divisor: float, plus: float) -> tuple[list, list]:
    """The outputs of two combinations of a tile's rows, and all that is reported of them."""
    k, count = len(rows), 2 * CELL + 4097
    factors = np.array([np.arange(1, k + 1) / 3, np.arange(k, 0, -1) * -0.7], np.float32)
    outs = np.zeros((2, 2 * count), np.uint8)
    sums = [steps.Sums.zeros(3, k), steps.Sums.zeros(3, k)._replace(gram=None, differ=None)]
    outputs = [
        steps.Output(out, steps.Linear(numbers, divisor, plus), 0, told)
        for out, numbers, told in zip(outs, factors, sums, strict=True)
    ]
    work = np.dtype(np.float32)
    tile = Inputs.of(rows, codes)
    merging.merge(library.kernels(), tile, count, 0, work, "bfloat16", False, outputs)
    return list(outs), [each for told in sums for each in told if each is not None]


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize(("divisor", "plus"), [(1.0, -0.0), (1.0, 0.0), (1.7, -0.0)])
@pytest.mark.parametrize("special", [False, True])
def test_merging_in_registers_is_merging_in_rows(
    k: int, divisor: float, plus: float, special: bool
) -> None:
    """Models stored alike are merged in registers, others in rows of scratch: the same bits."""
    rng = np.random.default_rng(k)
    count = 2 * CELL + 4097
    halves = rng.integers(0, 2**16, (k, count), dtype=np.uint16)
    if not special:  # near each other and near one, as models are, some equal, some zero
        halves = (halves & 0x807F) | np.uint16(0x3F80)
        halves[:, ::5] = halves[0, ::5]
        halves[:, ::7] &= np.uint16(0x8000)
    singles = (halves.astype(np.uint32) << 16).view(np.float32)
    wide = np.ascontiguousarray(singles).view(np.uint8)
    narrow = np.zeros_like(wide)
    narrow[:, : 2 * count] = halves.view(np.uint8)
    mixed = wide.copy()
    mixed[0] = narrow[0]
    outs, sums = told(narrow, [0] * k, divisor, plus)
    for rows, codes in ((wide, [2] * k), (mixed, [0] + [2] * (k - 1))):
        found, reported = told(rows, codes, divisor, plus)
        for mine, other in zip(outs, found, strict=True):
            assert np.array_equal(mine, other)
        for mine, other in zip(sums, reported, strict=True):
            if not special:
                assert np.isfinite(mine).all()
                assert mine == pytest.approx(other, rel=1e-4, abs=1e-2)


@pytest.mark.parametrize("changes", [False, True])
def test_a_pair_is_measured_as_any_vectors_are(changes: bool) -> None:
    k, count = 2 + changes, CELL + 1500
    halves = np.random.default_rng(0).integers(0x3F00, 0x4000, (k, count), dtype=np.uint16)
    wide = (halves.astype(np.uint32) << 16).view(np.float32).view(np.uint8)
    narrow = np.zeros_like(wide)
    narrow[:, : 2 * count] = halves.view(np.uint8)
    mixed = wide.copy()
    mixed[0] = narrow[0]
    found = []
    for rows, codes in ((narrow, [0] * k), (wide, [2] * k), (mixed, [0] + [2] * (k - 1))):
        gram = np.zeros((2, 2, 2))
        measuring.measure(Inputs.of(rows, codes), count, changes, gram)
        found.append(gram)
    assert found[0].any()
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
