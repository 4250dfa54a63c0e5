"""Distributed checkpoints: which of their tensors are the model, what does not join, Megatron's names."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

from archives import by_name, by_value
from checkpoints_on_disk import config, make_model, write_json
from merganser.checkpoints import Weights, open_checkpoint
from merganser.errors import InputError
from merganser.merging.merge import merge
from messages import assert_one_line
from recipe_files import RecipeFile
from sources import worlds

STEP = Path("global_step_30/actor")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """What two ranks saved, the model beside its optimizer."""
    return Path(shutil.copytree(worlds() / "dcp-2", tmp_path / "saved"))


@pytest.fixture
def megatron(tmp_path: Path) -> Path:
    return Path(shutil.copytree(worlds() / "megatron-4", tmp_path / "run")) / STEP


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(InputError) as error:
        open_checkpoint(path)
    assert_one_line(str(error.value), *parts)


def remade(file: Path, change: Callable[[Any], None]) -> None:
    """The metadata with something changed."""
    metadata = pickle.loads(file.read_bytes())
    change(metadata)
    file.write_bytes(pickle.dumps(metadata))


def alone(folder: Path, state: dict[str, Any]) -> Path:
    """Saved by one process."""
    folder.mkdir(parents=True, exist_ok=True)
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


# -- which tensors ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("state", "names", "note"),
    [
        ({"w": torch.ones(2)}, {"w"}, None),
        ({"a.w": torch.ones(2), "optimizer.state.x": torch.ones(2)}, {"a.w"}, None),
        ({"model": {"a.w": torch.ones(2)}, "optim": {"x": torch.ones(2)}}, {"a.w"}, None),
        ({"state_dict": {"a.w": torch.ones(2)}}, {"a.w"}, "state_dict"),
        ({"app": {"model": {"a.w": torch.ones(2)}}}, {"a.w"}, "app.model"),
        ({"model": {"_orig_mod.a.w": torch.ones(2)}}, {"a.w"}, None),
    ],
)
def test_the_model_is_found(
    tmp_path: Path, state: dict[str, Any], names: set[str], note: str | None
) -> None:
    checkpoint = open_checkpoint(alone(tmp_path / "m", state))
    assert set(checkpoint.specs) == names
    assert [repr(note) in told for told in checkpoint.notes] == [True] * (note is not None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reduce", [by_name, by_value])
def test_every_python_s_way_to_pickle_a_memory_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reduce: Callable[..., Any]
) -> None:
    monkeypatch.setattr(_MEM_FORMAT_ENCODING, "__reduce_ex__", reduce)
    folder = alone(tmp_path / "m", {"a.w": torch.ones(2)})
    assert (b"getattr" in (folder / ".metadata").read_bytes()) == (reduce is by_name)
    assert set(open_checkpoint(folder).specs) == {"a.w"}


@pytest.mark.filterwarnings("ignore")
def test_what_holds_no_model(tmp_path: Path) -> None:
    refused(alone(tmp_path / "a", {"step": 3}), ".metadata")
    refused(
        alone(tmp_path / "b", {"optimizer": {"x": torch.ones(2)}}), "the state of the optimizer"
    )


# -- Megatron's steps with Hugging Face weights ----------------------------------------------------

OPTIMIZER: dict[str, Any] = {"optimizer.distributed.gbuf_idx_0.param": torch.ones(8)}
ADAPTER: dict[str, Any] = {
    "decoder.layers.mlp.linear_fc1.adapter.linear_in.weight": torch.ones(2, 4, 16),
    "decoder.layers.mlp.linear_fc1.adapter.linear_out.weight": torch.ones(2, 32, 4),
}


def megatron_step(run: Path, huggingface: str, parts: dict[str, dict[str, Any]]) -> Path:
    """A step of verl on Megatron: weights as Hugging Face has them, and folders of dist_ckpt."""
    actor = run / "global_step_3" / "actor"
    make_model(actor / huggingface)
    for folder, state in parts.items():
        alone(actor / folder / "dist_ckpt", state)
    (run / "latest_checkpointed_iteration.txt").write_text("3")
    return actor


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reference", ["", "global_step_3", "global_step_3/actor"])
def test_weights_beside_the_state_of_an_optimizer(tmp_path: Path, reference: str) -> None:
    actor = megatron_step(tmp_path, "huggingface", {"": OPTIMIZER})
    choices: tuple[Weights, ...] = ("auto", "huggingface")
    for weights in choices:
        checkpoint = open_checkpoint(tmp_path / reference, weights=weights)
        assert checkpoint.home == actor / "huggingface"
        [note] = checkpoint.notes
        assert_one_line(note, "dist_ckpt/ holds only the state of the optimizer", "huggingface/")
    with pytest.raises(InputError, match="; the weights are in "):
        open_checkpoint(tmp_path / reference, weights="shards")
    refused(actor / "dist_ckpt", f"name {actor / 'huggingface'}")


@pytest.mark.filterwarnings("ignore")
def test_an_optimizer_in_a_folder_of_its_own(tmp_path: Path) -> None:
    actor = megatron_step(tmp_path, "model/huggingface", {"optimizer": OPTIMIZER})
    assert open_checkpoint(tmp_path).home == actor / "model/huggingface"
    assert open_checkpoint(tmp_path).notes == ()
    refused(actor / "optimizer/dist_ckpt", f"name {actor / 'model/huggingface'}")
    shutil.rmtree(actor / "model")
    refused(tmp_path, "the optimizer's state, but no weights (model/huggingface/*.safetensors)")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("huggingface", "folder"), [("huggingface", ""), ("model/huggingface", "model")]
)
def test_the_base_model_of_an_adapter_is_not_the_trained_model(
    tmp_path: Path, huggingface: str, folder: str
) -> None:
    actor = megatron_step(tmp_path, huggingface, {folder: {**ADAPTER, **OPTIMIZER}})
    parts = "holds a LoRA adapter in Megatron's form", "BASE+ADAPTER"
    refused(tmp_path, *parts, f"{huggingface}/ holds its base model", "weights='huggingface'")
    refused(actor / folder / "dist_ckpt", *parts, str(actor / huggingface))
    with pytest.raises(InputError, match="LoRA adapter in Megatron's form"):
        open_checkpoint(tmp_path, weights="shards")
    for checkpoint in (
        open_checkpoint(tmp_path, weights="huggingface"),
        open_checkpoint(actor / huggingface),
    ):
        assert checkpoint.home == actor / huggingface
        [note] = checkpoint.notes
        assert_one_line(note, "holds the base model without the training", *parts)


@pytest.mark.filterwarnings("ignore")
def test_a_lora_adapter_in_a_distributed_checkpoint(tmp_path: Path) -> None:
    prefix = "base_model.model.a.q_proj."
    a, b = torch.randn(2, 4), torch.randn(4, 2)
    state = {
        f"{prefix}base_layer.weight": torch.ones(4, 4),
        f"{prefix}lora_A.default.weight": a,
        f"{prefix}lora_B.default.weight": b,
    }
    folder = alone(tmp_path / "checkpoint-3/pytorch_model_fsdp_0", {"model": state})
    refused(tmp_path / "checkpoint-3", "lora_alpha")
    write_json(tmp_path / "checkpoint-3/adapter_config.json", {"r": 2, "lora_alpha": 4})
    checkpoint = open_checkpoint(tmp_path / "checkpoint-3")
    assert list(checkpoint.specs) == ["a.q_proj.weight"]
    buffer = bytearray(64)
    checkpoint.read("a.q_proj.weight", 0, memoryview(buffer))
    expected = (1 + 2 * b.double() @ a.double()).float()
    assert torch.equal(torch.frombuffer(buffer, dtype=torch.float32), expected.reshape(-1))
    assert checkpoint.home == folder


# -- bad input -------------------------------------------------------------------------------------


class Marker:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_metadata_that_would_run_code_never_does(tmp_path: Path, saved: Path) -> None:
    mark = tmp_path / "mark"
    file = saved / ".metadata"
    remade(file, lambda metadata: setattr(metadata, "planner_data", Marker(mark)))
    refused(saved, str(file), "asks for", "mkdir")
    assert not mark.exists()
    pickle.loads(file.read_bytes())
    assert mark.exists()


@pytest.mark.parametrize("path", ["../saved/__0_0.distcp", "/etc/passwd", "a/../../x"])
def test_a_chunk_outside_the_folder(saved: Path, path: str) -> None:
    def change(metadata: Any) -> None:
        next(iter(metadata.storage_data.values())).relative_path = path

    remade(saved / ".metadata", change)
    refused(saved, ".metadata", "outside", path)


def test_chunks_that_are_missing(saved: Path) -> None:
    def change(metadata: Any) -> None:
        stored = metadata.state_dict_metadata["model.model.norm.weight"]
        stored.chunks = stored.chunks[:1]

    remade(saved / ".metadata", change)
    refused(saved, ".metadata", "'model.norm.weight'", "8 of 16")


def test_places_that_are_missing(saved: Path) -> None:
    def change(metadata: Any) -> None:
        metadata.storage_data = {
            k: v for k, v in metadata.storage_data.items() if "norm" not in k.fqn
        }

    remade(saved / ".metadata", change)
    refused(saved, ".metadata", "does not say where")


def test_files_of_two_steps(saved: Path) -> None:
    """The second rank's file is that of another model."""
    shutil.copy(worlds() / "dcp-3" / "__1_0.distcp", saved / "__1_0.distcp")
    refused(saved, "__1_0.distcp")


def test_a_missing_file(saved: Path) -> None:
    (saved / "__1_0.distcp").unlink()
    refused(saved, "__1_0.distcp", "is missing; fetch it")


@pytest.mark.parametrize("content", [b"", b"N.", b"}.", b"\x80\x04", pickle.dumps({"a": 1})])
def test_metadata_that_is_none(saved: Path, content: bytes) -> None:
    (saved / ".metadata").write_bytes(content)
    refused(saved, str(saved / ".metadata"))


@pytest.mark.parametrize("key", ["state_dict_metadata", "storage_data"])
@pytest.mark.parametrize("value", [None, {}, [1], {"model.x": 7}])
def test_metadata_that_lies(saved: Path, key: str, value: Any) -> None:
    remade(saved / ".metadata", lambda metadata: setattr(metadata, key, value))
    refused(saved, str(saved / ".metadata"))


# -- Megatron --------------------------------------------------------------------------------------


def test_megatron_without_config_is_refused(megatron: Path) -> None:
    (megatron / "huggingface" / "config.json").unlink()
    refused(megatron, "no config.json", "llama")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model_type": "deepseek_v3"}, ["'deepseek_v3'", "llama, mistral"]),
        ({"num_hidden_layers": 3}, ["decoder.layers.", "2 layers"]),
        ({"num_key_value_heads": 4}, ["linear_qkv", "rows"]),
        ({"intermediate_size": 33}, ["linear_fc1", "rows"]),
        ({"vocab_size": None}, ["word_embeddings"]),
    ],
)
def test_a_config_that_does_not_fit(
    megatron: Path, changes: dict[str, Any], parts: list[str]
) -> None:
    file = megatron / "huggingface" / "config.json"
    write_json(file, json.loads(file.read_text()) | changes)
    refused(megatron, str(megatron / "dist_ckpt"), *parts)


@pytest.mark.filterwarnings("ignore")
def test_names_of_other_models_are_refused(tmp_path: Path) -> None:
    name = "decoder.layers.mlp.experts.experts.linear_fc1.weight"
    folder = alone(tmp_path / "m" / "dist_ckpt", {name: torch.ones(2, 4, 4)})
    make_model(tmp_path / "m" / "huggingface")
    (tmp_path / "m" / "huggingface" / "model.safetensors").unlink()
    refused(tmp_path / "m", str(folder), name, "unknown")


def test_merging_a_step_of_megatron_with_one_of_fsdp(
    tmp_path: Path, megatron: Path, recipe_file: RecipeFile
) -> None:
    """The same weights from both: the merge is the model."""
    fsdp = Path(shutil.copytree(worlds() / "fsdp2-4", tmp_path / "fsdp"))
    recipe = recipe_file(
        """
        merge_method: linear
        models:
          - model: ./run/global_step_30
            parameters: {weight: 0.5}
          - model: ./fsdp
            parameters: {weight: 0.5}
        """
    )
    from safetensors.torch import load_file

    merge(recipe, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in torch.load(fsdp / "full.pt").items():
        assert torch.equal(found.pop(name), tensor), name
    assert not found
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_key_value_heads"] == 2


# -- in safetensors --------------------------------------------------------------------------------


def changed_header(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    raw = json.dumps(header).encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + content[8 + length :])


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    return Path(shutil.copytree(worlds() / "dcp-hf-3", tmp_path / "saved"))


def test_whole_tensors_that_torch_joined_are_taken(tmp_path: Path) -> None:
    whole = shutil.copytree(worlds() / "dcp-hf-2", tmp_path / "saved")
    assert open_checkpoint(whole).format == "safetensors"
    for file in whole.glob("model*"):
        file.unlink()  # it was interrupted
    write_json(whole / "config.json", config(vocab=33))
    for folder in (whole, whole / "sharded"):
        checkpoint = open_checkpoint(folder)
        assert checkpoint.format == "distributed checkpoint of 2 safetensors"
        assert checkpoint.config == config(vocab=33)


def test_a_model_beside_others_in_safetensors(parts: Path) -> None:
    """Saved under a name: torch gives every tensor's name the name of its state dict."""
    expected = set(open_checkpoint(parts).specs)
    for file in parts.glob("*.safetensors"):

        def change(header: dict[str, Any]) -> None:
            told = json.loads(header["__metadata__"]["DCP_SHARDING_INFO"])
            nested = {f"model._orig_mod.{name}": value for name, value in told.items()}
            header["__metadata__"]["DCP_SHARDING_INFO"] = json.dumps(nested)
            for name in told:
                header[f"model._orig_mod.{name}"] = header.pop(name)

        changed_header(file, change)
    assert set(open_checkpoint(parts).specs) == expected


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_parts_of_a_rank_are_missing(parts: Path, rank: int) -> None:
    write_json(parts / "config.json", config(vocab=33))
    next(parts.glob(f"shard-0000{rank}-*")).unlink()
    told = "last ranks are missing" if rank == 3 else "is a file missing?"
    refused(parts, str(parts), told)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda told: told.pop("lm_head.weight"), "where tensor 'lm_head.weight' begins"),
        (lambda told: told["lm_head.weight"].clear(), "where tensor 'lm_head.weight' begins"),
        (lambda told: told["lm_head.weight"].update(saved_offsets=[0]), "'lm_head.weight' begins"),
        (lambda told: told["lm_head.weight"].update(saved_offsets=[-1, 0]), "begins"),
        (lambda told: told["lm_head.weight"].update(saved_offsets=[True, 0]), "begins"),
        (lambda told: told["lm_head.weight"].update(saved_offsets=[1, 0]), "do not join"),
        (lambda told: told["lm_head.weight"].update(saved_offsets=[2**40, 0]), "do not join"),
    ],
)
def test_places_of_parts_that_cannot_be(
    parts: Path, change: Callable[[dict[str, Any]], None], part: str
) -> None:
    def changed(header: dict[str, Any]) -> None:
        told = json.loads(header["__metadata__"]["DCP_SHARDING_INFO"])
        change(told)
        header["__metadata__"]["DCP_SHARDING_INFO"] = json.dumps(told)

    changed_header(next(parts.glob("shard-00001-*")), changed)
    refused(parts, str(parts), part)


def test_parts_of_several_dtypes(parts: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        for name, entry in header.items():
            if name != "__metadata__":
                entry["dtype"] = "I32"

    changed_header(next(parts.glob("shard-00002-*")), change)
    refused(parts, str(parts), "differ in dtype")
