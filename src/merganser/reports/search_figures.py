"""Figures of a search: the best score so far, and each parameter against the scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from merganser.number_format import ten_digits
from merganser.reports.figure_style import (
    COLOURS,
    FAINT,
    GREY,
    INK,
    PAPER,
    axis_label,
    mark_points,
    styled,
)
from merganser.results.importance import importances
from merganser.results.scores import Entry, Results

MOST_SCORES = 3
MOST_PARAMETERS = 8


def objectives(results: Results) -> list[str]:
    """Return the names of a search's objectives; empty for other studies."""
    block = results.settings.get("search")
    given = block.get("objectives") if isinstance(block, Mapping) else None
    names = [given] if isinstance(given, str) else list(given) if isinstance(given, Mapping) else []
    return [name for name in names if name in results.directions][:MOST_SCORES]


@styled
def progress(results: Results, scores: Sequence[str]) -> Figure:
    """Return a figure of the candidates' scores in the order of the search, and of the best so far.

    Candidates that violate a constraint are hollow, and are never the best.

    Args:
        results: the results of a search.
        scores: names of its objectives.
    """
    figure = Figure(figsize=(6.8, 2.7 * len(scores)))
    grid = figure.subplots(len(scores), 1, sharex=True, squeeze=False)
    for score, axes, colour in zip(scores, grid.flat, COLOURS, strict=False):
        better = max if results.directions[score] == "max" else min
        numbered = [(n, e) for n, e in enumerate(results.points, 1) if score in e.scores]
        best: list[float] = []
        for _, entry in numbered:
            mean = [entry.scores[score].mean] if _is_allowed(entry, results) else []
            so_far = [*best[-1:], *mean]
            best.append(better((x for x in so_far if math.isfinite(x)), default=math.nan))
        numbers = [n for n, _ in numbered]
        _dots(axes, numbers, score, [e for _, e in numbered], results)
        axes.step(numbers, best, where="post", color=colour, linewidth=1.8, label="best so far")
        axes.set_ylabel(axis_label(score, results))
        axes.legend(loc="best")
    grid.flat[-1].set_xlabel("candidate")
    grid.flat[-1].xaxis.get_major_locator().set_params(integer=True)
    return figure


@styled
def parameters(results: Results, scores: Sequence[str]) -> Figure | None:
    """Return a figure of each objective against each varied parameter; None if no parameter varies.

    Args:
        results: the results of a search.
        scores: names of its objectives.
    """
    values = flat_values(results)
    varied = varied_keys(values)[:MOST_PARAMETERS]
    if not varied:
        return None
    columns = min(4, len(varied))
    rows = -(-len(varied) // columns)
    figure = Figure(figsize=(2.6 * columns + 0.6, 2.5 * rows * len(scores) + 0.2))
    grid = figure.subplots(rows * len(scores), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for s, score in enumerate(scores):
        for p, key in enumerate(varied):
            axes = grid[s * rows + p // columns][p % columns]
            axes.set_axis_on()
            having = [e for e in results.points if score in e.scores and key in values[e.name]]
            places = [values[entry.name][key] for entry in having]
            if not all(_is_number(place) for place in places):
                places = [ten_digits(place) for place in places]
            _dots(axes, places, score, having, results)
            axes.set_xlabel(key)
            if p % columns == 0:
                axes.set_ylabel(axis_label(score, results))
    return figure


@styled
def importance(results: Results, scores: Sequence[str]) -> Figure | None:
    """Return a figure of the share of each objective's variance that each parameter explains alone.

    A mark shows the share that chance would explain.

    Args:
        results: the results of a search.
        scores: names of its objectives.

    Returns:
        The figure; None if there are too few candidates.
    """
    values = flat_values(results)
    keys = varied_keys(values)
    shares = {}
    for score in scores:
        having = [e for e in results.points if score in e.scores]
        means = [e.scores[score].mean for e in having]
        shares[score] = importances([values[e.name] for e in having], means, keys)
    if not any(shares.values()):
        return None
    rows = max(len(row) for row in shares.values())
    figure = Figure(figsize=(3.4 * len(scores) + 0.6, 0.32 * rows + 1.2))
    grid = figure.subplots(1, len(scores), squeeze=False, sharex=True)
    for axes, (score, listed), colour in zip(grid.flat, shares.items(), COLOURS, strict=False):
        places = range(len(listed))
        tints = [colour if row.share > row.chance else FAINT for row in listed]
        axes.barh(places, [row.share for row in listed], color=tints, height=0.62)
        for place, row in zip(places, listed, strict=True):
            axes.vlines(row.chance, place - 0.4, place + 0.4, color=INK, linewidth=1.3)
        axes.set_yticks(places, [row.key for row in listed])
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"share of the variance of {score}")
    return figure


def flat_values(results: Results) -> dict[str, dict[str, Any]]:
    """Return the parameters of each merge, by its name; lists are split into single numbers."""
    return {entry.name: _flat(entry.values) for entry in results.points}


def varied_keys(values: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the parameters that have several values."""
    keys = dict.fromkeys(key for settings in values.values() for key in settings)
    return [
        k
        for k in keys
        if len({ten_digits(settings[k]) for settings in values.values() if k in settings}) > 1
    ]


def _dots(
    axes: Axes, places: Sequence[Any], score: str, entries: Sequence[Entry], results: Results
) -> None:
    """Draw candidates' scores with 95 % intervals: hollow if a constraint is violated, ringed if selected."""
    for place, entry in zip(places, entries, strict=True):
        estimate = entry.scores[score]
        fill = GREY if _is_allowed(entry, results) else PAPER
        axes.vlines(place, estimate.low, estimate.high, color=FAINT, linewidth=1, zorder=1)
        axes.scatter([place], [estimate.mean], s=18, facecolor=fill, edgecolor=GREY, zorder=2)
        if entry.name in results.chosen:
            axes.scatter([place], [estimate.mean], s=90, facecolor="none", edgecolor=INK, zorder=3)
    shestimate = zip(places, entries, strict=True)
    mark_points(axes, results, [(place, e.scores[score].mean, e) for place, e in shestimate])


def _is_allowed(entry: Entry, results: Results) -> bool:
    """Whether a candidate satisfies the search's constraints."""
    block = results.settings.get("search")
    limits = block.get("constraints") if isinstance(block, Mapping) else None
    for name, limit in limits.items() if isinstance(limits, Mapping) else ():
        if name in entry.scores and isinstance(limit, Mapping):
            least, most = limit.get("least", -math.inf), limit.get("most", math.inf)
            if not float(least) <= entry.scores[name].mean <= float(most):
                return False
    return True


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by key; the entries of lists by ``key[0]``, ``key[1]`` …"""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, list | tuple):
            result |= {f"{key}[{n}]": entry for n, entry in enumerate(value)}
        else:
            result[key] = value
    return result


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
