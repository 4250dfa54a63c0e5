"""LoRA adapters: the weights are those of PEFT's merged model, and of its forward pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import merganser
from checkpoints_on_disk import change_config, write_json
from merganser.checkpoints import Checkpoint, as_numbers, open_checkpoint
from merganser.checkpoints.computed.derived import SCRATCH
from merganser.engine import buffer_bytes
from merganser.errors import InputError, OutputExistsError
from merganser.kernels import CELL
from merganser.release.fact_sheet import inspect
from messages import assert_one_line
from wrappers import assert_ranges_agree, assert_tiles_are_cheap, cut_off, tensor, tensors, whole

pytestmark = pytest.mark.filterwarnings("ignore")  # of PEFT's and torch's, on what they do

Tensors = dict[str, torch.Tensor]

LINEAR = ["q_proj", "v_proj", "down_proj"]


def llama(**changes: Any) -> Any:
    settings = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "tie_word_embeddings": False,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings | changes))


def gpt2(**changes: Any) -> Any:
    settings = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings | changes))


def shaken(model: Any, seed: int, scale: float = 0.3) -> None:
    """Random numbers in all parameters that are trained: PEFT begins with a product of zero."""
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = scale * torch.randn(parameter.shape, generator=chance)
                parameter.add_(noise.abs() if "magnitude" in name else noise)


def trained(
    folder: Path,
    make: Callable[..., Any] = llama,
    changes: Mapping[str, Any] | None = None,
    **lora: Any,
) -> tuple[Path, Path, Any]:
    """A model and an adapter on disk, and PEFT's model of both."""
    torch.manual_seed(0)
    model = make(**changes or {})
    model.save_pretrained(folder / "model")
    lora = {"r": 4, "lora_alpha": 6, "target_modules": LINEAR} | lora
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **lora)).eval()
    shaken(adapted, 1)
    adapted.save_pretrained(folder / "adapter")
    return folder / "model", folder / "adapter", adapted


def opened(model: Path, adapter: Path) -> Checkpoint:
    return as_numbers(open_checkpoint(model, "it"), adapter)


def assert_close(found: Tensors, wanted: Tensors) -> None:
    assert set(found) <= set(wanted)
    for name, numbers in found.items():
        torch.testing.assert_close(numbers, wanted[name], rtol=2e-6, atol=2e-6, msg=name)


CASES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "plain": (llama, {}),
    "odd rank": (llama, {"r": 5}),
    "rslora": (llama, {"use_rslora": True}),
    "patterns": (
        llama,
        {
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp.down_proj": 9},
            "alpha_pattern": {"v_proj": 11, "^model.layers.0.self_attn.q_proj": 3},
        },
    ),
    "embedding": (llama, {"target_modules": ["embed_tokens", "q_proj", "lm_head"]}),
    "embedding dora": (llama, {"target_modules": ["embed_tokens"], "use_dora": True}),
    "dora": (llama, {"use_dora": True}),
    "dora rslora": (llama, {"use_dora": True, "use_rslora": True, "target_modules": "all-linear"}),
    "modules to save": (llama, {"modules_to_save": ["lm_head", "embed_tokens", "norm"]}),
    "bias": (llama, {"bias": "all"}),
    "conv1d": (gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "conv1d unsaid": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": False}),
    "conv1d dora": (gpt2, {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    "conv1d bias": (gpt2, {"target_modules": ["c_attn", "c_proj"], "bias": "all"}),
    "conv1d added bias": (gpt2, {"target_modules": ["c_attn"], "lora_bias": True}),
}


@pytest.mark.parametrize("case", list(CASES))
def test_pefts_merged_model(tmp_path: Path, case: str) -> None:
    make, lora = CASES[case]
    changes = {"attention_bias": True} if case == "bias" else {}
    model, adapter, adapted = trained(tmp_path, make, changes, **lora)
    before = load_file(model / "model.safetensors")
    checkpoint = opened(model, adapter)
    assert_ranges_agree(checkpoint)
    found = tensors(checkpoint)
    assert set(found) == set(before)
    wanted = {n: t.clone() for n, t in adapted.merge_and_unload().state_dict().items()}
    assert_close(found, wanted)
    changed = [n for n in before if not torch.equal(found[n], before[n])]
    assert changed == [n for n in before if not torch.equal(wanted[n], before[n])] != []
    assert {str(spec.natural) for spec in checkpoint.specs.values()} == {"float32"}


def forward(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.arange(8)[None]).logits
    return logits


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["lm_head"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"]},
        {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ],
)
@pytest.mark.parametrize("make", [llama, gpt2])
def test_tied_embeddings(tmp_path: Path, make: Callable[..., Any], lora: dict[str, Any]) -> None:
    """What was trained on one of the two is for that one: the output computes as the adapter did."""
    names = {"embed_tokens": "wte", "q_proj": "c_attn"}
    if make is gpt2:
        lora = {
            key: [names.get(n, n) for n in value] if isinstance(value, list) else value
            for key, value in ({"target_modules": ["q_proj"]} | lora).items()
        }
    named = [value for value in lora.values() if isinstance(value, list)]
    model, adapter, adapted = trained(tmp_path, make, {"tie_word_embeddings": True}, **lora)
    wanted = forward(adapted)
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{model}+{adapter}"}]}
    merganser.merge(recipe, tmp_path / "out")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(forward(loaded), wanted, rtol=1e-4, atol=1e-5)
    changed = {"lm_head", "embed_tokens", "wte"} & {n for names in named for n in names}
    assert loaded.config.tie_word_embeddings is not bool(changed)


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_tied_embeddings_of_which_both_are_stored(tmp_path: Path, module: str) -> None:
    """As some trainers write them: the copy is no reason to lose what the adapter does."""
    tied = {"tie_word_embeddings": True}
    model, adapter, adapted = trained(tmp_path, llama, tied, target_modules=[module])
    weights = load_file(model / "model.safetensors")
    copy = weights["model.embed_tokens.weight"].clone()
    save_file(weights | {"lm_head.weight": copy}, model / "model.safetensors", {"format": "pt"})
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{model}+{adapter}"}]}
    merganser.merge(recipe, tmp_path / "out")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(forward(loaded), forward(adapted), rtol=1e-4, atol=1e-5)


# -- whole merges ----------------------------------------------------------------------------------


def test_a_merge_of_two_adapters_with_their_base(tmp_path: Path) -> None:
    """In bfloat16: one rounding of what PEFT has in float32."""
    model, first, adapted = trained(tmp_path / "a")
    _, second, other = trained(tmp_path / "b", use_dora=True)
    merged = [m.merge_and_unload().state_dict() for m in (adapted, other)]
    stored = load_file(model / "model.safetensors")
    recipe = {
        "merge_method": "linear",
        "models": [
            {"model": f"{model}+{first}", "parameters": {"weight": 0.5}},
            {"model": f"{model}+{second}", "parameters": {"weight": 0.3}},
            {"model": str(model), "parameters": {"weight": 0.2}},
        ],
        "dtype": "bfloat16",
    }
    result = merganser.merge(recipe, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert set(found) == set(stored)
    for name, numbers in found.items():
        a, b = (state[name].double() for state in merged)
        wanted = 0.5 * a + 0.3 * b + 0.2 * stored[name].double()
        apart = (numbers.double() - wanted).abs()
        assert (apart <= wanted.abs() * 2**-8 * 1.001 + 1e-6).all(), name
    card = (tmp_path / "out" / "README.md").read_text()
    assert "model+adapter" in card
    assert [entry["name"] for entry in result.manifest["inputs"]][:1] == ["model+adapter"]
    assert "adapter_model.safetensors" in result.manifest["inputs"][0]["files"]
    assert merganser.verify(tmp_path / "out", recompute=True) == []


def test_stored_dtype_is_kept(tmp_path: Path) -> None:
    model, adapter, _ = trained(tmp_path)
    weights = load_file(model / "model.safetensors")
    save_file({n: t.bfloat16() for n, t in weights.items()}, model / "model.safetensors")
    checkpoint = opened(model, adapter)
    assert {str(spec.natural) for spec in checkpoint.specs.values()} == {"bfloat16"}
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{model}+{adapter}"}]}
    merganser.merge(recipe, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, numbers in tensors(checkpoint).items():
        assert torch.equal(found[name], numbers.bfloat16())


def test_on_a_quantised_model(tmp_path: Path) -> None:
    model, adapter, _ = trained(tmp_path, target_modules=["down_proj"])
    weights = load_file(model / "model.safetensors")
    plain, eights = dict(weights), dict(weights)
    for name in weights:
        if name.endswith("down_proj.weight"):
            eights[name] = weights[name].to(torch.float8_e4m3fn)
            eights[f"{name}_scale"] = scale = torch.rand(len(weights[name]), 1)
            plain[name] = eights[name].float() * scale
    save_file(plain, model / "model.safetensors")
    wanted = tensors(opened(model, adapter))
    save_file(eights, model / "model.safetensors")
    change_config(model, quantization_config={"quant_method": "compressed-tensors"})
    found = tensors(opened(model, adapter))
    assert {n: t for n, t in found.items() if not torch.equal(t, wanted[n])} == {}


def test_an_adapter_on_the_hub_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, adapter, _ = trained(tmp_path)
    found = {"org/model": model, "org/lora": adapter}
    monkeypatch.setattr("merganser.hub.models._from_hub", lambda name, *_: found[name])
    recipe = {"merge_method": "passthrough", "models": [{"model": "org/model+org/lora@main"}]}
    merganser.merge(recipe, tmp_path / "out", public=True)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model:\n- org/model\n- org/lora\n" in card
    assert "https://huggingface.co/org/lora" in card
    recipe["models"] = [{"model": f"org/model+{adapter}"}]
    merganser.merge(recipe, tmp_path / "two", public=True)
    for file in (tmp_path / "two").glob("*.*"):
        assert str(tmp_path).encode() not in file.read_bytes(), file
    assert "base_model:\n- org/model\nlibrary" in (tmp_path / "two" / "README.md").read_text()


def test_inspect(tmp_path: Path) -> None:
    model, adapter, _ = trained(tmp_path)
    sheet = inspect(f"{model}+{adapter}")
    assert sheet["by_dtype"] == inspect(str(model))["by_dtype"]
    assert "adapter_model.safetensors" in sheet["shards"]
    assert sheet["adapter"] == {"rank": 4, "alpha": 6, "tensors": 12}


def test_an_adapter_is_not_overwritten(tmp_path: Path) -> None:
    model, adapter, _ = trained(tmp_path)
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{model}+{adapter}"}]}
    with pytest.raises(OutputExistsError):
        merganser.merge(recipe, adapter, force=True)
    assert (adapter / "adapter_config.json").is_file()


# -- bits ------------------------------------------------------------------------------------------


def handmade(
    folder: Path, rows: int, columns: int, rank: int, seed: int = 0, **config: Any
) -> tuple[Path, Path]:
    chance = torch.Generator().manual_seed(seed)
    model, adapter = folder / "model", folder / "adapter"
    for place in (model, adapter):
        place.mkdir(parents=True, exist_ok=True)
    save_file(
        {"w.weight": torch.randn(rows, columns, generator=chance).bfloat16()},
        model / "model.safetensors",
    )
    factors = {
        "base_model.model.w.lora_A.weight": torch.randn(rank, columns, generator=chance),
        "base_model.model.w.lora_B.weight": torch.randn(rows, rank, generator=chance),
    }
    if config.get("use_dora"):
        magnitude = torch.rand(rows, generator=chance) + 0.5
        factors["base_model.model.w.lora_magnitude_vector"] = magnitude
    save_file(factors, adapter / "adapter_model.safetensors")
    write_json(adapter / "adapter_config.json", {"r": rank, "lora_alpha": 3 * rank, **config})
    return model, adapter


@settings(max_examples=25)
@given(st.integers(1, 9), st.integers(1, 700), st.integers(1, 11), st.booleans(), st.data())
def test_bits_do_not_depend_on_the_range(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    columns: int,
    rank: int,
    dora: bool,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("lora")
    model, adapter = handmade(folder, rows, columns, rank, use_dora=dora)
    stored = whole(opened(model, adapter), "w.weight")
    start = data.draw(st.integers(0, len(stored)))
    stop = data.draw(st.integers(start, len(stored)))
    buffer = bytearray(stop - start)
    opened(model, adapter).read("w.weight", start, memoryview(buffer))
    assert buffer == stored[start:stop]


@pytest.mark.parametrize("dora", [False, True])
def test_rounded_once(tmp_path: Path, dora: bool) -> None:
    """Nearer than half a unit in the last place, and a hair, to what float64 gives."""
    model, adapter = handmade(tmp_path, 40, 600, 19, use_dora=dora)
    factors = load_file(adapter / "adapter_model.safetensors")
    a, b = (factors[f"base_model.model.w.lora_{x}.weight"].double() for x in "AB")
    wanted = load_file(model / "model.safetensors")["w.weight"].double() + 3 * (b @ a)
    if dora:
        magnitude = factors["base_model.model.w.lora_magnitude_vector"].double()
        wanted *= (magnitude / wanted.norm(dim=1))[:, None]
    found = tensor(opened(model, adapter), "w.weight").double()
    assert ((found - wanted).abs() <= wanted.abs() * 2**-24 * 1.0001 + 1e-14).all()


@pytest.mark.parametrize("dora", [False, True])
def test_tiles_are_read_fast_and_in_little_memory(tmp_path: Path, dora: bool) -> None:
    model, adapter = handmade(tmp_path, 1536, 4480, 16, use_dora=dora)
    whole(opened(*handmade(tmp_path / "small", 4, 4, 2, use_dora=dora)), "w.weight")  # compiled
    assert_tiles_are_cheap(opened(model, adapter), "w.weight")


def test_the_memory_that_a_plan_tells_of_is_enough_for_the_adapter(tmp_path: Path) -> None:
    """By as much as computing a tile may take, for every thread."""
    model, adapter = handmade(tmp_path, 1536, 4480, 16)
    plain, applied = (
        merganser.plan({"merge_method": "passthrough", "models": [{"model": name}]})
        for name in (str(model), f"{model}+{adapter}")
    )
    widths = [p.sources[0].checkpoint.specs["w.weight"].dtype.itemsize for p in (plain, applied)]
    added = buffer_bytes([applied], CELL) - buffer_bytes([plain], CELL)
    assert added == CELL * (widths[1] * (1 + SCRATCH) - widths[0])


# -- what is refused -------------------------------------------------------------------------------


def edit(adapter: Path, config: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    """Change an adapter's files; None removes a key or a tensor."""
    file = adapter / "adapter_config.json"
    data = json.loads(file.read_text()) | dict(config)
    write_json(file, {k: v for k, v in data.items() if v is not None})
    stored = load_file(adapter / "adapter_model.safetensors")
    stored |= {f"base_model.model.{k}": v for k, v in weights.items()}
    save_file(
        {k: v for k, v in stored.items() if v is not None}, adapter / "adapter_model.safetensors"
    )


@pytest.mark.parametrize(
    ("config", "weights", "parts"),
    [
        ({"peft_type": "IA3"}, {}, ["IA3", "LORA"]),
        ({"target_parameters": ["experts.w"]}, {}, ["target_parameters", "merge_and_unload"]),
        ({"layer_replication": [[0, 2]]}, {}, ["layer_replication"]),
        ({"trainable_token_indices": [1]}, {}, ["trainable_token_indices"]),
        ({"init_lora_weights": "pissa_niter_4"}, {}, ["pissa", "plain LoRA"]),
        ({"r": 5}, {}, ["w.lora_A.weight", "[5, 30]", "adapter_config.json"]),
        ({"r": "many"}, {}, ["adapter_config.json", "many"]),
        ({"rank_pattern": {"(": 3}}, {}, ["adapter_config.json", "rank_pattern"]),
        ({}, {"w.lora_B.weight": None}, ["w.lora_A.weight", "no partner"]),
        ({}, {"w.lora_B.weight": torch.ones(21, 4)}, ["w.lora_B.weight", "[21, 4]", "[20, 4]"]),
        (
            {},
            {"z.lora_B.weight": torch.ones(20, 4)},
            ["z.lora_B.weight", "'z.weight'", "does not have"],
        ),
        ({}, {"z.weight": torch.ones(20)}, ["z.weight", "does not have"]),
        ({}, {"w.weight": torch.ones(21, 30)}, ["w.weight", "[21, 30]", "vocabulary"]),
        ({}, {"w.lora_magnitude_vector": torch.ones(3)}, ["w.lora_magnitude_vector", "[20]"]),
        ({}, {"model.w.weight": torch.ones(20, 30)}, ["w.weight", "a second change"]),
        ({}, {"w.lora_E": torch.ones(3)}, ["w.lora_E", "does not have"]),
    ],
)
def test_adapters_that_do_not_fit(
    tmp_path: Path, config: dict[str, Any], weights: dict[str, Any], parts: list[str]
) -> None:
    model, adapter = handmade(tmp_path, 20, 30, 4)
    edit(adapter, config, weights)
    with pytest.raises(InputError) as caught:
        opened(model, adapter)
    assert_one_line(str(caught.value), str(adapter), *parts)


def test_folders_that_hold_no_adapter(tmp_path: Path) -> None:
    model, adapter = handmade(tmp_path, 20, 30, 4)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError) as caught:
        opened(model, adapter)
    assert_one_line(str(caught.value), str(adapter), "adapter_model.safetensors")
    with pytest.raises(InputError) as caught:
        merganser.plan({"merge_method": "passthrough", "models": [{"model": f"{model}+{model}"}]})
    assert_one_line(str(caught.value), str(model), "adapter_config.json")
    with pytest.raises(InputError) as caught:
        merganser.plan(
            {"merge_method": "passthrough", "models": [{"model": f"{model}+{tmp_path}/none"}]}
        )
    assert_one_line(str(caught.value), "none")


def test_pickled_adapters_are_read_without_running_them(tmp_path: Path) -> None:
    model, adapter = handmade(tmp_path, 20, 30, 4)
    wanted = whole(opened(model, adapter), "w.weight")
    file = adapter / "adapter_model.safetensors"
    torch.save(load_file(file), adapter / "adapter_model.bin")
    file.unlink()
    assert whole(opened(model, adapter), "w.weight") == wanted


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    model, adapter = handmade(tmp_path, 64, 64, 4)
    checkpoint = opened(model, adapter)
    cut_off(adapter / "adapter_model.safetensors", 1600)
    with pytest.raises(InputError) as caught:
        whole(checkpoint, "w.weight")
    assert_one_line(str(caught.value), "adapter_model.safetensors")


def test_the_digest_tells_adapters_apart(tmp_path: Path) -> None:
    digests = set()
    for i, config in enumerate(({}, {"lora_alpha": 5}, {"use_rslora": True})):
        digests.add(opened(*handmade(tmp_path / str(i), 20, 30, 4, **config)).header_digest)
    model, _ = handmade(tmp_path, 20, 30, 4)
    assert len({*digests, open_checkpoint(model).header_digest}) == 4


def test_names_that_differ_by_their_outer_parts(tmp_path: Path) -> None:
    """GPT-2 as it is published has no ``transformer.`` before its names; PEFT's have."""
    model, adapter, adapted = trained(tmp_path, gpt2, target_modules=["c_attn"])
    weights = load_file(model / "model.safetensors")
    bare = {name.removeprefix("transformer."): t for name, t in weights.items()}
    save_file(bare, model / "model.safetensors")
    found = tensors(opened(model, adapter))
    state = adapted.merge_and_unload().state_dict()
    assert_close(found, {name.removeprefix("transformer."): t for name, t in state.items()})
