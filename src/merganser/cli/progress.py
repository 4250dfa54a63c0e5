"""Progress of commands, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from merganser.engine.events import Listener


@contextmanager
def merge_progress(quiet: bool) -> Iterator[Listener]:
    """Show the progress of a merge: a bar on a terminal, else a line every few seconds; nothing if quiet."""
    if quiet:
        from merganser.engine.events import ignore

        yield ignore
        return
    from merganser.cli.progress_bars import ProgressBar

    bar = ProgressBar()
    try:
        yield bar.listen
    finally:
        bar.stop()


@contextmanager
def scoring_progress(quiet: bool) -> Iterator[Callable[[Any], None]]:
    """Show the progress of scoring, and the scores of each model; nothing if quiet."""
    if quiet:
        from merganser.study.progress import ignore

        yield ignore
        return
    from merganser.cli.progress_bars import ScoringLines

    lines = ScoringLines()
    try:
        yield lines.listen
    finally:
        lines.stop()
