"""The page of a search that is running: read from its history, and loaded anew by the browser."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any, get_args

from merganser import extras
from merganser.errors import InputError, MerganserError, ResourceError
from merganser.results.scores import JSON_NAME, Direction, Entry, Results, Score

NAME = "search.html"
HISTORY = "history.jsonl"

EVERY = 10.0
"""Minimum seconds between pages; more if drawing takes longer than a twentieth of it."""

MOST_TIME = 20.0
"""How many times as long as drawing the search goes on before the next page."""

_STYLE = """
:root { color-scheme: light dark; }
body { max-width: 60rem; margin: 1.5rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; }
figure { margin: 0 0 1.2rem; background: #fff; border: 1px solid #8884; border-radius: 8px;
  padding: .7rem; overflow-x: auto; }
svg { display: block; margin: auto; height: auto; }
"""


def read_history(folder: Path) -> Results:
    """Return the candidates so far, as results.

    Raises:
        InputError: there is no history, or it is broken.
    """
    path = folder / HISTORY
    try:
        lines = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
        head, *tried = map(json.loads, lines)
        block = head["settings"]["search"]
        entries = tuple(
            Entry(
                line["name"],
                "point",
                values=line["values"],
                scores={name: Score(**parts) for name, parts in line["scores"].items()},
            )
            for line in tried
            if "same_as" not in line
        )
    except FileNotFoundError:
        raise InputError(f"{path}: not there; no search has been run in this folder") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not the history of a search ({error})") from None
    return Results(folder.name, "", _directions(block), {"search": block}, entries)


def is_running(folder: Path) -> bool:
    """Whether a folder has a search that has not written its results yet."""
    return (folder / HISTORY).is_file() and not (folder / JSON_NAME).is_file()


def _directions(block: Mapping[str, Any]) -> dict[str, Direction]:
    given = block.get("objectives")
    if isinstance(given, str):
        return {given: "max"}
    named: dict[str, Any] = given if isinstance(given, dict) else {}
    return {name: better for name, better in named.items() if better in get_args(Direction)}


def write(folder: Path, *, refresh: int | None = None) -> Path | None:
    """Write the page of a search's candidates so far.

    Args:
        folder: the search's.
        refresh: seconds after which a browser loads it anew; None for a search that has ended.

    Returns:
        The page; None while there is nothing to draw.

    Raises:
        MerganserError: matplotlib is not installed, the history is broken, or the page cannot be written.
    """
    figures = extras.load("merganser.reports.search_figures", "plot")
    many = extras.load("merganser.reports.many_scores", "plot")
    found = read_history(folder)
    scores = figures.objectives(found)
    if not scores or not found.points:
        return None
    values = figures.flat_values(found)
    keys = figures.varied_keys(values)
    drawn = {
        "Each candidate, and the best so far": figures.progress(found, scores),
        "Each parameter against the scores": figures.parameters(found, scores),
        "What each parameter explains by itself, and the mark of chance": figures.importance(
            found, scores
        ),
        "Parallel coordinates": many.parallel(found, values, keys, scores),
    }
    parts = [
        f"<h2>{escape(title)}</h2>\n<figure>{_inline(figure, n)}</figure>"
        for n, (title, figure) in enumerate(drawn.items())
        if figure is not None
    ]
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    state = "running" if refresh else "ended"
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{again}\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; img-src data:\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(found.name)}: search</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{escape(found.name)}</h1>\n<p>{len(found.points)} candidates so far; {state}.</p>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
    path = folder / NAME
    beside = folder / f".{NAME}.partial"
    try:
        beside.write_text(page, encoding="utf-8", errors="replace")
        os.replace(beside, path)  # noqa: PTH105 (a browser never loads half a page)
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written ({error.strerror})") from None
    return path


def _inline(figure: Any, number: int) -> str:
    figures = extras.load("merganser.reports.figure_style", "plot")
    matplotlib = extras.load("matplotlib", "plot")
    data = io.StringIO()
    with matplotlib.rc_context(figures.STYLE):
        figure.savefig(data, format="svg", metadata={"Date": None})
    found: str = figures.inline(data.getvalue(), f"live{number}")
    return found


class LivePage:
    """Writes the page now and then while a search runs.

    What stops a page from being drawn never stops a search.

    Args:
        folder: the search's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.next = 0.0

    def update(self) -> Path | None:
        """Write the page if it is time to.

        Returns:
            The page, if it was written.
        """
        began = time.monotonic()
        if began < self.next:
            return None
        path = None
        with suppress(MerganserError):
            path = write(self.folder, refresh=round(EVERY))
        took = time.monotonic() - began
        self.next = began + took + max(EVERY, MOST_TIME * took)
        return path

    def end(self) -> None:
        """Write the last page, which is not loaded anew."""
        with suppress(MerganserError):
            write(self.folder)
