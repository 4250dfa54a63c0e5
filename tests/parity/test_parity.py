"""Parity: MergeKit 0.1.5 on the same recipes, MergeKit 0.1.4's formula, and float64 references."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import merganser
from peers import CAUSAL, Tensors, Zoo, different_bits, load, mergekit, ours, ulps, unit

pytestmark = pytest.mark.peer

Config = dict[str, Any]

DTYPES = [
    ("bfloat16",),
    ("float32",),
    ("float16",),
    ("bfloat16", "float32"),
    ("bfloat16", "float16"),
]
"""What models are stored in: all alike, or in turn."""

CASTS: dict[str, Config] = {
    "as stored": {},
    "to bfloat16": {"dtype": "bfloat16"},
    "to float16": {"dtype": "float16"},
    "to float32": {"dtype": "float32"},
    "float32, out bfloat16": {"dtype": "float32", "out_dtype": "bfloat16"},
    "bfloat16, out float32": {"dtype": "bfloat16", "out_dtype": "float32"},
}

RAMP = {
    "weight": [
        {"filter": "mlp", "value": [0.1, 0.9, 0.3]},
        {"filter": "attn", "value": [0, 1]},
        {"value": 0.3},
    ]
}
"""A gradient of three, one of two, a number for the rest."""

SCALE = {
    "scale": [
        {"filter": "mlp", "value": 0.3},
        {"filter": "attn", "value": [0.1, 0.77]},
        {"value": 1},
    ]
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp("zoo"))


def linear(models: list[str], weights: list[Any], **keys: Any) -> Config:
    listed = [
        {"model": model, "parameters": weight if isinstance(weight, dict) else {"weight": weight}}
        for model, weight in zip(models, weights, strict=False)
    ]
    return {"merge_method": "linear", "models": listed, **keys}


# -- MergeKit 0.1.5: the same bits -----------------------------------------------------------------

NOT_NORMALISED: Config = {"parameters": {"normalize": False}}

LINEAR: dict[str, tuple[list[Any], Config]] = {
    "two": ([0.3, 0.7], {}),
    "two, not normalised": ([0.3, -1.1], NOT_NORMALISED),
    "three, not normalised": ([0.2, 0.5, 0.4], NOT_NORMALISED),
    "four": ([0.1, 0.7, 0.33, -0.2], {}),
    "five": ([0.51, 0.27, 0.34, 0.36, 0.91], {}),
    "gradients and filters": ([RAMP, [0.9, 0.123, 0.4, 0.7]], {}),
    "cast to bfloat16": ([0.3, 0.7], CASTS["to bfloat16"]),
    "cast to float16": ([0.3, 0.7], CASTS["to float16"]),
    "cast to float32, out bfloat16": ([RAMP, 0.7], CASTS["float32, out bfloat16"]),
    "cast to bfloat16, out float32": ([RAMP, 0.7, 0.2], CASTS["bfloat16, out float32"]),
    "float64": ([0.3, 0.7], {"dtype": "float64"}),
}


def rotate(names: list[str]) -> list[Any]:
    """Every name with every combination of dtypes; the names take the architectures in turn."""
    return [
        pytest.param(CAUSAL[i % len(CAUSAL)], dtypes, name, id=f"{name}-{'+'.join(dtypes)}")
        for i, name in enumerate(names)
        for dtypes in DTYPES
    ]


@pytest.mark.parametrize(("family", "dtypes", "recipe"), rotate(list(LINEAR)))
def test_linear_has_the_bits_of_mergekit(
    zoo: Zoo, tmp_path: Path, family: str, dtypes: tuple[str, ...], recipe: str
) -> None:
    weights, keys = LINEAR[recipe]
    config = linear(zoo(family, len(weights), *dtypes), weights, **keys)
    theirs = mergekit(config, tmp_path / "theirs")
    assert different_bits(ours(config, arithmetic="mergekit"), theirs) == {}


@pytest.mark.parametrize("family", CAUSAL)
def test_linear_has_the_bits_of_mergekit_in_every_architecture(
    zoo: Zoo, tmp_path: Path, family: str
) -> None:
    config = linear(zoo(family, 3, near=True), [RAMP, 0.7, [0, 0.5]], dtype="bfloat16")
    theirs = mergekit(config, tmp_path / "theirs")
    assert different_bits(ours(config, arithmetic="mergekit"), theirs) == {}


@pytest.mark.parametrize("weights", [[0.3], [0.3, 0.7], [-0.3, 1.3]], ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_linear_has_mergekits_signs_of_zeros(
    zoo: Zoo, tmp_path: Path, dtype: str, weights: list[float]
) -> None:
    config = linear(zoo("llama", len(weights), dtype, prune=0.4), weights)
    theirs = mergekit(config, tmp_path / "theirs")
    assert different_bits(ours(config, arithmetic="mergekit"), theirs) == {}


@pytest.mark.parametrize("layers", [1, 2])
def test_gradients_end_where_mergekits_do(zoo: Zoo, tmp_path: Path, layers: int) -> None:
    config = linear(zoo("qwen2", 2, layers=layers), [RAMP, [0.5, 0.1, 0.2, 0.9]])
    theirs = mergekit(config, tmp_path / "theirs")
    assert different_bits(ours(config, arithmetic="mergekit"), theirs) == {}


def test_an_unlisted_base_is_averaged_in_last(zoo: Zoo, tmp_path: Path) -> None:
    models = zoo("llama", 3)
    config = linear(models[1:], [0.3, 0.6], base_model=models[0], parameters={"weight": [0.2, 0.4]})
    theirs = mergekit(config, tmp_path / "theirs")
    assert different_bits(ours(config, arithmetic="mergekit"), theirs) == {}


@pytest.mark.parametrize(("family", "dtypes", "cast"), rotate(list(CASTS)))
def test_passthrough_has_the_bits_of_mergekit(
    zoo: Zoo, tmp_path: Path, family: str, dtypes: tuple[str, ...], cast: str
) -> None:
    [model] = zoo(family, 1, *dtypes, prune=0.1)
    plain = {"merge_method": "passthrough", "models": [{"model": model}], **CASTS[cast]}
    wanted = load(model)
    for dtype in CASTS[cast].values():
        wanted = {name: tensor.to(getattr(torch, dtype)) for name, tensor in wanted.items()}
    assert different_bits(ours(plain, arithmetic="mergekit"), wanted) == {}
    scaled = plain | {"models": [{"model": model, "parameters": SCALE}]}
    theirs = mergekit(scaled, tmp_path / "theirs")
    assert different_bits(ours(scaled, arithmetic="mergekit"), theirs) == {}


def stack(models: list[str], scales: list[float]) -> Config:
    """Five layers of two models of three; the first is also the last."""
    first, second, *_ = models
    scale = {"scale": [{"filter": "mlp", "value": scales}, {"value": 1}]}
    cuts = [(first, [0, 2], scale), (second, [1, 3], {}), (first, [2, 3], scale)]
    return {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": model, "layer_range": layers, "parameters": parameters}]}
            for model, layers, parameters in cuts
        ],
    }


@pytest.mark.parametrize("scales", [[1.0], [0.25, 0.5], [0.3, 0.9]], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_layer_stacks_have_the_bits_of_mergekit(
    zoo: Zoo, tmp_path: Path, family: str, scales: list[float]
) -> None:
    config = stack(zoo(family, 2), scales)
    theirs = mergekit(config, tmp_path / "theirs")
    for arithmetic in ("exact", "mergekit"):
        assert different_bits(ours(config, arithmetic=arithmetic), theirs) == {}


def test_merged_slices_have_the_bits_of_mergekit(zoo: Zoo, tmp_path: Path) -> None:
    a, b = zoo("llama", 2)
    config = {
        "merge_method": "linear",
        "slices": [
            {
                "sources": [
                    {"model": a, "layer_range": [0, 2], "parameters": RAMP},
                    {"model": b, "layer_range": [1, 3]},
                ],
            },
            {
                "sources": [
                    {"model": b, "layer_range": [0, 3]},
                    {"model": a, "layer_range": [0, 3]},
                ],
                "parameters": {"weight": [0.2, 0.8], "normalize": False},
            },
        ],
        "parameters": {"weight": 0.6},
        "dtype": "bfloat16",
    }
    theirs = mergekit(config, tmp_path / "theirs")
    assert different_bits(ours(config, arithmetic="mergekit"), theirs) == {}


def task_arithmetic(models: list[str], weights: list[float], **parameters: Any) -> Config:
    return {
        "merge_method": "task_arithmetic",
        "base_model": models[0],
        "models": [
            {"model": model, "parameters": {"weight": weight}}
            for model, weight in zip(models[1:], weights, strict=True)
        ],
        "parameters": parameters,
    }


@pytest.mark.parametrize(("family", "dtypes", "cast"), rotate(list(CASTS)))
def test_task_arithmetic_has_the_bits_of_mergekit(
    zoo: Zoo,
    tmp_path: Path,
    family: str,
    dtypes: tuple[str, ...],
    cast: str,
) -> None:
    turn = CAUSAL.index(family)
    weights = [0.3, 0.7, -0.2, 0.45, 0.6][: 1 + turn % 5]
    parameters = {"normalize": True, "lambda": 0.7} if turn // 2 % 2 else {}
    models = zoo(family, 1 + len(weights), *dtypes, near=True)
    config = task_arithmetic(models, weights, **parameters) | CASTS[cast]
    theirs = mergekit(config, tmp_path / "theirs")
    assert different_bits(ours(config, arithmetic="mergekit"), theirs) == {}


def test_tensors_of_many_tiles_have_the_bits_of_mergekit(zoo: Zoo, tmp_path: Path) -> None:
    models = zoo("llama", 4, near=True, vocab_size=40_000)
    for i, config in enumerate(
        [
            linear(models[:3], [0.3, 0.7, 0.2]),
            linear(models[:2], [0.3, 0.7], dtype="float16"),
            task_arithmetic(models, [0.3, 0.7, -0.2], normalize=True),
        ]
    ):
        theirs = mergekit(config, tmp_path / str(i))
        assert different_bits(ours(config, arithmetic="mergekit"), theirs) == {}


def corner_cases(zoo: Zoo) -> dict[str, Config]:
    tied, other = zoo("llama", 2)
    [untied] = zoo("llama", 1, tie_word_embeddings=False)
    a, b = zoo("mistral", 2)

    def source(model: str, low: int, high: int, **parameters: Any) -> Config:
        return {"model": model, "layer_range": [low, high], "parameters": parameters}

    def slices(method: str, *pieces: list[Config], **keys: Any) -> Config:
        return {"merge_method": method, "slices": [{"sources": p} for p in pieces], **keys}

    return {
        "a tied model lends its embedding": linear([tied, untied], [0.3, 0.7]),
        "a tied model lends it to an untied base": linear(
            [tied], [0.3], base_model=untied, parameters={"weight": 0.4}
        ),
        "an empty slice chooses the head": slices(
            "passthrough", [source(a, 0, 2)], [source(b, 1, 3)], [source(a, 3, 3)]
        ),
        "a base in slices": slices(
            "task_arithmetic",
            [source(a, 0, 2), source(b, 1, 3, weight=[0.3, 0.4])],
            [source(b, 0, 1, weight=0.7), source(a, 1, 2)],
            base_model=a,
        ),
        "a listed base needs no weight": task_arithmetic([a, a, b], [5, 0.4]),
        "normalised by filter": linear(
            [tied, other],
            [0.3, 0.9],
            parameters={"normalize": [{"filter": "mlp", "value": False}, {"value": True}]},
        ),
        "numbers as text": linear([tied, other], ["3e-1", "0.7"]),
        "weights that add up to less than nothing": linear([tied, other], [1, -3]),
        "huge weights": linear([tied, other], [1e38, 1e38]),
        "nine models": linear(
            zoo("llama", 9, "float32"), [0.35, 0.84, 1.14, 0.91, 0.54, 0.85, 0.13, 1.13, 0.69]
        ),
        "six models in float64": linear(
            zoo("llama", 6, "float32"), [0.07, 1.01, 0.35, 0.32, 1.19, 0.59], dtype="float64"
        ),
    }


@pytest.mark.parametrize("case", range(11))
def test_corner_cases_have_the_bits_of_mergekit(zoo: Zoo, tmp_path: Path, case: int) -> None:
    name, config = list(corner_cases(zoo).items())[case]
    theirs = mergekit(config, tmp_path / "theirs")
    assert different_bits(ours(config, arithmetic="mergekit"), theirs) == {}, name


@pytest.mark.parametrize("near", [True, False], ids=["near", "far"])
@pytest.mark.parametrize(
    ("family", "dtypes", "cast"), rotate(["as stored", "to bfloat16", "bfloat16, out float32"])
)
def test_slerp_is_within_two_ulp_of_mergekit(
    zoo: Zoo, tmp_path: Path, family: str, dtypes: tuple[str, ...], cast: str, near: bool
) -> None:
    """MergeKit measures in float32, so its coefficients are off by about 2**-23."""
    models = zoo(family, 2, *dtypes, **({"near": True} if near else {}))
    config = {
        "merge_method": "slerp",
        "base_model": models[0],
        "models": [{"model": model} for model in models],
        "parameters": {"t": [{"filter": "mlp", "value": [0.1, 0.8]}, {"value": 0.35}]},
        **CASTS[cast],
    }
    theirs = mergekit(config, tmp_path / "theirs")
    inputs = [load(model) for model in models]
    # Where MergeKit rounds inputs or results twice, only its own arithmetic is comparable.
    casts = len(dtypes) > 1 or (CASTS[cast] and set(CASTS[cast].values()) != set(dtypes))
    for arithmetic in ["mergekit"] if casts else ["mergekit", "exact"]:
        for name, mine in ours(config, arithmetic=arithmetic).items():
            terms = inputs[0][name].double().abs() + inputs[1][name].double().abs()
            coarse = torch.bfloat16 if "bfloat16" in CASTS[cast].values() else mine.dtype
            allowed = 2 * unit(theirs[name].double(), coarse) + terms * 2.0**-22
            error = (mine.double() - theirs[name].double()).abs()
            assert bool((error <= allowed).all()), (name, ulps(mine, theirs[name]))


# -- MergeKit 0.1.4: its formula --------------------------------------------------------------------


def formula_014(inputs: list[torch.Tensor], weights: list[float], normalize: bool) -> torch.Tensor:
    stacked = torch.stack(inputs)
    weight = torch.tensor(weights, dtype=stacked.dtype)
    while weight.dim() < stacked.dim():
        weight = weight.unsqueeze(-1)
    result = (weight * stacked).sum(dim=0)
    return result / weight.sum(dim=0) if normalize else result


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    "weights", [[0.3], [0.3, 0.7], [0.1, 0.9], [0.5, 0.2, 0.4, 0.33, 1.7]], ids=str
)
@pytest.mark.parametrize("stored", DTYPES, ids="+".join)
def test_linear_014_has_the_bits_of_its_formula(
    zoo: Zoo, stored: tuple[str, ...], weights: list[float], normalize: bool
) -> None:
    models = zoo("qwen2", len(weights), *stored)
    keys = {"dtype": "bfloat16", "parameters": {"normalize": normalize}}
    made = ours(linear(models, weights, **keys), arithmetic="mergekit-0.1.4")
    inputs = [load(model) for model in models]
    wanted = {
        name: formula_014([i[name].bfloat16() for i in inputs], weights, normalize)
        for name in inputs[0]
    }
    assert different_bits(made, wanted) == {}


def test_linear_014_is_not_015(zoo: Zoo) -> None:
    config = linear(zoo("qwen2", 2, near=True), [0.3, 0.7], dtype="bfloat16")
    old, new = (ours(config, arithmetic=a) for a in ("mergekit-0.1.4", "mergekit"))
    assert different_bits(old, new)


# -- exact arithmetic: float64 references -------------------------------------------------------------


Reference = Callable[[list[torch.Tensor]], list[float]]


def slerp_coefficients(inputs: list[torch.Tensor], t: float) -> list[float]:
    a, b = (x.flatten() for x in inputs)
    cosine = float(a @ b / (a.norm() * b.norm()))
    if abs(cosine) > 0.9995:
        return [1 - t, t]
    angle = math.acos(cosine)
    return [math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]


def exact_cases() -> dict[str, tuple[int, Callable[[list[str]], Config], Reference]]:
    """Number of models, recipe, and coefficients from the inputs (base first)."""
    three = [0.2, 0.5, 1.3]
    five = [0.1, 0.7, 0.33, -0.2, 0.9]
    loose: Config = {"parameters": {"normalize": False}}
    return {
        "linear": (2, lambda m: linear(m, [0.3, 0.7]), lambda _: [0.3, 0.7]),
        "linear of three": (3, lambda m: linear(m, three), lambda _: [w / 2.0 for w in three]),
        "linear of five": (
            5,
            lambda m: linear(m, five),
            lambda _: [w / math.fsum(five) for w in five],
        ),
        "linear, not normalised": (3, lambda m: linear(m, three, **loose), lambda _: three),
        "passthrough": (
            1,
            lambda m: {
                "merge_method": "passthrough",
                "models": [{"model": m[0], "parameters": {"scale": 0.3}}],
            },
            lambda _: [0.3],
        ),
        "task_arithmetic": (
            3,
            lambda m: task_arithmetic(m, [0.3, 0.9]),
            lambda _: [1 - 1.2, 0.3, 0.9],
        ),
        "task_arithmetic, normalised": (
            3,
            lambda m: task_arithmetic(m, [0.3, 0.9], normalize=True, **{"lambda": 0.7}),
            lambda _: [0.3, 0.7 * 0.25, 0.7 * 0.75],
        ),
        "slerp": (
            2,
            lambda m: {
                "merge_method": "slerp",
                "base_model": m[0],
                "models": [{"model": m[1]}],
                "parameters": {"t": 0.35},
            },
            lambda inputs: slerp_coefficients(inputs, 0.35),
        ),
    }


@pytest.mark.parametrize("near", [True, False], ids=["near", "far"])
@pytest.mark.parametrize("out", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("method", list(exact_cases()))
def test_exact_is_the_float64_result_rounded_once(
    zoo: Zoo, method: str, out: str, near: bool
) -> None:
    count, recipe, coefficients = exact_cases()[method]
    i = list(exact_cases()).index(method)
    models = zoo(CAUSAL[i % len(CAUSAL)], count, *DTYPES[i % len(DTYPES)], near=near)
    inputs = [load(model) for model in models]
    made = ours(recipe(models) | {"dtype": out}, arithmetic="exact")
    accumulation = 2.0**-22 if out != "float32" else 2.0**-48
    for name, mine in made.items():
        x = [i[name].double() for i in inputs]
        c = coefficients(x)
        wanted = sum(torch.mul(t, a) for a, t in zip(c, x, strict=True))
        size = sum(torch.abs(t * a) for a, t in zip(c, x, strict=True))
        assert isinstance(wanted, torch.Tensor)
        allowed = 0.5 * unit(wanted, mine.dtype) + accumulation * size
        assert mine.dtype == getattr(torch, out)
        assert bool(((mine.double() - wanted).abs() <= allowed).all()), name


def test_exact_does_not_round_inputs_to_the_dtype(zoo: Zoo) -> None:
    """float32 experts, merged to bfloat16: one rounding in all, where MergeKit rounds twice."""
    models = zoo("llama", 2, "float32", near=True)
    config = linear(models, [0.3, 0.7], dtype="bfloat16")
    a, b = (load(model) for model in models)
    wanted = {n: (0.3 * a[n].double() + 0.7 * b[n].double()).bfloat16() for n in a}
    exact, rounded_first = (ours(config, arithmetic=x) for x in ("exact", "mergekit"))

    def wrong(made: Tensors) -> float:
        entries = [(made[n] != wanted[n]).sum() for n in wanted]
        return float(sum(entries)) / sum(t.numel() for t in wanted.values())

    assert wrong(exact) < 1e-3  # ties that float32 sees otherwise
    assert wrong(rounded_first) > 0.05


# -- each reads what the other wrote ----------------------------------------------------------------


@pytest.mark.parametrize("shard_size", ["5GB", "20KB"])
@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt2"])
def test_mergekit_reads_ours(zoo: Zoo, tmp_path: Path, family: str, shard_size: str) -> None:
    models = zoo(family, 2)
    merged = tmp_path / "merged"
    merganser.merge(linear(models, [0.3, 0.7]), merged, shard_size=shard_size)
    assert (len(list(merged.glob("*.safetensors"))) > 1) == (shard_size == "20KB")
    again = linear([str(merged), models[0]], [0.5, 0.5])
    theirs = mergekit(again, tmp_path / "theirs")
    assert different_bits(ours(again, arithmetic="mergekit"), theirs) == {}


@pytest.mark.parametrize("out_shard_size", [5 * 10**9, 20_000])
@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt2"])
def test_we_read_mergekits(zoo: Zoo, tmp_path: Path, family: str, out_shard_size: int) -> None:
    folder = tmp_path / "theirs"
    theirs = mergekit(linear(zoo(family, 2), [0.3, 0.7]), folder, out_shard_size=out_shard_size)
    copied = ours({"merge_method": "passthrough", "models": [{"model": str(folder)}]})
    assert different_bits(copied, theirs) == {}
