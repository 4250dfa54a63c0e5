"""ZeRO checkpoints of DeepSpeed: which weights are taken, and what does not join."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from archives import by_name, by_value, edited
from checkpoints_on_disk import save_weights
from merganser.checkpoints import open_checkpoint
from merganser.checkpoints.torch_pickle import PickledTensor
from merganser.checkpoints.training import deepspeed
from merganser.errors import InputError
from merganser.merging.merge import merge
from merganser.release.fact_sheet import inspect
from merganser.tensors import FLOAT32
from messages import assert_one_line
from recipe_files import RecipeFile
from sources import Tensors, deepspeed_classes, model, zero

MODEL = "mp_rank_00_model_states.pt"


def optimizer(rank: int) -> str:
    return f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"


@pytest.fixture
def step(tmp_path: Path) -> Path:
    """A step of the trainer of transformers, of three ranks and stage 2."""
    zero(2, 3)(tmp_path / "checkpoint-30")
    return tmp_path / "checkpoint-30"


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(InputError) as error:
        open_checkpoint(path)
    assert_one_line(str(error.value), *parts)


def rewritten(file: Path, change: Callable[[Any], None]) -> None:
    with deepspeed_classes():
        content = torch.load(file, weights_only=False)
        change(content)
        torch.save(content, file)


# -- which weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["", "global_step30"])
def test_a_step_means_its_float32_weights(step: Path, reference: str) -> None:
    checkpoint = open_checkpoint(step / reference)
    assert checkpoint.home == step / "global_step30"
    assert checkpoint.path == step
    assert checkpoint.format == "DeepSpeed ZeRO-2 of 3 ranks"
    assert checkpoint.notes == ()
    assert checkpoint.specs["model.norm.weight"].dtype.name == "float32"
    sheet = inspect(str(step / reference))
    assert (sheet["step"], sheet["missing"]) == (30, [])


@pytest.mark.parametrize("reduce", [by_name, by_value])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_python_s_way_to_pickle_a_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, reduce: Callable[..., Any]
) -> None:
    zero(stage, 1)(tmp_path / "a")
    file = tmp_path / "a/global_step30" / optimizer(0)
    with deepspeed_classes() as (_, stages):
        content = torch.load(file, weights_only=False)
        monkeypatch.setattr(stages, "__reduce_ex__", reduce)
        torch.save(content, file)
    assert (b"getattr" in file.read_bytes()) == (reduce is by_name)
    assert open_checkpoint(tmp_path / "a").format == f"DeepSpeed ZeRO-{stage} of 1 rank"


def test_weights_beside_the_step_are_what_its_name_means(step: Path) -> None:
    """The trainer exports the model where its config is; ``--weights shards`` means the step's own."""
    save_weights(step, {name: tensor.bfloat16() for name, tensor in model().items()})
    checkpoint = open_checkpoint(step)
    assert checkpoint.format == "safetensors"
    [note] = checkpoint.notes
    assert_one_line(note, "global_step30/", "weights: shards")
    assert open_checkpoint(step, weights="shards").format == "DeepSpeed ZeRO-2 of 3 ranks"
    assert open_checkpoint(step, weights="huggingface").notes == ()


def test_a_step_that_was_removed_once_its_weights_were_exported(step: Path) -> None:
    save_weights(step, {name: tensor.bfloat16() for name, tensor in model().items()})
    shutil.rmtree(step / "global_step30")
    checkpoint = open_checkpoint(step)
    assert (checkpoint.format, checkpoint.notes) == ("safetensors", ())


def test_names_that_wrappers_made(tmp_path: Path) -> None:
    zero(2, 2)(tmp_path / "a")

    def wrap(content: Any) -> None:
        shapes = content["param_shapes"][0]
        content["param_shapes"] = [{f"_orig_mod.{name}": shape for name, shape in shapes.items()}]

    rewritten(tmp_path / "a" / "global_step30" / MODEL, wrap)
    assert "model.norm.weight" in open_checkpoint(tmp_path / "a").specs


def test_padding_after_each_parameter(step: Path) -> None:
    """As releases from 0.19 on state it."""
    first = open_checkpoint(step)
    expected = read(first, "model.layers.0.input_layernorm.weight")

    def shift(content: Any) -> None:
        state = content["optimizer_state_dict"]
        count = len(model()) - 1
        state["param_alignment_paddings"] = [[0] * count]

    rewritten(step / "global_step30" / optimizer(0), shift)
    assert read(open_checkpoint(step), "model.layers.0.input_layernorm.weight") == expected

    def lie(content: Any) -> None:
        content["optimizer_state_dict"]["param_alignment_paddings"][0][0] = 64

    rewritten(step / "global_step30" / optimizer(0), lie)
    refused(step, "global_step30", "do not join")


def read(checkpoint: Any, name: str) -> bytes:
    buffer = bytearray(checkpoint.specs[name].nbytes)
    checkpoint.read(name, 0, memoryview(buffer))
    return bytes(buffer)


@pytest.mark.parametrize("stage", [1, 3])
def test_merging_steps_gives_a_whole_folder(
    tmp_path: Path, recipe_file: RecipeFile, stage: int
) -> None:
    from safetensors.torch import load_file

    expected: Tensors = {}
    for name, ranks in (("a", 2), ("b", 3)):
        _, expected = zero(stage, ranks)(tmp_path / name)
    torch.manual_seed(0)
    recipe = recipe_file(
        """
        merge_method: linear
        models:
          - model: ./a
            parameters: {weight: 0.25}
          - model: ./b
            parameters: {weight: 0.75}
        """
    )
    merge(recipe, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name in model():
        if name != "lm_head.weight":
            assert torch.equal(found[name], expected[name]), name
    assert "lm_head.weight" not in found
    assert (tmp_path / "out" / "tokenizer.json").is_file()


# -- what does not join ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "parts"),
    [
        ([optimizer(1)], ["optim_states.pt", "rank 1"]),
        ([optimizer(2)], ["says 3 ranks", "of 2"]),
        ([MODEL], ["model_states.pt"]),
    ],
)
def test_missing_files(step: Path, missing: list[str], parts: list[str]) -> None:
    for name in missing:
        (step / "global_step30" / name).unlink()
    refused(step, "global_step30", *parts)


def test_a_missing_model_of_stage_3(tmp_path: Path) -> None:
    zero(3, 2)(tmp_path / "a")
    (tmp_path / "a" / "global_step30" / f"zero_pp_rank_1_{MODEL}").unlink()
    refused(tmp_path / "a", "global_step30", "model states of 1")


def test_ranks_of_different_runs(tmp_path: Path, step: Path) -> None:
    zero(2, 2)(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "global_step30" / optimizer(1), step / "global_step30")
    refused(step, optimizer(1), "says 2 ranks")


def test_the_same_rank_twice(step: Path) -> None:
    folder = step / "global_step30"
    shutil.copy(folder / optimizer(1), folder / optimizer(1).removeprefix("bf16_"))
    refused(step, "same rank")


def test_model_parallelism_is_refused(step: Path) -> None:
    folder = step / "global_step30"
    shutil.copy(folder / optimizer(1), folder / "zero_pp_rank_0_mp_rank_01_optim_states.pt")
    refused(step, "mp_rank_01", "model parallelism")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda s: s["param_shapes"][0].pop("model.norm.weight"), "numbers, not"),
        (lambda s: s["param_shapes"][0].update(more=torch.Size([9, 9])), "end within 'more'"),
        (lambda s: s["param_shapes"][0].update({"model.norm.weight": "x"}), "not a shape"),
        (lambda s: s["param_shapes"].append({}), "do not join"),
        (lambda s: s.pop("param_shapes"), "param_shapes"),
        (lambda s: s.update(shared_params=7), "do not join"),
    ],
)
def test_a_model_that_does_not_fit(step: Path, change: Callable[[Any], None], part: str) -> None:
    rewritten(step / "global_step30" / MODEL, change)
    refused(step, "global_step30", part)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda s: s.pop("zero_stage"), "no state of a ZeRO optimizer"),
        (lambda s: s.pop("partition_count"), "partition_count"),
        (lambda s: s.update(single_partition_of_fp32_groups=[torch.ones(2, 2)]), "flat vectors"),
        (lambda s: s.update(single_partition_of_fp32_groups=[]), "do not join"),
    ],
)
def test_an_optimizer_that_does_not_fit(
    step: Path, change: Callable[[Any], None], part: str
) -> None:
    file = step / "global_step30" / optimizer(1)
    rewritten(file, lambda content: change(content["optimizer_state_dict"]))
    refused(step, "global_step30", part)


def test_other_classes_are_refused(step: Path) -> None:
    file = step / "global_step30" / optimizer(1)
    edited(file, file, lambda data: data.replace(b"LossScaler", b"LossScalar"))
    refused(step, str(file), "asks for deepspeed.runtime.fp16.loss_scaler.LossScalar")


@pytest.mark.parametrize("told", ["global_step31", "../checkpoint-30/global_step30", ""])
def test_a_step_that_is_missing(step: Path, told: str) -> None:
    (step / "latest").write_text(told)
    refused(step, str(step / "latest"), "missing")


def test_many_vectors_are_cut_in_no_time() -> None:
    """Files of others may have as many as they like."""
    n = 5_000
    vectors = [[PickledTensor(Path("x"), 16 * i, FLOAT32, (4,), (1,)) for i in range(n)]]
    shapes = [{f"w{i}": (4,) for i in range(n)}]
    began = time.process_time()
    made = list(deepspeed._of_stage_3(shapes, vectors, {}))
    assert time.process_time() - began < 5
    assert [block[0].offset for _, (_, block, _) in made] == [16 * i for i in range(n)]
    assert all(len(block) == 1 for _, (_, block, _) in made)
