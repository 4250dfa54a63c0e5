"""The recipes that we hand out: those of the reference study run, and all of them plan."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import merganser
from merganser import load_recipe
from merganser.recipe import has_block, is_sweep, parse_reference
from merganser.recipe.steps import load_steps
from merganser.recipe.sweep_file import load_points
from merganser.study.search_space import load_search
from peers import Tensors, load, make_model, unit

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "examples" / "baselines_openrs"
ACC = "baselines_openrs/acc_MRL4096_ROLLOUT4_LR2e-6/global_step_54/actor/huggingface"
ACCFMT = "baselines_openrs/accfmt_MRL4096_ROLLOUT4_LR2e-6/global_step_30/actor/huggingface"
NAME = "merge_accfmt_MRL4096_ROLLOUT4_LR2e-6_w{}_linear"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the study's checkpoints: two experts a few small steps away from one base."""
    root = tmp_path_factory.mktemp("study")
    for i, path in enumerate([ACC, ACCFMT]):
        make_model(root / path, "qwen2", steps=i)
    return root


def fitted_weight(out: Tensors, acc: Tensors, accfmt: Tensors) -> float:
    """The weight of acc at which the output lies, by least squares."""
    inner = square = 0.0
    for name, tensor in out.items():
        difference = acc[name].double() - accfmt[name].double()
        inner += float(((tensor.double() - accfmt[name].double()) * difference).sum())
        square += float((difference * difference).sum())
    return inner / square


@pytest.mark.parametrize("weight", [0.9, 0.7])
def test_the_studys_recipes_run(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight: float
) -> None:
    monkeypatch.chdir(study)
    name = NAME.format(weight)
    result = merganser.merge(STUDY / f"{name}.yml", tmp_path / name)
    out, acc, accfmt = load(tmp_path / name), load(ACC), load(ACCFMT)
    assert out.keys() == acc.keys()
    for tensor, merged in out.items():
        wanted = weight * acc[tensor].double() + (1 - weight) * accfmt[tensor].double()
        allowed = 0.5 * unit(wanted, merged.dtype) + 2.0**-22 * wanted.abs()
        assert bool(((merged.double() - wanted).abs() <= allowed).all()), tensor

    reported = {m["model"]: m for m in result.manifest["effective_weights"]["models"]}
    assert list(reported) == [ACCFMT, ACC]
    assert reported[ACC]["given"] == weight
    assert reported[ACCFMT]["given"] == round(1 - weight, 1)
    assert reported[ACC]["requested"] == pytest.approx(weight, abs=1e-6)
    effective = reported[ACC]["effective"]
    assert effective == pytest.approx(fitted_weight(out, acc, accfmt), abs=1e-4)
    assert reported[ACCFMT]["effective"] == pytest.approx(1 - effective, abs=1e-5)
    assert effective > weight + 0.02  # rounding took the heavier one's side
    assert any("effective weight" in warning for warning in result.manifest["warnings"])
    card = (tmp_path / name / "README.md").read_text(encoding="utf-8")
    assert f"{effective:.3f}"[:4] in card


@pytest.mark.parametrize("weight", [0.9, 0.7])
def test_stochastic_rounding_keeps_the_studys_weights(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight: float
) -> None:
    monkeypatch.chdir(study)
    recipe = STUDY / f"{NAME.format(weight)}.yml"
    merganser.merge(recipe, tmp_path / "out", rounding="stochastic")
    found = fitted_weight(load(tmp_path / "out"), load(ACC), load(ACCFMT))
    assert found == pytest.approx(weight, abs=0.05)


def test_the_studys_sweep_makes_its_merges(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(study)
    sweep = STUDY / "sweep_accfmt_MRL4096_ROLLOUT4_LR2e-6_linear.yml"
    result = merganser.sweep(sweep, tmp_path, only=["w=0.7,0.9"])
    assert result.passes == 1
    for weight in (0.7, 0.9):
        merganser.merge(STUDY / f"{NAME.format(weight)}.yml", tmp_path / "alone", force=True)
        files = [tmp_path / name / "model.safetensors" for name in (NAME.format(weight), "alone")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_models_are_found_beside_the_recipe(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = study / "w0.9.yml"
    shutil.copyfile(STUDY / f"{NAME.format(0.9)}.yml", recipe)
    sources = merganser.plan(recipe).sources
    assert [source.checkpoint.path for source in sources] == [study / ACCFMT, study / ACC]


def recipes(*, parts: bool = False) -> list[Any]:
    """All recipes in files and in fenced blocks of pages; adding.md's use methods of its own.

    With ``parts`` those blocks that hold several recipes, or merge a model's modules one by one; else
    all others.
    """
    files = (
        []
        if parts
        else [p for room in ("examples", "docs") for p in sorted((ROOT / room).rglob("*.y*ml"))]
    )
    found = [pytest.param(p.read_text("utf-8"), id=str(p.relative_to(ROOT))) for p in files]
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        blocks = re.findall(r"^```ya?ml\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
        for i, text in enumerate(blocks, 1):
            if not re.search("^merge_method:", text, re.M) or page.name == "adding.md":
                continue
            several = re.search("^(---|modules:)$", text, re.M) is not None
            if several == parts:
                found.append(pytest.param(text, id=f"{page.relative_to(ROOT)}-{i}"))
    return found


@pytest.mark.parametrize("text", recipes())
def test_every_recipe_plans(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(text, encoding="utf-8")
    make_runs(text, tmp_path)
    if has_block(recipe, "search"):
        search = load_search(recipe)
        whole = int(search.method == "greedy")  # a soup of all of its models
        middle = tuple(0.5 if axis.count is None else whole for axis in search.axes)
        parsed = [search.pattern.point(search.values(middle), 0).recipe]
    elif is_sweep(recipe):
        parsed = [point.recipe for point in load_points(recipe)]
    else:
        parsed = [load_recipe(recipe)]
    told = [mentioned(each.data) for each in parsed]
    for i, reference in enumerate(dict.fromkeys(model for models, _ in told for model in models)):
        folder = tmp_path / parse_reference(reference).path
        assert folder.is_relative_to(tmp_path), "recipes for others have no absolute paths"
        make_model(folder, "qwen2", seed=0, steps=i, layers=max(layers for _, layers in told))
    for each, (models, _) in zip(parsed, told, strict=True):
        plan = merganser.plan(each)
        assert [source.reference.text for source in plan.sources] == models
        assert plan.jobs
        assert not plan.warnings


@pytest.mark.parametrize("text", recipes(parts=True))
def test_every_other_recipe_is_read(text: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yml"
    file.write_text(text, encoding="utf-8")
    make_runs(text, tmp_path)
    steps = load_steps(file)
    assert steps
    assert not [warning for step in steps for warning in step.parsed.warnings]


def make_runs(text: str, folder: Path) -> None:
    """The training runs that a page's recipe names, each with a step every six."""
    for run in dict.fromkeys(re.findall(r"run: ([\w/]+)", text)):
        for step in range(6, 60, 6):
            make_model(folder / run / f"global_step_{step}", "qwen2", seed=0, steps=step)


def mentioned(data: Mapping[str, Any]) -> tuple[list[str], int]:
    """The models of a recipe in its order, and how many layers they need."""
    sources = [source for piece in data.get("slices", []) for source in piece["sources"]]
    named = [*data.get("models", []), *sources]
    models = [entry["model"] for entry in named]
    models += [data["base_model"]] if "base_model" in data else []
    layers = max((source["layer_range"][1] for source in sources), default=3)
    return list(dict.fromkeys(models)), layers
