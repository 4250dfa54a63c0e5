"""Experts under two sets of names: what transformers makes of one is what is read of the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import merganser
from merganser.checkpoints import Checkpoint, open_checkpoint
from merganser.checkpoints.computed.moe import named_like
from merganser.errors import InputError
from messages import assert_one_line
from wrappers import assert_ranges_agree, cut_off, same_numbers, tensors

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers

Tensors = dict[str, torch.Tensor]

SHAPE = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "num_experts_per_tok": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def qwen3_moe(**changes: Any) -> Any:
    config = SHAPE | {"moe_intermediate_size": 8, "num_experts": 3} | changes
    return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**config))


def mixtral(**changes: Any) -> Any:
    config = SHAPE | {"num_local_experts": 3} | changes
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**config))


def deepseek_v3(**changes: Any) -> Any:
    """A dense layer first, then experts, shared ones among them."""
    config = SHAPE | {
        "moe_intermediate_size": 8,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 2,
    }
    del config["head_dim"]
    return transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**config | changes))


FAMILIES = [qwen3_moe, mixtral, deepseek_v3]
Family = Callable[..., Any]


def written(folder: Path, make: Family, seed: int = 0, **changes: Any) -> tuple[Path, Path, Any]:
    """One model as it is published, and as transformers 5 has it in memory."""
    torch.manual_seed(seed)
    model = make(**changes).to(torch.bfloat16).eval()
    model.save_pretrained(folder / "single")
    model.save_pretrained(folder / "stacked", save_original_format=False)
    return folder / "single", folder / "stacked", model


def opened(folder: Path) -> Checkpoint:
    return open_checkpoint(folder, folder.name)


def stored(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("make", FAMILIES)
def test_each_way_is_what_transformers_writes(tmp_path: Path, make: Family) -> None:
    single, stacked, _ = written(tmp_path, make)
    assert set(stored(single)) != set(stored(stacked))
    for one, other in ((single, stacked), (stacked, single)):
        checkpoint = named_like(opened(one), opened(other))
        same_numbers(tensors(checkpoint), stored(other))
        assert_ranges_agree(checkpoint)
        assert checkpoint.header_digest != opened(one).header_digest
        assert named_like(opened(one), opened(one)).notes == ()


def recipe(*models: Path, **keys: Any) -> dict[str, Any]:
    listed = [{"model": str(model), "parameters": {"weight": 0.5}} for model in models]
    return {"merge_method": "linear", "models": listed, **keys}


@pytest.mark.parametrize("make", [qwen3_moe, mixtral])
@pytest.mark.parametrize("first", ["single", "stacked"])
def test_a_merge_has_the_donors_names(tmp_path: Path, make: Family, first: str) -> None:
    a, b = (written(tmp_path / str(i), make, i) for i in range(2))
    models = (a[0], b[1]) if first == "single" else (a[1], b[0])
    result = merganser.merge(recipe(*models), tmp_path / "out")
    assert any("experts" in warning for warning in result.warnings)
    found = stored(tmp_path / "out")
    same = [stored(model[0 if first == "single" else 1]) for model in (a, b)]
    wanted = {
        n: (0.5 * t.float() + 0.5 * same[1][n].float()).bfloat16() for n, t in same[0].items()
    }
    same_numbers(found, wanted)
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert {kind: keys for kind, keys in info.items() if keys} == {}
    assert loaded(torch.arange(6)[None]).logits.isfinite().all()
    assert merganser.verify(tmp_path / "out", recompute=True) == []


def test_the_base_gives_the_names(tmp_path: Path) -> None:
    a, b, c = (written(tmp_path / str(i), qwen3_moe, i) for i in range(3))
    keys = {"merge_method": "task_arithmetic", "base_model": str(c[1])}
    plan = merganser.plan(recipe(a[0], b[0]) | keys)
    assert {job.name for job in plan.jobs} == set(stored(c[1]))


def test_layer_stacks_of_models_of_two_depths(tmp_path: Path) -> None:
    """Layers that the donor has not are named its way too."""
    a = written(tmp_path / "a", mixtral, 1)
    b = written(tmp_path / "b", mixtral, 2, num_hidden_layers=4)
    pieces = [
        {"sources": [{"model": str(a[0]), "layer_range": [0, 2]}]},
        {"sources": [{"model": str(b[1]), "layer_range": [2, 4]}]},
    ]
    out = tmp_path / "out"
    merganser.merge({"merge_method": "passthrough", "slices": pieces}, out)
    found, wanted = stored(out), stored(b[0])
    names = [name for name in found if ".layers.3." in name]
    assert any("block_sparse_moe.experts.2.w3" in name for name in names)
    for name in names:
        assert torch.equal(found[name], wanted[name])
    _, info = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert {kind: keys for kind, keys in info.items() if keys} == {}


def test_experts_in_fp8_beside_stacks(tmp_path: Path) -> None:
    single, stacked, _ = written(tmp_path, qwen3_moe)
    weights, numbers = {}, {}
    for name, weight in stored(single).items():
        weights[name] = numbers[name] = weight
        if ".experts." in name:
            weights[name] = weight.to(torch.float8_e4m3fn)
            weights[f"{name}_scale_inv"] = scale = torch.rand(1, 1)
            numbers[name] = weights[name].float() * scale
    save_file(weights, single / "model.safetensors")
    merganser.merge(recipe(stacked, single), tmp_path / "out")
    save_file(numbers, single / "model.safetensors")
    wanted = tensors(named_like(opened(single), opened(stacked)))
    own = stored(stacked)
    for name, found in stored(tmp_path / "out").items():
        exact = 0.5 * wanted[name].double() + 0.5 * own[name].double()
        assert ((found.double() - exact).abs() <= exact.abs() * 2**-8 * 1.001 + 1e-30).all()


def test_experts_that_are_missing(tmp_path: Path) -> None:
    single, stacked, _ = written(tmp_path, qwen3_moe)
    weights = stored(single)
    name = "model.layers.1.mlp.experts.1.up_proj.weight"
    del weights[name]
    save_file(weights, single / "model.safetensors")
    with pytest.raises(InputError) as caught:
        merganser.plan(recipe(stacked, single))
    assert_one_line(str(caught.value), str(single), "expert 1 of model.layers.1", "lacks")


def test_other_numbers_of_experts_do_not_vanish(tmp_path: Path) -> None:
    single, _, _ = written(tmp_path / "a", qwen3_moe)
    _, stacked, _ = written(tmp_path / "b", qwen3_moe, num_experts=4)
    for models in ((single, stacked), (stacked, single)):
        with pytest.raises(InputError) as caught:
            merganser.plan(recipe(*models))
        assert_one_line(str(caught.value), "experts")


def test_stacks_the_other_way_round(tmp_path: Path) -> None:
    """As Llama 4 has them: [experts, in, out]. They cannot be cut into ranges."""
    single, stacked, _ = written(tmp_path, qwen3_moe)
    weights = stored(stacked)
    turned = {
        n: t.mT.contiguous() if "_proj" in n and t.ndim == 3 else t for n, t in weights.items()
    }
    save_file(turned, stacked / "model.safetensors")
    with pytest.raises(InputError) as caught:
        merganser.plan(recipe(single, stacked))
    assert_one_line(str(caught.value), str(stacked), "not [inner, hidden]")


def test_experts_of_different_dtypes_are_not_joined(tmp_path: Path) -> None:
    single, stacked, _ = written(tmp_path, mixtral)
    weights = stored(single)
    name = "model.layers.0.block_sparse_moe.experts.2.w1.weight"
    save_file(weights | {name: weights[name].float()}, single / "model.safetensors")
    with pytest.raises(InputError) as caught:
        merganser.plan(recipe(stacked, single))
    assert_one_line(str(caught.value), str(single), name, "float32", "joined")


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    single, stacked, _ = written(tmp_path, mixtral)
    checkpoint = named_like(opened(single), opened(stacked))
    cut_off(single / "model.safetensors", (single / "model.safetensors").stat().st_size // 2)
    with pytest.raises(InputError) as caught:
        tensors(checkpoint)
    assert_one_line(str(caught.value), "model.safetensors")
