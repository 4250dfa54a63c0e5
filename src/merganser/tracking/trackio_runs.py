"""Logs studies with trackio, in a database on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merganser import extras
from merganser.tracking.tracker import PROJECT, Run


class Runs:
    """See :class:`merganser.tracking.Tracker`."""

    name = "trackio"

    def __init__(self) -> None:
        self._trackio: Any = None
        self._run: Any = None

    def start(self, run: Run) -> None:
        """See :meth:`merganser.tracking.Tracker.start`."""
        self._trackio = extras.load("trackio", "trackio")
        self._run = self._trackio.init(
            project=PROJECT,
            name=f"{run.name}-{run.digest}",
            config=dict(run.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def point(self, number: int, metrics: Mapping[str, float]) -> None:
        """See :meth:`merganser.tracking.Tracker.point`."""
        self._run.log(dict(metrics), step=number)

    def finish(self, files: Sequence[Path], *, failed: bool) -> None:
        """See :meth:`merganser.tracking.Tracker.finish`."""
        self._trackio.finish()  # run.finish() alone would print to stdout at exit
