"""The report of a running study: rewritten periodically, and reloaded by the browser."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

import yaml

from merganser.errors import InputError
from merganser.reports import page
from merganser.results.scores import (
    JSON_NAME,
    PARTIAL_NAME,
    Direction,
    Entry,
    Results,
    Score,
    read_partial,
)

HISTORY = "history.jsonl"

EVERY = 10.0
"""Seconds after which a browser reloads the page, and minimum between two versions of it."""

FIRST = 3.0
"""Seconds before the first page; studies that end sooner get none."""

MOST_TIME = 20.0
"""Minimum time between two pages, as a multiple of the time to draw one."""


def read_history(folder: Path) -> Results:
    """Return the candidates of a search so far, as results.

    Raises:
        InputError: the history is missing or broken.
    """
    path = folder / HISTORY
    try:
        lines = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
        head, *tried = map(json.loads, lines)
        settings = dict(head["settings"])
        recipe = yaml.safe_dump(settings.pop("recipe", {}), sort_keys=False, allow_unicode=True)
        entries = tuple(
            Entry(
                line["name"],
                "point",
                values=line["values"],
                scores={name: Score(**parts) for name, parts in line["scores"].items()},
            )
            for line in tried
            if "name" in line and "same_as" not in line
        )
        directions = _directions(settings["search"])
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist; no search has run in this folder") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not the history of a search ({error})") from None
    return Results(folder.name, recipe, directions, settings, entries)


def is_running(folder: Path) -> bool:
    """Whether a folder has a search or a sweep without final results yet."""
    begun = (folder / HISTORY).is_file() or (folder / PARTIAL_NAME).is_file()
    return begun and not (folder / JSON_NAME).is_file()


def read_running(folder: Path) -> tuple[Results, int | None]:
    """Return the results so far of a search or a sweep, and how many models it scores if that is known.

    Raises:
        InputError: they are missing or broken.
    """
    if (folder / PARTIAL_NAME).is_file():
        return read_partial(folder)
    return read_history(folder), None


def _directions(block: Mapping[str, Any]) -> dict[str, Direction]:
    given = block.get("objectives")
    if isinstance(given, str):
        return {given: "max"}
    named: dict[str, Any] = given if isinstance(given, dict) else {}
    return {name: better for name, better in named.items() if better in get_args(Direction)}


def write(
    study: Results, folder: Path, *, total: int | None = None, stopped: bool = False
) -> Path | None:
    """Write the report of a study's results so far.

    Args:
        study: the results so far.
        folder: the study's folder.
        total: number of models that the study scores; None if unknown.
        stopped: whether the study has stopped; otherwise browsers reload the page.

    Returns:
        The page; None while no model is scored.

    Raises:
        MerganserError: matplotlib or moocore is not installed, or the page cannot be written.
    """
    scored = sum(bool(entry.scores) for entry in study.entries)
    if not scored:
        return None
    every = None if stopped else round(EVERY)
    running = page.Running(scored, total, every, time.strftime("%H:%M:%S"))
    return page.write_running(study, folder, running)


class LivePage:
    """Rewrites the report periodically while a study runs.

    Errors with a page never stop the study. As a context manager it marks the page as stopped if an
    error ends the study.

    Args:
        folder: the study's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.next = time.monotonic() + FIRST
        self._last: tuple[Callable[[], Results], int | None] | None = None

    def update(self, results: Callable[[], Results], total: int | None = None) -> Path | None:
        """Write the page if it is due.

        Args:
            results: returns the results so far.
            total: number of models that the study scores; None if unknown.

        Returns:
            The page; None if it was not written.
        """
        began = time.monotonic()
        if began < self.next:
            return None
        self._last = (results, total)
        path = self._write(stopped=False)
        took = time.monotonic() - began
        self.next = began + took + max(EVERY, MOST_TIME * took)
        return path

    def __enter__(self) -> LivePage:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._write(stopped=True)

    def _write(self, *, stopped: bool) -> Path | None:
        if self._last is None:
            return None
        results, total = self._last
        with suppress(Exception):  # an error with the page must not stop the study
            return write(results(), self.folder, total=total, stopped=stopped)
        return None
