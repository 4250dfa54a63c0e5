"""Pictures of three models, of training steps, of three scores, and of what a search tried."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from merganser.reports import (
    figures,
    label_placement,
    many_scores,
    search_figures,
    step_figures,
)
from merganser.reports import page as report
from merganser.reports.ternary import ternary
from merganser.results import run_series
from merganser.results import scores as results
from merganser.results.importance import importances
from merganser.results.interpolation import lines
from merganser.results.scores import Entry, Results, Score
from merganser.results.simplex import place, triangles

MODELS = ("runs/acc/global_step_54", "runs/fmt/global_step_30", "runs/len/global_step_30")


def score(mean: float) -> Score:
    return Score(mean, 0.01, mean - 0.02, mean + 0.02, 100)


def scores(a: float, b: float, c: float) -> dict[str, Score]:
    """Each model has a score of its own, of which two are traded for the third."""
    return {
        "accuracy": score(0.9 * a + 0.8 * b + 0.5 * c),
        "format": score(0.1 + 0.8 * b * b),
        "tokens": score(26 * a + 29 * b + 16 * c),
    }


def three(step: int = 4, *, scored_experts: bool = True) -> Results:
    """A lattice of three models."""
    entries = [Entry("base", "base", "base", scores=scores(0.2, 0.2, 0.4))]
    for i, name in enumerate(("acc", "fmt", "len")):
        corner = scores(*(float(i == j) for j in range(3)))
        entries.append(Entry(name, "expert", MODELS[i], scores=corner if scored_experts else {}))
    for a in range(step + 1):
        for b in range(step + 1 - a):
            w = a / step, b / step, (step - a - b) / step
            entries.append(
                Entry(
                    "w-" + "-".join(map(str, w)),
                    "point",
                    values=dict(zip(("w.acc", "w.fmt", "w.len"), w, strict=True)),
                    scores=scores(*w),
                    weights=dict(zip(MODELS, w, strict=True)),
                )
            )
    directions: Mapping[str, results.Direction] = {
        "accuracy": "max",
        "format": "max",
        "tokens": "min",
    }
    return Results("three", "", directions, {}, tuple(entries), {"w-0.5-0.25-0.25": "best"})


def test_a_lattice_is_a_triangle_and_no_line() -> None:
    found = three()
    [triangle] = triangles(found)
    assert triangle.models == ("acc", "fmt", "len")
    assert [corner and corner.name for corner in triangle.corners] == ["acc", "fmt", "len"]
    assert len(triangle.points) == 15
    assert lines(found) == []
    inside = replace(
        found, entries=tuple(e for e in found.entries if min([1, *e.weights.values()]))
    )
    assert len(triangles(inside)[0].having("accuracy")) == 3 + 3


def test_models_that_were_not_scored_are_called_as_their_weights(tmp_path: Path) -> None:
    found = replace(three(), entries=three().points)
    names = {"runs/acc/global_step_54": "a"} | {m: m for m in MODELS[1:]}
    renamed = [
        replace(e, weights={f"{names[m]}_MRL40/actor": w for m, w in e.weights.items()})
        for e in found.points
    ]
    [triangle] = triangles(replace(found, entries=tuple(renamed)))
    assert triangle.models == ("acc", "fmt", "len")
    no_keys = [replace(e, values={"n": n}) for n, e in enumerate(found.points)]
    [triangle] = triangles(replace(found, entries=tuple(no_keys)))
    assert triangle.models == ("acc", "fmt", "len")  # by their folders


def test_an_edge_is_a_line_and_no_triangle() -> None:
    found = three()
    edge = [e for e in found.points if e.weights[MODELS[2]] == 0]
    found = replace(found, entries=(*found.entries[:4], *edge))
    assert triangles(found) == []
    pair = [
        replace(
            e,
            weights={m: e.weights[m] for m in MODELS[:2]},
            values={k: e.values[k] for k in ("w.acc", "w.fmt")},
        )
        for e in edge
    ]
    [line] = lines(replace(found, entries=(*found.entries[:4], *pair)))
    assert [x for x, _ in line.points] == [0, 0.25, 0.5, 0.75, 1]
    assert line.ends is not None


def test_corners_lie_where_they_are_said_to() -> None:
    assert place((1, 0, 0)) == (0, 0)
    assert place((0, 1, 0)) == (1, 0)
    assert place((0, 0, 1)) == pytest.approx((0.5, 3**0.5 / 2))
    assert place((1 / 3, 1 / 3, 1 / 3)) == pytest.approx((0.5, 3**0.5 / 6))


def test_the_triangles_show_every_merge_and_star_the_best() -> None:
    figure = ternary(three())
    assert figure is not None
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left").split()[0] for axes in panels] == [
        "accuracy",
        "format",
        "tokens",
    ]
    for axes, best in zip(panels, ((1, 0, 0), (0, 1, 0), (0, 0, 1)), strict=True):
        dots = [each for each in axes.collections if isinstance(each, PathCollection)]
        spots = {tuple(np.round(d.get_offsets()[0], 6)) for d in dots}  # type: ignore[index]
        assert len(spots) == 15
        assert tuple(np.round(dots[-1].get_offsets()[0], 6)) == tuple(np.round(place(best), 6))  # type: ignore[index]
        assert any("★" in text.get_text() for text in axes.texts)
    assert ternary(replace(three(), entries=three().entries[:5])) is None


@pytest.mark.parametrize(
    "case", ["two points", "no experts", "constant", "some unscored", "labels"]
)
def test_triangles_of_studies_that_are_hardly_there(tmp_path: Path, case: str) -> None:
    found = three()
    if case == "two points":
        found = replace(found, entries=found.entries[:6])
    elif case == "no experts":
        found = replace(found, entries=found.points)
    elif case == "constant":
        same = scores(0.3, 0.3, 0.4)
        found = replace(found, entries=tuple(replace(e, scores=same) for e in found.entries))
    elif case == "some unscored":
        some = [replace(e, scores={}) if i % 2 else e for i, e in enumerate(found.entries)]
        found = replace(found, entries=tuple(some))
    else:
        doubled = [
            replace(e, name=f"{e.name}_{m}", values={**e.values, "method": m})
            for m in ("linear", "ties")
            for e in found.points
        ]
        found = replace(found, entries=(*found.entries[:4], *doubled))
        assert [t.label for t in triangles(found)] == ["method linear", "method ties"]
    results.write(found, tmp_path)
    report.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert ('id="simplex"' in page) == (case != "two points")


def test_labels_of_sixty_six_points_do_not_collide() -> None:
    found = three(10)
    for figure in (
        figures.front(found, "accuracy", "format"),
        many_scores.coloured_front(found, "accuracy", "format", "tokens"),
    ):
        assert figure is not None
        axes = figure.axes[0]
        shown = [text for text in axes.texts if text.get_text()]
        boxes = [text.get_window_extent() for text in shown]
        assert {"acc", "fmt", "len", "base"} <= {text.get_text() for text in shown}
        assert len(shown) > 8
        pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :]]
        assert not [1 for a, b in pairs if a.shrunk(0.9, 0.9).overlaps(b.shrunk(0.9, 0.9))]


def test_a_label_without_a_place_is_left_out_unless_it_is_bold() -> None:
    figure = Figure(figsize=(1.2, 1.0))
    axes = figure.add_subplot()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    label = label_placement.Label(0.5, 0.5, "a long name that fits nowhere", "black")
    label_placement.place(axes, [label], [])
    assert not axes.texts
    label_placement.place(axes, [replace(label, bold=True)], [])
    assert [text.get_text() for text in axes.texts if text.get_text()] == [label.text]


# -- steps -----------------------------------------------------------------------------------------


def steps(weights: tuple[float, ...] = (0.4, 0.8), *, experts: bool = True) -> Results:
    entries = [Entry("base", "base", "base", scores={"accuracy": score(0.3)})]
    for step in (18, 6, 12):
        run = f"runs/acc/global_step_{step}"
        if experts:
            own = {"accuracy": score(0.3 + 0.01 * step)}
            entries.append(Entry(f"acc_{step}", "expert", run, scores=own))
        entries += [
            Entry(
                f"s{step}_w{w}",
                "point",
                values={"step": step, "w": w},
                scores={"accuracy": score(0.3 + 0.01 * step * w)},
                weights={run: w, MODELS[1]: 1 - w},
            )
            for w in weights
        ]
    return Results("steps", "", {"accuracy": "max"}, {}, tuple(entries), {"s12_w0.8": "best"})


def test_series_are_in_the_order_of_the_steps() -> None:
    found = steps()
    assert run_series.step_key(found) == "step"
    one, two = run_series.series(found)
    assert (one.label, two.label) == ("w 0.4", "w 0.8")
    assert [step for step, _ in one.points] == [6, 12, 18]
    assert [step for step, _ in run_series.run_itself(found)] == [6, 12, 18]
    grid = run_series.grid(found)
    assert grid is not None
    assert (grid.key, grid.steps, grid.numbers) == ("w", (6, 12, 18), (0.4, 0.8))
    assert grid.points[12, 0.8].name == "s12_w0.8"


def test_a_key_of_another_name_is_known_by_the_models() -> None:
    found = steps()
    renamed = [
        replace(e, values={"of" if k == "step" else k: v for k, v in e.values.items()})
        for e in found.entries
    ]
    assert run_series.step_key(replace(found, entries=tuple(renamed))) == "of"
    unknown = [replace(e, weights={"acc": 1.0}) for e in renamed]
    assert run_series.step_key(replace(found, entries=tuple(unknown))) is None
    assert run_series.step_key(three()) is None


def test_curves_and_grids_of_steps(tmp_path: Path) -> None:
    figure = step_figures.against_steps(steps())
    assert figure is not None
    [axes] = [axes for axes in figure.axes if axes.get_lines()]
    curves = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}  # type: ignore[arg-type]
    assert curves["the run itself"] == pytest.approx([0.36, 0.42, 0.48])
    assert curves["w 0.8"] == pytest.approx([0.348, 0.396, 0.444])
    legend = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 < legend.x0 < legend.x1 < figure.bbox.x1
    grid = step_figures.over_steps(steps())
    assert grid is not None
    assert "0.396" in {text.get_text() for text in grid.axes[0].texts}
    results.write(steps(), tmp_path)
    report.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count("steps-grid-") > 1
    assert 'id="steps"' in page
    lone = steps((1.0,), experts=False)
    assert step_figures.over_steps(lone) is None
    assert step_figures.against_steps(lone) is not None
    assert step_figures.against_steps(three()) is None


# -- searches --------------------------------------------------------------------------------------


def test_what_decides_is_important_and_what_does_not_is_within_chance() -> None:
    draw = random.Random(0)
    values = [
        {"w": draw.random(), "noise": draw.random(), "m": draw.choice("ab")} for _ in range(60)
    ]
    means = [v["w"] ** 2 + (0.3 if v["m"] == "a" else 0.0) for v in values]  # type: ignore[operator]
    first, *others = importances(values, means, ["noise", "m", "w"])
    assert first.key == "w"
    assert first.share > 0.5 > first.chance
    told = {each.key: each for each in others}
    assert told["m"].share > told["m"].chance
    assert told["noise"].share < 0.3
    assert importances(values[:5], means[:5], ["w"]) == []
    assert importances(values, [1.0] * 60, ["w"]) == []
    assert importances([{"w": 1}] * 60, means, ["w"]) == []


def test_a_search_shows_importance_and_parallel_coordinates(tmp_path: Path) -> None:
    draw = random.Random(0)
    points = []
    for n in range(20):
        w, method = draw.random(), draw.choice(["linear", "ties"])
        points.append(
            Entry(
                f"c_{n:03d}",
                "point",
                values={"w": w, "method": method, "g": [0.1, w]},
                scores={"accuracy": score(w), "tokens": score(100 * w)},
            )
        )
    aims = {"accuracy": "max", "tokens": "min"}
    found = Results(
        "search", "", aims, {"search": {"objectives": aims}}, tuple(points), {"c_003": "best"}
    )  # type: ignore[arg-type]
    figure = search_figures.importance(found, ["accuracy", "tokens"])
    assert figure is not None
    assert {label.get_text() for label in figure.axes[0].get_yticklabels()} == {
        "w",
        "method",
        "g[1]",
    }
    values = search_figures.flat_values(found)
    keys = search_figures.varied_keys(values)
    drawn = many_scores.parallel(found, values, keys, ["accuracy", "tokens"])
    assert drawn is not None
    names = [label.get_text() for label in drawn.axes[0].get_xticklabels()]
    assert names == ["w", "method", "g[1]", "accuracy ↑", "tokens ↓"]
    joined = [line for line in drawn.axes[0].get_lines() if len(line.get_xdata()) == 5]  # type: ignore[arg-type]
    assert len(joined) == 20
    results.write(found, tmp_path)
    report.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Importance of parameters" in page
    assert "Parallel coordinates" in page
