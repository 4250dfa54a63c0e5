"""The style of all figures: colours, fonts, axis labels, legend, and file formats."""

from __future__ import annotations

import functools
import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from merganser.errors import ResourceError
from merganser.results.scores import Entry, Results

P = ParamSpec("P")
F = TypeVar("F", bound=Figure | None)

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, GREY, FAINT = "#1a1a1a", "#6b6b6b", "#c9c9c9"
PAPER, GRID, SHADE = "#ffffff", "#ececec", "#f2f2f2"

ON_DARK, ON_LIGHT = "#fefefe", "#191919"
"""Colours of text on a coloured background, the same on light and dark pages."""

NAMED = {PAPER: "paper", INK: "ink", GREY: "grey", FAINT: "faint", GRID: "grid", SHADE: "shade"} | {
    colour.lower(): f"colour-{n}" for n, colour in enumerate(COLOURS, 1)
}
"""Names of the colours that a page's style sheet sets by variables ``--figure-NAME``."""

_POINTS = "entries"

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,  # names may contain dollar signs
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": PAPER,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "path",  # text as paths looks the same without the font
    "svg.hashsalt": "merganser",  # makes ids, and so the bytes, reproducible
}

MOST_ROWS = 12
"""Maximum number of panels, one per line of a study."""

DPI = 200


def styled(function: Callable[P, F]) -> Callable[P, F]:
    """Decorate a function that returns a figure: set the style, and fix the layout of its result."""

    @functools.wraps(function)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> F:
        with matplotlib.rc_context(STYLE), quiet():
            figure = function(*args, **kwargs)
            if figure is not None:
                figure.draw_without_rendering()  # computes the layout, which is then fixed
                figure.set_layout_engine("none")
                _number_points(figure)
            return figure

    return drawn


def mark_points(axes: Axes, results: Results, points: Iterable[tuple[Any, Any, Entry]]) -> None:
    """Add invisible marks at models' points, which :func:`inline` turns into tooltips.

    Models that are not in the results, and points with non-finite coordinates, get no mark.

    Args:
        axes: the axes to draw into.
        results: the study's results; marks refer to the index of an entry.
        points: x, y and entry of each point.
    """
    places = {entry.name: n for n, entry in enumerate(results.entries)}
    shown = [
        (x, y, places[entry.name])
        for x, y, entry in points
        if entry.name in places and all(isinstance(v, str) or math.isfinite(v) for v in (x, y))
    ]
    if shown:
        xs, ys, numbers = zip(*shown, strict=True)
        name = f"{_POINTS}-{'.'.join(map(str, numbers))}"
        axes.plot(xs, ys, "o", ms=12, color="none", clip_on=False, zorder=9, gid=name)


def _number_points(figure: Figure) -> None:
    """Make the ids of a figure's marks unique."""
    marks = [line for axes in figure.axes for line in axes.lines]
    for n, line in enumerate(line for line in marks if (line.get_gid() or "").startswith(_POINTS)):
        line.set_gid(f"{line.get_gid()}-{n}")


class quiet(warnings.catch_warnings):
    """A context that suppresses matplotlib's warnings about characters that the font lacks."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings(
            "ignore", message="Matplotlib currently does not support .* natively"
        )
        return entered


def legend(figure: Figure, axes: Axes) -> None:
    """Draw the legend below the axes, in as many columns as fit; the figure grows by its rows."""
    handles, names = axes.get_legend_handles_labels()
    if not names:
        return
    width, height = figure.get_size_inches()
    longest = max(len(part) for name in names for part in name.split("\n"))
    columns = max(1, min(len(names), int(width / (0.085 * longest + 0.65))))
    rows = -(-len(names) // columns) * max(name.count("\n") + 1 for name in names)
    figure.set_size_inches(width, height + 0.2 * (rows - 1))
    figure.legend(handles, names, loc="outside lower center", ncols=columns)


def axis_label(score: str, results: Results) -> str:
    """Return an axis label: a score's name, and whether more or less is better."""
    better = "more" if results.directions[score] == "max" else "less"
    return f"{wrap(score, 40)}  ({better} is better)"


def wrap(text: str, width: int = 34) -> str:
    """Return a text, broken into lines of at most ``width`` characters."""
    lines_, line = [], ""
    for word in re.split(r"(?<=[ /_])", " ".join(text.split())):
        if line and len(line + word.rstrip()) > width:
            lines_.append(line.rstrip())
            line = ""
        line += word
    return "\n".join([*lines_, line.rstrip()])


def save(figure: Figure, path: Path) -> None:
    """Write a figure; the file extension sets the format.

    Raises:
        ResourceError: when the file cannot be written.
    """
    data = _drawn(figure, path.suffix.lower().lstrip(".") or "png")
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written ({error.strerror})") from None


def as_svg(figure: Figure) -> str:
    """Return a figure as the text of an SVG file."""
    return _drawn(figure, "svg").decode()


def _drawn(figure: Figure, form: str) -> bytes:
    data = io.BytesIO()
    no_date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form)
    with matplotlib.rc_context(STYLE), quiet():
        figure.savefig(data, format=form, dpi=DPI, metadata=no_date)
    return data.getvalue()


def inline(svg: str, name: str, hints: Sequence[str] = ()) -> str:
    """Return an SVG file as an element of a page.

    It uses the page's colours (:data:`NAMED`), is at most as wide as the page, and its points have
    tooltips.

    Args:
        svg: the file's text.
        name: prefix of its ids.
        hints: the tooltip of each entry of the results; see :func:`mark_points`.
    """
    text = svg[svg.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(
        rf'<g id="{_POINTS}-([0-9.]+)-[0-9]+">(.*?</g>\s*)</g>',
        lambda match: _titled(match[2], [int(n) for n in match[1].split(".")], hints),
        text,
        flags=re.DOTALL,
    )
    text = re.sub(r'(<image [^>]*) id="[^"]*"', r"\g<1>", text)  # equal images have equal ids
    text = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r'(?<=[ "])(fill: |stroke: )(#[0-9a-f]{6})', _variable, text)
    head, tail = text.split(">", 1)
    width = re.search(r' width="([0-9.]+)pt"', head)
    if width is not None:  # with a minimum width, below which text is illegible
        points = float(width.group(1))
        style = f"width:100%;max-width:{points:g}pt;min-width:{0.45 * points:g}pt;height:auto"
        style += f";fill:var(--figure-{NAMED[INK]})"  # SVG omits black, its default
        head = re.sub(r' (width|height)="[^"]*"', "", head) + f' style="{style}"'
    return f"{head}>{tail}"


def _variable(match: re.Match[str]) -> str:
    name = NAMED.get(match[2])
    return f"{match[1]}var(--figure-{name})" if name else match[0]


def _titled(group: str, numbers: Sequence[int], hints: Sequence[str]) -> str:
    """Return a group of invisible marks with tooltips, from left to right."""
    head, *uses = re.split(r"(?=<use )", group)
    if len(uses) != len(numbers) or not hints:
        return ""
    marks = []
    for use, number in zip(uses, numbers, strict=True):
        place = re.search(r' x="([-0-9.e]+)" y="([-0-9.e]+)"', use)
        name = re.search(r' xlink:href="[^"]*"', use)
        if place is None or name is None:
            return ""
        title = escape(hints[number], quote=False)
        mark = f'<g class="point" role="img"><title>{title}</title><use{name[0]}{place[0]}/></g>'
        marks.append((float(place[1]), float(place[2]), mark))
    head = re.sub(r' (style|clip-path)="[^"]*"', "", head)  # the page's style sheet sets their look
    return f"<g>{head}{''.join(mark for _, _, mark in sorted(marks))}</g></g>"
