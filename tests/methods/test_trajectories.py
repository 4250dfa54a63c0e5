"""RELEX against published numbers, and what it does where a run does not move along a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import merganser
from merganser.methods.trajectories import relex
from merganser.recipe import run_models

VECTORS = json.loads((Path(__file__).parents[1] / "support" / "trajectory.json").read_text())
RUN: dict[str, Any] = VECTORS["trajectory"]


def deltas() -> np.ndarray[Any, np.dtype[np.float64]]:
    base, steps = np.array(RUN["base"]), np.array(RUN["checkpoints"])
    return (steps - base).reshape(len(steps), -1)


@pytest.mark.parametrize(
    ("name", "axis"),
    [
        ("relex_step_axis_target60", RUN["steps"]),
        # The published code: rows in place of steps, and the target as far beyond the last row.
        ("relex_index_axis_target60", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_relex_is_the_published_one(name: str, axis: list[int]) -> None:
    rows, wanted = deltas(), RUN[name]
    target = 60 if axis == RUN["steps"] else 5 + (60 - RUN["steps"][-1])
    found = relex(rows @ rows.T, step=axis, target=target)
    assert np.allclose(found.coefficients, wanted["coefficients"], atol=1e-6)
    merged = np.array(found.coefficients) @ rows
    assert np.allclose(merged, np.array(wanted["delta"]).ravel(), atol=1e-5)


def test_relex_through_the_engine() -> None:
    base = torch.tensor(RUN["base"], dtype=torch.float64)
    steps = [torch.tensor(each, dtype=torch.float64) for each in RUN["checkpoints"]]
    merged = merganser.merge_tensors(
        steps, "relex", base=base, parameters={"step": RUN["steps"], "target": 60.0}
    )
    wanted = torch.tensor(RUN["relex_step_axis_target60"]["delta"], dtype=torch.float64)
    assert torch.allclose(merged - base, wanted, atol=1e-5)


def test_a_run_on_a_line_is_continued_exactly() -> None:
    direction = np.random.default_rng(0).standard_normal(50)
    steps = np.array([3.0, 10.0, 11.0, 40.0])
    rows = steps[:, None] * direction
    found = relex(rows @ rows.T, step=tuple(steps), target=100.0)
    assert np.allclose(np.array(found.coefficients) @ rows, 100 * direction)


def test_where_no_direction_leads_the_last_step_stays() -> None:
    rows = np.random.default_rng(0).standard_normal((4, 1000))
    found = relex(rows @ rows.T, step=[10, 40, 30, 20], target=100)
    assert found.coefficients == (0.0, 1.0, 0.0, 0.0)
    kept = relex(rows @ rows.T, step=[10, 40, 30, 20], target=100, explained=0.0)
    assert len(set(kept.coefficients)) == 4


def test_what_never_moved_stays_the_base() -> None:
    assert relex(np.zeros((3, 3)), step=[1, 2, 3], target=9).coefficients == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("ema_beta08_6", {"ema": 0.8}),
        ("wma_6", "wma"),
        ("wsm_linear_6", {"decay": "linear"}),
        ("wsm_cosine_6", {"decay": "cosine"}),
        ("wsm_1-sqrt_6", {"decay": "1-sqrt"}),
    ],
)
def test_schedules_are_the_published_ones(name: str, schedule: Any) -> None:
    found = run_models.shares(schedule, 6)
    assert found is not None
    assert np.allclose(found, RUN["schedules"][name], atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 7, 75])
@pytest.mark.parametrize(
    "schedule",
    ["uniform", "wma", {"ema": 0.0}, {"ema": 0.99}, *({"decay": d} for d in run_models.DECAYS)],
    ids=str,
)
def test_shares_add_up_to_one(schedule: Any, count: int) -> None:
    found = run_models.shares(schedule, count)
    assert found is not None
    assert len(found) == count
    assert sum(found) == pytest.approx(1, abs=1e-12)
    assert min(found) >= 0
