"""Every method in MergeKit's arithmetic has the bits that MergeKit 0.1.5 gives the same tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

import merganser
from merganser import methods
from merganser.checkpoints.state_dict import MemoryCheckpoint
from merganser.errors import MerganserError, RecipeError
from merganser.methods import Method

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

Numbers = dict[str, Any]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TENSORS: list[tuple[tuple[int, ...], float]] = [
    ((64, 96), 2e-5),
    ((64, 96), 1e-3),
    ((32, 80), 1e-2),
    ((1,), 1e-3),
    ((48,), 1e-3),
    ((7, 1), 1e-3),
    ((3, 5, 8), 1e-3),
]
"""Shapes, and how far models lie from the base."""

LARGE = ((1100, 1000), 1e-3)
"""More than a million entries."""

LARGE_CASES = [
    ("slerp", "float32", 0, 1),
    ("nuslerp", "bfloat16", 0, 2),
    ("multislerp", "float32", 0, 3),
    ("karcher", "bfloat16", 0, 3),
    ("ties", "float32", 0, 2),
    ("sce", "bfloat16", 1, 2),
]
"""Method, dtype, number of its case, models."""

SUM: list[Numbers] = [{}, {"normalize": True, "lambda": 0.7}, {"normalize": False}]
TRIMMED: list[Numbers] = [
    {"density": [0.5, 0.2, 0.83]},
    {"density": [0.5, 0.01, 1.0], "normalize": False, "lambda": 0.7},
    {"density": [0.5, 0.2, 0.0], "rescale": True, "normalize": True},
]

CASES: dict[str, list[Numbers]] = {
    "slerp": [{"t": 0.35}, {"t": 0.0}, {"t": 0.85}],
    "nuslerp": [
        {},
        {"nuslerp_flatten": False},
        {"nuslerp_flatten": False, "nuslerp_row_wise": True},
        {"weight": [0.3, -0.3]},
    ],
    "multislerp": [{}, {"normalize_weights": False}, {"eps": 1e-4}],
    "karcher": [{}, {"max_iter": 1}, {"max_iter": 3, "tol": 1e-3}],
    "task_arithmetic": SUM,
    "model_stock": [{}, {"filter_wise": True}],
    "ties": TRIMMED,
    "breadcrumbs": [{"gamma": [0.01, 0.1, 0.4], **numbers} for numbers in TRIMMED],
    "breadcrumbs_ties": TRIMMED,
    "dare_linear": SUM,
    "dare_ties": SUM,
    "della": SUM,
    "della_linear": SUM,
    "sce": [{}, {"select_topk": 0.5}, {"select_topk": 0.1}],
    "nearswap": [{"t": 0.001}, {"t": 1e-5}],
    "ram": [{}, {"epsilon": 1e-3}],
    "ramplus_tl": [{}, {"epsilon": 1e-3, "r": 0.9, "alpha": 0.5}],
    "arcee_fusion": [{}],
}
WEIGHTS = [0.3, 0.7, -0.4]


def in_legacy(name: str) -> Method:
    found = methods.get(name, "mergekit")
    assert found is not None
    return found


def tensors(count: int, shape: tuple[int, ...], dtype: torch.dtype, step: float) -> Any:
    """The first is the base, the others lie a step from it; norms lie around one."""
    generator = torch.Generator().manual_seed(sum(shape) + count)
    first = 0.02 * torch.randn(shape, generator=generator)
    if len(shape) == 1:
        first = 1 + 5 * first
    near = [first + step * torch.randn(shape, generator=generator) for _ in range(count - 1)]
    return [tensor.to(dtype) for tensor in (first, *near)]


def numbers(method: Method, count: int, given: Numbers) -> Numbers:
    """One number a model where a method has such."""
    values: Numbers = {}
    for parameter in method.parameters:
        if parameter.name == "weight" and method.name != "karcher":
            values["weight"] = WEIGHTS[:count]
        if parameter.name in given:
            value = given[parameter.name]
            values[parameter.name] = value[:count] if isinstance(value, list) else value
    return values


def theirs(
    name: str, models: list[torch.Tensor], base: torch.Tensor | None, values: Numbers
) -> torch.Tensor:
    from mergekit.merge_methods import merge_tensors

    ids = [f"model {i}" for i in range(len(models))]
    given = {
        p: dict(zip(ids, v, strict=True)) if isinstance(v, list) else v for p, v in values.items()
    }
    together = models if base is None else [base, *models]
    merged: torch.Tensor = merge_tensors(
        together,
        name,
        parameters=given,
        ids=ids if base is None else ["base", *ids],
        base_index=None if base is None else 0,
    )
    return merged


def ours(
    name: str, models: list[torch.Tensor], base: torch.Tensor | None, values: Numbers
) -> torch.Tensor:
    return merganser.merge_tensors(
        models, name, base=base, parameters=values, arithmetic="mergekit"
    )


def drawn_alike(
    name: str, models: list[torch.Tensor], base: torch.Tensor, values: Numbers, seed: int
) -> torch.Tensor:
    """The method by itself, with draws from the generator that MergeKit takes."""
    method = in_legacy(name)
    torch.manual_seed(seed)
    settled = {
        p.argument: values.get(p.name, [p.default] * len(models) if p.per_model else p.default)
        for p in method.parameters
    }
    made: torch.Tensor = method.function(models, base, lambda _: torch.default_generator, **settled)
    return made


def assert_same_bits(mine: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (mine.dtype, mine.shape) == (wanted.dtype, wanted.shape)
    same = (mine == wanted) | (mine.isnan() & wanted.isnan())
    assert bool(same.all()), f"{int((~same).sum())} of {same.numel()} entries differ"


def forms(method: Method) -> list[tuple[int, bool]]:
    """How many models, and whether beside a base."""
    least, most = method.models
    counts = [n for n in (least, 2, 3) if n >= least and (most is None or n <= most) and n]
    based = {"none": [False], "optional": [False, True], "required": [True]}[method.base]
    return [(count, with_base) for count in dict.fromkeys(counts) for with_base in based]


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("name", list(CASES))
def test_it_has_the_bits_of_mergekit(name: str, dtype: str) -> None:
    method = in_legacy(name)
    for i, given in enumerate(CASES[name]):
        for count, based in forms(method):
            many = (name, dtype, i, count) in LARGE_CASES
            for shape, step in [*TENSORS, *([LARGE] if many else [])]:
                base, *models = tensors(count + 1, shape, DTYPES[dtype], step)
                values = numbers(method, count, given)
                first = base if based else None
                wanted = theirs(name, models, first, values)
                assert_same_bits(ours(name, models, first, values), wanted)


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_random_methods_have_its_bits_if_they_draw_as_it_does(name: str, dtype: str) -> None:
    for given in TRIMMED:
        for shape in [(48,), (64, 96), (300, 7)]:
            base, *models = tensors(4, shape, DTYPES[dtype], 1e-3)
            values = numbers(in_legacy(name), 3, given)
            if "della" in name:
                values |= {"density": [0.5, 0.7, 0.8], "epsilon": [0.3, 0.1, 0.15]}
            torch.manual_seed(7)
            wanted = theirs(name, models, base, values)
            assert_same_bits(drawn_alike(name, models, base, values, 7), wanted)


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_random_methods_depend_on_seed_and_tensor_alone(name: str) -> None:
    base, *models = tensors(3, (64, 96), torch.bfloat16, 1e-3)
    values = {"weight": [0.3, 0.7], "density": 0.5, "epsilon": 0.1}
    if "dare" in name:
        del values["epsilon"]

    def merged(tensor: str, **options: Any) -> torch.Tensor:
        return merganser.merge_state_dicts(
            [{tensor: model} for model in models],
            name,
            base={tensor: base},
            parameters=values,
            arithmetic="mergekit",
            **options,
        )[tensor]

    assert torch.equal(merged("a", seed=3), merged("a", seed=3))
    assert not torch.equal(merged("a", seed=3), merged("a", seed=4))
    assert not torch.equal(merged("a", seed=3), merged("b", seed=3))


def test_a_method_that_draws_takes_whole_tensors() -> None:
    def drawn(tensors: Any, generators: methods.Generators) -> torch.Tensor:
        """Never called."""
        raise NotImplementedError

    with pytest.raises(TypeError, match="elementwise=False"):
        methods.merge_method("drawn", elementwise=True)(drawn)


def test_every_method_has_a_variant_or_needs_none() -> None:
    """Without one a method is computed exactly, from inputs that are cast."""
    without = {name for name in methods.names() if in_legacy(name).arithmetic == "exact"}
    assert without == {"passthrough", "consensus_ta", "consensus_ties", "relex"}
    assert set(CASES) == set(methods.names()) - without - {"linear"}


def test_variants_take_what_their_methods_take() -> None:
    for name in methods.names():
        variant, exact = in_legacy(name), methods.get(name)
        assert exact is not None
        assert variant.parameters == exact.parameters
        keywords = [
            p.name
            for p in inspect.signature(variant.function).parameters.values()
            if p.kind is p.KEYWORD_ONLY
        ]
        assert keywords == [p.argument for p in exact.parameters]


@pytest.mark.parametrize("out", [None, "bfloat16"])
@pytest.mark.parametrize("name", ["arcee_fusion", "ramplus_tl"])
def test_float32_leaks_out_as_in_mergekit(name: str, out: str | None) -> None:
    config = {"merge_method": name, "base_model": "base", "models": [{"model": "other"}]}
    folders = dict(zip(["base", "other"], tensors(2, (8, 8), torch.bfloat16, 1e-2), strict=True))
    checkpoints = {n: MemoryCheckpoint({"tensor": t}, n) for n, t in folders.items()}
    for arithmetic in ("mergekit", "exact"):
        plan = merganser.plan(
            config | ({"out_dtype": out} if out else {}),
            checkpoints=checkpoints,
            arithmetic=arithmetic,
        )
        leaks = arithmetic == "mergekit" and out is None
        assert plan.jobs[0].spec.dtype.name == ("float32" if leaks else "bfloat16")


def refusals() -> dict[str, tuple[type[Exception], Callable[[], object]]]:
    base, *models = tensors(4, (8, 8), torch.float32, 1e-3)
    column, other = tensors(2, (8, 1), torch.float32, 1e-3)
    frozen = [base.clone() for _ in models]
    return {
        "density 0.9 - epsilon 0.15": (
            RecipeError,
            lambda: ours("della", models, base, {"weight": 1.0, "density": 0.9}),
        ),
        "rank rows of one element": (
            MerganserError,
            lambda: ours("della", [other], column, {"weight": 1.0, "density": 0.5}),
        ),
        "directions cancel": (
            MerganserError,
            lambda: ours("multislerp", frozen, base, {"weight": 1.0}),
        ),
    }


@pytest.mark.parametrize("message", list(refusals()))
def test_what_mergekit_refuses_is_one_line(message: str) -> None:
    kind, call = refusals()[message]
    with pytest.raises(kind) as caught:
        call()
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
