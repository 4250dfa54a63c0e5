"""Training steps of verl and FSDP: which weights are taken, what does not join, and merging them."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from archives import edited
from checkpoints_on_disk import make_model, save_weights, tree, write_json
from merganser.checkpoints import Weights, as_numbers, open_checkpoint
from merganser.cli import main
from merganser.errors import InputError, RecipeError
from merganser.merging.merge import merge
from merganser.release.fact_sheet import inspect
from messages import assert_one_line
from recipe_files import RecipeFile
from sources import bytes_of, worlds

ACTOR = Path("global_step_30/actor")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two ranks with config and tokenizer."""
    return copied(tmp_path / "run", "fsdp2-2")


def copied(run: Path, world: str) -> Path:
    shutil.copytree(worlds() / world, run)
    huggingface = make_model(run / ACTOR / "huggingface", vocab=33)
    (huggingface / "model.safetensors").unlink()
    return run


def full(run: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(run / "full.pt", map_location="cpu"))


def publish(run: Path) -> None:
    """The weights in bfloat16, as ``hf_model`` saves them."""
    tensors = {name: tensor.bfloat16() for name, tensor in full(run).items()}
    save_weights(run / ACTOR / "huggingface", tensors)


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(InputError) as error:
        open_checkpoint(path)
    assert_one_line(str(error.value), *parts)


# -- which weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["", "global_step_30", "global_step_30/actor"])
def test_a_run_a_step_and_an_actor_mean_the_same(run: Path, reference: str) -> None:
    checkpoint = open_checkpoint(run / reference)
    assert checkpoint.home == run / ACTOR
    assert checkpoint.path == run / ACTOR / "huggingface"
    assert checkpoint.config["model_type"] == "qwen2"
    assert checkpoint.notes == ()
    assert {spec.dtype.name for spec in checkpoint.specs.values()} == {"float32"}


def test_the_run_means_its_last_step(run: Path) -> None:
    shutil.copytree(run / "global_step_30", run / "global_step_60")
    assert open_checkpoint(run).home == run / ACTOR
    (run / "latest_checkpointed_iteration.txt").write_text("60\n")
    assert open_checkpoint(run).home == run / "global_step_60" / "actor"


@pytest.mark.parametrize("told", ["90", "", "../global_step_30", "/etc", "x" * 300, "\xff\x00"])
def test_a_run_that_names_a_step_that_is_missing(run: Path, told: str) -> None:
    tracker = run / "latest_checkpointed_iteration.txt"
    tracker.write_text(told, encoding="latin-1")
    refused(run, str(tracker))


def test_a_huggingface_folder_without_weights_means_the_shards_beside_it(run: Path) -> None:
    checkpoint = open_checkpoint(run / ACTOR / "huggingface", "the model")
    assert checkpoint.home == run / ACTOR
    [note] = checkpoint.notes
    assert_one_line(
        note, "the model: ", "huggingface/ holds no weights", "shards next to it, in actor/"
    )


@pytest.mark.parametrize(
    ("reference", "weights", "taken"),
    [
        ("", "auto", "float32"),
        ("", "shards", "float32"),
        ("", "huggingface", "bfloat16"),
        ("global_step_30/actor", "auto", "float32"),
        ("global_step_30/actor/huggingface", "auto", "bfloat16"),
        ("global_step_30/actor/huggingface", "shards", "float32"),
        ("global_step_30/actor/huggingface", "huggingface", "bfloat16"),
    ],
)
def test_which_weights_are_taken_and_why(
    run: Path, reference: str, weights: Weights, taken: str
) -> None:
    publish(run)
    checkpoint = open_checkpoint(run / reference, weights=weights)
    assert {spec.dtype.name for spec in checkpoint.specs.values()} == {taken}
    assert checkpoint.path == run / ACTOR / "huggingface"
    assert len(checkpoint.notes) == (weights == "auto")
    other = "huggingface" if taken == "float32" else "shards"
    for note in checkpoint.notes:
        assert_one_line(note, "precis", f"weights: {other}")


def test_weights_that_are_not_there(run: Path) -> None:
    with pytest.raises(InputError) as error:
        open_checkpoint(run, weights="huggingface")
    assert_one_line(str(error.value), str(run / "global_step_30"), "no Hugging Face weights")
    plain = make_model(run / "plain")
    assert open_checkpoint(plain, weights="shards").format == "safetensors"
    wrong: Any = "best"
    with pytest.raises(RecipeError, match="weights"):
        open_checkpoint(run, weights=wrong)


def test_the_config_of_the_training_is_not_the_model_s(run: Path) -> None:
    shutil.rmtree(run / ACTOR / "huggingface")
    write_json(run / "global_step_30" / "config.json", {"learning_rate": 2e-6})
    assert open_checkpoint(run).config == {}
    write_json(run / "global_step_30" / "config.json", {"model_type": "qwen2"})
    assert open_checkpoint(run).config == {"model_type": "qwen2"}


def test_names_of_the_first_months(run: Path) -> None:
    for file in (run / ACTOR).glob("model_*.pt"):
        file.rename(file.with_name(file.name.replace("world_size_2_", "")))
    assert set(open_checkpoint(run).specs) == set(full(run))


def test_a_step_without_actor(run: Path) -> None:
    for entry in (run / ACTOR).iterdir():
        shutil.move(entry, run / "global_step_30")
    (run / ACTOR).rmdir()
    checkpoint = open_checkpoint(run)
    assert checkpoint.home == run / "global_step_30"
    assert checkpoint.config


def test_the_names_of_torch_2_4(tmp_path: Path) -> None:
    run = copied(tmp_path / "run", "fsdp2-old-2")
    new = "torch.distributed.tensor"
    old = {
        f"c{new}\nDTensor\n": "ctorch.distributed._tensor.api\nDTensor\n",
        f"c{new}._dtensor_spec\n": "ctorch.distributed._tensor.placement_types\n",
        f"c{new}.placement_types\n": "ctorch.distributed._tensor.placement_types\n",
    }

    def renamed(data: bytes) -> bytes:
        for name, other in old.items():
            assert name.encode() in data
            data = data.replace(name.encode(), other.encode())
        return data

    for file in (run / ACTOR).glob("model_*.pt"):
        edited(file, file, renamed)
    checkpoint = open_checkpoint(run)
    for name, tensor in full(run).items():
        buffer = bytearray(checkpoint.specs[name].nbytes)
        checkpoint.read(name, 0, memoryview(buffer))
        assert bytes(buffer) == bytes_of(tensor)


# -- what does not join ----------------------------------------------------------------------------


def test_a_missing_rank(run: Path) -> None:
    (run / ACTOR / "model_world_size_2_rank_1.pt").unlink()
    refused(run, str(run / ACTOR), "rank 1 of 2")
    (run / ACTOR / "model_world_size_2_rank_0.pt").rename(
        run / ACTOR / "model_world_size_9_rank_1.pt"
    )
    refused(run, "ranks 0, 2, 3, 4, 5 … of 9")


def test_ranks_of_two_worlds(run: Path) -> None:
    for file in (worlds() / "fsdp2-3" / ACTOR).glob("*.pt"):
        shutil.copy(file, run / ACTOR)
    refused(run, str(run / ACTOR), "2 and 3 ranks")


def test_a_world_that_is_not_the_config_s(run: Path) -> None:
    write_json(run / ACTOR / "fsdp_config.json", {"FSDP_version": 2, "world_size": 4})
    refused(run, "fsdp_config.json", "4 ranks", "of 2")


@pytest.mark.parametrize("other", ["fsdp2-3", "fsdp2-columns-2", "fsdp2-edges-4", "fsdp1-2"])
def test_ranks_of_different_runs(run: Path, other: str) -> None:
    file = next((worlds() / other / ACTOR).glob("model_*_rank_1.pt"))
    shutil.copy(file, run / ACTOR / "model_world_size_2_rank_1.pt")
    refused(run, str(run / ACTOR), "tensor '")


def test_ranks_of_different_dtypes(run: Path) -> None:
    file = run / ACTOR / "model_world_size_2_rank_1.pt"
    edited(file, file, lambda data: data.replace(b"FloatStorage", b"IntStorage"))
    refused(run, "float32 and int32", "tensor '")


def test_ranks_of_different_steps(run: Path) -> None:
    def save(rank: int, step: int) -> None:
        states = {"cpu": torch.get_rng_state(), "numpy": np.random.get_state()}
        extra = {
            "lr_scheduler": {"last_epoch": step},
            "rng": states | {"random": random.getstate()},
        }
        torch.save(extra, run / ACTOR / f"extra_state_world_size_2_rank_{rank}.pt")

    for rank in range(2):
        save(rank, 30)
    assert open_checkpoint(run).specs
    save(1, 60)
    refused(run, "extra_state_world_size_2_rank_1.pt", "step 60", "step 30")
    (run / ACTOR / "extra_state_world_size_2_rank_1.pt").write_bytes(b"")
    assert open_checkpoint(run).specs


def test_replicas_that_differ(tmp_path: Path) -> None:
    """The scale of the edges is a buffer, which every rank has whole."""
    run = copied(tmp_path / "run", "fsdp2-edges-4")
    file = run / ACTOR / "model_world_size_4_rank_2.pt"
    shards = torch.load(file, weights_only=False)
    shards["model.layers.0.scale"] += 1
    torch.save(shards, file)
    refused(run, "'model.layers.0.scale'", "different values")


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        (b"placement_types\nShard\n", b"placement_types\n_StridedShard\n", "_StridedShard"),
        (b"placement_types\nShard\n", b"placement_types\nPartial\n", "Partial"),
        (b"placement_types\nShard\n", b"placement_types\nFlat\n", "asks for torch.distributed.tensor"),
        (b"_local_tensor", b"_vocal_tensor", "_local_tensor"),
        (b"placements", b"placements"[::-1], "placements"),
        (b"_rank_map", b"_rank_mop", "_rank_map"),
    ],
)  # fmt: skip
def test_what_a_dtensor_may_say(run: Path, old: bytes, new: bytes, part: str) -> None:
    for file in (run / ACTOR).glob("model_*.pt"):
        edited(file, file, lambda data: data.replace(old, new))
    refused(run, part, str(run / ACTOR))


# -- LoRA ------------------------------------------------------------------------------------------

Q = "model.layers.1.self_attn.q_proj"


def lora(run: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Make a step one that trains an adapter, and give its factors; every rank has all whole."""
    torch.manual_seed(5)
    factors = torch.randn(3, 16), torch.randn(16, 3)
    tensors = {f"base_model.model.{name}": tensor for name, tensor in full(run).items()}
    tensors[f"base_model.model.{Q}.base_layer.weight"] = tensors.pop(f"base_model.model.{Q}.weight")
    tensors[f"base_model.model.{Q}.lora_A.default.weight"] = factors[0]
    tensors[f"base_model.model.{Q}.lora_B.default.weight"] = factors[1]
    for file in (run / ACTOR).glob("model_*.pt"):
        torch.save(tensors, file)
    return factors


@pytest.mark.parametrize("place", ["lora_train_meta.json", "lora_adapter/adapter_config.json"])
def test_a_lora_step_is_the_model_with_its_adapter(run: Path, place: str) -> None:
    a, b = lora(run)
    (run / ACTOR / "lora_adapter").mkdir()
    write_json(run / ACTOR / place, {"r": 3, "lora_alpha": 6, "task_type": "CAUSAL_LM"})
    checkpoint = open_checkpoint(run)
    assert set(checkpoint.specs) == set(full(run))
    assert (checkpoint.home, checkpoint.path) == (run / ACTOR, run / ACTOR / "huggingface")
    assert checkpoint.format == "FSDP shards of 2 ranks with a LoRA adapter"
    for name, tensor in full(run).items():
        buffer = bytearray(checkpoint.specs[name].nbytes)
        checkpoint.read(name, 0, memoryview(buffer))
        if name == f"{Q}.weight":
            tensor = (tensor.double() + 2 * (b.double() @ a.double())).float()
        assert torch.equal(torch.frombuffer(buffer, dtype=torch.float32), tensor.reshape(-1)), name


def test_lora_without_its_scale_is_refused(run: Path) -> None:
    lora(run)
    refused(run, str(run / ACTOR), "lora_alpha", "lora_train_meta.json")
    write_json(run / ACTOR / "lora_train_meta.json", {"r": 3, "lora_alpha": 0})
    refused(run, "lora_train_meta.json", "lora_alpha 0")


def test_an_adapter_alone_is_no_model(run: Path) -> None:
    lora(run)
    write_json(run / ACTOR / "lora_train_meta.json", {"r": 3, "lora_alpha": 6})
    for file in (run / ACTOR).glob("model_*.pt"):
        tensors = torch.load(file)
        torch.save({name: t for name, t in tensors.items() if "lora_" in name}, file)
    refused(run, f"BASE+{run / ACTOR}")


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("reference", ["", "global_step_30", "global_step_30/actor"])
def test_a_step_serves_as_the_adapter_of_a_base_model(
    tmp_path: Path, run: Path, alone: bool, reference: str
) -> None:
    base, (a, b) = full(run), lora(run)
    write_json(run / ACTOR / "lora_train_meta.json", {"r": 3, "lora_alpha": 6})
    if alone:  # verl's save_lora_only
        for file in (run / ACTOR).glob("model_*.pt"):
            tensors = torch.load(file)
            torch.save({name: t for name, t in tensors.items() if "lora_" in name}, file)
    model = tmp_path / "model"
    model.mkdir()
    save_weights(model, {name: tensor + 1 for name, tensor in base.items()})
    shutil.copy(run / ACTOR / "huggingface/config.json", model)
    checkpoint = as_numbers(open_checkpoint(model), run / reference)
    assert set(checkpoint.specs) == set(base)
    for name, tensor in base.items():
        buffer = bytearray(checkpoint.specs[name].nbytes)
        checkpoint.read(name, 0, memoryview(buffer))
        tensor = tensor + 1
        if name == f"{Q}.weight":
            tensor = (tensor.double() + 2 * (b.double() @ a.double())).float()
        assert torch.equal(torch.frombuffer(buffer, dtype=torch.float32), tensor.reshape(-1)), name


def test_a_step_without_an_adapter_is_none(tmp_path: Path, run: Path) -> None:
    with pytest.raises(InputError, match="holds no adapter"):
        as_numbers(open_checkpoint(run), run)


# -- merging ---------------------------------------------------------------------------------------


def recipe_of(recipe_file: RecipeFile, a: str, b: str, extra: str = "") -> Path:
    return recipe_file(
        f"""
        merge_method: linear
        models:
          - model: {a}
            parameters: {{weight: 0.25}}
          - model: {b}
            parameters: {{weight: 0.75}}
        {extra}
        """
    )


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_merging_two_steps_gives_what_merging_their_full_models_gives(
    tmp_path: Path, recipe_file: RecipeFile, dtype: str | None
) -> None:
    """Of runs on different numbers of ranks, and by different versions of FSDP."""
    for name, world in (("a", "fsdp2-3"), ("b", "hsdp1-4")):
        run = copied(tmp_path / name, world)
        plain = shutil.copytree(run / ACTOR / "huggingface", tmp_path / f"full-{name}")
        save_weights(plain, full(run))
    extra = f"dtype: {dtype}" if dtype else ""
    merge(recipe_of(recipe_file, "./full-a", "./full-b", extra), tmp_path / "expected")
    result = merge(
        recipe_of(recipe_file, "./a", f"./b/{ACTOR}/huggingface", extra), tmp_path / "out"
    )
    assert result.plan.dtype.name == (dtype or "float32")
    expected, found = tree(tmp_path / "expected"), tree(tmp_path / "out")
    assert expected.keys() == found.keys()
    for name in ("config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja"):
        assert expected[name] == found[name], name
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "expected" / "model.safetensors").items():
        assert torch.equal(tensors.pop(name), tensor), name
    assert not tensors
    assert "tokenizer.json" in found
    assert json.loads(found["config.json"])["torch_dtype"] == (dtype or "float32")
    assert any("huggingface/ holds no weights" in warning for warning in result.warnings)


def test_the_recipe_may_say_which_weights(
    tmp_path: Path, run: Path, recipe_file: RecipeFile
) -> None:
    publish(run)
    recipe = recipe_file(
        "merge_method: passthrough\nmodels: [{model: ./run}]\nweights: huggingface\n"
    )
    from merganser.planning import plan

    assert plan(recipe).dtype.name == "bfloat16"
    assert plan(recipe, weights="shards").dtype.name == "float32"
    merge(recipe, tmp_path / "out", weights="shards")
    made = json.loads((tmp_path / "out" / "merge_manifest.json").read_text())
    assert made["weights"] == "shards"
    from merganser.merging.verify import verify

    assert verify(tmp_path / "out", recompute=True) == []


@pytest.mark.parametrize(
    "inside", ["actor/huggingface", "actor", "actor/out", "actor/huggingface/out"]
)
def test_the_output_may_not_lie_in_the_step(
    tmp_path: Path, run: Path, recipe_file: RecipeFile, inside: str
) -> None:
    from merganser.errors import OutputExistsError

    before = tree(tmp_path)
    recipe = recipe_file("merge_method: passthrough\nmodels: [{model: ./run}]\n", "r.yml")
    before |= {"r.yml": recipe.read_bytes()}
    with pytest.raises(OutputExistsError):
        merge(recipe, run / "global_step_30" / inside, force=True)
    assert tree(tmp_path) == before


def test_the_command_line(tmp_path: Path, run: Path, recipe_file: RecipeFile) -> None:
    publish(run)
    cli = CliRunner()
    sheet = json.loads(cli.invoke(main, ["inspect", str(run), "--json"]).stdout)
    assert (sheet["format"], sheet["step"]) == ("FSDP shards of 2 ranks", 30)
    assert sheet["by_dtype"].keys() == {"float32"}
    assert sheet["missing"] == []
    assert "tokenizer.json" in sheet["tokenizer"]
    arguments = ["inspect", str(run), "--json", "--weights", "huggingface"]
    assert json.loads(cli.invoke(main, arguments).stdout)["by_dtype"].keys() == {"bfloat16"}
    recipe = recipe_file("merge_method: passthrough\nmodels: [{model: ./run}]\n")
    for weights, dtype in (("shards", "float32"), ("huggingface", "bfloat16")):
        found = cli.invoke(main, ["plan", str(recipe), "--json", "--weights", weights])
        assert json.loads(found.stdout)["dtype"] == dtype
    (run / ACTOR / "model_world_size_2_rank_1.pt").unlink()
    result = cli.invoke(main, ["merge", str(recipe), str(tmp_path / "out")])
    assert result.exit_code == 3
    assert_one_line(result.stderr.strip(), "merganser: ", "rank 1 of 2")
    assert not (tmp_path / "out").exists()


def test_a_bare_step_says_what_is_missing(tmp_path: Path) -> None:
    shutil.copytree(worlds() / "fsdp2-2", tmp_path / "run")
    assert inspect(str(tmp_path / "run"))["missing"] == ["config.json", "tokenizer"]


def test_a_tile_touches_only_the_ranks_that_it_needs(run: Path) -> None:
    """The first half of a tensor is read although the second rank's file is gone."""
    checkpoint = open_checkpoint(run)
    (run / ACTOR / "model_world_size_2_rank_1.pt").unlink()
    name = "model.layers.0.mlp.gate_proj.weight"
    expected = bytes_of(full(run)[name])
    half = memoryview(bytearray(len(expected) // 2))
    checkpoint.read(name, 0, half)
    assert bytes(half) == expected[: len(half)]
    with pytest.raises(InputError, match=re.escape("rank_1.pt")):
        checkpoint.read(name, len(half), half)


def test_the_files_of_many_ranks_are_counted(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from merganser.cli import fact_sheet_table
    from merganser.release.fact_sheet import inspect

    monkeypatch.setenv("COLUMNS", "200")
    fact_sheet_table.show_facts(inspect(str(run)))
    assert "model_world_size_2_rank_0.pt 27," in capsys.readouterr().out
    monkeypatch.setattr(fact_sheet_table, "MANY", 1)
    fact_sheet_table.show_facts(inspect(str(run)))
    told = capsys.readouterr().out
    assert "2 files, model_world_size_2_rank_0.pt to model_world_size_2_rank_1.pt" in told
