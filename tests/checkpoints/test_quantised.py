"""Quantised checkpoints: the numbers are those that transformers and torch find in the same files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import merganser
from checkpoints_on_disk import change_config, make_model, save_weights, write_json
from merganser.checkpoints import Checkpoint, as_numbers, open_checkpoint
from merganser.checkpoints.computed.quantised import dequantised
from merganser.errors import InputError
from messages import assert_one_line
from wrappers import (
    assert_ranges_agree,
    assert_tiles_are_cheap,
    cut_off,
    same_numbers,
    tensor,
    tensors,
    whole,
)

Tensors = dict[str, torch.Tensor]

E4, E5 = torch.float8_e4m3fn, torch.float8_e5m2
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


def saved(folder: Path, weights: Mapping[str, torch.Tensor], quantization: Any = None) -> Path:
    """A checkpoint of just these tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: t.contiguous() for k, t in weights.items()}, folder / "model.safetensors")
    config = {"model_type": "none", "quantization_config": quantization}
    write_json(folder / "config.json", {k: v for k, v in config.items() if v is not None})
    return folder


def opened(
    folder: Path, weights: Mapping[str, torch.Tensor], quantization: Any = None
) -> Checkpoint:
    return dequantised(open_checkpoint(saved(folder, weights, quantization), "it"))


def eights(*shape: int, dtype: torch.dtype = E4, seed: int = 0) -> torch.Tensor:
    """Random fp8 numbers, all finite."""
    chance = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, shape, generator=chance, dtype=torch.uint8)
    found = codes.view(dtype)
    return torch.where(found.float().isfinite(), codes, 0).to(torch.uint8).view(dtype)


def scales(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 0.01 + 1e-4


def spread(scale: torch.Tensor, rows: int, columns: int, height: int, width: int) -> torch.Tensor:
    """Block scales as one scale an element."""
    wide = scale.float().repeat_interleave(height, -2).repeat_interleave(width, -1)
    return wide[..., :rows, :columns]


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [E4, E5])
def test_every_code_is_torchs_number(tmp_path: Path, dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(dtype)
    found = tensor(opened(tmp_path, {"w": codes}), "w")
    assert torch.equal(found.view(torch.int32), codes.float().view(torch.int32)) or (
        torch.equal(found.isnan(), codes.float().isnan())
        and torch.equal(found.nan_to_num(), codes.float().nan_to_num())
        and torch.equal(found.signbit()[~found.isnan()], codes.float().signbit()[~found.isnan()])
    )


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["weight_scale_inv", "weight_scale"])
@pytest.mark.parametrize("dtype", [E4, E5])
def test_scales_of_every_shape(
    tmp_path: Path, dtype: torch.dtype, name: str, kind: torch.dtype
) -> None:
    rows, columns = 200, 300
    shapes = {
        "whole": ((), 200, 300),
        "one": ((1,), 200, 300),
        "square": ((1, 1), 200, 300),
        "rows": ((200,), 1, 300),
        "column": ((200, 1), 1, 300),
        "blocks": ((2, 3), 128, 128),
    }
    weights: Tensors = {"norm": torch.ones(7, dtype=torch.bfloat16)}
    wanted = dict(weights)
    for i, (key, (shape, height, width)) in enumerate(shapes.items()):
        weights[f"{key}.weight"] = eights(rows, columns, dtype=dtype, seed=i)
        weights[f"{key}.{name}"] = scale = scales(*shape, seed=i).to(kind)
        grid = scale.reshape(-1, 1) if len(shape) < 2 else scale
        wanted[f"{key}.weight"] = weights[f"{key}.weight"].float() * spread(
            grid, rows, columns, height, width
        )
    checkpoint = opened(tmp_path, weights, FP8)
    same_numbers(tensors(checkpoint), wanted)
    assert_ranges_agree(checkpoint)
    assert {str(s.natural) for s in checkpoint.specs.values()} == {"bfloat16"}
    assert "quantization_config" not in checkpoint.config


def test_blocks_are_those_of_transformers(tmp_path: Path) -> None:
    weight, scale = eights(256, 384), scales(2, 3)
    found = opened(tmp_path, {"w.weight": weight, "w.weight_scale_inv": scale}, FP8)
    [wanted] = (
        Fp8Dequantize(None)
        .convert({"weight": [weight], "weight_scale_inv": [scale]}, full_layer_name="w.weight")
        .values()
    )
    assert torch.equal(tensor(found, "w.weight"), wanted)


@pytest.mark.parametrize("block", [(128, 128), (16, 8), (1, 32)])
def test_a_stack_of_experts(tmp_path: Path, block: tuple[int, int]) -> None:
    """Fused experts, as transformers 5 saves them: ragged blocks in each matrix of a stack."""
    height, width = block
    experts, rows, columns = 3, 70, 50
    weight = eights(experts, rows, columns)
    scale = scales(experts, -(-rows // height), -(-columns // width))
    config = FP8 | {"weight_block_size": list(block)}
    weights = {"experts.gate_up_proj": weight, "experts.gate_up_proj_scale_inv": scale}
    checkpoint = opened(tmp_path, weights, config)
    wanted = weight.float() * spread(scale, rows, columns, height, width)
    same_numbers(tensors(checkpoint), {"experts.gate_up_proj": wanted})
    assert_ranges_agree(checkpoint)


def test_one_scale_an_expert(tmp_path: Path) -> None:
    weight, scale = eights(3, 6, 5), scales(3)
    weights = {"e.down_proj": weight, "e.down_proj_scale": scale}
    checkpoint = opened(tmp_path, weights)
    same_numbers(tensors(checkpoint), {"e.down_proj": weight.float() * scale[:, None, None]})


@pytest.mark.parametrize("kind", [torch.uint8, torch.float8_e8m0fnu])
def test_microscaling_with_powers_of_two(tmp_path: Path, kind: torch.dtype) -> None:
    weight = eights(5, 96)
    powers = torch.randint(100, 140, (5, 3), dtype=torch.uint8)
    weights = {"w.weight": weight, "w.weight_scale": powers.view(kind)}
    checkpoint = opened(tmp_path, weights, FP8)
    factor = torch.exp2(powers.float() - 127).repeat_interleave(32, 1)
    same_numbers(tensors(checkpoint), {"w.weight": weight.float() * factor})


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 17), st.integers(1, 17), st.data())
def test_any_range_of_any_grid(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    columns: int,
    height: int,
    width: int,
    data: st.DataObject,
) -> None:
    weight = eights(rows, columns)
    scale = scales(-(-rows // height), -(-columns // width))
    config = FP8 | {"weight_block_size": [height, width]}
    weights = {"w.weight": weight, "w.weight_scale_inv": scale}
    checkpoint = opened(tmp_path_factory.mktemp("grid"), weights, config)
    stored = whole(checkpoint, "w.weight")
    start = data.draw(st.integers(0, len(stored)))
    stop = data.draw(st.integers(start, len(stored)))
    buffer = bytearray(stop - start)
    checkpoint.read("w.weight", start, memoryview(buffer))
    assert buffer == stored[start:stop]
    wanted = weight.float() * spread(scale, rows, columns, height, width)
    same_numbers(tensors(checkpoint), {"w.weight": wanted})


def fours(experts: int, rows: int, groups: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (experts, rows, groups, 16), generator=chance, dtype=torch.uint8)
    powers = torch.randint(110, 135, (experts, rows, groups), generator=chance, dtype=torch.uint8)
    return blocks, powers


def test_mxfp4_is_what_transformers_makes_of_it(tmp_path: Path) -> None:
    weights: Tensors = {"mlp.router.weight": torch.ones(3, 4, dtype=torch.bfloat16)}
    wanted = dict(weights)
    for i, (name, rows, groups) in enumerate([("gate_up_proj", 24, 3), ("down_proj", 7, 2)]):
        blocks, powers = fours(5, rows, groups, i)
        weights |= {f"e.{name}_blocks": blocks, f"e.{name}_scales": powers}
        weights[f"e.{name}_bias"] = wanted[f"e.{name}_bias"] = torch.ones(5, rows)
        wanted[f"e.{name}"] = convert_moe_packed_tensors(blocks, powers, dtype=torch.float32)
    checkpoint = opened(tmp_path, weights, {"quant_method": "mxfp4"})
    same_numbers(tensors(checkpoint), wanted)
    assert_ranges_agree(checkpoint, cuts=20)


# -- whole models ----------------------------------------------------------------------------------


def quantise(folder: Path, skip: str = "lm_head", suffix: str = "weight_scale_inv") -> Tensors:
    """Quantise a checkpoint's matrices in place, and give the numbers that they then stand for."""
    stored = load_file(folder / "model.safetensors")
    weights, numbers = {}, {}
    for name, weight in stored.items():
        weights[name] = numbers[name] = weight
        if name.endswith("proj.weight") and skip not in name:
            scale = (weight.float().abs().max() / 448).reshape(1, 1)
            weights[name] = (weight.float() / scale).to(E4)
            weights[name.removesuffix("weight") + suffix] = scale
            numbers[name] = weights[name].float() * scale
    save_weights(folder, weights)
    change_config(folder, quantization_config=FP8 | {"modules_to_not_convert": ["lm_head"]})
    return numbers


@pytest.mark.parametrize("first", ["a", "b"])
def test_a_merge_with_its_bfloat16_sibling(tmp_path: Path, first: str) -> None:
    a, b = make_model(tmp_path / "a", seed=1), make_model(tmp_path / "b", seed=2)
    numbers = [quantise(a), load_file(b / "model.safetensors")]
    out = tmp_path / "out"
    order = [(a, 0.25), (b, 0.75)] if first == "a" else [(b, 0.75), (a, 0.25)]
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(m), "parameters": {"weight": w}} for m, w in order],
    }
    result = merganser.merge(recipe, out)
    assert any("dequantised" in warning for warning in result.warnings)
    config = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["torch_dtype"] == "bfloat16"
    merged = load_file(out / "model.safetensors")
    assert {t.dtype for t in merged.values()} == {torch.bfloat16}
    for name, found in merged.items():
        wanted = 0.25 * numbers[0][name].double() + 0.75 * numbers[1][name].double()
        assert (found.double() - wanted).abs().max() <= wanted.abs().max() * 2**-8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert model(torch.arange(6)[None]).logits.isfinite().all()
    assert merganser.verify(out, recompute=True) == []


def test_one_quantised_model_becomes_bfloat16(tmp_path: Path) -> None:
    a, out = make_model(tmp_path / "a"), tmp_path / "out"
    numbers = quantise(a)
    merganser.merge({"merge_method": "passthrough", "models": [{"model": str(a)}]}, out)
    same_numbers(
        load_file(out / "model.safetensors"), {n: t.bfloat16() for n, t in numbers.items()}
    )


def test_layer_stacks_of_quantised_models(tmp_path: Path) -> None:
    a, out = make_model(tmp_path / "a"), tmp_path / "out"
    numbers = quantise(a)
    piece = {"sources": [{"model": str(a), "layer_range": [1, 2]}]}
    merganser.merge({"merge_method": "passthrough", "slices": [piece, piece]}, out)
    merged = load_file(out / "model.safetensors")
    name = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(merged[name.format(0)], numbers[name.format(1)].bfloat16())


def test_gpt_oss_as_it_is_published(tmp_path: Path) -> None:
    """transformers loads the merge of an mxfp4 model with itself, and computes the same."""
    config = transformers.GptOssConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.GptOssForCausalLM(config).to(torch.bfloat16).eval()
    state = {name: t.clone() for name, t in model.state_dict().items()}
    weights: Tensors = {}
    for i, (name, weight) in enumerate(list(state.items())):
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            blocks, powers = fours(4, weight.shape[2], weight.shape[1] // 32, i)
            powers -= 6
            weights |= {f"{name}_blocks": blocks, f"{name}_scales": powers}
            state[name] = convert_moe_packed_tensors(blocks, powers, dtype=torch.bfloat16)
        else:
            weights[name] = weight
    folder, out = tmp_path / "a", tmp_path / "out"
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    change_config(folder, quantization_config={"quant_method": "mxfp4"}, dtype="bfloat16")
    models = [{"model": str(folder), "parameters": {"weight": 1.0}}]
    merganser.merge({"merge_method": "linear", "models": models}, out)
    same_numbers(load_file(out / "model.safetensors"), state)
    model.load_state_dict(state)
    loaded = transformers.GptOssForCausalLM.from_pretrained(out, dtype="auto").eval()
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "eetq"},
        {"quant_method": "hqq"},
        {"quant_method": "torchao"},
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
        },
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "int"}}},
        },
        {
            "quant_method": "compressed-tensors",
            "sparsity_config": {"format": "sparse-24-bitmask"},
        },
        {"load_in_8bit": True},
    ],
)
def test_other_formats_are_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = saved(tmp_path / "a", {"w.weight": torch.ones(2, 2)}, config)
    recipe = {"merge_method": "passthrough", "models": [{"model": str(folder)}]}
    with pytest.raises(InputError) as caught:
        merganser.plan(recipe)
    known = str(config.get("quant_algo", config.get("quant_method", "unnamed")))
    assert_one_line(str(caught.value), str(folder), known, "dequantise this one")


@pytest.mark.parametrize(
    "name",
    ["w.qweight", "w.weight_packed", "w.weight.absmax", "w.weight.quant_state.bitsandbytes__nf4"],
)
def test_tensors_of_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError) as caught:
        opened(tmp_path, {name: torch.ones(2, 2, dtype=torch.int32)})
    assert_one_line(str(caught.value), "it", name)


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        (
            {"a.weight": eights(4, 4), "a.weight_scale": scales(1), "b.weight": eights(4, 4)},
            ["b.weight", "missing"],
        ),
        (
            {"b.weight_scale_inv": scales(1, 1)},
            ["b.weight_scale_inv", "its quantised tensor is missing"],
        ),
        (
            {"b.weight": torch.ones(4, 4), "b.weight_scale": scales(1)},
            ["b.weight_scale", "its quantised tensor is missing"],
        ),
        (
            {"b.weight": eights(200, 200), "b.weight_scale_inv": scales(3, 2)},
            ["b.weight_scale_inv", "float32[3, 2]", "[200, 200]", "[128, 128]"],
        ),
        ({"b.gate_up_proj_blocks": fours(2, 3, 1)[0]}, ["b.gate_up_proj_scales"]),
        (
            {"b.w_blocks": fours(2, 3, 1)[0], "b.w_scales": fours(2, 4, 1)[1]},
            ["b.w_blocks", "b.w_scales", "mxfp4"],
        ),
    ],
)
def test_scales_that_do_not_fit(tmp_path: Path, weights: Tensors, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        opened(tmp_path, weights, FP8)
    assert_one_line(str(caught.value), "it: ", *parts)


def test_scales_of_activations_are_left_out(tmp_path: Path) -> None:
    weights = {
        "q_proj.weight": eights(4, 4),
        "q_proj.weight_scale": scales(1),
        "q_proj.input_scale": scales(1),
        "attn.k_scale": scales(1),
        "embed.layer_scale": torch.ones(4),
    }
    config = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
    }
    checkpoint = opened(tmp_path, weights, config)
    assert list(checkpoint.specs) == ["embed.layer_scale", "q_proj.weight"]
    assert checkpoint.notes == (
        "it: its float8_e4m3fn weights are dequantised",
        "it: 2 scales of activations are left out",
    )


def test_what_is_not_quantised_stays_itself(tmp_path: Path) -> None:
    plain = open_checkpoint(make_model(tmp_path / "a"))
    assert as_numbers(plain) is plain


def test_config_of_a_part(tmp_path: Path) -> None:
    weights = {"w.weight": eights(4, 4), "w.weight_scale": scales(1)}
    folder = saved(tmp_path, weights)
    inner = {"hidden_size": 4, "quantization_config": FP8}
    change_config(folder, text_config=inner)
    checkpoint = dequantised(open_checkpoint(folder))
    assert checkpoint.config["text_config"] == {"hidden_size": 4}


def test_the_digest_tells_configs_apart(tmp_path: Path) -> None:
    weights = {"w.weight": eights(2, 64), "w.weight_scale_inv": scales(1, 2)}
    digests = {
        opened(tmp_path, weights, FP8 | {"weight_block_size": block}).header_digest
        for block in ([2, 32], [128, 32])
    }
    assert len(digests) == 2


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, {"w.weight": eights(64, 64), "w.weight_scale": scales(64)}, FP8)
    cut_off(tmp_path / "model.safetensors", 64 * 64)
    with pytest.raises(InputError) as caught:
        whole(checkpoint, "w.weight")
    assert_one_line(str(caught.value), "model.safetensors")


def test_tiles_are_read_fast_and_in_little_memory(tmp_path: Path) -> None:
    weights = {"w.weight": eights(1536, 4480), "w.weight_scale_inv": scales(12, 35)}
    assert_tiles_are_cheap(opened(tmp_path, weights, FP8), "w.weight")
    blocks, powers = fours(8, 1024, 32)
    checkpoint = opened(tmp_path / "fours", {"e_blocks": blocks, "e_scales": powers})
    assert_tiles_are_cheap(checkpoint, "e")
