"""Log a running study with a tracker, whose failures never stop the study."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from merganser.errors import one_line
from merganser.results.scores import Entry
from merganser.tracking.metrics import Metrics
from merganser.tracking.tracker import Run, Tracker


class Following:
    """Logs a study's scores with a tracker.

    The first failure of the tracker is reported as a warning; after it nothing is logged. The tracker's
    stdout goes to stderr.

    Args:
        tracker: the tracker; None to log nothing.
        on_warning: called with the warning.
    """

    def __init__(self, tracker: Tracker | None, on_warning: Callable[[str], None]) -> None:
        self._tracker = tracker
        self._on_warning = on_warning
        self._metrics = Metrics()
        self._waiting: Run | None = None

    def start(self, run: Run) -> None:
        """Set the study's run, which begins when the first model is logged."""
        self._waiting = run

    def point(self, number: int, entry: Entry, prefix: str = "") -> None:
        """Log a model that has its scores.

        Args:
            number: the point's number, from 1; 0 for a model that is not a merge.
            entry: the model.
            prefix: prefix of the metrics' names.
        """
        if not entry.scores:
            return
        metrics = self._metrics.of(entry, prefix)
        if (run := self._waiting) is not None:
            self._waiting = None
            self._call(lambda tracker: tracker.start(run))
        self._call(lambda tracker: tracker.point(number, metrics))

    def finish(self, files: Sequence[Path] = (), *, failed: bool = False) -> None:
        """End the run; later calls do nothing."""
        there = [file for file in files if file.is_file()]
        if self._waiting is None:
            self._call(lambda tracker: tracker.finish(there, failed=failed))
        self._tracker = None

    def _call(self, action: Callable[[Tracker], None]) -> None:
        tracker = self._tracker
        if tracker is None:
            return
        try:
            with contextlib.redirect_stdout(sys.stderr):
                action(tracker)
        except Exception as error:  # trackers can raise anything
            self._tracker = None
            reason = one_line(" ".join(str(error).split()) or type(error).__name__)
            self._on_warning(f"{tracker.name}: {reason}; the study goes on without a tracker")


@contextmanager
def follow(tracker: Tracker | None, on_warning: Callable[[str], None]) -> Iterator[Following]:
    """Yield the logging of a study with a tracker; an error in the block ends the run as failed.

    Args:
        tracker: the tracker; None for none.
        on_warning: called once if the tracker fails.
    """
    following = Following(tracker, on_warning)
    try:
        yield following
    except BaseException:
        following.finish(failed=True)
        raise
    following.finish()
