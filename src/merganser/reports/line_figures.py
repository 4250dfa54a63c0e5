"""Figures of scores and effective weights along a line between models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from merganser.reports.figure_style import (
    COLOURS,
    GREY,
    INK,
    MOST_ROWS,
    axis_label,
    legend,
    mark_points,
    styled,
    wrap,
)
from merganser.results.interpolation import Line, gap, lines
from merganser.results.scores import Entry, Results


@styled
def curves(results: Results, scores: Sequence[str] | None = None) -> Figure:
    """Return a figure of each score against the weight, with one row per line of the study.

    The dashed chord joins the scores of the line's ends. A bar marks the weight with the largest deviation
    from the chord, with its size, + if better and - if worse. Bands are 95 % intervals.

    Args:
        results: a study's results.
        scores: names of the scores to draw; by default all.
    """
    names = list(scores or results.directions)
    chosen = [
        line for line in lines(results) if any(s in e.scores for _, e in line.points for s in names)
    ][:MOST_ROWS]
    rows, columns = max(1, len(chosen)), max(1, len(names))
    figure = Figure(figsize=(max(4.6, 3.5 * columns) + 0.3, 2.8 * rows + 0.2))
    grid = figure.subplots(rows, columns, sharey="col", squeeze=False)
    for r, line in enumerate(chosen):
        for c, score in enumerate(names):
            axes, colour = grid[r, c], COLOURS[r % len(COLOURS)]
            _curve(axes, results, line, score, colour)
            if len(chosen) > 1 and c == 0:
                axes.set_title(wrap(line.label), fontsize=9)
    return figure


def _curve(axes: Axes, results: Results, line: Line, score: str, colour: str) -> None:
    path = line.along(score)
    numbers = [number for number, _ in path]
    means = [e.scores[score].mean for _, e in path]
    lows, highs = ([getattr(e.scores[score], p) for _, e in path] for p in ("low", "high"))
    if path:
        axes.fill_between(numbers, lows, highs, color=colour, alpha=0.14, linewidth=0)
        axes.plot(numbers, means, color=colour, linewidth=1.5, zorder=3)
    for number, entry in path:
        shape, tint = ("o", colour) if entry.role == "point" else ("D", INK)
        axes.plot(number, entry.scores[score].mean, shape, color=tint, markersize=5.5, zorder=4)
    mark_points(axes, results, [(number, e.scores[score].mean, e) for number, e in path])
    base = next((e for e in results.entries if e.role == "base" and score in e.scores), None)
    if base is not None and base not in (line.ends or ()):
        axes.axhline(base.scores[score].mean, color=GREY, linewidth=0.9, linestyle=":", zorder=2)
        axes.annotate(
            "base",
            (1, base.scores[score].mean),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 2),
            textcoords="offset points",
            fontsize=8,
            color=GREY,
            ha="right",
        )
    largest = gap(line, score, results.directions[score])
    if largest is not None and line.ends is not None:
        begin, end = (e.scores[score].mean for e in line.ends)
        axes.plot([0, 1], [begin, end], color=GREY, linewidth=1.1, dashes=(4, 3), zorder=2)
        chord = begin + largest.at * (end - begin)
        value = next(e.scores[score].mean for n, e in line.points if n == largest.at)
        axes.plot([largest.at] * 2, [chord, value], color=INK, linewidth=1.6, zorder=3)
        above = value >= chord
        axes.annotate(
            f"{largest.gap:+.2g}".replace("-", "−"),
            (largest.at, value),
            xytext=(0, 8 if above else -8),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            fontsize=9,
            fontweight="bold",
            color=INK,
            zorder=7,
            bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.85},
        )
    axes.margins(x=0.05, y=0.16)
    axes.set_xlabel(wrap(line.axis))
    axes.set_ylabel(wrap(axis_label(score, results), 30))
    if line.ends is not None and all(0 <= number <= 1 for number in numbers):
        axes.set_xticks(np.linspace(0, 1, 6))


@styled
def effective(results: Results) -> Figure | None:
    """Return a figure of effective weights, measured after rounding, against requested weights.

    Returns:
        The figure; None if no effective weights are known.
    """
    figure = Figure(figsize=(4.8, 4.4))
    axes = figure.add_subplot()
    known = lines(results)
    groups: list[tuple[str, Sequence[Entry]]] = [(e.label, [p for _, p in e.points]) for e in known]
    listed = {e.name for _, points in groups for e in points}
    groups.append(("others" if known else "", [p for p in results.points if p.name not in listed]))
    values: list[float] = []
    for n, (label, points) in enumerate(groups):
        triples = sorted(
            (
                (p.weights[model], p.effective[model], p)
                for p in points
                for model in list(p.weights)[-1:] or ()
                if model in p.effective
            ),
            key=lambda triple: triple[:2],
        )
        if not triples:
            continue
        values += [value for asked, left, _ in triples for value in (asked, left)]
        mark_points(axes, results, triples)
        axes.plot(
            *zip(*(triple[:2] for triple in triples), strict=True),
            "o-",
            color=COLOURS[n % len(COLOURS)],
            markersize=5.5,
            linewidth=1.3,
            label=wrap(label, 40) or None,
        )
    if not values:
        return None
    low, high = min(0.0, *values), max(1.0, *values)
    axes.plot([low, high], [low, high], color=GREY, lw=1.1, dashes=(4, 3), label="as asked for")
    axes.set_xlabel("requested weight")
    axes.set_ylabel("effective weight")
    axes.set_aspect("equal")
    legend(figure, axes)
    return figure
