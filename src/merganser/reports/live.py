"""The page of a running search: drawn from its history, and reloaded by the browser."""

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
"""Least seconds between two pages; more if drawing takes longer than a twentieth of that."""

MOST_TIME = 20.0
"""The search runs at least this many times as long as drawing took before the next page."""

_STYLE = """
:root { color-scheme: light dark; }
body { max-width: 60rem; margin: 1.5rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; }
figure { margin: 0 0 1.2rem; background: #fff; border: 1px solid #8884; border-radius: 8px;
  padding: .7rem; overflow-x: auto; }
svg { display: block; margin: auto; height: auto; }
"""


def read_history(folder: Path) -> Results:
    """The results of a search's candidates so far.

    Raises:
        InputError: when there is no history, or it cannot be read.
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
        raise InputError(f"{path}: does not exist; no search has run in this folder") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not the history of a search ({error})") from None
    return Results(folder.name, "", _directions(block), {"search": block}, entries)


def is_running(folder: Path) -> bool:
    """Whether a folder has the history of a search, but no results yet."""
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
        folder: the folder of the search.
        refresh: seconds after which the browser reloads the page; None for a search that has ended.

    Returns:
        The page's path; None while there is nothing to draw.

    Raises:
        MerganserError: when matplotlib is not installed.
        InputError: when the history cannot be read.
        ResourceError: when the page cannot be written.
    """
    figures = extras.load("merganser.reports.search_figures", "plot")
    many = extras.load("merganser.reports.many_scores", "plot")
    history = read_history(folder)
    scores = figures.objectives(history)
    if not scores or not history.points:
        return None
    values = figures.flat_values(history)
    keys = figures.varied_keys(values)
    drawn = {
        "Each candidate, and the best so far": figures.progress(history, scores),
        "Each parameter against the scores": figures.parameters(history, scores),
        "What each parameter explains by itself, and the mark of chance": figures.importance(
            history, scores
        ),
        "Parallel coordinates": many.parallel(history, values, keys, scores),
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
        f"<title>{escape(history.name)}: search</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{escape(history.name)}</h1>\n<p>{len(history.points)} candidates so far; {state}.</p>\n"
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
    text: str = figures.inline(data.getvalue(), f"live{number}")
    return text


class LivePage:
    """Writes the page now and then while a search runs.

    An error in drawing the page never stops the search.

    Args:
        folder: the folder of the search.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.next = 0.0

    def update(self) -> Path | None:
        """Write the page if it is due.

        Returns:
            The page's path; None if it was not written.
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
        """Write the last page, which the browser does not reload."""
        with suppress(MerganserError):
            write(self.folder)
