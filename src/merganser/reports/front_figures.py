"""Figures of a Pareto front: two scores of all models, with a line through the non-dominated ones."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from merganser import number_format
from merganser.recipe.short_names import shorten
from merganser.reports import label_placement
from merganser.reports.figure_style import (
    COLOURS,
    FAINT,
    GREY,
    INK,
    MOST_ROWS,
    axis_label,
    legend,
    mark_points,
    styled,
    wrap,
)
from merganser.results import front as fronts
from merganser.results.interpolation import Line, lines, short_names
from merganser.results.scores import Entry, Results, Role

MARKS: Mapping[Role, tuple[str, str, float, str | None]] = {
    "expert": ("D", INK, 7.5, None),
    "base": ("s", GREY, 7.5, None),
    "mixed": ("*", COLOURS[3], 12.0, "trained on mixed rewards"),
    "published": ("P", COLOURS[3], 9.0, "published"),
    "reference": ("X", COLOURS[3], 8.5, "reference"),
}
"""Shape, colour, size and legend entry of the models that are not merges."""

MANY = 24
"""If more merges than this are not on a line, only those on the front get labels."""

MOST_LABELS = 60
"""Maximum number of labels in a figure; points on the front come first."""


@styled
def front(
    results: Results,
    x: str,
    y: str,
    *,
    marked: str | None = None,
    size: tuple[float, float] = (6.8, 5.0),
) -> Figure:
    """Return a figure of two scores: merges with their weights, experts and base, and chords between experts.

    Dominated points are hollow. Bars are the scores' 95 % intervals.

    Args:
        results: a study's results.
        x, y: names of the scores on the two axes.
        marked: name of a point to mark; by default the chosen ones are marked.
        size: width and height in inches.
    """
    figure = Figure(figsize=size)
    axes = figure.add_subplot()
    _plane(axes, results, x, y, marked=marked)
    legend(figure, axes)
    _label_points(axes, results, x, y)
    return figure


@styled
def panels(results: Results, x: str, y: str) -> Figure:
    """Return a figure with one panel per line of the study, in which the other lines' points are grey."""
    chosen = [line for line in lines(results) if _in_plane(line, x, y)][:MOST_ROWS]
    columns = min(3, max(1, len(chosen)))
    rows = max(1, -(-len(chosen) // columns))
    figure = Figure(figsize=(3.5 * columns + 0.4, 3.1 * rows + 0.3))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for n, axes in enumerate(grid.flat):
        if n >= len(chosen):
            axes.set_axis_off()
            continue
        _plane(axes, results, x, y, only=chosen[n], colour=COLOURS[n % len(COLOURS)])
        axes.set_title(wrap(chosen[n].label), fontsize=9)
    for n, axes in enumerate(grid.flat):
        if n < len(chosen):
            axes.label_outer()
            _label_points(axes, results, x, y, only=chosen[n])
    return figure


def _in_plane(line: Line, x: str, y: str) -> bool:
    return any(x in e.scores and y in e.scores for _, e in line.points)


def _plane(
    axes: Axes,
    results: Results,
    x: str,
    y: str,
    *,
    only: Line | None = None,
    colour: str | None = None,
    marked: str | None = None,
) -> None:
    """Draw two scores of all models into axes."""
    directions = {name: results.directions[name] for name in (x, y)}
    entries = fronts.scored(results.entries, directions)
    best = {e.name for e in fronts.non_dominated(entries, directions)}
    known = lines(results)
    chosen = [line for line in known if _in_plane(line, x, y)]
    seen: set[str] = set()
    chords: set[frozenset[str]] = set()
    for n, line in enumerate(chosen):
        mine = only is None or line == only
        tint = (colour or COLOURS[n % len(COLOURS)]) if mine else FAINT
        path = [(e.scores[x].mean, e.scores[y].mean) for _, e in _both(line, x, y)]
        axes.plot(*zip(*path, strict=True), color=tint, linewidth=1.3, alpha=0.75, zorder=3)
        ends = line.ends
        if mine and ends and all(s in e.scores for s in (x, y) for e in ends):
            pair = frozenset(e.name for e in ends)
            if pair not in chords:
                name = None if chords or only else "straight line between the ends"
                xs, ys = ([e.scores[s].mean for e in ends] for s in (x, y))
                axes.plot(xs, ys, color=GREY, linewidth=1.1, dashes=(4, 3), zorder=2, label=name)
            chords.add(pair)
        name = None if only or len(chosen) < 2 else wrap(line.label, 40)
        for _, point in line.points:
            if point in entries:
                seen.add(point.name)
                _dot(axes, point, x, y, tint, filled=point.name in best, bars=mine)
        if name:
            axes.plot([], [], "o-", color=tint, markersize=6, linewidth=1.3, label=name)
    for entry in entries:
        if entry.role == "point" and entry.name not in seen:
            _dot(axes, entry, x, y, FAINT if only else COLOURS[0], entry.name in best, not only)
    for entry in entries:
        if entry.role != "point":
            shape, tint, size, _ = MARKS[entry.role]
            _dot(axes, entry, x, y, tint, entry.name in best, True, shape, size)
    for role in dict.fromkeys(entry.role for entry in entries if entry.role != "point"):
        shape, tint, size, text = MARKS[role]
        if text and only is None:
            axes.plot([], [], shape, color=tint, markersize=size, label=text)
    if only is None:
        if any(e.name not in best for e in entries):
            axes.plot([], [], "o", mfc="white", mec=COLOURS[0], label="another model is better")
        rings = [e for e in entries if e.name in ({marked} if marked else set(results.chosen))]
        for n, entry in enumerate(rings):
            axes.plot(
                entry.scores[x].mean,
                entry.scores[y].mean,
                "o",
                markersize=15,
                markerfacecolor="none",
                markeredgecolor=COLOURS[1],
                markeredgewidth=1.8,
                zorder=6,
                label=None if n else "this model" if marked else "chosen",
            )
    shown = entries if only is None else [e for e in entries if e.name in _members(only)]
    mark_points(axes, results, [(e.scores[x].mean, e.scores[y].mean, e) for e in shown])
    axes.margins(0.12)
    axes.set_xlabel(axis_label(x, results))
    axes.set_ylabel(axis_label(y, results))


def _members(line: Line) -> set[str]:
    return {e.name for e in [*(e for _, e in line.points), *(line.ends or ())]}


def _both(line: Line, x: str, y: str) -> list[tuple[float, Entry]]:
    return [(w, e) for w, e in line.along(x) if y in e.scores]


def _dot(
    axes: Axes,
    entry: Entry,
    x: str,
    y: str,
    colour: str,
    filled: bool,
    bars: bool,
    shape: str = "o",
    size: float = 6.5,
) -> None:
    horizontal, vertical = entry.scores[x], entry.scores[y]
    if bars:
        axes.plot(
            [horizontal.low, horizontal.high], [vertical.mean] * 2, color=colour, lw=0.9, alpha=0.35
        )
        axes.plot(
            [horizontal.mean] * 2, [vertical.low, vertical.high], color=colour, lw=0.9, alpha=0.35
        )
    axes.plot(
        horizontal.mean,
        vertical.mean,
        shape,
        markersize=size,
        markerfacecolor=colour if filled else "white",
        markeredgecolor=colour,
        markeredgewidth=1.4,
        zorder=5,
    )


def _label_points(
    axes: Axes, results: Results, x: str, y: str, *, only: Line | None = None
) -> None:
    """Draw labels: weights for merges, names for the other models."""
    directions = {name: results.directions[name] for name in (x, y)}
    entries = fronts.scored(results.entries, directions)
    best = {e.name for e in fronts.non_dominated(entries, directions)}
    chosen = [only] if only else [line for line in lines(results) if _in_plane(line, x, y)]
    shown: dict[str, tuple[str, str]] = {}
    paths = []
    for n, line in enumerate(chosen):
        colour = INK if only or len(chosen) == 1 else COLOURS[n % len(COLOURS)]
        for number, entry in line.points:
            shown[entry.name] = (number_format.ten_digits(round(number, 6)), colour)
        along = [(e.scores[x].mean, e.scores[y].mean) for _, e in _both(line, x, y)]
        paths += [along, [along[0], along[-1]]]
    for name, short in short_names(results).items():
        if only is None or only.ends is None or name in {e.name for e in only.ends}:
            shown[name] = (short, INK)
    if only is None:
        loose = [e for e in entries if e.role == "point" and e.name not in shown]
        if len(loose) > MANY:
            loose = [e for e in loose if e.name in best or e.name in results.chosen]
        for entry, short in zip(loose, shorten([e.name for e in loose], 20), strict=True):
            shown[entry.name] = (short, INK)
    wanted = [e for e in entries if e.name in shown]
    wanted.sort(key=lambda e: (e.role == "point", e.name not in best))
    for entry in entries:
        a, b = entry.scores[x], entry.scores[y]
        paths += [[(a.low, b.mean), (a.high, b.mean)], [(a.mean, b.low), (a.mean, b.high)]]
    axes.figure.figure.draw_without_rendering()
    label_placement.place(
        axes,
        [
            label_placement.Label(
                e.scores[x].mean, e.scores[y].mean, *shown[e.name], bold=e.role != "point"
            )
            for e in wanted[:MOST_LABELS]
        ],
        paths,
    )
