"""Ternary plots: a score over the weights of three models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.tri import Triangulation

from merganser.number_format import compact, ten_digits
from merganser.reports.figure_style import FAINT, GREY, INK, axis_label, mark_points, styled
from merganser.results import front as fronts
from merganser.results.scores import Results
from merganser.results.simplex import Triangle, place, triangles

MOST_SCORES = 6
MOST_TRIANGLES = 4
COLUMNS = 3

LINES = (0.2, 0.4, 0.6, 0.8)
"""Weights with a grid line and a number."""

_HEIGHT = 3**0.5 / 2


@styled
def ternary(results: Results, scores: Sequence[str] | None = None) -> Figure | None:
    """Return a figure with a triangle for each score: every merge at its weights, brighter for better scores.

    Contours are interpolated linearly between neighbouring merges. The best merge has a star, selected
    ones have rings, and diamonds are the three models.

    Args:
        results: a study's results.
        scores: names of the scores to draw; by default all.

    Returns:
        The figure; None if no points mix three models.
    """
    names = list(scores or results.directions)[:MOST_SCORES]
    shown = [t for t in triangles(results) if any(t.having(s) for s in names)][:MOST_TRIANGLES]
    if not shown or not names:
        return None
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns) * len(shown)
    figure = Figure(figsize=(3.6 * columns + 0.2, 3.7 * rows + 0.1))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for t, triangle in enumerate(shown):
        for s, score in enumerate(names):
            axes = grid[t * (rows // len(shown)) + s // columns][s % columns]
            _panel(figure, axes, results, triangle, score)
    return figure


def _panel(figure: Figure, axes: Axes, results: Results, triangle: Triangle, score: str) -> None:
    _frame(axes, triangle)
    title = axis_label(score, results)
    axes.set_title(f"{triangle.label}\n{title}" if triangle.label else title, fontsize=9.5, pad=4)
    shown = triangle.having(score)
    if not shown:
        return
    values = np.array([entry.scores[score].mean for _, entry in shown])
    x, y = np.array([place(weights) for weights, _ in shown]).T
    low, high = float(values.min()), float(values.max())
    norm = Normalize(low, high if high > low else low + 1)
    colours = "viridis" if results.directions[score] == "max" else "viridis_r"
    if len(shown) > 2 and high > low:
        _surface(axes, x, y, values, colours, norm)
    for (_, entry), px, py, value in zip(shown, x, y, values, strict=True):
        shape, size = ("D", 55) if entry.role != "point" else ("o", 26)
        axes.scatter(
            px, py, c=[value], cmap=colours, norm=norm, marker=shape, s=size, edgecolor=INK, lw=0.7, zorder=4
        )  # fmt: skip
        if entry.name in results.chosen:
            axes.scatter(px, py, s=150, facecolor="none", edgecolor="#D55E00", lw=1.8, zorder=5)
    points = [entry for _, entry in shown]
    mark_points(axes, results, zip(x.tolist(), y.tolist(), points, strict=True))
    best = fronts.best([e for _, e in shown], results.directions, score)
    n = next(i for i, (_, entry) in enumerate(shown) if entry is best)
    axes.scatter(x[n], y[n], marker="*", s=170, facecolor="white", edgecolor=INK, lw=1.0, zorder=6)
    weights = " · ".join(ten_digits(round(weight, 4)) for weight in shown[n][0])
    axes.text(
        0.5, -0.2, f"★ {compact(values[n], 3)} at {weights}", ha="center", va="top", fontsize=8.5
    )
    bar = figure.colorbar(
        ScalarMappable(norm, colours),
        ax=axes,
        orientation="horizontal",
        fraction=0.045,
        pad=0.02,
        aspect=28,
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2)
    bar.ax.xaxis.set_major_locator(MaxNLocator(5))


def _surface(axes: Axes, x: Any, y: Any, values: Any, colours: str, norm: Normalize) -> None:
    """Draw the interpolated score with contour lines."""
    mesh = Triangulation(x, y)
    flat = _flat(mesh)
    if flat.all():
        return
    mesh.set_mask(flat)
    levels = np.linspace(norm.vmin or 0.0, norm.vmax or 1.0, 15)
    axes.tricontourf(
        mesh,
        values,
        levels=levels,
        cmap=colours,
        norm=norm,
        alpha=0.55,
        antialiased=False,
        zorder=1,
    )
    axes.tricontour(mesh, values, levels=levels[2:-1:3], colors="white", linewidths=0.8, zorder=2)


def _flat(mesh: Triangulation) -> Any:
    """Return a mask of degenerate triangles, which rounding creates from collinear points at an edge."""
    px, py = mesh.x[mesh.triangles], mesh.y[mesh.triangles]
    area = (px[:, 1] - px[:, 0]) * (py[:, 2] - py[:, 0]) - (px[:, 2] - px[:, 0]) * (
        py[:, 1] - py[:, 0]
    )
    return np.abs(area) < 1e-9


def _frame(axes: Axes, triangle: Triangle) -> None:
    """Draw the triangle, numbered lines of equal weight, and the models' names at the corners."""
    axes.set_aspect("equal")
    axes.set_xlim(-0.08, 1.08)
    axes.set_ylim(-0.26, 0.98)
    corners = [place(corner) for corner in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0))]
    axes.plot(*zip(*corners, strict=True), color=GREY, linewidth=1.1, zorder=3)
    # On each side the weight of one model runs from 0 to 1: towards its own corner.
    sides = (
        (lambda w: (1 - w, w, 0.0), lambda w: (0.0, w, 1 - w), (0, -9), "center"),
        (lambda w: (0.0, 1 - w, w), lambda w: (1 - w, 0.0, w), (8, 3), "left"),
        (lambda w: (w, 0.0, 1 - w), lambda w: (w, 1 - w, 0.0), (-8, 3), "right"),
    )
    for begin, end, shift, align in sides:
        for w in LINES:
            line = [place(begin(w)), place(end(w))]
            axes.plot(*zip(*line, strict=True), color=FAINT, linewidth=0.6, zorder=2)
            axes.annotate(
                ten_digits(w),
                line[0],
                xytext=shift,
                textcoords="offset points",
                fontsize=7,
                color=GREY,
                ha=align,
                va="center",
            )
    places: tuple[tuple[float, float, Any], ...] = (
        (-0.02, -0.1, "left"),
        (1.02, -0.1, "right"),
        (0.5, _HEIGHT + 0.045, "center"),
    )
    for name, (px, py, side) in zip(triangle.models, places, strict=True):
        axes.text(
            px, py, name, ha=side, va="bottom" if py > 0 else "top", fontsize=9, fontweight="bold"
        )
