"""Training names tensors by its modules, published models as transformers saves them: one set of names."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import core_model_loading
from transformers.models.auto import modeling_auto

import merganser
from checkpoints_on_disk import write_json
from families import FAMILIES, Family
from merganser.checkpoints import open_checkpoint
from merganser.checkpoints.computed.rearranged import rearranged
from merganser.checkpoints.saved_names import (
    UntraceableError,
    arrangement_of,
    saved_names,
    traced_tensor,
)
from merganser.checkpoints.state_dict import MemoryCheckpoint
from merganser.differences.diff import diff
from merganser.errors import InputError
from merganser.tensors import BY_NAME, TensorSpec
from messages import assert_one_line

Tensors = dict[str, torch.Tensor]

RENAMED = (
    "deepseek_v3",
    "gemma3",
    "glm4_moe",
    "gpt_neox",
    "granite_hybrid",
    "internvl",
    "jamba",
    "llava",
    "mistral3",
    "mixtral",
    "mllama",
    "nemotron_h",
    "qwen2_5_vl",
    "qwen2_moe",
    "qwen2_vl",
    "qwen3_next",
    "vit",
)
"""Families whose modules and files have other names."""

OTHERS = {
    "llava_next": Family(
        "LlavaNext",
        FAMILIES["llava"].options | {"image_grid_pinpoints": [[8, 8]]},
        "ForConditionalGeneration",
    ),
}

pytestmark = pytest.mark.filterwarnings("ignore")


def perturbed(model: Any, seed: int) -> dict[str, torch.Tensor]:
    """A model moved by random numbers; its tensors by the names of its modules."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in {id(t): t for t in (*model.parameters(), *model.buffers())}.values():
            if tensor.is_floating_point():
                tensor += 0.05 * torch.randn_like(tensor)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def pair(
    folder: Path, family: Family
) -> tuple[Any, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A published model ``a``, and a step of training with the tensors of a fine-tune of it."""
    transformers.utils.logging.disable_progress_bar()
    config = getattr(transformers, f"{family.config}Config")(**family.options)
    model = family.model_class(config).float()
    first = perturbed(model, 0)
    model.save_pretrained(folder / "a")
    second = perturbed(model, 1)
    actor = folder / "run/global_step_3/actor"
    (actor / "huggingface").mkdir(parents=True)
    torch.save(second, actor / "model_world_size_1_rank_0.pt")
    shutil.copy(folder / "a/config.json", actor / "huggingface")
    (folder / "run/latest_checkpointed_iteration.txt").write_text("3")
    return family.model_class, first, second


def recipe(folder: Path, *names: str) -> dict[str, Any]:
    weights = {"a": 0.7, "run": 0.3}
    models = [{"model": str(folder / n), "parameters": {"weight": weights[n]}} for n in names]
    return {"merge_method": "linear", "models": models, "dtype": "float32"}


@pytest.mark.parametrize("name", [*RENAMED, *OTHERS])
def test_a_training_step_merges_with_a_published_model(tmp_path: Path, name: str) -> None:
    model_class, first, second = pair(tmp_path, (FAMILIES | OTHERS)[name])
    published = load_file(tmp_path / "a/model.safetensors").keys()
    assert published - first.keys()
    for order in (("a", "run"), ("run", "a")):
        merganser.merge(recipe(tmp_path, *order), tmp_path / "out", force=True)
        assert load_file(tmp_path / "out/model.safetensors").keys() == published
        assert_mean(model_class, tmp_path / "out", first, second)


def assert_mean(model_class: Any, out: Path, first: Tensors, second: Tensors) -> None:
    """What loads from a merge is the weighted mean of both models."""
    model, info = model_class.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values())
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            expected = 0.7 * first[key].double() + 0.3 * second[key].double()
            assert torch.allclose(tensor.double(), expected, rtol=0, atol=1e-6), key


def test_a_base_model_names_the_tensors_of_several_steps(tmp_path: Path) -> None:
    pair(tmp_path, FAMILIES["gpt_neox"])
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    models = [
        {"model": str(tmp_path / name), "parameters": {"weight": 0.5}} for name in ("run", "other")
    ]
    config = {
        "merge_method": "task_arithmetic",
        "models": models,
        "base_model": str(tmp_path / "a"),
        "dtype": "float32",
    }
    plan = merganser.plan(config)
    head = next(job for job in plan.jobs if job.name == "embed_out.weight")
    assert [read.name for read in head.reads] == ["embed_out.weight"] * 3
    notes = [text for text in plan.warnings if "names used in training" in text]
    assert len(notes) == 2
    assert_one_line(notes[0], "lm_head.weight as embed_out.weight", "as transformers saves them")


def test_second_copies_of_shared_tensors_are_left_out(tmp_path: Path) -> None:
    """As torch's state dict has T5's embedding under three names, and BERT's head and bias under two."""
    shared = {"shared.weight": (9, 4), "decoder.final_layer_norm.weight": (4,)}
    more = {
        "encoder.embed_tokens.weight": (9, 4),
        "decoder.extra.weight": (9, 4),
        "extra.bias": (4,),
        "extra_layer_norm.weight": (4,),  # equal to another norm by chance
    }
    a, b = bare(tmp_path / "a", shared), bare(tmp_path / "b", shared | more)
    c = bare(tmp_path / "c", shared | more)
    tensors = load_file(b / "model.safetensors")
    tensors["decoder.extra.weight"] = torch.full((9, 4), 2.0)
    save_file(tensors, b / "model.safetensors")
    for first, second in ((a, b), (b, a)):
        plan = merganser.plan(mean_of(first, second), tensor_names="union")
        assert {job.name for job in plan.jobs} == {*shared, *more} - {"encoder.embed_tokens.weight"}
        [note] = [text for text in plan.warnings if "copies of tensors" in text]
        assert_one_line(note, str(b), "encoder.embed_tokens.weight of shared.weight")
    assert "encoder.embed_tokens.weight" in {job.name for job in merganser.plan(mean_of(b, c)).jobs}


def test_a_training_step_is_compared_with_a_published_model(tmp_path: Path) -> None:
    pair(tmp_path, FAMILIES["gpt_neox"])
    found = diff(str(tmp_path / "a"), str(tmp_path / "run"))
    assert "embed_out.weight" in {tensor.name for tensor in found.tensors}
    assert not found.skipped


CLASSES = sorted(
    {
        (kind, name if isinstance(name, str) else name[0])
        for mapping in (
            modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
            modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        )
        for kind, name in mapping.items()
    }
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"), CLASSES, ids=[f"{kind}-{name}" for kind, name in CLASSES]
)
def test_names_and_shapes_are_those_of_transformers(kind: str, name: str) -> None:
    """Every class at the size of its default config, without weights."""
    try:
        config = transformers.CONFIG_MAPPING[kind]()
        with torch.device("meta"):
            model = getattr(transformers, name)(config)
    except Exception as error:
        pytest.skip(f"has no default: {error}")
    modules = model.state_dict()
    expected = core_model_loading.revert_weight_conversion(model, dict(modules))
    specs = {key: TensorSpec(BY_NAME["bfloat16"], tuple(t.shape)) for key, t in modules.items()}
    stated = json.loads(config.to_json_string(use_diff=False)) | {"architectures": [name]}
    tensors = saved_names(stated, specs)[0]
    shapes = {
        key: specs[tensor].shape if isinstance(tensor, str) else tensor.spec.shape
        for key, tensor in tensors.items()
    }
    assert shapes == {key: tuple(tensor.shape) for key, tensor in expected.items()}


# -- without transformers --------------------------------------------------------------------------


@pytest.fixture
def no_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "merganser.checkpoints.saved_names", None)


@pytest.mark.usefixtures("no_transformers")
@pytest.mark.parametrize("name", ["gpt_neox", "llava_next"])
def test_shapes_and_ends_of_names_tell(tmp_path: Path, name: str) -> None:
    model_class, first, second = pair(tmp_path, (FAMILIES | OTHERS)[name])
    result = merganser.merge(recipe(tmp_path, "a", "run"), tmp_path / "out")
    assert_mean(model_class, tmp_path / "out", first, second)
    [note] = [text for text in result.warnings if "names used in training" in text]
    assert_one_line(note, str(tmp_path / "run"), "by their shapes and the ends of their names")


@pytest.mark.usefixtures("no_transformers")
def test_what_nothing_settles_is_refused_with_both_names(tmp_path: Path) -> None:
    pair(tmp_path, FAMILIES["granite_hybrid"])
    with pytest.raises(InputError) as error:
        merganser.plan(recipe(tmp_path, "a", "run"))
    parts = (
        "block_sparse_moe.router.weight'",
        "block_sparse_moe.router.layer.weight'",
        str(tmp_path / "a"),
        "install transformers",
    )
    assert_one_line(str(error.value), str(tmp_path / "run"), *parts)


CONFIG = {
    "model_type": "unknown",
    "architectures": ["Unknown"],
    "num_hidden_layers": 2,
    "vocab_size": 9,
}


def bare(folder: Path, tensors: Mapping[str, tuple[int, ...]], **changes: Any) -> Path:
    """A model of a type that transformers does not know, of ones."""
    folder.mkdir()
    layers = {
        name.replace("*", str(layer)): torch.ones(shape)
        for name, shape in tensors.items()
        for layer in range(2 if "*" in name else 1)
    }
    save_file(layers, folder / "model.safetensors", {"format": "pt"})
    write_json(folder / "config.json", CONFIG | changes)
    return folder


COMMON = {"model.embed_tokens.weight": (9, 4), "model.layers.*.mlp.up_proj.weight": (6, 4)}


@pytest.mark.parametrize(
    ("own", "theirs"),
    [
        ({"model.layers.*.attn.sinks": (2,)}, {"model.layers.*.attn.sink_values": (2,)}),
        (
            {"model.layers.*.self_attn.q_proj.weight": (4, 4)},
            {"model.layers.*.attention.q_proj.weight": (4, 4)},
        ),
        (
            {f"tower.blocks.*.attn.{x}_proj.bias": (4,) for x in "qkv"},
            {f"visual.blocks.*.attn.{x}_proj.bias": (4,) for x in "qkv"},
        ),
    ],
)
def test_names_that_can_be_one_tensor(
    tmp_path: Path, own: dict[str, tuple[int, ...]], theirs: dict[str, tuple[int, ...]]
) -> None:
    a, b = bare(tmp_path / "a", COMMON | theirs), bare(tmp_path / "b", COMMON | own)
    plan = merganser.plan(mean_of(a, b))
    assert {job.name for job in plan.jobs} == open_checkpoint(a).specs.keys()
    assert all(len(job.reads) == 2 for job in plan.jobs)


@pytest.mark.parametrize(
    ("own", "theirs"),
    [
        # rows of queries and keys may be in another order
        (
            {"model.layers.*.attn.q_proj.weight": (4, 4)},
            {"model.layers.*.attn.wq.weight": (4, 4)},
        ),
        # the ends of names are no evidence
        (
            {"model.layers.*.a.gate_up.weight": (4, 4)},
            {"model.layers.*.b.input_linear.weight": (4, 4)},
        ),
        # two candidates
        (
            {"model.layers.*.first": (3,), "model.layers.*.second": (3,)},
            {"model.layers.*.one": (3,), "model.layers.*.two": (3,)},
        ),
        # a counterpart for one of two
        (
            {"model.layers.*.a.x.weight": (3,), "model.layers.*.y.weight": (5, 3)},
            {"model.layers.*.b.x.weight": (3,), "model.layers.*.z.weight": (7, 3)},
        ),
    ],
)
def test_names_that_may_be_two_tensors(
    tmp_path: Path, own: dict[str, tuple[int, ...]], theirs: dict[str, tuple[int, ...]]
) -> None:
    a, b = bare(tmp_path / "a", COMMON | theirs), bare(tmp_path / "b", COMMON | own)
    with pytest.raises(InputError) as error:
        merganser.plan(mean_of(a, b))
    assert_one_line(
        str(error.value), repr(next(iter(own))), repr(next(iter(theirs))), str(a), str(b)
    )
    merganser.plan(mean_of(a, b), tensor_names="union")


def test_models_of_two_classes_keep_their_own_tensors(tmp_path: Path) -> None:
    a = bare(tmp_path / "a", COMMON | {"classifier.weight": (3, 4)})
    b = bare(tmp_path / "b", COMMON | {"scorer.weight": (3, 4)}, architectures=["Another"])
    names = {job.name for job in merganser.plan(mean_of(a, b)).jobs}
    assert {"classifier.weight", "scorer.weight"} <= names


def mean_of(*models: Path) -> dict[str, Any]:
    listed = [{"model": str(model), "parameters": {"weight": 0.5}} for model in models]
    return {"merge_method": "linear", "models": listed}


def test_transformers_is_not_imported_where_names_agree(tmp_path: Path) -> None:
    a, b = bare(tmp_path / "a", COMMON), bare(tmp_path / "b", COMMON)
    wrapped = {name.removeprefix("model."): shape for name, shape in COMMON.items()}
    c = bare(tmp_path / "c", wrapped)
    code = (
        "import sys, json, merganser; merganser.plan(json.loads(sys.argv[1])); "
        "sys.exit('transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, json.dumps(mean_of(a, b, c))], check=True)


# -- elements in another order ---------------------------------------------------------------------


def test_experts_the_other_way_round(tmp_path: Path) -> None:
    experts = {"model.layers.*.mlp.experts.gate_up_proj": (2, 4, 6)}
    turned = {"model.layers.*.mlp.experts.gate_up_proj": (2, 6, 4)}
    a, b = bare(tmp_path / "a", COMMON | experts), bare(tmp_path / "b", COMMON | turned)
    values = torch.arange(48.0).reshape(2, 6, 4)
    tensors = load_file(b / "model.safetensors")
    tensors["model.layers.1.mlp.experts.gate_up_proj"] = values
    save_file(tensors, b / "model.safetensors")
    result = merganser.merge(mean_of(a, b), tmp_path / "out")
    merged = load_file(tmp_path / "out/model.safetensors")
    expected = (values.mT + 1) / 2
    assert torch.equal(merged["model.layers.1.mlp.experts.gate_up_proj"], expected)
    assert any("its experts are transposed" in text for text in result.warnings)


OPERATIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "transpose": lambda x, y: x.transpose(0, 1),
    "join": lambda x, y: torch.cat([x, y], dim=1),
    "stack": lambda x, y: torch.stack([x, y], dim=1),
    "halves": lambda x, y: torch.cat(torch.chunk(x, 2)[::-1]),
    "parts": lambda x, y: torch.cat(torch.split(y, [1, 4, 3])[::-1]),
    "interleave": lambda x, y: x.reshape(2, 4, 6).transpose(0, 1).reshape(8, 6),
    "rotary": lambda x, y: x.view(2, 2, 2, 6).transpose(1, 2).reshape(8, 6),
    "rotary and join": lambda x, y: torch.cat(
        [y, x.view(2, 2, 2, 6).transpose(1, 2).reshape(8, 6)]
    ),
    "joined halves": lambda x, y: torch.cat(
        [t.reshape(2, -1, 6).transpose(0, 1).reshape(-1, 6) for t in (x, y)]
    ),
    "experts": lambda x, y: torch.stack(x.reshape(4, 2, 6).unbind(0)).flatten(1),
    "regrouped": lambda x, y: x.reshape(4, 12).T.reshape(6, 8)[3:].squeeze(0),
    "chosen": lambda x, y: x[:, [3, 0]].flatten(0, 1),
    "padded": lambda x, y: torch.cat([x, x.new_zeros(3, 6)]),
    "fifth axis": lambda x, y: x.reshape(8, 1, 1, 2, 3).permute(3, 0, 2, 4, 1).reshape(2, -1),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_elements_are_followed_through_operations(name: str, dtype: torch.dtype) -> None:
    x = torch.arange(48).reshape(8, 6).to(dtype)
    y = 100 + torch.arange(48).reshape(8, 6).to(dtype)
    memory = MemoryCheckpoint({"x": x, "y": y})
    traced = OPERATIONS[name](
        traced_tensor("x", memory.specs["x"]), traced_tensor("y", memory.specs["y"])
    )
    arrangement = arrangement_of(traced, memory.specs)
    assert not isinstance(arrangement, str)
    expected = OPERATIONS[name](x, y).contiguous()
    checkpoint = rearranged(memory, {"z": arrangement}, [])
    assert checkpoint.specs["z"].shape == tuple(expected.shape)
    stored = bytes(expected.view(torch.uint8).flatten().tolist())
    for start, stop in ((0, len(stored)), (2, 31), (len(stored) - 9, len(stored))):
        buffer = bytearray(stop - start)
        checkpoint.read("z", start, memoryview(buffer))
        assert bytes(buffer) == stored[start:stop]


def test_what_is_more_than_an_order_of_elements_is_not_followed() -> None:
    memory = MemoryCheckpoint({"x": torch.ones(8, 6)})
    x = traced_tensor("x", memory.specs["x"])
    for operation in (lambda: x * 2, lambda: x[::2], lambda: x.to(torch.float16), lambda: x.sum(0)):
        with pytest.raises(UntraceableError):
            operation()
    assert arrangement_of(x.reshape(48).reshape(8, 6), memory.specs) == "x"
