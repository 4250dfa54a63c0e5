"""The style of all figures: colours, fonts, axis labels, legend, and file formats."""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from merganser.errors import ResourceError
from merganser.results.scores import Results

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

MOST_ROWS = 12
"""Most lines of a study that get a panel each."""

DPI = 200


def styled(function: Callable[P, F]) -> Callable[P, F]:
    """Decorate a function that returns a figure: set the style, and fix the layout of its result."""

    @functools.wraps(function)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> F:
        with matplotlib.rc_context(STYLE), quiet():
            figure = function(*args, **kwargs)
            if figure is not None:
                figure.draw_without_rendering()  # finds the layout, which then stays
                figure.set_layout_engine("none")
            return figure

    return drawn


class quiet(warnings.catch_warnings):
    """A context without matplotlib's warnings about characters that the font lacks."""

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
    """An axis label: a score's name, and whether more or less is better."""
    better = "more" if results.directions[score] == "max" else "less"
    return f"{wrap(score, 40)}  ({better} is better)"


def wrap(text: str, width: int = 34) -> str:
    """A text, broken into lines of at most ``width`` characters."""
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
    data = io.BytesIO()
    form = path.suffix.lower().lstrip(".") or "png"
    no_date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form)
    with matplotlib.rc_context(STYLE), quiet():
        figure.savefig(data, format=form, dpi=DPI, metadata=no_date)
    try:
        path.write_bytes(data.getvalue())
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written ({error.strerror})") from None


def inline(svg: str, name: str) -> str:
    """An SVG file as an element of an HTML page: its ids get the prefix ``name``, its width is limited to
    the page's.
    """
    text = svg[svg.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<image [^>]*) id="[^"]*"', r"\g<1>", text)  # of equal images they are equal
    text = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    head, tail = text.split(">", 1)
    width = re.search(r' width="([0-9.]+)pt"', head)
    if width is not None:  # smaller than that, its letters could not be read
        points = float(width.group(1))
        style = f"width:100%;max-width:{points:g}pt;min-width:{0.58 * points:g}pt;height:auto"
        head = re.sub(r' (width|height)="[^"]*"', "", head) + f' style="{style}"'
    return f"{head}>{tail}"
