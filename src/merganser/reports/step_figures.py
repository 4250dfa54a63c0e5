"""Figures of a training run's steps: scores against steps, and over steps and a second number."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from merganser.number_format import ten_digits
from merganser.reports.figure_style import (
    COLOURS,
    GREY,
    INK,
    ON_DARK,
    ON_LIGHT,
    axis_label,
    legend,
    mark_points,
    styled,
)
from merganser.results import run_series
from merganser.results.scores import Entry, Results

Array = np.ndarray[Any, np.dtype[np.float64]]

MOST_SERIES = 12


@styled
def against_steps(results: Results, scores: Sequence[str] | None = None) -> Figure | None:
    """Return a figure of each score against the training step, one curve per combination of the other keys.

    Diamonds are the scored steps of the training run, unmerged; the dotted line is the base. Bands are
    the scores' 95 % intervals.

    Returns:
        The figure; None if no key is a step.
    """
    names = list(scores or results.directions)
    curves = run_series.series(results)[:MOST_SERIES]
    run = run_series.run_itself(results)
    if not curves or not names:
        return None
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns + 0.3, 3.1 * rows + 0.3))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for axes in list(grid.flat)[len(names) :]:
        axes.set_axis_off()
    for axes, score in zip(grid.flat, names, strict=False):
        for n, curve in enumerate(curves):
            colour = _colour(n, len(curves))
            _curve(axes, results, curve.points, score, colour, curve.label, band=len(curves) < 4)
        if run:
            _curve(axes, results, run, score, INK, "the run itself", "D", band=False)
        base = next((e for e in results.entries if e.role == "base" and score in e.scores), None)
        if base is not None:
            label = "base"
            axes.axhline(base.scores[score].mean, color=GREY, lw=1, ls=":", label=label)
        axes.set_xlabel("step")
        axes.set_ylabel(axis_label(score, results))
        axes.xaxis.get_major_locator().set_params(integer=True)
    legend(figure, grid[0, 0])
    return figure


def _colour(n: int, count: int) -> str:
    """Return a curve's colour: a distinct one if there are enough, else a shade by its order."""
    if count <= len(COLOURS):
        return COLOURS[n]
    return matplotlib.colors.to_hex(matplotlib.colormaps["viridis"](n / (count - 1) * 0.92))


def _curve(
    axes: Axes,
    results: Results,
    points: Sequence[tuple[int, Entry]],
    score: str,
    colour: str,
    label: str,
    shape: str = "o",
    *,
    band: bool,
) -> None:
    shown = [(step, entry) for step, entry in points if score in entry.scores]
    having = [(step, entry.scores[score]) for step, entry in shown]
    if not having:
        return
    mark_points(axes, results, [(step, e.scores[score].mean, e) for step, e in shown])
    steps = [step for step, _ in having]
    if band:
        lows, highs = [s.low for _, s in having], [s.high for _, s in having]
        axes.fill_between(steps, lows, highs, color=colour, alpha=0.13, linewidth=0)
    means = [s.mean for _, s in having]
    axes.plot(steps, means, f"{shape}-", color=colour, lw=1.4, ms=4.5, label=label or None)


@styled
def over_steps(results: Results, scores: Sequence[str] | None = None) -> Figure | None:
    """Return a heat map of each score: steps across, a second number upwards; better scores are brighter.

    Returns:
        The figure; None if the points do not form such a grid.
    """
    names = list(scores or results.directions)
    grid = run_series.grid(results)
    if grid is None or not names:
        return None
    wide, high = len(grid.steps), len(grid.numbers)
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    size = (max(3.6, 0.52 * wide + 1.9), max(2.2, 0.36 * high + 1.5))
    figure = Figure(figsize=(size[0] * columns, size[1] * rows))
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in list(panels.flat)[len(names) :]:
        axes.set_axis_off()
    for axes, score in zip(panels.flat, names, strict=False):
        table = np.full((high, wide), math.nan)
        cells = []
        for (step, number), entry in grid.points.items():
            if score in entry.scores:
                row, column = grid.numbers.index(number), grid.steps.index(step)
                table[row, column] = entry.scores[score].mean
                cells.append((column + 0.5, row + 0.5, entry))
        colours = "viridis" if results.directions[score] == "max" else "viridis_r"
        image = axes.pcolormesh(
            np.ma.masked_invalid(table), cmap=colours, edgecolors="white", lw=0.6
        )
        mark_points(axes, results, cells)
        axes.set_xticks([i + 0.5 for i in range(wide)], [str(s) for s in grid.steps], fontsize=8)
        axes.set_yticks(
            [i + 0.5 for i in range(high)], [ten_digits(n) for n in grid.numbers], fontsize=8
        )
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xlabel("step")
        axes.set_ylabel(grid.key)
        axes.set_title(axis_label(score, results), fontsize=9.5)
        if wide * high <= 150:
            _numbers(axes, table, image, results.chosen, grid)
        bar = figure.colorbar(image, ax=axes, pad=0.015, fraction=0.05, aspect=18)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8)
    return figure


def _numbers(
    axes: Axes, table: Array, image: QuadMesh, chosen: Container[str], grid: run_series.Grid
) -> None:
    """Write the scores into the cells, in a contrasting colour; frame selected points."""
    for row, number in enumerate(grid.numbers):
        for column, step in enumerate(grid.steps):
            value = float(table[row, column])
            if math.isnan(value):
                continue
            red, green, blue, _ = image.to_rgba(np.array(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            axes.text(
                column + 0.5,
                row + 0.5,
                f"{value:.3g}",
                ha="center",
                va="center",
                fontsize=7,
                color=ON_DARK if dark else ON_LIGHT,
            )
            if grid.points[step, number].name in chosen:
                frame = Rectangle((column, row), 1, 1, fill=False, ec=COLOURS[1], lw=2, zorder=3)
                axes.add_patch(frame)
