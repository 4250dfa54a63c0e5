"""arcee_fusion in tiles: the same choice as its definition in torch, and the same bits with and without kernels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import merganser
from merganser.kernels import CELL, CODES, fusion, library, merging, steps
from merganser.kernels.arguments import Inputs
from merganser.methods.selection import arcee_fusion

KERNELS = [*library.levels(), "none"]


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    library.use(request.param)
    yield request.param
    library.use(None)


def pair(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    """A base and a model that differs from it in half of its elements."""
    generator = torch.Generator().manual_seed(seed)
    base = 0.02 * torch.randn(shape, generator=generator, dtype=torch.float64)
    changed = torch.rand(shape, generator=generator) < 0.5
    change = 1e-3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return [base.to(dtype), (base + torch.where(changed, change, 0.0)).to(dtype)]


def tile(tensors: list[torch.Tensor]) -> Inputs:
    name = str(tensors[0].dtype).removeprefix("torch.")
    rows = (tensor.contiguous().view(torch.uint8).reshape(-1).numpy() for tensor in tensors)
    return Inputs.of(rows, [CODES[name]] * 2)


def divergences(rows: int, length: int, tensors: list[torch.Tensor]) -> np.ndarray:
    found, counts = np.zeros(rows), np.zeros((2, 1 << 16), np.int64)
    fusion.diverge(tile(tensors), np.dtype(np.float32), length, found, counts)
    assert counts.sum() == rows * length
    return found


@pytest.mark.parametrize("shape", [(), (1,), (37,), (300, 515), (3, 40, 48), (5, 1), (2, 3 * CELL)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_choice_is_that_of_the_definition(
    shape: tuple[int, ...], dtype: torch.dtype, kernels: str
) -> None:
    base, other = pair(shape or (1,), dtype)
    base, other = base.reshape(shape), other.reshape(shape)
    merged = merganser.merge_tensors([other], "arcee_fusion", base=base)
    work = torch.float64 if dtype == torch.float32 else torch.float32
    wanted = arcee_fusion([other.to(work)], base.to(work))
    assert torch.equal(merged, wanted.to(dtype))
    if merged.numel() > 1000:
        share = float((merged != base).float().mean())
        assert 0.01 < share < 0.3


@pytest.mark.skipif(not library.levels(), reason="no kernels are built")
@given(
    length=st.sampled_from([1, 15, 16, 17, 31, 96, 1000]),
    rows=st.integers(1, 9),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]),
    wide=st.booleans(),
    special=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_kernels_have_the_bits_of_numpy(
    length: int, rows: int, dtype: torch.dtype, wide: bool, special: bool, seed: int
) -> None:
    tensors = pair((rows, length), dtype, seed)
    if special:
        numbers = [np.inf, -np.inf, np.nan, 900.0, -900.0, 0.0]
        tensors[seed % 2][seed % rows, seed % length] = numbers[seed % 6]
    inputs, count = tile(tensors), rows * length
    work = np.dtype(np.float64 if wide else np.float32)
    results = []
    compiled = library.description()
    for level in (compiled, "none"):
        library.use(level)
        found, upper = np.zeros(rows), np.zeros((2, 1 << 16), np.int64)
        fusion.diverge(inputs, work, length, found, upper)
        sought, _ = fusion.at_ranks(upper.sum(axis=0), [count // 4, count // 2, count - 1])
        lower = np.zeros((3, 1 << fusion.LOW), np.int64)
        fusion.count_keys(inputs, count, work, 0, found, length, sought.astype(np.uint32), lower)
        results.append((found, upper.sum(axis=0), lower))
    for mine, wanted in zip(*results, strict=True):
        np.testing.assert_array_equal(mine, wanted)
    how = steps.Fusion(results[0][0], length, float(np.float32(1e-6)))
    outs = [np.zeros(2 * count, np.uint8) for _ in range(2)]
    for level, out in zip((compiled, "none"), outs, strict=True):
        library.use(level)
        arguments = inputs, count, 0, work, "bfloat16", False, [steps.Output(out, how)]
        merging.merge(library.kernels(), *arguments)
    library.use(compiled)
    np.testing.assert_array_equal(*outs)


def test_divergences_are_those_of_the_formula(kernels: str) -> None:
    """Near each other, far from each other, with shares of nothing; none is negative."""
    base = torch.randn(6, 700, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    other = base + base.flip(1) * torch.tensor([1e-9, 1e-5, 1e-2, 1.0, 40.0, 0.0]).reshape(6, 1)
    p, q = (torch.softmax(x, dim=-1) + 1e-8 for x in (other, base))
    wanted = (p * (p / q).log()).sum(dim=-1).numpy()
    found = divergences(6, 700, [base, other])
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-15)
    assert (found >= 0).all()
    assert found[5] == 0


def test_what_is_no_number_leaves_its_row_to_the_base(kernels: str) -> None:
    base, other = pair((40, 64), torch.bfloat16)
    other[3, 5], other[4, 5], base[5, 6] = np.nan, np.inf, -np.inf
    found = divergences(40, 64, [base, other])
    assert np.isnan(found[3:5]).all()
    assert np.isfinite(found[5:]).all()
    merged = merganser.merge_tensors([other], "arcee_fusion", base=base)
    assert torch.equal(merged[3:5], base[3:5])
    assert not torch.equal(merged[6:], base[6:])


@pytest.mark.parametrize("ranks", [[0, 1, 5], [2, 2, 2], [3, 4, 6]])
def test_ranks_in_a_histogram(ranks: list[int]) -> None:
    numbers = np.array([1, 1, 4, 4, 4, 7, 9])
    bins, within = fusion.at_ranks(np.bincount(numbers, minlength=12), ranks)
    assert bins.tolist() == numbers[ranks].tolist()
    for rank, number, place in zip(ranks, bins, within, strict=True):
        assert place == rank - int((numbers < number).sum())


@pytest.mark.parametrize(
    "wrong", [{"length": 0}, {"rows": 3}, {"counts": 1}, {"models": 3}], ids=lambda w: next(iter(w))
)
def test_arguments_that_do_not_fit_are_refused(wrong: dict[str, int]) -> None:
    row = np.zeros(2 * 40, np.uint8)
    inputs = Inputs.of([row] * wrong.get("models", 2), [0] * wrong.get("models", 2))
    found, length = np.zeros(wrong.get("rows", 2)), wrong.get("length", 20)
    counts, work = np.zeros((wrong.get("counts", 2), 1 << 16), np.int64), np.dtype(np.float32)
    with pytest.raises(ValueError, match=r"rows|array|input"):
        fusion.diverge(inputs, work, length, found, counts)
    upper, lower = np.zeros(3, np.uint32), np.zeros((3, 1 << fusion.LOW), np.int64)
    with pytest.raises(ValueError, match=r"rows|array"):
        fusion.count_keys(
            inputs, 41 if "rows" in wrong else 40, work, 0, found[:1], length, upper, lower
        )
    output = steps.Output(row.copy(), steps.Fusion(np.zeros(1), length, 0.0))
    with pytest.raises(ValueError, match=r"rows|array|inputs"):
        merging.merge(library.kernels(), inputs, 40, 0, work, "bfloat16", False, [output])


def test_rows_need_not_fit_into_a_tile(kernels: str) -> None:
    """And quartiles of nothing but zeros leave the base."""
    base, other = pair((3, CELL + 100), torch.bfloat16)
    expected = arcee_fusion([other.float()], base.float()).bfloat16()
    assert torch.equal(merganser.merge_tensors([other], "arcee_fusion", base=base), expected)
    assert torch.equal(merganser.merge_tensors([base.clone()], "arcee_fusion", base=base), base)
