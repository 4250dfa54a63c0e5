"""Training runs in recipes: which steps are found, what is left out, and the recipe that is written in full."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import merganser
from checkpoints_on_disk import make_model
from merganser import recipe
from merganser.errors import RecipeError
from merganser.merging.merge import merge
from merganser.recipe.run_steps import list_steps, step_of
from merganser.recipe.sweep_file import load_points
from merganser.sinks import StateDictSink
from messages import assert_one_line
from recipe_files import RecipeFile
from sources import worlds


def make_run(folder: Path, *steps: int, name: str = "global_step_{}", **options: Any) -> Path:
    """A run whose steps are models of other seeds."""
    for step in steps:
        make_model(folder / name.format(step), seed=step, **options)
    return folder


def expanded(text: str, folder: Path) -> list[dict[str, Any]]:
    (folder / "recipe.yml").write_text(text)
    parsed = recipe.load(folder / "recipe.yml")
    return list(parsed.data["models"])


def ranks(folder: Path, size: int, lacking: int | None = None) -> Path:
    """Names of the shards of a step, as verl writes them."""
    (folder / "actor").mkdir(parents=True)
    for rank in range(size):
        if rank != lacking:
            (folder / "actor" / f"model_world_size_{size}_rank_{rank}.pt").write_bytes(b"x")
            (folder / "actor" / f"extra_state_world_size_{size}_rank_{rank}.pt").write_bytes(b"x")
    return folder


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("global_step_30", 30),
        ("global_step30", 30),
        ("checkpoint-500", 500),
        ("iter_0000030", 30),
        ("step-7", 7),
        ("step_7", 7),
        ("global_step_", None),
        ("actor", None),
        ("checkpoint-30-old", None),
    ],
)
def test_names_of_steps(name: str, step: int | None) -> None:
    assert step_of(name) == step


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_step_without_a_rank_is_left_out(tmp_path: Path, size: int) -> None:
    for step in (10, 20, 30):
        ranks(tmp_path / f"global_step_{step}", size, lacking=size - 1 if step == 20 else None)
    found = {step.number: step.problem for step in list_steps(tmp_path)}
    lost = f"lacks model_world_size_{size}_rank_{size - 1}.pt" if size > 1 else "holds no weights"
    assert found == {10: None, 20: lost, 30: None}


def test_what_other_steps_lack(tmp_path: Path) -> None:
    make_run(tmp_path, 1, 2, shards=2)
    next((tmp_path / "global_step_2").glob("model-00002*")).unlink()
    (tmp_path / "global_step_3" / "actor" / "huggingface").mkdir(parents=True)
    (tmp_path / "global_step_3" / "actor" / "huggingface" / "config.json").write_text("{}")
    make_run(tmp_path, 1, name="checkpoint-{}")
    ranks(tmp_path / "global_step_4", 2)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("3")
    problems = [(step.name, step.problem) for step in list_steps(tmp_path)]
    assert problems == [
        ("checkpoint-1", None),
        ("global_step_1", "is there as checkpoint-1 too"),
        ("global_step_2", "lacks model-00002-of-00002.safetensors"),
        ("global_step_3", "holds no weights"),
        ("global_step_4", "latest_checkpointed_iteration.txt names 3 as the last finished one"),
    ]


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [
        ("all", [2, 4, 6, 10, 12]),
        ("{last: 2}", [10, 12]),
        ("{first: 3}", [2, 4, 6]),
        ("{last: 100}", [2, 4, 6, 10, 12]),
        ("[12, 4]", [4, 12]),
        ("10", [10]),
        ("{from: 4, to: 10}", [4, 6, 10]),
        ("{every: 4}", [4, 12]),
        ("{from: 2, every: 4}", [2, 6, 10]),
        ("{from: 5}", [6, 10, 12]),
    ],
)
def test_which_steps_are_meant(tmp_path: Path, steps: str, wanted: list[int]) -> None:
    make_run(tmp_path / "runs" / "acc", 2, 4, 6, 10, 12)
    text = f"merge_method: linear\nmodels:\n  - {{run: runs/acc, steps: {steps}}}\n"
    models = expanded(text, tmp_path)
    assert [m["model"] for m in models] == [f"runs/acc/global_step_{n}" for n in wanted]
    assert [m["parameters"]["weight"] for m in models] == pytest.approx(
        [1 / len(wanted)] * len(wanted)
    )


def test_what_is_left_out_is_a_line_each(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "acc", 6, 12, 24, 30)
    ranks(run / "global_step_18", 2, lacking=1)
    text = "merge_method: linear\nmodels:\n  - run: runs/acc\n    steps: {every: 6}\n"
    shutil.rmtree(run / "global_step_24")
    (tmp_path / "recipe.yml").write_text(text)
    parsed = recipe.load(tmp_path / "recipe.yml")
    assert [m["model"][-2:] for m in parsed.data["models"]] == ["_6", "12", "30"]
    broken, missing = parsed.warnings
    assert_one_line(broken, "recipe.yml:3: runs/acc/global_step_18: left out: lacks", "rank_1.pt")
    assert_one_line(missing, "recipe.yml:3: runs/acc: step 24 is not there", "12, 30")


MODELS = "merge_method: linear\nmodels:\n  - {{{}}}\n"


@pytest.mark.parametrize(
    ("entry", "parts"),
    [
        ("run: runs/acc, steps: [6, 13]", (":3: models[0]", "step 13 is not there", "12, 18")),
        ("run: runs/acc, steps: [99]", ("step 99 is not there", "the nearest is 24")),
        ("run: runs/acc, steps: 24", ()),
        ("run: runs/acc, steps: [30]", ("step 30 is broken: lacks model_world_size_2_rank_0.pt",)),
        ("run: runs/acc, steps: {from: 100}", ("the list matches no step",)),
        ("run: runs/acc, steps: {last: 0}", ("models[0].steps: give all, one step",)),
        ("run: runs/acc, steps: {lst: 3}", ("models[0].steps: give all, one step",)),
        ("run: runs/acc, steps: []", ("models[0].steps: give all, one step",)),
        ("run: runs/acc, steps: [a]", ("models[0].steps: give all, one step",)),
        ("run: runs/acc, steps: {from: 9, to: 3}", ("models[0].steps: give all, one step",)),
        ("run: runs/ac", ("models[0].run: runs/ac: is not a folder of a run",)),
        ("run: runs", ("models[0].run: runs: holds no steps",)),
        ("run: 3", ("models[0].run: give the folder",)),
        ("run: runs/acc, model: a", ("models[0].model: give either the model or the run",)),
        ("run: runs/acc, step: 6", ("models[0].step: unknown key", "schedule")),
        ("run: runs/acc, schedule: even", ("models[0].schedule: give uniform, wma",)),
        ("run: runs/acc, schedule: {ema: 1}", ("models[0].schedule: give uniform, wma",)),
        ("run: runs/acc, schedule: {decay: cubic}", ("models[0].schedule: give uniform, wma",)),
        ("run: runs/acc, schedule: relex", ("merge_method: relex",)),
        ("run: runs/acc, parameters: [1]", ("models[0].parameters",)),
    ],
)
def test_what_is_wrong_with_a_run(
    tmp_path: Path, entry: str, parts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "runs" / "acc", 6, 12, 18, 24)
    ranks(run / "global_step_30", 2, lacking=0)
    (tmp_path / "recipe.yml").write_text(MODELS.format(entry))
    if not parts:
        assert recipe.load(tmp_path / "recipe.yml").warnings == ()
        return
    with pytest.raises(RecipeError) as error:
        recipe.load(tmp_path / "recipe.yml")
    assert_one_line(str(error.value), *parts)


def test_weights_are_shared_whatever_their_form(tmp_path: Path) -> None:
    make_run(tmp_path / "acc", 1, 2)
    text = """
    merge_method: linear
    models:
      - run: acc
        schedule: wma
        parameters:
          weight: [{filter: mlp, value: [0.3, 0.6]}, {value: 0.9}]
      - {model: acc/global_step_1, parameters: {weight: 0.1}}
    """
    first, second, other = expanded(text, tmp_path)
    assert second["parameters"]["weight"] == [
        {"filter": "mlp", "value": pytest.approx([0.2, 0.4])},
        {"value": pytest.approx(0.6)},
    ]
    assert first["parameters"]["weight"][1] == {"value": pytest.approx(0.3)}
    assert other == {"model": "acc/global_step_1", "parameters": {"weight": 0.1}}


def test_the_weight_of_all_is_that_of_a_run(tmp_path: Path) -> None:
    make_run(tmp_path / "acc", 1, 2)
    text = "{merge_method: linear, parameters: {weight: 0.5}, models: [{run: acc}]}"
    assert [m["parameters"]["weight"] for m in expanded(text, tmp_path)] == [0.25, 0.25]


def test_methods_that_find_the_weights_get_none(tmp_path: Path) -> None:
    make_run(tmp_path / "acc", 3, 6, 9)
    stock = "{merge_method: model_stock, base_model: acc/global_step_3, models: [{run: acc}]}"
    assert expanded(stock, tmp_path)[0] == {"model": "acc/global_step_3"}
    relex = (
        "merge_method: relex\nbase_model: acc/global_step_3\nparameters: {target: 30}\n"
        "models: [{run: acc, steps: {from: 6}}]\n"
    )
    assert [m["parameters"] for m in expanded(relex, tmp_path)] == [{"step": 6}, {"step": 9}]
    with pytest.raises(RecipeError) as error:
        expanded(relex.replace("{from: 6}", "all, schedule: uniform"), tmp_path)
    assert_one_line(str(error.value), "models[0].schedule", "remove the schedule")


def test_errors_name_the_line_of_the_run(tmp_path: Path) -> None:
    make_run(tmp_path / "acc", 1, 2)
    text = (
        "merge_method: linear\nmodels:\n  - run: acc\n    parameters: {weight: 1}\n"
        "  - model: acc/global_step_1\n    parameters:\n      weight: [{}]\n"
    )
    with pytest.raises(RecipeError) as error:
        expanded(text, tmp_path)
    assert_one_line(str(error.value), "recipe.yml:7: models[2].parameters.weight")


def test_an_average_of_a_run_is_the_recipe_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "acc", 1, 2, 3, dtype=torch.float32)
    recipe_text = "merge_method: linear\nmodels: [{run: acc, schedule: {ema: 0.5}}]\n"
    (tmp_path / "ema.yml").write_text(recipe_text)
    merge(tmp_path / "ema.yml", tmp_path / "out")
    written = yaml.safe_load((tmp_path / "out" / "mergekit_config.yml").read_text())
    assert written["models"] == [
        {"model": f"acc/global_step_{n}", "parameters": {"weight": weight}}
        for n, weight in ((1, 0.25), (2, 0.25), (3, 0.5))
    ]
    again = merganser.plan(tmp_path / "out" / "mergekit_config.yml")
    assert again.digest == merganser.plan(tmp_path / "ema.yml").digest


@pytest.mark.parametrize("size", [1, 2, 3])
def test_shards_of_a_run_are_averaged(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for step in (10, 20):
        shutil.copytree(
            worlds() / f"fsdp2-{size}" / "global_step_30", tmp_path / f"run/global_step_{step}"
        )
        folder = make_model(tmp_path / f"run/global_step_{step}/actor/huggingface", vocab=33)
        (folder / "model.safetensors").unlink()
    rank = tmp_path / f"run/global_step_20/actor/model_world_size_{size}_rank_0.pt"
    assert rank.is_file()
    data = {"merge_method": "linear", "models": [{"run": "run", "schedule": "wma"}]}
    plan = merganser.plan(data)
    assert [source.reference.text for source in plan.sources] == [
        "run/global_step_10",
        "run/global_step_20",
    ]
    sink = StateDictSink({job.name: job.spec for job in plan.jobs})
    merganser.run([plan], [sink], report=False)
    full = torch.load(worlds() / f"fsdp2-{size}" / "full.pt", map_location="cpu")
    for name, tensor in sink.tensors.items():
        assert torch.equal(tensor, full[name]), name
    if size > 1:
        rank.unlink()
        [line] = recipe.load(data).warnings
        assert_one_line(line, "run/global_step_20: left out", "rank_0.pt")


def test_steps_are_the_key_of_a_sweep(recipe_file: RecipeFile, tmp_path: Path) -> None:
    file = recipe_file(
        "name: s{{ step }}_w{{ w }}\n"
        "merge_method: linear\n"
        "sweep: {step: {run: acc, every: 6}, w: [0.5, 1]}\n"
        "models:\n"
        '  - {run: acc, steps: "{{ step }}", parameters: {weight: "{{ w }}"}}\n'
        '  - {model: other, parameters: {weight: "{{ 1 - w }}"}}\n'
    )
    make_run(file.parent / "acc", 5, 6, 12, 18)
    points = load_points(file)
    assert [tuple(p.values.values()) for p in points] == [
        (6, 0.5), (6, 1), (12, 0.5), (12, 1), (18, 0.5), (18, 1),
    ]  # fmt: skip
    assert points[2].name == "s12_w0.5"
    assert points[2].recipe.data["models"][0] == {
        "model": "acc/global_step_12",
        "parameters": {"weight": 0.5},
    }
    assert "run:" not in str(points[2].recipe.document.text)


@pytest.mark.parametrize(
    ("block", "parts"),
    [
        ({"run": "acc", "every": 0}, ("sweep.step: give all, one step",)),
        ({"run": "nowhere"}, ("sweep.step.run: nowhere: is not a folder of a run",)),
        ({"run": "acc", "steps": [6, 7]}, ("sweep.step: acc: step 7 is not there", "6, 12")),
    ],
)
def test_what_is_wrong_with_a_sweep_of_steps(
    tmp_path: Path, block: Any, parts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "acc", 6, 12)
    data = {
        "merge_method": "passthrough",
        "sweep": {"step": block},
        "models": [{"model": "acc/global_step_{{ step }}"}],
    }
    with pytest.raises(RecipeError) as error:
        load_points(data)
    assert_one_line(str(error.value), *parts)
    good = {**data, "sweep": {"step": {"run": "acc"}}}
    assert [json.dumps(p.recipe.data["models"]) for p in load_points(good)] == [
        f'[{{"model": "acc/global_step_{n}"}}]' for n in (6, 12)
    ]
