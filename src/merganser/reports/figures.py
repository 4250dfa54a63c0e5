"""Pictures of a study and of what sets models apart: for papers, cards and reports.

Each function makes a :class:`matplotlib.figure.Figure` of its own, without pyplot and its global list
of figures; :func:`save` writes one. Colours are those of Okabe and Ito 2008, which
people with any colour vision tell apart.
"""

from __future__ import annotations

import functools
import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from merganser import number_format
from merganser.errors import ResourceError
from merganser.recipe.short_names import shorten
from merganser.reports import label_placement
from merganser.results import front as fronts
from merganser.results.interpolation import Line, gap, lines, short_names
from merganser.results.scores import Entry, Results, Role

P = ParamSpec("P")
F = TypeVar("F", bound=Figure | None)

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, GREY, FAINT = "#1a1a1a", "#6b6b6b", "#c9c9c9"

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#ececec",
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,  # names may hold dollars
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",  # looks the same wherever it is opened
    "svg.hashsalt": "merganser",  # and has the same bytes
}

MARKS: Mapping[Role, tuple[str, str, float, str | None]] = {
    "expert": ("D", INK, 7.5, None),
    "base": ("s", GREY, 7.5, None),
    "mixed": ("*", COLOURS[3], 12.0, "trained on mixed rewards"),
    "published": ("P", COLOURS[3], 9.0, "published"),
    "reference": ("X", COLOURS[3], 8.5, "reference"),
}
"""Shape, colour and size of the models that are no merges, and what the legend says of them."""

MOST_LABELS = 60
"""Points of a picture that get labels, those of the front first."""

MANY = 24
"""Merges on no line, beyond which only those of the front get labels."""

MOST_ROWS = 12
"""Lines of a study that small pictures are made of."""

DPI = 200


def styled(function: Callable[P, F]) -> Callable[P, F]:
    """A decorator for functions that make figures: all have the same style, and a layout that stays."""

    @functools.wraps(function)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> F:
        with matplotlib.rc_context(STYLE), _quiet():
            figure = function(*args, **kwargs)
            if figure is not None:
                figure.draw_without_rendering()  # finds the layout, which then stays
                figure.set_layout_engine("none")
            return figure

    return drawn


class _quiet(warnings.catch_warnings):
    """Without warnings of letters that the font lacks."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings(
            "ignore", message="Matplotlib currently does not support .* natively"
        )
        return entered


# -- the front -----------------------------------------------------------------------------------


@styled
def front(
    results: Results,
    x: str,
    y: str,
    *,
    marked: str | None = None,
    size: tuple[float, float] = (6.8, 5.0),
) -> Figure:
    """The plane of two scores: points with their weights, experts and base, and the chords between experts.

    Points that another model dominates are hollow. Bars are the scores' 95 % intervals.

    Args:
        results: what a study found.
        x, y: names of scores.
        marked: a point to be marked; by default those that were chosen.
        size: width and height in inches.
    """
    figure = Figure(figsize=size)
    axes = figure.add_subplot()
    _plane(axes, results, x, y, marked=marked)
    _legend(figure, axes)
    _label_points(axes, results, x, y)
    return figure


@styled
def panels(results: Results, x: str, y: str) -> Figure:
    """The same plane once for each line of the study, the other lines' points in grey."""
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
        axes.set_title(_wrap(chosen[n].label), fontsize=9)
    for n, axes in enumerate(grid.flat):
        if n < len(chosen):
            axes.label_outer()
            _label_points(axes, results, x, y, only=chosen[n])
    return figure


def _legend(figure: Figure, axes: Axes) -> None:
    """Below the picture, in as many columns as have room; the picture grows by the rows."""
    handles, names = axes.get_legend_handles_labels()
    if not names:
        return
    width, height = figure.get_size_inches()
    longest = max(len(part) for name in names for part in name.split("\n"))
    columns = max(1, min(len(names), int(width / (0.085 * longest + 0.65))))
    rows = -(-len(names) // columns) * max(name.count("\n") + 1 for name in names)
    figure.set_size_inches(width, height + 0.2 * (rows - 1))
    figure.legend(handles, names, loc="outside lower center", ncols=columns)


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
    """One plane of two scores."""
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
        name = None if only or len(chosen) < 2 else _wrap(line.label, 40)
        for _, each in line.points:
            if each in entries:
                seen.add(each.name)
                _dot(axes, each, x, y, tint, filled=each.name in best, bars=mine)
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
    axes.margins(0.12)
    axes.set_xlabel(axis_label(x, results))
    axes.set_ylabel(axis_label(y, results))


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
    """Weights beside points, names beside the other models."""
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


def axis_label(score: str, results: Results) -> str:
    """A score's name, and whether more or less of it is better."""
    better = "more" if results.directions[score] == "max" else "less"
    return f"{_wrap(score, 40)}  ({better} is better)"


def _wrap(text: str, width: int = 34) -> str:
    """A long text in two lines or more."""
    lines_, line = [], ""
    for word in re.split(r"(?<=[ /_])", " ".join(text.split())):
        if line and len(line + word.rstrip()) > width:
            lines_.append(line.rstrip())
            line = ""
        line += word
    return "\n".join([*lines_, line.rstrip()])


# -- scores along a line -------------------------------------------------------------------------


@styled
def curves(results: Results, scores: Sequence[str] | None = None) -> Figure:
    """Each score against the weight, a row for each line of the study.

    The dashed chord joins the ends' scores; the place where the curve is farthest from it is marked
    with how much better (+) or worse (-) it is there. Bands are the scores' 95 % intervals.
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
                axes.set_title(_wrap(line.label), fontsize=9)
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
    found = gap(line, score, results.directions[score])
    if found is not None and line.ends is not None:
        begin, end = (e.scores[score].mean for e in line.ends)
        axes.plot([0, 1], [begin, end], color=GREY, linewidth=1.1, dashes=(4, 3), zorder=2)
        chord = begin + found.at * (end - begin)
        value = next(e.scores[score].mean for n, e in line.points if n == found.at)
        axes.plot([found.at] * 2, [chord, value], color=INK, linewidth=1.6, zorder=3)
        above = value >= chord
        axes.annotate(
            f"{found.gap:+.2g}".replace("-", "−"),
            (found.at, value),
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
    axes.set_xlabel(_wrap(line.axis))
    axes.set_ylabel(_wrap(axis_label(score, results), 30))
    if line.ends is not None and all(0 <= number <= 1 for number in numbers):
        axes.set_xticks(np.linspace(0, 1, 6))


@styled
def effective(results: Results) -> Figure | None:
    """The weights that rounding left against those that were asked for.

    Returns:
        None if no point's are known.
    """
    figure = Figure(figsize=(4.8, 4.4))
    axes = figure.add_subplot()
    known = lines(results)
    groups: list[tuple[str, Sequence[Entry]]] = [(e.label, [p for _, p in e.points]) for e in known]
    listed = {e.name for _, points in groups for e in points}
    groups.append(("others" if known else "", [p for p in results.points if p.name not in listed]))
    values: list[float] = []
    for n, (label, points) in enumerate(groups):
        pairs = sorted(
            (p.weights[model], p.effective[model])
            for p in points
            for model in list(p.weights)[-1:] or ()
            if model in p.effective
        )
        if not pairs:
            continue
        values += [value for pair in pairs for value in pair]
        axes.plot(
            *zip(*pairs, strict=True),
            "o-",
            color=COLOURS[n % len(COLOURS)],
            markersize=5.5,
            linewidth=1.3,
            label=_wrap(label, 40) or None,
        )
    if not values:
        return None
    low, high = min(0.0, *values), max(1.0, *values)
    axes.plot([low, high], [low, high], color=GREY, lw=1.1, dashes=(4, 3), label="as asked for")
    axes.set_xlabel("weight that was asked for")
    axes.set_ylabel("weight that rounding left")
    axes.set_aspect("equal")
    _legend(figure, axes)
    return figure


# -- what sets models apart ----------------------------------------------------------------------

PARTS = {
    "relative": ("distance, relative to A's norm", "viridis"),
    "changed": ("share of elements that differ", "viridis"),
    "cosine": ("cosine of the two changes", "PuOr"),
    "interference": ("share of the changes that cancels", "viridis"),
}
"""Figures of a difference that are drawn, each with its title and colours."""


@styled
def layers(
    cells: Mapping[str, Mapping[str, Mapping[str, float | None]]], title: str = ""
) -> Figure:
    """Heat maps of what sets two models apart: layers across, kinds of tensors down.

    Args:
        cells: figures by kind of tensor and layer, as :meth:`merganser.differences.diff.Diff.cells` gives them.
        title: what was compared.
    """
    kinds = list(cells)
    found = {layer for row in cells.values() for layer in row}
    columns = sorted(
        found, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0)
    )
    parts = [
        part
        for part in PARTS
        if any(each.get(part) is not None for row in cells.values() for each in row.values())
    ]
    longest = max((len(kind) for kind in kinds), default=8)
    width = min(13.0, max(5.6, 0.26 * len(columns) + 0.08 * longest + 2.0))
    height = (0.23 * len(kinds) + 1.15) * max(1, len(parts)) + 0.3
    figure = Figure(figsize=(width, height))
    if title:
        figure.suptitle(_wrap(title, 90), fontsize=11, fontweight="bold", x=0.01, ha="left")
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
        axes.set_facecolor("#f2f2f2")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_yticks([n + 0.5 for n in range(len(kinds))], kinds, fontsize=8)
        step = max(1, -(-len(columns) // 32))
        shown = [n for n, c in enumerate(columns) if n % step == 0 or not c.isdigit()]
        axes.set_xticks([n + 0.5 for n in shown], [columns[n] for n in shown], fontsize=8)
        axes.set_xlabel("layer")
    return figure


def _norm(part: str, numbers: np.ndarray[Any, np.dtype[Any]]) -> Normalize:
    """Colours of distances by their order of magnitude, if there are several; of shares and cosines as
    they are."""
    finite = numbers[np.isfinite(numbers)]
    if part == "cosine":
        return Normalize(-1, 1)
    positive = finite[finite > 0]
    if part == "relative" and positive.size and positive.max() > 5 * positive.min():
        return LogNorm(positive.min(), positive.max(), clip=True)
    return Normalize(0, float(finite.max()) if finite.size and finite.max() > 0 else 1.0)


# -- files ---------------------------------------------------------------------------------------


def save(figure: Figure, path: Path) -> None:
    """Write a picture; the name's ending tells the format.

    Raises:
        ResourceError: it cannot be written.
    """
    data = io.BytesIO()
    form = path.suffix.lower().lstrip(".") or "png"
    quiet = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form)
    with matplotlib.rc_context(STYLE), _quiet():
        figure.savefig(data, format=form, dpi=DPI, metadata=quiet)
    try:
        path.write_bytes(data.getvalue())
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written ({error.strerror})") from None


def inline(svg: str, name: str) -> str:
    """An SVG file as an element of a page: ids begin with ``name``, and it is as wide as the page at most."""
    found = svg[svg.index("<svg") :]
    found = re.sub(r"<metadata>.*?</metadata>", "", found, flags=re.DOTALL)
    found = re.sub(r'(<image [^>]*) id="[^"]*"', r"\g<1>", found)  # of equal images they are equal
    found = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", found)
    head, tail = found.split(">", 1)
    width = re.search(r' width="([0-9.]+)pt"', head)
    if width is not None:  # smaller than that, its letters could not be read
        points = float(width.group(1))
        style = f"width:100%;max-width:{points:g}pt;min-width:{0.58 * points:g}pt;height:auto"
        head = re.sub(r' (width|height)="[^"]*"', "", head) + f' style="{style}"'
    return f"{head}>{tail}"
