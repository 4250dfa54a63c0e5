"""The recipes of the page on training runs are what their names say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import merganser
from checkpoints_on_disk import make_model
from merganser.merging import multistage
from merganser.recipe import has_block
from merganser.recipe.sweep_file import load_points

PAGE = Path(__file__).parents[2] / "docs" / "runs.md"
RECIPES = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
STEPS = (6, 12, 18, 24, 30)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runs that the page speaks of."""
    monkeypatch.chdir(tmp_path)
    make_model(tmp_path / "runs" / "base", seed=0, dtype=torch.float32)
    for seed, name in enumerate(("acc", "accfmt"), 1):
        for step in STEPS:
            make_model(
                tmp_path / "runs" / name / f"global_step_{step}",
                seed=100 * seed + step,
                dtype=torch.float32,
            )
    return tmp_path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def merged(text: str, home: Path) -> dict[str, torch.Tensor]:
    (home / "recipe.yml").write_text(text.replace("bfloat16", "float32"))
    multistage.merge_all(home / "recipe.yml", home / "out") if "---" in text else merganser.merge(
        home / "recipe.yml", home / "out"
    )
    return weights(home / "out")


def named(word: str) -> str:
    """The recipe below a method's name."""
    text = PAGE.read_text(encoding="utf-8")
    found: str = re.search(rf"^\*\*{word}\*\*.*?^```yaml\n(.*?)^```", text, re.M | re.S)[1]  # type: ignore[index]
    return found


def test_there_are_recipes_of_all_names() -> None:
    assert len(RECIPES) == 8
    for word in ("LAWA", "WiSE-FT", "ExPO", "LiNeS", "WARP"):
        assert "merge_method" in named(word)


@pytest.mark.parametrize("number", range(len(RECIPES)))
def test_they_can_be_planned(runs: Path, number: int) -> None:
    file = runs / "recipe.yml"
    file.write_text(RECIPES[number])
    if has_block(file, "sweep"):
        points = load_points(file)
        assert len(points) == 25
        merganser.plan(points[-1].recipe)
    elif "---" in RECIPES[number]:
        merged(RECIPES[number], runs)
    else:
        merganser.plan(file)


NAME = "model.layers.{}.mlp.up_proj.weight"


def test_expo_goes_beyond_and_wise_ft_half_the_way(runs: Path) -> None:
    base, tuned = (weights(runs / "runs" / p) for p in ("base", "acc/global_step_30"))
    for word, factor in (("ExPO", 1.3), ("WiSE-FT", 0.5)):
        found = merged(named(word), runs)
        for name, tensor in found.items():
            wanted = base[name] + factor * (tuned[name] - base[name])
            assert torch.allclose(tensor, wanted, atol=1e-6), (word, name)
        (runs / "out").rename(runs / word)


def test_lines_scales_changes_by_depth(runs: Path) -> None:
    base, tuned = (weights(runs / "runs" / p) for p in ("base", "acc/global_step_30"))
    found = merged(named("LiNeS"), runs)
    factors: dict[str, Any] = {NAME.format(0): 0.2, NAME.format(1): 0.8, "lm_head.weight": 0.2}
    factors["model.embed_tokens.weight"] = 0.2
    for name, factor in factors.items():
        wanted = base[name] + factor * (tuned[name] - base[name])
        assert torch.allclose(found[name], wanted, atol=1e-6), name


def test_lawa_is_the_mean_of_the_last_five(runs: Path) -> None:
    steps = [weights(runs / "runs" / "acc" / f"global_step_{n}") for n in STEPS]
    for name, tensor in merged(named("LAWA"), runs).items():
        wanted = torch.stack([step[name] for step in steps]).mean(0)
        assert torch.allclose(tensor, wanted, atol=1e-6), name


def test_warp_ends_between_the_policies_and_the_base(runs: Path) -> None:
    base = weights(runs / "runs" / "base")

    def average(run: str, name: str) -> torch.Tensor:
        steps = [weights(runs / "runs" / run / f"global_step_{n}")[name].double() for n in STEPS]
        found = steps[0]
        for step in steps[1:]:
            found = 0.8 * found + 0.2 * step
        return found - base[name]

    found = merged(named("WARP"), runs)
    name = NAME.format(0)
    one, other = average("acc", name), average("accfmt", name)
    angle = torch.arccos((one * other).sum() / one.norm() / other.norm())
    middle = (one + other) * torch.sin(angle / 2) / torch.sin(angle)
    assert torch.allclose(found[name].double(), base[name] + 0.7 * middle, atol=1e-5)
