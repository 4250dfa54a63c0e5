"""Figures of more than two scores: two axes coloured by a third score, and parallel coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from merganser.number_format import ten_digits
from merganser.recipe.short_names import shorten
from merganser.reports import label_placement
from merganser.reports.figure_style import (
    COLOURS,
    FAINT,
    GREY,
    INK,
    axis_label,
    mark_points,
    styled,
)
from merganser.results import front as fronts
from merganser.results.interpolation import short_names
from merganser.results.scores import Entry, Results
from merganser.results.simplex import triangles

MOST_AXES = 12
MOST_NAMED = 14
"""Maximum number of labelled merges, spread along the front, besides selected ones."""

Values = Mapping[str, Mapping[str, Any]]


@styled
def coloured_front(results: Results, x: str, y: str, z: str) -> Figure | None:
    """Return a figure of the front of three scores: two axes, coloured by the third score.

    Large dots are models that are non-dominated in the three scores. Numbers are the merges' weights.

    Returns:
        The figure; None if fewer than three models have all three scores.
    """
    directions = {name: results.directions[name] for name in (x, y, z)}
    entries = fronts.scored(results.entries, directions)
    if len(entries) < 3:
        return None
    best = {e.name for e in fronts.non_dominated(entries, directions)}
    figure = Figure(figsize=(6.8, 5.0))
    axes = figure.add_subplot()
    third = [e.scores[z].mean for e in entries]
    norm = Normalize(min(third), max(third) if max(third) > min(third) else min(third) + 1)
    colours = "viridis" if directions[z] == "max" else "viridis_r"
    for entry in sorted(entries, key=lambda e: e.name in best):
        shape = {"expert": "D", "base": "s"}.get(entry.role, "o")
        size = (75 if entry.name in best else 22) + (10 if entry.role != "point" else 0)
        means = [entry.scores[name].mean for name in (x, y, z)]
        edge = INK if entry.name in best else GREY
        axes.scatter(
            means[0],
            means[1],
            c=[means[2]],
            cmap=colours,
            norm=norm,
            marker=shape,
            s=size,
            edgecolor=edge,
            lw=0.8,
            zorder=4,
        )
        if entry.name in results.chosen:
            axes.scatter(
                means[0], means[1], s=210, facecolor="none", edgecolor=COLOURS[1], lw=1.8, zorder=5
            )
    mark_points(axes, results, [(e.scores[x].mean, e.scores[y].mean, e) for e in entries])
    mappable = matplotlib.cm.ScalarMappable(norm, colours)
    bar = figure.colorbar(mappable, ax=axes, pad=0.02, fraction=0.05, aspect=26)
    bar.outline.set_visible(False)
    bar.set_label(axis_label(z, results))
    axes.margins(0.12)
    axes.set_xlabel(axis_label(x, results))
    axes.set_ylabel(axis_label(y, results))
    figure.draw_without_rendering()
    names = _labels(results)
    on_front = [e for e in entries if e.role == "point" and e.name in best]
    on_front.sort(key=lambda e: e.scores[x].mean)
    named = {e.name for e in on_front[:: -(-len(on_front) // MOST_NAMED) or 1]} | {*results.chosen}
    shown = [e for e in entries if e.role != "point" or e.name in named]
    shown.sort(key=lambda e: (e.role == "point", e.name not in results.chosen))
    label_placement.place(
        axes,
        [
            label_placement.Label(
                e.scores[x].mean, e.scores[y].mean, names[e.name], INK, bold=e.role != "point"
            )
            for e in shown
        ],
        [],
    )
    return figure


def _labels(results: Results) -> dict[str, str]:
    """Return labels by model: weights for merges of three models, names for the others."""
    points = [point.name for point in results.points]
    labels = dict(zip(points, shorten(points, 20), strict=True)) | short_names(results)
    for triangle in triangles(results):
        for weights, entry in triangle.points:
            labels[entry.name] = " · ".join(ten_digits(round(w, 4)) for w in weights)
    return labels


@styled
def parallel(
    results: Results, values: Values, keys: Sequence[str], scores: Sequence[str]
) -> Figure | None:
    """Return a figure of parallel coordinates (Inselberg 1985): one line per merge through its parameters
    and scores.

    Lines with a better first score are brighter and drawn on top; those of selected merges are thick.

    Args:
        results: a study's results.
        values: the parameters of each merge, by its name.
        keys: the parameters to draw.
        scores: the scores to draw; the first sets the colour.

    Returns:
        The figure; None if there are fewer than three merges or axes.
    """
    keys = list(keys)[: MOST_AXES - len(scores)]
    names = [*keys, *scores]
    points = [p for p in results.points if all(s in p.scores for s in scores)]
    if len(points) < 3 or len(names) < 3:
        return None
    figure = Figure(figsize=(max(6.8, 1.25 * len(names) + 1.2), 3.9))
    axes = figure.add_subplot()
    columns = [_column(axes, n, name, points, values, results) for n, name in enumerate(names)]
    rows = np.array(columns).T
    rank = columns[len(keys)]
    order = sorted(range(len(points)), key=lambda i: (points[i].name in results.chosen, rank[i]))
    palette = matplotlib.colormaps["viridis"]
    for i in order:
        chosen = points[i].name in results.chosen
        axes.plot(
            range(len(names)),
            rows[i],
            color=COLOURS[1] if chosen else palette(0.25 + 0.75 * rank[i]),
            linewidth=2.4 if chosen else 1.0,
            alpha=1.0 if chosen else 0.4 + 0.5 * rank[i],
            zorder=4 if chosen else 3,
        )
    for n in range(len(keys), len(names)):
        mark_points(axes, results, zip([n] * len(points), columns[n], points, strict=True))
    axes.set_xlim(-0.3, len(names) - 0.55)
    axes.set_ylim(-0.09, 1.09)
    axes.set_yticks([])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks(range(len(names)), [_title(name, results) for name in names], fontsize=9)
    return figure


def _title(name: str, results: Results) -> str:
    better = {"max": "↑", "min": "↓"}.get(results.directions.get(name, ""), "")
    return f"{name} {better}".strip()


def _column(
    axes: Axes, place: int, name: str, points: Sequence[Entry], values: Values, results: Results
) -> list[float]:
    """Draw one axis with its end values or choices; return each merge's position on it, from 0 to 1."""
    axes.axvline(
        place, 0.07, 0.93, color=FAINT if name not in results.directions else GREY, lw=1.1, zorder=2
    )
    if name in results.directions:
        column: list[Any] = [p.scores[name].mean for p in points]
    else:
        column = [values[p.name].get(name) for p in points]
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in column)
    if not numbers:
        choices = sorted({ten_digits(v) for v in column})
        for i, choice in enumerate(choices):
            axes.text(
                place + 0.04,
                i / max(1, len(choices) - 1),
                choice,
                fontsize=7.5,
                color=GREY,
                va="center",
            )
        return [choices.index(ten_digits(v)) / max(1, len(choices) - 1) for v in column]
    low, high = min(column), max(column)
    ends = [(0.0, low), (1.0, high)]
    down = results.directions.get(name) == "min"
    for height, value in ends:
        top = (1 - height if down else height) == 1
        axes.text(
            place,
            1.025 if top else -0.025,
            f"{value:.4g}",
            fontsize=7.5,
            color=GREY,
            ha="center",
            va="bottom" if top else "top",
        )
    width = high - low or 1
    scaled = [(v - low) / width for v in column]
    return [1 - s for s in scaled] if down else scaled
