"""Effective weights of more models than are measured."""

from __future__ import annotations

from pathlib import Path

import pytest

import merganser
from checkpoints_on_disk import make_model
from merganser.engine.effective_weights import MOST_MEASURED, ModelWeight, why_unknown
from merganser.planning.plan_data import Arithmetic
from merganser.sinks import NullSink


@pytest.mark.parametrize(
    ("count", "arithmetic"),
    [(MOST_MEASURED, "exact"), (MOST_MEASURED + 1, "exact"), (MOST_MEASURED + 1, "mergekit")],
)
def test_of_many_models_the_requested_weights_are_told(
    tmp_path: Path, count: int, arithmetic: Arithmetic
) -> None:
    models = [
        {
            "model": str(make_model(tmp_path / f"m{i}", seed=i, layers=1)),
            "parameters": {"weight": i + 1},
        }
        for i in range(count)
    ]
    recipe = {"merge_method": "linear", "models": models, "dtype": "float32"}
    plan = merganser.plan(recipe, arithmetic=arithmetic)
    [outcome] = merganser.run([plan], [NullSink()])
    assert outcome.report is not None
    total = count * (count + 1) / 2
    for i, model in enumerate(outcome.report.models):
        assert model.given == i + 1
        assert model.requested == pytest.approx((i + 1) / total)
        assert (model.effective is None) == (count > MOST_MEASURED)
        if model.effective is not None:
            assert model.effective == pytest.approx(model.requested, abs=1e-5)


def test_a_folder_of_many_models_has_a_card(tmp_path: Path) -> None:
    for step in range(1, MOST_MEASURED + 3):
        make_model(tmp_path / "run" / f"global_step_{step}", seed=step, layers=1)
    recipe = tmp_path / "recipe.yml"
    recipe.write_text("merge_method: linear\nmodels: [{run: run, schedule: wma}]\n")
    merganser.merge(recipe, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "global_step_18" in card


@pytest.mark.parametrize(
    ("effective", "differ", "why"),
    [
        ([0.3, 0.7], [None, 0.5], None),
        ([], [], "no tensor is merged from two models"),
        ([None, None], [None, 0.0], "the models are the same"),
        ([None] * 3, [None, 0.5, 0.0], "runs/2 is the same as runs/0"),
        (
            [None] * 3,
            [None, 0.5, 0.5],
            "the models' differences are linearly dependent, or not finite",
        ),
        ([None] * 20, [None] * 20, "those of more than 16 models are not measured"),
    ],
)
def test_a_merge_without_effective_weights_has_a_reason(
    effective: list[float | None], differ: list[float | None], why: str | None
) -> None:
    pairs = enumerate(zip(effective, differ, strict=True))
    models = [ModelWeight(f"runs/{n}", 0.5, 0.5, weight, share) for n, (weight, share) in pairs]
    assert why_unknown(models) == why
