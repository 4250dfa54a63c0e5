"""Sweeps: one pass gives what separate merges give, point by point, and goes on where it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

import merganser
from checkpoints_on_disk import make_model, tree
from merganser import cli, engine
from merganser.checkpoints import safetensors
from merganser.engine import OVERHEAD
from merganser.errors import InputError, OutputExistsError, RecipeError, ResourceError
from merganser.merging.merge import merge
from merganser.merging.output_folder import Partial
from merganser.merging.verify import verify
from merganser.recipe.sweep_file import load_points
from merganser.study import evaluate
from merganser.study.sweep import _batches, count_passes, input_bytes, plan_points, sweep
from messages import assert_one_line
from recipe_files import RecipeFile
from sweeps import SWEEP

MANY = """
name: "{{ method }}-{{ t }}-{{ pair.first }}-{{ dtype }}"
sweep:
  - method: [slerp, linear, task_arithmetic, ties]
    t: [0.3, 0.75]
    pair: [{first: c, second: a}]
    dtype: bfloat16
  - method: [linear, dare_ties]
    t: 0.25
    pair: [{first: a, second: b}, {first: b, second: a}]
    dtype: [bfloat16, float32]
merge_method: "{{ method }}"
base_model: "./{{ pair.first }}"
models:
  - {model: "./{{ pair.first }}", parameters: {weight: "{{ 1 - t }}"}}
  - {model: "./{{ pair.second }}", parameters: {weight: "{{ t }}", density: 0.5}}
parameters: {t: "{{ t }}"}
dtype: "{{ dtype }}"
rounding: "{{ 'stochastic' if dtype == 'bfloat16' and t < 0.5 else 'nearest' }}"
"""


def without_log(files: dict[str, bytes]) -> dict[str, Any]:
    manifest = json.loads(files["merge_manifest.json"])
    manifest.pop("log")
    return {**files, "merge_manifest.json": manifest}


@pytest.fixture
def file(pair: tuple[Path, Path], recipe_file: RecipeFile) -> Path:
    return recipe_file(SWEEP)


def test_one_pass_is_separate_merges_bit_for_bit(
    pair: tuple[Path, Path],
    tmp_path: Path,
    recipe_file: RecipeFile,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Several methods, weights, dtypes and models, and tensors that only some points have."""
    bias = {"model.layers.1.self_attn.o_proj.bias": torch.ones(16, dtype=torch.bfloat16)}
    make_model(tmp_path / "c", seed=3, extra=bias)
    file = recipe_file(MANY)
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"strictness": "lenient", "seed": 7, "shard_size": 20_000}
    result = sweep(file, tmp_path / "out", **options)
    assert result.passes == 1
    assert len(result.points) == 16
    assert len({each.folder.name for each in result.points}) == 16
    sizes = set()
    for each in result.points:
        merge(each.point.recipe, tmp_path / "one" / each.point.name, **options)
        alone = without_log(tree(tmp_path / "one" / each.point.name))
        assert without_log(tree(each.folder)) == alone
        sizes.add(len(alone["merge_manifest.json"]["tensors"]))
    assert len(sizes) == 2


def test_a_sweep_that_wants_scores_is_not_silently_left_unscored(
    file: Path, tmp_path: Path
) -> None:
    file.write_text(
        file.read_text() + "evaluate: {tasks: [{problems: p.jsonl, scorers: [exact]}]}\n"
    )
    with pytest.raises(RecipeError) as refused:
        merganser.sweep(file, tmp_path / "out")
    assert_one_line(str(refused.value), f"{file}: ", "merganser.evaluate_sweep()")
    assert not (tmp_path / "out").exists()
    assert merganser.evaluate_sweep is evaluate.evaluate_sweep


def test_every_input_is_read_once(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: dict[tuple[str, str], int] = {}
    real = safetensors.StoredCheckpoint.read

    def counted(self: Any, name: str, start: int, into: memoryview) -> None:
        read[self.label, name] = read.get((self.label, name), 0) + len(into)
        real(self, name, start, into)

    monkeypatch.setattr(safetensors.StoredCheckpoint, "read", counted)
    plans = [plan for _, plan in plan_points(file)]
    sweep(file, tmp_path / "out")
    assert sum(read.values()) == input_bytes(plans)
    assert sum(read.values()) == plans[0].input_bytes


def test_points_are_kept_until_something_changes(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = sweep(file, out, only=["w=0.7"])
    assert [p.name for p in out.iterdir()] == ["m_w0.7"]
    before = (out / "m_w0.7" / "merge_manifest.json").stat()
    both = sweep(file, out)
    assert [each.merged is None for each in both.points] == [False, True]
    assert (out / "m_w0.7" / "merge_manifest.json").stat().st_ino == before.st_ino
    assert first.points[0].plan.digest == both.points[1].plan.digest
    assert sweep(file, out).passes == 0

    with pytest.raises(OutputExistsError) as error:
        sweep(file, out, rounding="stochastic")
    assert_one_line(str(error.value), "m_w0.3: exists already, from another recipe", "force=True")
    redone = sweep(file, out, rounding="stochastic", force=True, only=["w=0.3"])
    assert redone.points[0].merged is not None
    assert redone.points[0].merged.manifest["rounding"] == "stochastic"

    (out / "m_w0.7" / "merge_manifest.json").unlink()
    with pytest.raises(OutputExistsError, match=r"m_w0\.7: exists and is not empty"):
        sweep(file, out, only=["w=0.7"])


def test_public_points_are_not_taken_from_private_ones(file: Path, tmp_path: Path) -> None:
    sweep(file, tmp_path / "out")
    with pytest.raises(OutputExistsError):
        sweep(file, tmp_path / "out", public=True)
    sweep(file, tmp_path / "out", public=True, force=True)
    assert sweep(file, tmp_path / "out", public=True).passes == 0
    for data in tree(tmp_path / "out").values():
        assert str(tmp_path).encode() not in data


def test_a_sweep_that_breaks_keeps_what_is_whole(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Partial.put_in_place

    def broken(self: Partial) -> None:
        if self.folder.name == "m_w0.7":
            raise ResourceError("the disk is gone")
        real(self)

    with monkeypatch.context() as patched:
        patched.setattr(Partial, "put_in_place", broken)
        with pytest.raises(ResourceError, match="the disk is gone") as error:
            sweep(file, tmp_path / "out")
    assert "1 of 1 files complete; the next run continues" in error.value.__notes__[0]
    names = ["m_w0.3", "m_w0.7.partial"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names
    result = sweep(file, tmp_path / "out")
    assert [each.merged is None for each in result.points] == [True, False]


def test_nothing_is_left_of_a_sweep_that_fails(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise InputError("broken")

    monkeypatch.setattr(engine, "run", fail)
    with pytest.raises(InputError):
        sweep(file, tmp_path / "deep" / "out")
    assert not (tmp_path / "deep").exists()


def test_memory_bounds_how_many_points_run_together(
    pair: tuple[Path, Path], tmp_path: Path, recipe_file: RecipeFile
) -> None:
    file = recipe_file(SWEEP.replace("[0.3, 0.7]", "{from: 0, to: 1, step: 0.125}"))
    plans = {Path(point.name): plan for point, plan in plan_points(file)}
    assert [len(batch) for batch, _ in _batches(plans, None, None)] == [9]
    little = OVERHEAD + 70 * 2**20
    parts = _batches(plans, None, little)
    assert [len(batch) for batch, _ in parts] == [3, 3, 3]
    assert [name for batch, _ in parts for name in batch] == list(plans)
    assert all(threads == 1 for _, threads in parts)
    together, bounded = sweep(file, tmp_path / "x"), sweep(file, tmp_path / "y", memory=little)
    assert (together.passes, bounded.passes) == (1, 3)
    for one, other in zip(together.points, bounded.points, strict=True):
        assert without_log(tree(one.folder)) == without_log(tree(other.folder))
    with pytest.raises(ResourceError, match="of memory"):
        sweep(file, tmp_path / "z", memory=1000)
    assert not (tmp_path / "z").exists()


def test_all_points_must_fit_on_the_disk(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = plan_points(file)[0][1].output_bytes
    free = 64 * 2**20 + 2 * each - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, free))  # type: ignore[attr-defined]
    with pytest.raises(ResourceError, match="the 2 merges need"):
        sweep(file, tmp_path / "out")
    sweep(file, tmp_path / "out", only=["w=0.3"])


def test_points_that_cannot_be_merged_are_named_before_any_is(
    pair: tuple[Path, Path], tmp_path: Path, recipe_file: RecipeFile
) -> None:
    file = recipe_file(
        SWEEP.replace("[0.3, 0.7]", "[0.3, 0.7, 0.9]").replace(
            "./b", "\"{{ './b' if w < 0.5 else './gone' }}\""
        )
    )
    with pytest.raises(InputError) as error:
        sweep(file, tmp_path / "out")
    assert_one_line(str(error.value), "point m_w0.7: ", "./gone: no such", "; wrong too: m_w0.9")
    assert not (tmp_path / "out").exists()
    method = recipe_file(SWEEP.replace("linear", "\"{{ 'linear' if w < 0.5 else 'linaer' }}\""))
    with pytest.raises(RecipeError) as wrong:
        sweep(method, tmp_path / "out")
    assert_one_line(str(wrong.value), f"{method}:3: point m_w0.7: merge_method", "'linear'")


def test_a_written_point_is_a_recipe_of_its_own(file: Path, tmp_path: Path) -> None:
    sweep(file, tmp_path / "out")
    assert verify(tmp_path / "out" / "m_w0.3", recompute=True) == []
    written = merganser.load_recipe(tmp_path / "out" / "m_w0.3" / "mergekit_config.yml")
    assert written.data == load_points(file)[0].recipe.data


def test_the_commands(file: Path, tmp_path: Path) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(cli.main, list(arguments))
        assert result.exit_code == code, result.output
        return result.output

    out = str(tmp_path / "out")
    listed = run("plan", str(file))
    assert [line.split()[:2] for line in listed.splitlines()[1:3]] == [
        ["m_w0.3", "0.3"],
        ["m_w0.7", "0.7"],
    ]
    assert "all points: linear; bfloat16; size" in listed
    assert "2 points; reads" in listed
    assert len(run("plan", str(file), "-v").splitlines()) > 50
    planned = json.loads(run("plan", str(file), "--json"))
    assert [point["values"] for point in planned["points"]] == [{"w": 0.3}, {"w": 0.7}]

    assert "no evaluate: block" in run("sweep", str(file), out, "--no-write", code=2)
    assert "missing argument 'OUT'" in run("sweep", str(file), code=2)
    assert "`merganser sweep`" in run("merge", str(file), out, code=2)
    assert "no point has w = 0.5" in run("sweep", str(file), out, "--only", "w=0.5", code=2)
    made = json.loads(run("sweep", str(file), out, "--json", "--only", "w=0.70"))
    assert [(p["name"], p["kept"]) for p in made["points"]] == [("m_w0.7", False)]
    assert made["points"][0]["manifest"]["tensors"]
    text = run("sweep", str(file), out, "--threads", "1", "--memory", "1GB")
    assert "1 of 2 points merged" in text
    [row] = [line for line in text.splitlines() if "is up to date" in line]
    stored = made["points"][0]["manifest"]["effective_weights"]["models"]
    assert ", ".join(f"{model['effective']:.3f}" for model in stored) in row
    assert "effective weights (./a, ./b)" in text
    assert "no effective weights" not in text


def test_an_option_that_studies_do_not_have_is_told(file: Path, tmp_path: Path) -> None:
    """They go on by themselves, and have no other file of results."""
    for option in ("resume", "sink"):
        with pytest.raises(TypeError, match=rf"^there is no option '{option}'$"):
            sweep(file, tmp_path / "out", **{option: True})


def test_points_and_passes_are_told_before_anything_is_read(tmp_path: Path) -> None:
    models = [
        {
            "model": str(make_model(tmp_path / name, seed=seed, layers=1)),
            "parameters": {"weight": f"{{{{ w.{name} }}}}"},
        }
        for seed, name in enumerate("abc")
    ]
    block: dict[str, Any] = {"simplex": ["a", "b", "c"], "step": 0.1}
    data = {"merge_method": "linear", "models": models, "sweep": {"w": block}}
    planned = plan_points(data)
    assert len(planned) == 66
    assert count_passes([plan for _, plan in planned]) == 3
    shown = tmp_path / "sweep.yml"
    shown.write_text(yaml.safe_dump(data))
    listed = CliRunner().invoke(cli.main, ["plan", str(shown)]).output
    assert "66 points; reads" in listed
    assert "in each of 3 passes" in listed
    block["step"] = 0.5
    shown.write_text(yaml.safe_dump(data))
    done = CliRunner().invoke(cli.main, ["sweep", str(shown), str(tmp_path / "out")])
    assert done.stderr.splitlines()[0] == "6 points, in one pass over the inputs"
    assert len(list((tmp_path / "out").iterdir())) == 6
