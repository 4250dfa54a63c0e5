"""Placement of labels next to the points of a figure, without overlaps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patheffects import withStroke

Array = np.ndarray[Any, np.dtype[Any]]

DISTANCES = (5.0, 11.0, 19.0, 30.0)
"""Distances from a marker to its text that are tried, in printer's points; from the third on, a line
joins the two."""

ANGLES = 16


@dataclass(frozen=True, slots=True)
class Label:
    """A text and its point, in data coordinates."""

    x: float
    y: float
    text: str
    colour: str
    bold: bool = False


def place(
    axes: Axes, labels: Sequence[Label], paths: Sequence[Sequence[tuple[float, float]]]
) -> None:
    """Draw labels next to their points, without overlaps with points, texts and, if possible, lines.

    Labels are placed greedily, at the position with the least overlap. A label that would cover a text or a
    point at every position is omitted, unless it is bold. The axes' limits and layout must be final.

    Args:
        axes: the axes to draw into.
        labels: the labels, the most important first.
        paths: lines and error bars, as sequences of points in data coordinates.
    """
    figure = axes.figure
    canvas: Any = FigureCanvasAgg(figure.figure)
    renderer = canvas.get_renderer()
    scale = figure.figure.dpi / 72
    frame = axes.get_window_extent(renderer)
    spots = axes.transData.transform([(label.x, label.y) for label in labels] or np.empty((0, 2)))
    strokes = np.concatenate([np.empty((0, 2)), *(_dense(axes, path, scale) for path in paths)])
    taken: list[tuple[float, float, float, float]] = []
    marker = 4.5 * scale
    for n, (label, (x, y)) in enumerate(zip(labels, spots, strict=True)):
        others = np.delete(spots, n, axis=0)
        text = axes.annotate(
            label.text,
            (label.x, label.y),
            textcoords="offset points",
            xytext=(0, 0),
            color=label.colour,
            fontweight="bold" if label.bold else "normal",
            fontsize=8.5,
            ha="center",
            va="center",
            zorder=8,
            path_effects=[withStroke(linewidth=2.0, foreground="white")],
        )
        text.set_in_layout(False)
        box = text.get_window_extent(renderer)
        width, height = box.width + 2 * scale, box.height
        best: tuple[float, float, float, float, bool] | None = None
        for d, distance in enumerate(DISTANCES):
            for a in range(ANGLES):
                angle = math.pi / 4 + 2 * math.pi * a / ANGLES
                reach = marker + distance * scale
                cx = x + math.cos(angle) * (reach + width / 2 - 2 * scale)
                cy = y + math.sin(angle) * (reach + height / 2 - 2 * scale)
                low, left = cy - height / 2, cx - width / 2
                candidate = (left, low, left + width, low + height)
                cost = 3.0 * d + 0.02 * a
                texts = sum(_overlap(candidate, other) > 0 for other in taken)
                points = _inside(spots, candidate, marker)
                cost += 60.0 * texts + 40.0 * points
                cost += 0.5 * _inside(strokes, candidate, 0.0)
                cost += 12.0 * (_nearest(others, candidate) < _nearest(spots[n : n + 1], candidate))
                outside = (
                    max(0.0, frame.x0 - candidate[0])
                    + max(0.0, candidate[2] - frame.x1)
                    + max(0.0, frame.y0 - candidate[1])
                    + max(0.0, candidate[3] - frame.y1)
                )
                cost += 100.0 * (outside > 0) + outside
                if best is None or cost < best[0]:
                    best = (cost, cx, cy, float(d), texts + points > 0 or outside > 0)
        assert best is not None
        _, cx, cy, d_best, covers = best
        if covers and not label.bold:
            text.remove()
            continue
        taken.append((cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2))
        text.set_position(((cx - x) / scale, (cy - y) / scale))
        if d_best >= 2:
            line = axes.annotate(
                "",
                (label.x, label.y),
                textcoords="offset points",
                xytext=((cx - x) / scale, (cy - y) / scale),
                arrowprops={
                    "arrowstyle": "-",
                    "color": label.colour,
                    "linewidth": 0.6,
                    "alpha": 0.6,
                    "shrinkA": height / 2 / scale,
                    "shrinkB": 4.5,
                },
            )
            line.set_in_layout(False)


def _dense(axes: Axes, path: Sequence[tuple[float, float]], scale: float) -> Array:
    """Return points along a path, a few pixels apart."""
    corners = axes.transData.transform(np.array(path, np.float64).reshape(-1, 2))
    parts = [corners]
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        steps = min(400, int(math.hypot(x1 - x0, y1 - y0) / (3 * scale)) + 2)
        share = np.linspace(0, 1, steps)[:, None]
        parts.append((1 - share) * (x0, y0) + share * (x1, y1))
    points: Array = np.concatenate(parts)
    return points


def _overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _inside(points: Array, box: tuple[float, float, float, float], margin: float) -> int:
    x, y = points[:, 0], points[:, 1]
    hit = (x > box[0] - margin) & (x < box[2] + margin)
    return int((hit & (y > box[1] - margin) & (y < box[3] + margin)).sum())


def _nearest(points: Array, box: tuple[float, float, float, float]) -> float:
    """Return the distance from a box to the nearest of some points."""
    x, y = points[:, 0], points[:, 1]
    across = np.maximum(np.maximum(box[0] - x, x - box[2]), 0)
    along = np.maximum(np.maximum(box[1] - y, y - box[3]), 0)
    return float(np.hypot(across, along).min(initial=math.inf))
