"""What MergeKit's own tests check, checked of ours, and what they do not: that the values are right.

Tiny models of the kinds that it tests with: llama, granite, GPT-2, and LLaVA with a CLIP tower.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedConfig

import merganser
from merganser.errors import MerganserError
from merganser.recipe import parse_reference
from peers import (
    Tensors,
    different_bits,
    load,
    make_tokenizer,
    mergekit,
    mergekit_pytorch,
    ours,
    ulps,
    unit,
)

pytestmark = pytest.mark.peer

Config = dict[str, Any]

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def llava() -> PreTrainedConfig:
    vision = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    return transformers.LlavaConfig(
        vision_config=vision, text_config=transformers.LlamaConfig(**TINY), image_token_id=9
    )


KINDS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**TINY),
    "granite": lambda: transformers.GraniteConfig(**TINY),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=64,
        n_embd=32,
        n_layer=12,
        n_head=4,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "llava": llava,
}


def auto_class(kind: str) -> Any:
    if kind == "llava":
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Folders of random models, by kind and number, made when first asked for."""
    root = tmp_path_factory.mktemp("models")

    @functools.cache
    def make(kind: str, seed: int) -> str:
        folder = root / f"{kind}-{seed}"
        transformers.utils.logging.disable_progress_bar()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            made = auto_class(kind).from_config(KINDS[kind](), dtype=torch.float32)
        made.save_pretrained(folder)
        make_tokenizer(folder)
        return str(folder)

    return make


def listed(models: list[str], **parameters: Any) -> list[Config]:
    return [{"model": name, "parameters": parameters} for name in models]


def checked(config: Config, out: Path, kind: str = "llama", **options: Any) -> Tensors:
    """Merge into a folder, which must hold all that MergeKit's tests look for, and load."""
    result = merganser.merge(config, out, **options)
    made = load(out)
    assert (out / "config.json").is_file()
    assert set(made) == {job.name for job in result.plan.jobs}
    for name, tensor in made.items():
        assert bool(torch.isfinite(tensor).all()), name
    whole, info = auto_class(kind).from_pretrained(out, output_loading_info=True)
    assert {kind: keys for kind, keys in info.items() if keys} == {}
    assert all(bool(torch.isfinite(p).all()) for p in whole.parameters())
    return made


def assert_as_mergekit(config: Config, tmp_path: Path, kind: str = "llama", *, units: int) -> None:
    """In its arithmetic ours are its numbers, to units in the last place; exactly, about those."""
    merge = tensor_by_tensor if kind == "llava" else mergekit
    theirs = merge(config, tmp_path / "theirs")
    made = checked(config, tmp_path / "ours", kind, arithmetic="mergekit")
    if not units:
        assert different_bits(made, theirs) == {}
    assert made.keys() == theirs.keys()
    inputs = [load(folder) for folder in folders(config)]
    for name, tensor in made.items():
        terms = sum(torch.abs(x[name].double()) for x in inputs)
        error = (tensor.double() - theirs[name].double()).abs()
        # MergeKit measures in float32, so that its coefficients are off by about 2**-23.
        allowed = units * unit(theirs[name].double(), tensor.dtype) + 2.0**-21 * terms
        assert bool((error <= allowed).all()), (name, ulps(tensor, theirs[name]))
    if config["merge_method"] in AS_EXACT:
        for name, tensor in ours(rows_for_columns(config)).items():
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-6)


def rows_for_columns(config: Config) -> Config:
    """MergeKit's nuslerp_row_wise is by columns; exactly, it is by rows."""
    parameters = config.get("parameters", {})
    by_row = parameters.get("nuslerp_row_wise")
    if by_row is None:
        return config
    return config | {"parameters": parameters | {"nuslerp_row_wise": not by_row}}


def tensor_by_tensor(config: Config, out: Path) -> Tensors:
    """What MergeKit makes of the models' files, where it knows nothing of what they are.

    For vision–language models, since what 0.1.5 with transformers 5 writes of one lacks the language model.
    """
    text = json.dumps(config)
    for folder in folders(config):
        text = text.replace(json.dumps(folder), json.dumps(f"{folder}/model.safetensors"))
    return mergekit_pytorch(json.loads(text), out)


def folders(config: Config) -> list[str]:
    """The models of a recipe of whole models."""
    found = [entry["model"] for entry in config["models"]] + [config.get("base_model")]
    return list(dict.fromkeys(folder for folder in found if folder))


AS_EXACT = {"linear", "slerp", "nuslerp", "multislerp", "karcher", "task_arithmetic", "passthrough"}
"""Methods without a rule of MergeKit's that ours, exactly, does otherwise."""

# -- test_basic_merges: every method on two or three models ----------------------------------------

Recipe = Callable[[list[str]], Config]


def on_base(method: str, parameters: Mapping[str, Any], **weights: Any) -> Recipe:
    """Two models beside a base."""
    return lambda m: {
        "merge_method": method,
        "base_model": m[0],
        "models": [{"model": m[0]}, *listed(m[1:], **weights)],
        "parameters": dict(parameters),
    }


def one_on_base(method: str, **parameters: Any) -> Recipe:
    return lambda m: {
        "merge_method": method,
        "base_model": m[0],
        "models": [{"model": m[0]}, {"model": m[1]}],
        "parameters": parameters,
    }


def nuslerp(flatten: bool, row_wise: bool, base: bool, weights: tuple[float, float]) -> Recipe:
    def recipe(m: list[str]) -> Config:
        pair = zip(m[1:3], weights, strict=True)
        config: Config = {
            "merge_method": "nuslerp",
            "models": [{"model": x, "parameters": {"weight": w}} for x, w in pair],
            "parameters": {"nuslerp_flatten": flatten, "nuslerp_row_wise": row_wise},
        }
        return config | ({"base_model": m[0]} if base else {})

    return recipe


BASIC: dict[str, tuple[Recipe, int]] = {
    "linear": (lambda m: {"merge_method": "linear", "models": listed(m, weight=0.6)}, 0),
    "slerp": (one_on_base("slerp", t=0.35), 2),
    **{
        f"nuslerp, flatten {f}, rows {r}, base {b}": (nuslerp(f, r, b, (0.3, 0.9)), 2)
        for f, r, b in itertools.product((True, False), repeat=3)
    },
    "nuslerp, weights of sum zero": (nuslerp(True, False, False, (0.5, -0.5)), 2),
    "task_arithmetic": (on_base("task_arithmetic", {}, weight=0.4), 0),
    "breadcrumbs": (on_base("breadcrumbs", {}, weight=0.4, density=0.9, gamma=0.01), 2),
    "breadcrumbs_ties": (on_base("breadcrumbs_ties", {}, weight=0.4, density=0.6, gamma=0.05), 2),
    "ties": (on_base("ties", {}, weight=0.5, density=0.3), 0),
    "sce": (on_base("sce", {"select_topk": 0.5}), 2),
    "ram": (on_base("ram", {}), 2),
    "ramplus_tl": (on_base("ramplus_tl", {}), 2),
    "multislerp": (on_base("multislerp", {}, weight=0.5), 2),
    "model_stock": (on_base("model_stock", {}), 2),
    "model_stock, by filter": (on_base("model_stock", {"filter_wise": True}), 2),
    "arcee_fusion": (one_on_base("arcee_fusion"), 2),
    "nearswap": (one_on_base("nearswap", t=0.001), 0),
    "karcher": (
        lambda m: {"merge_method": "karcher", "base_model": m[0], "models": listed(m[1:])},
        2,
    ),
}
"""Recipes, and units in the last place that ours may lie from MergeKit's."""

RANDOM = ["dare_linear", "dare_ties", "della", "della_linear"]


@pytest.mark.parametrize("case", list(BASIC))
def test_every_method_on_llama(model: Callable[..., str], tmp_path: Path, case: str) -> None:
    recipe, units = BASIC[case]
    config = recipe([model("llama", seed) for seed in range(3)])
    assert_as_mergekit(config, tmp_path, units=units)


ON_LLAVA = [
    "linear",
    "slerp",
    "nuslerp, flatten True, rows False, base False",
    "task_arithmetic",
    "breadcrumbs",
    "ties",
    "model_stock",
    "model_stock, by filter",
]


@pytest.mark.parametrize("case", ON_LLAVA)
def test_methods_on_llava(model: Callable[..., str], tmp_path: Path, case: str) -> None:
    """Of a language model, a vision tower and a projector between them."""
    recipe, units = BASIC[case]
    config = recipe([model("llava", seed) for seed in range(3)])
    assert_as_mergekit(config, tmp_path, "llava", units=units)


def test_mergekit_loses_the_language_model_of_llava(
    model: Callable[..., str], tmp_path: Path
) -> None:
    """Without a word. If this fails, MergeKit has learned it, and can be compared with on it."""
    recipe, _ = BASIC["linear"]
    config = recipe([model("llava", seed) for seed in range(2)])
    theirs = mergekit(config, tmp_path / "theirs")
    made = ours(config, arithmetic="mergekit")
    shared = {f"model.{name}": t for name, t in made.items() if "language_model" not in name}
    assert different_bits(shared, theirs) == {}
    assert any(name.startswith("language_model.") for name in made)


@pytest.mark.parametrize("case", ["passthrough", "linear", "slerp"])
def test_granite(model: Callable[..., str], tmp_path: Path, case: str) -> None:
    models = [model("granite", seed) for seed in range(3)]
    recipe: Config = {"merge_method": "passthrough", "models": listed(models[:1])}
    units = 0
    if case != "passthrough":
        found, units = BASIC[case]
        recipe = found(models)
    assert_as_mergekit(recipe, tmp_path, "granite", units=units)


@pytest.mark.parametrize("method", RANDOM)
@pytest.mark.parametrize("kind", ["llama", "llava"])
def test_random_methods(model: Callable[..., str], tmp_path: Path, method: str, kind: str) -> None:
    """Of one model, what is kept of its changes is scaled to their L1 norm, the rest is the base."""
    models = [model(kind, seed) for seed in range(2)]
    spread = {"epsilon": 0.05} if "della" in method else {}
    parameters = {"lambda": 0.5}
    config = on_base(method, parameters, weight=0.4, density=0.6, **spread)(models)
    made = checked(config, tmp_path / "out", kind)
    base, other = (load(m) for m in models)
    kept_share, total = 0, 0
    for name, tensor in made.items():
        change = other[name].double() - base[name].double()
        moved = tensor.double() - base[name].double()
        kept = moved.abs() > 1e-7
        assert not bool((kept & (change == 0)).any())
        if bool(kept.any()) and method != "della":  # which normalises: its one weight goes
            scale = 0.4 * 0.5 * change.abs().sum() / change[kept].abs().sum()
            torch.testing.assert_close(moved[kept], scale * change[kept], rtol=1e-4, atol=2e-7)
        kept_share += int(kept.sum())
        total += int((change != 0).sum())
    assert kept_share / total == pytest.approx(0.6, abs=0.02)


# -- test_basic_merges: GPT-2, scales, errors ------------------------------------------------------


def layers(name: str, count: int, times: int) -> Config:
    source = {"model": name, "layer_range": [0, count]}
    return {"merge_method": "passthrough", "slices": [{"sources": [source]} for _ in range(times)]}


def test_gpt2_copied(model: Callable[..., str], tmp_path: Path) -> None:
    name = model("gpt2", 0)
    made = checked(layers(name, 12, 1), tmp_path / "out", "gpt2")
    assert different_bits(made, load(name)) == {}


def test_gpt2_stacked_twice(model: Callable[..., str], tmp_path: Path) -> None:
    name = model("gpt2", 0)
    made = checked(layers(name, 12, 2), tmp_path / "out", "gpt2")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["n_layer"] == 24
    own = load(name)
    for key, tensor in made.items():
        head, dot, rest = key.partition(".h.")
        number, _, weight = rest.partition(".")
        source = f"{head}.h.{int(number) % 12}.{weight}" if dot else key
        assert torch.equal(tensor, own[source]), key
    assert len(made) == len(own) + len([key for key in own if ".h." in key])


def test_a_scale_by_filter_zeroes_a_matrix(model: Callable[..., str], tmp_path: Path) -> None:
    name = model("llama", 0)
    scale = [{"filter": "o_proj", "value": 0}, {"value": 1}]
    config = {"merge_method": "passthrough", "models": listed([name], scale=scale)}
    made = checked(config, tmp_path / "out")
    own = load(name)
    for key, tensor in made.items():
        wanted = torch.zeros_like(own[key]) if "o_proj" in key else own[key]
        assert torch.equal(tensor, wanted), key
    assert_as_mergekit(config, tmp_path, units=0)


@pytest.mark.parametrize("density", [0.1, 0.9])
def test_della_with_a_spread_that_does_not_fit(
    model: Callable[..., str], tmp_path: Path, density: float
) -> None:
    """MergeKit refuses its own default for these densities. Exactly, the spread is made to fit."""
    models = [model("llama", seed) for seed in range(2)]
    config = on_base("della", {}, weight=0.4, density=density, epsilon=0.15)(models)
    with pytest.raises(ValueError, match="density"):
        mergekit(config, tmp_path / "theirs")
    checked(config, tmp_path / "ours")


def test_the_dtype_is_that_asked_for(model: Callable[..., str], tmp_path: Path) -> None:
    models = [model("llama", seed) for seed in range(2)]
    config = {"merge_method": "linear", "models": listed(models, weight=1), "dtype": "bfloat16"}
    made = checked(config, tmp_path / "out")
    assert {tensor.dtype for tensor in made.values()} == {torch.bfloat16}
    stated = json.loads((tmp_path / "out" / "config.json").read_text())
    assert stated["dtype"] == "bfloat16"


# -- test_sparsify: what is kept of a change -------------------------------------------------------


def kept(method: str, change: torch.Tensor, **options: Any) -> torch.Tensor:
    """What a method makes of one model's change in a base of zeros."""
    arithmetic, seed = options.pop("arithmetic", "exact"), options.pop("seed", 0)
    parameters = {"normalize": False, "rescale": False} | options
    base = torch.zeros_like(change)
    made: torch.Tensor = merganser.merge_tensors(
        [change],
        method,
        base=base,
        weights=[1.0],
        parameters=parameters,
        arithmetic=arithmetic,
        seed=seed,
    )
    return made


def change(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("arithmetic", ["exact", "mergekit"])
def test_magnitudes_are_kept_by_density(arithmetic: str) -> None:
    whole = change(30, 41)
    assert torch.equal(kept("ties", whole, density=1.0, arithmetic=arithmetic), whole)
    assert not kept("ties", whole, density=0.0, arithmetic=arithmetic).any()
    half = kept("ties", whole, density=0.5, arithmetic=arithmetic)
    assert int((half != 0).sum()) == 615
    assert bool(half[half != 0].abs().min() >= whole[half == 0].abs().max())
    assert torch.equal(half[half != 0], whole[half != 0])


@pytest.mark.parametrize("arithmetic", ["exact", "mergekit"])
def test_breadcrumbs_keep_their_density_whatever_gamma(arithmetic: str) -> None:
    whole = change(30, 41)
    for gamma, density in itertools.product(
        (0, 0.01, 0.05, 0.1, 0.3, 0.5), (0.1, 0.3, 0.5, 0.7, 0.9)
    ):
        made = kept("breadcrumbs", whole, density=density, gamma=gamma, arithmetic=arithmetic)
        count = int(density * whole.numel())
        assert int((made != 0).sum()) == count, (gamma, density)
        left = whole.numel() - count
        dropped = min(int(gamma * whole.numel()), left)  # of the greatest
        largest = whole.abs().flatten().sort(descending=True).values
        assert made.abs().max() == largest[dropped]


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "dare_linear", "della_linear"])
def test_rescaling_keeps_the_norm(method: str, norm: str) -> None:
    whole = change(30, 41)
    made = kept(method, whole, density=0.5, rescale=norm)
    order = {"l1": 1, "l2": 2, "linf": float("inf")}[norm]
    size, wanted = (torch.linalg.vector_norm(x.double(), order) for x in (made, whole))
    torch.testing.assert_close(size, wanted, rtol=1e-5, atol=0)
    assert 0.4 < float((made != 0).double().mean()) < 0.6


@pytest.mark.parametrize("shape", [(5, 7), (9,), (1,), (4, 1), (1, 6), (2, 3, 4)], ids=str)
def test_della_gives_numbers_for_every_shape(shape: tuple[int, ...]) -> None:
    for seed in range(5):
        made = kept("della_linear", change(*shape), density=0.5, epsilon=0.1, seed=seed)
        assert bool(torch.isfinite(made).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_random_drops_are_as_many_as_they_should(dtype: torch.dtype) -> None:
    whole = torch.ones(400, 500, dtype=dtype)
    for rescale, mean in ((False, 0.35), (True, 1.0)):
        made = kept("dare_linear", whole, density=0.35, rescale=rescale).double()
        assert float(made.mean()) == pytest.approx(mean, abs=0.005)
        assert float((made != 0).double().mean()) == pytest.approx(0.35, abs=0.005)


# -- test_io: files --------------------------------------------------------------------------------


def test_one_file_or_numbered_shards(model: Callable[..., str], tmp_path: Path) -> None:
    config = {"merge_method": "linear", "models": listed([model("llama", 0)], weight=1)}
    one = checked(config, tmp_path / "one")
    assert [f.name for f in (tmp_path / "one").glob("*.safetensors")] == ["model.safetensors"]
    many = checked(config, tmp_path / "many", shard_size=20_000)
    files = sorted(f.name for f in (tmp_path / "many").glob("*.safetensors"))
    count = len(files)
    assert files == [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(one)
    assert different_bits(one, many) == {}


# -- test_modelref: how models are named -----------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("org/name", ("org/name", None, None, None)),
        ("org/name@v1", ("org/name", "v1", None, None)),
        ("org/name+org/lora", ("org/name", None, "org/lora", None)),
        ("org/name@v1+org/lora@main", ("org/name", "v1", "org/lora", "main")),
    ],
)
def test_references(text: str, parts: tuple[str | None, ...]) -> None:
    from mergekit.common import ModelReference

    mine = parse_reference(text)
    assert (mine.path, mine.revision, mine.adapter, mine.adapter_revision) == parts
    theirs = ModelReference.model_validate(text)
    lora = theirs.lora
    assert (
        theirs.model.path,
        theirs.model.revision,
        lora and lora.path,
        lora and lora.revision,
    ) == parts
    assert str(mine) == str(theirs) == text


@pytest.mark.parametrize("text", ["a@b@c", "a+b+c", "a@b+c@d@e"])
def test_bad_references(text: str) -> None:
    config = {"merge_method": "passthrough", "models": [{"model": text}]}
    with pytest.raises(MerganserError, match="more than one"):
        merganser.plan(config)
