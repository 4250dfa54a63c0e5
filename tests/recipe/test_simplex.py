"""Weights that add up to one: counts and sums of lattices, samples, and filters of a sweep's points."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merganser.errors import RecipeError
from merganser.recipe.simplex import MAX_POINTS, count, from_cube, rounded, sobol
from merganser.recipe.sweep_file import load_points
from messages import assert_one_line
from recipe_files import RecipeFile

COUNTS = json.loads((Path(__file__).parents[1] / "support" / "trajectory.json").read_text())

NAMES = ("acc", "fmt", "len", "safe", "code", "chat")


def sweep(block: Any, models: int = 3, **more: Any) -> dict[str, Any]:
    """A sweep over the weights of some models."""
    return {
        "merge_method": "linear",
        "models": [
            {"model": name, "parameters": {"weight": f"{{{{ w.{name} }}}}"}}
            for name in NAMES[:models]
        ],
        "sweep": {"w": block, **more},
    }


def points(block: Any, models: int = 3, **more: Any) -> list[tuple[Decimal, ...]]:
    return [
        tuple(Decimal(repr(v)) for v in point.values.values())
        for point in load_points(sweep(block, models, **more))
    ]


@pytest.mark.parametrize(
    ("models", "step", "wanted"),
    [
        (int(models), step, wanted)
        for models, row in COUNTS["simplex_points"].items()
        for step, wanted in row.items()
    ],
)
def test_counts_are_those_of_the_formula(models: int, step: str, wanted: int) -> None:
    parts = int(1 / Decimal(step))
    assert count(models, parts) == wanted
    block = {"simplex": list(NAMES[:models]), "step": float(step)}
    if wanted <= MAX_POINTS:
        assert len(points(block, models)) == wanted
    else:
        with pytest.raises(RecipeError) as error:
            points(block, models)
        assert_one_line(str(error.value), "1,001 points, more than 1,000", "a step of 0.2 has 126")


@given(
    models=st.integers(2, 6), parts=st.sampled_from([1, 2, 4, 5, 8, 10, 20]), inside=st.booleans()
)
@settings(deadline=None, max_examples=40)
def test_all_multiples_of_the_step_that_sum_to_one(models: int, parts: int, inside: bool) -> None:
    wanted = count(models, parts, inside)
    if not 0 < wanted <= 200:
        return
    block = {"simplex": list(NAMES[:models]), "step": 1 / parts, "inside": inside}
    found = points(block, models)
    assert len(set(found)) == len(found) == wanted
    assert found == sorted(found)
    for point in found:
        assert sum(point) == 1
        assert all(weight * parts == int(weight * parts) for weight in point)
        assert min(point) >= (Decimal(1) / parts if inside else 0)


@given(
    models=st.integers(2, 6),
    layers=st.lists(st.integers(1, 6), min_size=1, max_size=3),
)
@settings(deadline=None, max_examples=40)
def test_layers_sum_to_one_too(models: int, layers: list[int]) -> None:
    total = sum(count(models, parts) for parts in layers)
    if total > 200:
        return
    found = points({"simplex": list(NAMES[:models]), "layers": layers}, models)
    assert all(sum(point) == 1 and min(point) >= 0 for point in found)
    assert len(set(found)) == len(found) <= total
    corners = {tuple(Decimal(i == j) for j in range(models)) for i in range(models)}
    assert corners <= set(found)


def test_the_inner_layer_lies_half_way_to_the_middle() -> None:
    found = points({"simplex": ["acc", "fmt"], "layers": [2, 1]}, 2)
    assert [float(a) for a, _ in found] == [0.0, 0.25, 0.5, 0.75, 1.0]
    five = points({"simplex": list(NAMES[:5]), "layers": [3, 2]}, 5)
    assert len(five) == 35 + 15


@given(weights=st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=9), digits=st.integers(1, 8))
def test_rounding_keeps_the_sum(weights: list[float], digits: int) -> None:
    total = sum(weights)
    shares = [weight / total for weight in weights]
    found = rounded(shares, 10**digits)
    assert sum(found) == 1
    assert max(abs(float(a) - b) for a, b in zip(found, shares, strict=True)) <= 10**-digits


@pytest.mark.parametrize("kind", ["sobol", "dirichlet"])
@given(models=st.integers(2, 6), number=st.integers(1, 60), seed=st.integers(0, 2**40))
@settings(deadline=None, max_examples=20)
def test_samples_sum_to_one_and_are_the_seed_s(
    kind: str, models: int, number: int, seed: int
) -> None:
    block = {kind: list(NAMES[:models]), "points": number, "seed": seed}
    found = points(block, models)
    assert found == sorted(found) == points(block, models)
    assert len(found) == number
    assert all(sum(point) == 1 and min(point) >= 0 for point in found)


def test_alpha_draws_to_the_corners_or_to_the_middle() -> None:
    def largest(alpha: float) -> float:
        found = points({"dirichlet": list(NAMES[:3]), "points": 200, "alpha": alpha})
        return float(np.mean([float(max(point)) for point in found]))

    assert largest(0.1) > 0.8 > largest(1.0) > 0.5 > largest(50.0)


@pytest.mark.parametrize("dimensions", [1, 2, 3, 7, 10])
def test_the_sequence_is_sobol_s(dimensions: int) -> None:
    own = np.array([[int(x * 2**30) for x in place] for place in sobol(dimensions, 128, 3)])
    engine = torch.quasirandom.SobolEngine(dimensions)  # type: ignore[no-untyped-call]
    theirs = (engine.draw(128, dtype=torch.float64).numpy() * 2**30).astype(int)
    assert ((own ^ own[0]) == theirs).all()


def test_an_even_cube_gives_even_weights() -> None:
    found = np.array([from_cube(place) for place in sobol(2, 4096, 0)])
    assert np.allclose(found.mean(axis=0), 1 / 3, atol=2e-3)
    assert np.allclose((found**2).mean(axis=0), 1 / 6, atol=2e-3)  # of the uniform distribution


def test_a_filter_chooses_points() -> None:
    grid = {"simplex": ["acc", "fmt", "len"], "step": 0.1}
    found = points(grid, where="w.acc >= 0.5 and w.len > 0")
    assert found == [p for p in points(grid) if p[0] >= Decimal("0.5") and p[2] > 0]
    assert 0 < len(found) < 66
    several = points(grid, where=["{{ w.acc >= 0.5 }}", "w.len > 0"])
    assert several == found


def test_filters_are_of_any_grid_and_of_each_its_own(recipe_file: RecipeFile) -> None:
    file = recipe_file(
        "merge_method: linear\n"
        "sweep:\n"
        "  - {w: {from: 0, to: 1, step: 0.1}, v: [1, 2], where: w * v < 0.3}\n"
        "  - {w: [0.9], v: [1]}\n"
        "models:\n"
        '  - {model: a, parameters: {weight: "{{ w }}"}}\n'
        '  - {model: b, parameters: {weight: "{{ v }}"}}\n'
    )
    found = [tuple(point.values.values()) for point in load_points(file)]
    assert found == [(0.0, 1), (0.0, 2), (0.1, 1), (0.1, 2), (0.2, 1), (0.9, 1)]


def test_a_filter_may_choose_from_more_points_than_a_sweep_has() -> None:
    block = {
        "w": {"from": 0, "to": 1, "step": 0.005},
        "v": [1, 2, 3, 4, 7, 9],
        "where": "w * v == 0.3",
    }
    data = {
        "merge_method": "linear",
        "models": [
            {"model": "a", "parameters": {"weight": "{{ w }}"}},
            {"model": "b", "parameters": {"weight": "{{ v }}"}},
        ],
        "sweep": block,
    }
    assert [tuple(p.values.values()) for p in load_points(data)] == [
        (0.075, 4),
        (0.1, 3),
        (0.15, 2),
        (0.3, 1),
    ]


THREE = ["acc", "fmt", "len"]


@pytest.mark.parametrize(
    ("block", "more", "parts"),
    [
        (
            {"simplex": THREE, "step": 0.3},
            {},
            ("sweep.w.step", "cannot add up to 1", "layers: [3]"),
        ),
        ({"simplex": THREE, "step": 0}, {}, ("sweep.w.step", "0.001 to 1")),
        ({"simplex": THREE, "step": "x"}, {}, ("sweep.w.step", "0.001 to 1")),
        ({"simplex": THREE}, {}, ("sweep.w", "either the step, such as 0.1, or layers")),
        ({"simplex": THREE, "step": 0.5, "layers": [1]}, {}, ("sweep.w", "either the step")),
        ({"simplex": THREE, "layers": [0]}, {}, ("sweep.w.layers", "[3, 2]")),
        ({"simplex": THREE, "step": 0.5, "inside": True}, {}, ("there is no inner point",)),
        ({"simplex": THREE, "step": 0.5, "inside": 1}, {}, ("sweep.w.inside", "true or false")),
        ({"simplex": THREE, "step": 0.02}, {}, ("1,326 points, more than 1,000", "0.1 has 66")),
        ({"simplex": ["acc"], "step": 0.5}, {}, ("sweep.w.simplex", "two or more names")),
        ({"simplex": ["acc", "a b"], "step": 0.5}, {}, ("sweep.w.simplex", "two or more names")),
        ({"simplex": ["acc", "acc"], "step": 0.5}, {}, ("'acc' is given twice",)),
        ({"simplex": THREE, "step": 0.5, "seed": 1}, {}, ("sweep.w.seed", "simplex takes")),
        ({"sobol": THREE}, {}, ("sweep.w.points", "from 1 to 1,000")),
        ({"dirichlet": THREE, "points": 3, "alpha": 0}, {}, ("sweep.w.alpha", "corners")),
        ({"dirichlet": THREE, "points": 3, "seed": -1}, {}, ("sweep.w.seed",)),
        (
            {"simplex": THREE, "step": 0.5},
            {"where": "w.acc"},
            ("sweep.where", "must be true or false"),
        ),
        ({"simplex": THREE, "step": 0.5}, {"where": "v > 0"}, ("sweep.where", "has no 'v'", "w")),
        ({"simplex": THREE, "step": 0.5}, {"where": "w.x > 0"}, ("sweep.where", "no 'x'")),
        ({"simplex": THREE, "step": 0.5}, {"where": "w.acc >"}, ("sweep.where", "cannot be read")),
        ({"simplex": THREE, "step": 0.5}, {"where": "w.acc > 2"}, ("is false for all of the 6",)),
        ({"simplex": THREE, "step": 0.5}, {"where": []}, ("sweep.where", "give a condition")),
        ({"simplex": THREE, "step": 0.5}, {"where": [3]}, ("sweep.where", "give a condition")),
    ],
)
def test_what_is_wrong_is_one_line(block: Any, more: Any, parts: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError) as error:
        load_points(sweep(block, **more))
    assert_one_line(str(error.value), *parts)


def test_weights_at_a_corner_name_points_and_choose_them() -> None:
    found = load_points(sweep({"simplex": THREE, "step": 0.5}))
    assert [point.name for point in found] == [
        "w-0-0-1",
        "w-0-0.5-0.5",
        "w-0-1-0",
        "w-0.5-0-0.5",
        "w-0.5-0.5-0",
        "w-1-0-0",
    ]
