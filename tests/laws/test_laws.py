"""Laws that every registered merge method keeps. The parameters of these tests are the registry."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import merganser
from merganser import methods
from merganser.methods import Method, registry

METHODS = [method for name in methods.names() if (method := methods.get(name)) is not None]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
examples = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
few_examples = settings(parent=examples, max_examples=10)

shapes = st.sampled_from([(), (1,), (7,), (3, 5), (0,), (2, 3, 4), (257,)])


def how_many(method: Method, wanted: int) -> int:
    least, most = method.models
    return max(least, min(wanted, most if most is not None else wanted))


def random_tensors(count: int, shape: tuple[int, ...], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).bfloat16() for _ in range(count)]


def numbers(method: Method, count: int, seed: int) -> dict[str, Any]:
    """A value within its range for every parameter that must be given."""
    generator = torch.Generator().manual_seed(seed)
    values: dict[str, Any] = {}
    for parameter in method.parameters:
        if parameter.required:
            low, high = (parameter.range.low, parameter.range.high) if parameter.range else (0, 1)
            drawn = (torch.rand(count, generator=generator) * (high - low) + low).tolist()
            values[parameter.name] = drawn if parameter.per_model else drawn[0]
    return values


def apply(
    method: Method,
    tensors: list[torch.Tensor],
    base: torch.Tensor,
    values: dict[str, Any],
    **options: Any,
) -> torch.Tensor:
    given_base = base if method.base != "none" else None
    return merganser.merge_tensors(
        tensors, method.name, base=given_base, parameters=values, **options
    )


@every_method
@given(shape=shapes, count=st.integers(1, 4), seed=st.integers(0, 1000))
@examples
def test_shape_and_dtype_are_kept_and_inputs_untouched(
    method: Method, shape: tuple[int, ...], count: int, seed: int
) -> None:
    count = how_many(method, count)
    base, *tensors = random_tensors(count + 1, shape, seed)
    before = [tensor.clone() for tensor in (base, *tensors)]
    merged = apply(method, tensors, base, numbers(method, count, seed))
    assert merged.shape == shape
    assert merged.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(before, (base, *tensors), strict=True))


@every_method
@given(shape=shapes, count=st.integers(1, 4), seed=st.integers(0, 1000))
@examples
def test_merging_copies_gives_the_copy(
    method: Method, shape: tuple[int, ...], count: int, seed: int
) -> None:
    if not method.idempotent:
        pytest.skip("does not claim it")
    count = how_many(method, count)
    [tensor] = random_tensors(1, shape, seed)
    values = numbers(method, count, seed)
    if "weight" in values:  # weights that cancel out magnify rounding without bound
        values["weight"] = [abs(w) + 0.1 for w in values["weight"]]
    assert torch.equal(apply(method, [tensor] * count, tensor, values), tensor)


@every_method
@given(shape=shapes, count=st.integers(2, 4), seed=st.integers(0, 1000))
@examples
def test_the_order_of_models_has_no_meaning(
    method: Method, shape: tuple[int, ...], count: int, seed: int
) -> None:
    if not method.symmetric or method.models[1] == 1:
        pytest.skip("does not claim it")
    count = how_many(method, count)
    base, *tensors = random_tensors(count + 1, shape, seed)
    values = numbers(method, count, seed)
    if "weight" in values:
        values["weight"] = [abs(w) + 0.1 for w in values["weight"]]
    backwards = {k: v[::-1] if isinstance(v, list) else v for k, v in values.items()}
    one = apply(method, tensors, base, values, dtype="float64")
    other = apply(method, tensors[::-1], base, backwards, dtype="float64")
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@every_method
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_the_result_is_deterministic(method: Method, rounding: str) -> None:
    count = how_many(method, 3)
    base, *tensors = random_tensors(count + 1, (50, 30), 0)
    values = numbers(method, count, 0)
    first = apply(method, tensors, base, values, rounding=rounding, seed=5)
    again = apply(method, tensors, base, values, rounding=rounding, seed=5)
    assert torch.equal(first, again)


@every_method
def test_a_nan_in_one_place_stays_in_that_place(method: Method) -> None:
    if method.gram or method.whole or method.name in ("sce", "arcee_fusion"):
        pytest.skip("needs numbers of the whole tensor")
    count = how_many(method, 2)
    base, *tensors = random_tensors(count + 1, (40,), 0)
    tensors[0][3] = float("nan")
    merged = apply(method, tensors, base, numbers(method, count, 0))
    assert merged.isnan().nonzero().flatten().tolist() == [3]


ELEMENTWISE = [method for method in registry.registered() if method.elementwise]


@pytest.mark.parametrize("method", ELEMENTWISE, ids=lambda m: f"{m.name}-{m.arithmetic}")
@given(
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    cut=st.integers(1, 2999),
    seed=st.integers(0, 1000),
)
@few_examples
def test_a_part_of_a_tensor_is_merged_as_all_of_it(
    method: Method, dtype: torch.dtype, cut: int, seed: int
) -> None:
    """What ``elementwise`` claims, to the last bit, whatever the tiles and the shape."""
    count = how_many(method, 3)
    values = numbers(method, count, seed)
    named = {p.argument: values.get(p.name, p.default) for p in method.parameters}
    for p in method.parameters:
        if p.per_model and not isinstance(named[p.argument], list):
            named[p.argument] = [named[p.argument]] * count
    generator = torch.Generator().manual_seed(seed)
    all_inputs = [torch.randn(60, 50, generator=generator).to(dtype) for _ in range(count + 1)]

    def called(inputs: list[torch.Tensor], **facts: torch.Tensor) -> torch.Tensor:
        based = (inputs[1:], inputs[0]) if method.base != "none" else (inputs[1:],)
        result: torch.Tensor = method.function(*based, **facts, **named)
        return result.flatten()

    facts = {}
    if method.measure is not None:
        facts["facts"] = method.measure(all_inputs[1:], all_inputs[0], **named)
    flat = [tensor.flatten() for tensor in all_inputs]
    parts = [
        called([tensor[piece] for tensor in flat], **facts)
        for piece in (slice(cut), slice(cut, None))
    ]
    assert torch.equal(torch.cat(parts), called(all_inputs, **facts))


# -- methods that keep some of the changes ---------------------------------------------------------

CONSENSUS = [method for method in METHODS if method.form == "consensus"]
every_consensus = pytest.mark.parametrize("method", CONSENSUS, ids=lambda method: method.name)
ELECTING = {"ties", "dare_ties", "breadcrumbs_ties", "della", "sce", "consensus_ties"}


def settled(method: Method, **values: Any) -> dict[str, Any]:
    """Those of the values that are parameters of the method."""
    return {name: value for name, value in values.items() if method.parameter(name) is not None}


@every_consensus
@given(shape=shapes, count=st.integers(1, 4), seed=st.integers(0, 1000))
@few_examples
def test_without_changes_the_base_is_kept_bit_for_bit(
    method: Method, shape: tuple[int, ...], count: int, seed: int
) -> None:
    [base] = random_tensors(1, shape, seed)
    values = numbers(method, count, seed) | settled(method, density=0.4, select_topk=0.4)
    merged = apply(method, [base] * count, base, values, seed=seed)
    assert torch.equal(merged.view(torch.int16), base.view(torch.int16))


@every_consensus
@given(shape=shapes, count=st.integers(1, 4), seed=st.integers(0, 1000))
@few_examples
def test_with_all_changes_and_no_election_it_is_task_arithmetic(
    method: Method, shape: tuple[int, ...], count: int, seed: int
) -> None:
    if method.name in ELECTING:
        pytest.skip("elects signs")
    base, *tensors = random_tensors(count + 1, shape, seed)
    values = numbers(method, count, seed)
    merged = apply(method, tensors, base, values | settled(method, k=0), dtype="float64")
    plain = merganser.merge_tensors(
        tensors,
        "task_arithmetic",
        base=base,
        parameters={"weight": values.get("weight", [1.0] * count)},
        dtype="float64",
    )
    torch.testing.assert_close(merged, plain, rtol=1e-12, atol=1e-12)


@every_consensus
@given(shape=shapes, seed=st.integers(0, 1000))
@few_examples
def test_one_model_whole_is_that_model(method: Method, shape: tuple[int, ...], seed: int) -> None:
    base, tensor = random_tensors(2, shape, seed)
    values = settled(method, weight=1.0, density=1.0, k=1, slack=0.0)
    merged = apply(method, [tensor], base, values, dtype="float64")
    torch.testing.assert_close(merged, tensor.double(), rtol=1e-12, atol=1e-12)


@every_consensus
@given(
    shape=shapes,
    count=st.integers(1, 4),
    scale=st.sampled_from([0.25, 2.0, 64.0]),
    seed=st.integers(0, 1000),
)
@few_examples
def test_normalised_weights_have_no_scale(
    method: Method, shape: tuple[int, ...], count: int, scale: float, seed: int
) -> None:
    if method.parameter("normalize") is None:
        pytest.skip("is not normalised")
    base, *tensors = random_tensors(count + 1, shape, seed)
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.rand(count, generator=generator) + 0.1).tolist()
    values = settled(method, density=0.6, normalize=True)
    one, other = (
        apply(method, tensors, base, values | {"weight": [s * w for w in weight]}, seed=seed)
        for s in (1.0, scale)
    )
    assert torch.equal(one, other)


@every_consensus
@given(shape=shapes, count=st.integers(1, 4), seed=st.integers(0, 1000))
@few_examples
def test_means_lie_among_the_base_and_the_models(
    method: Method, shape: tuple[int, ...], count: int, seed: int
) -> None:
    """Where weights are positive and normalised, and nothing is rescaled."""
    base, *tensors = random_tensors(count + 1, shape, seed)
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.rand(count, generator=generator) + 0.1).tolist()
    values = settled(
        method, weight=weight, density=0.6, normalize=True, rescale=False, select_topk=0.6
    )
    merged = apply(method, tensors, base, values, seed=seed, dtype="float64")
    hull = torch.stack([base, *tensors]).double()
    assert bool((merged >= hull.amin(0) - 1e-12).all())
    assert bool((merged <= hull.amax(0) + 1e-12).all())


@every_consensus
@given(shape=shapes, count=st.integers(1, 4), seed=st.integers(0, 1000))
@few_examples
def test_lambda_scales_the_whole_change(
    method: Method, shape: tuple[int, ...], count: int, seed: int
) -> None:
    if method.parameter("lambda") is None:
        pytest.skip("has no lambda")
    base, *tensors = random_tensors(count + 1, shape, seed)
    values = numbers(method, count, seed) | settled(method, density=0.5)
    whole, half = (
        apply(method, tensors, base, values | {"lambda": x}, seed=seed, dtype="float64")
        for x in (1.0, 0.5)
    )
    middle = base.double() + 0.5 * (whole - base.double())
    torch.testing.assert_close(half, middle, rtol=1e-12, atol=1e-12)


@every_method
def test_it_is_documented(method: Method) -> None:
    assert method.summary.endswith(".") or ":" in method.summary
    assert method.title
