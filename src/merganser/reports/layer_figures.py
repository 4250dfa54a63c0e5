"""Heat maps of the differences between two models, by layers and kinds of tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from merganser.reports.figure_style import SHADE, styled, wrap

PARTS = {
    "relative": ("distance, relative to A's norm", "viridis"),
    "changed": ("share of elements that differ", "viridis"),
    "cosine": ("cosine of the two changes", "PuOr"),
    "interference": ("share of the changes that cancels", "viridis"),
}
"""The measures with a heat map: title and colour map by measure."""


@styled
def layers(
    cells: Mapping[str, Mapping[str, Mapping[str, float | None]]], title: str = ""
) -> Figure:
    """Return a figure with heat maps of the differences of two models: layers across, kinds of tensors down.

    Args:
        cells: measures by kind of tensor and layer, from :meth:`merganser.differences.diff.Diff.cells`.
        title: the figure's title.
    """
    kinds = list(cells)
    names = {layer for row in cells.values() for layer in row}
    columns = sorted(
        names, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0)
    )
    parts = [
        part
        for part in PARTS
        if any(cell.get(part) is not None for row in cells.values() for cell in row.values())
    ]
    longest = max((len(kind) for kind in kinds), default=8)
    width = min(13.0, max(5.6, 0.26 * len(columns) + 0.08 * longest + 2.0))
    height = (0.23 * len(kinds) + 1.15) * max(1, len(parts)) + 0.3
    figure = Figure(figsize=(width, height))
    if title:
        figure.suptitle(wrap(title, 90), fontsize=11, fontweight="bold", x=0.01, ha="left")
    grid = figure.subplots(max(1, len(parts)), 1, squeeze=False)
    for axes, part in zip(grid[:, 0], parts, strict=False):
        numbers = np.array(
            [
                [math.nan if (v := cells[k].get(c, {}).get(part)) is None else v for c in columns]
                for k in kinds
            ]
        )
        caption, colours = PARTS[part]
        norm = _norm(part, numbers)
        image = axes.pcolormesh(
            np.ma.masked_invalid(numbers), cmap=colours, norm=norm, edgecolors="white", lw=0.4
        )
        axes.invert_yaxis()
        bar = figure.colorbar(image, ax=axes, pad=0.015, fraction=0.05, aspect=14)
        bar.outline.set_visible(False)
        bar.ax.yaxis.set_minor_locator(NullLocator())
        if isinstance(norm, LogNorm):
            bar.ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.set_title(caption)
        axes.grid(False)
        axes.set_facecolor(SHADE)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_yticks([n + 0.5 for n in range(len(kinds))], kinds, fontsize=8)
        step = max(1, -(-len(columns) // 32))
        shown = [n for n, c in enumerate(columns) if n % step == 0 or not c.isdigit()]
        axes.set_xticks([n + 0.5 for n in shown], [columns[n] for n in shown], fontsize=8)
        axes.set_xlabel("layer")
    return figure


def _norm(part: str, numbers: np.ndarray[Any, np.dtype[Any]]) -> Normalize:
    """Return a measure's colour scale: logarithmic for distances over orders of magnitude, else linear."""
    finite = numbers[np.isfinite(numbers)]
    if part == "cosine":
        return Normalize(-1, 1)
    positive = finite[finite > 0]
    if part == "relative" and positive.size and positive.max() > 5 * positive.min():
        return LogNorm(positive.min(), positive.max(), clip=True)
    return Normalize(0, float(finite.max()) if finite.size and finite.max() > 0 else 1.0)
