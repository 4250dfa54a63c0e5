"""Pictures of a report, as elements of its page and as separate files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from merganser import extras, number_format
from merganser.errors import ResourceError, reraise_os_errors
from merganser.results.interpolation import labels
from merganser.results.scores import Entry, Results, Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = "figures"

ENDINGS = ("svg", "png", "pdf")

MOST_WEIGHTS = 6
"""Maximum number of merged models whose weights a tooltip shows."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure on the page.

    Attributes:
        title, caption: its title and caption.
        files: relative URLs of the same figure as files, by format; empty if there are none.
        svg: the figure as an element of the page.
    """

    title: str
    caption: str
    files: Mapping[str, str]
    svg: Markup


class Pictures:
    """Draws the pictures of a study.

    Args:
        study: the study's results.
        folder: the folder for the pictures' files; None to write none.

    Attributes:
        files: paths of the written files.
    """

    def __init__(self, study: Results, folder: Path | None) -> None:
        self.folder = folder
        self.files: list[Path] = []
        self._hints = hints(study)
        self._figures = extras.load("merganser.reports.figures", "plot")

    def __call__(self, name: str, figure: Figure, title: str, caption: str) -> Picture:
        """Return a figure for the page, and write its files.

        Args:
            name: the name of its files, without extension.
            figure: the figure.
            title: a short title.
            caption: a description of the figure.

        Raises:
            ResourceError: a file cannot be written.
        """
        svg = self._figures.as_svg(figure)
        addresses = {}
        if self.folder is not None:
            for ending in ENDINGS:
                path = self.folder / FIGURES / f"{name}.{ending}"
                if ending == "svg":
                    with reraise_os_errors(ResourceError, "written", path):
                        path.write_text(svg, encoding="utf-8")
                else:
                    self._figures.save(figure, path)
                self.files.append(path)
                addresses[ending.upper()] = f"{FIGURES}/{path.name}"
        inline = self._figures.inline(svg, name, self._hints)
        return Picture(title, caption, addresses, Markup(inline))


def hints(study: Results) -> list[str]:
    """Return the tooltip of each entry: lines with its name, values, weights and scores."""
    short = labels(study)
    return [_hint(entry, study, short) for entry in study.entries]


def _hint(entry: Entry, study: Results, short: Mapping[str, str]) -> str:
    lines = [entry.name if entry.role == "point" else f"{entry.name} ({entry.role})"]
    if entry.values:
        values = [f"{k} = {number_format.ten_digits(v)}" for k, v in entry.values.items()]
        lines.append(", ".join(values))
    if entry.weights:
        lines.append(f"weights: {_weights(entry, short)}")
    for name in study.directions:
        if (score := entry.scores.get(name)) is not None:
            lines.append(f"{name}: {_score(score)}")
    if entry.name in study.chosen:
        lines.append(f"chosen: {study.chosen[entry.name]}")
    return "\n".join(" ".join(line.split()) for line in lines)


def _weights(entry: Entry, short: Mapping[str, str]) -> str:
    parts = []
    for model, asked in list(entry.weights.items())[:MOST_WEIGHTS]:
        left = entry.effective.get(model)
        arrow = "" if left is None else f" → {number_format.typeset_decimal(left, 3)}"
        parts.append(f"{short.get(model, model)} {number_format.typeset(asked)}{arrow}")
    more = len(entry.weights) - len(parts)
    return ", ".join(parts) + (f" and {more} more" if more else "")


def _score(score: Score) -> str:
    mean, low, high = map(number_format.typeset, (score.mean, score.low, score.high))
    return mean if score.low == score.high else f"{mean}, 95 % {low} to {high}"
