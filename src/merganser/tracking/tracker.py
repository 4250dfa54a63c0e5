"""What a tracker of experiments does for a study, and which there are."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from merganser import extras

TrackerName = Literal["trackio", "wandb", "mlflow"]

PROJECT = "merganser"
"""The project that studies are logged to, unless a tracker's environment variable names another."""


@dataclass(frozen=True, slots=True)
class Run:
    """A study, as a tracker knows it.

    Attributes:
        name: the study's name.
        digest: the same each time this study runs in its folder, so that its run is continued.
        config: settings of the study, flat: numbers, texts and truth values.
    """

    name: str
    digest: str
    config: Mapping[str, Any]


class Tracker(Protocol):
    """Logs one study. Whatever it raises is a warning; see :class:`merganser.tracking.Following`.

    Attributes:
        name: what a warning calls it.
    """

    name: str

    def start(self, run: Run) -> None:
        """Begin a run, or continue it."""

    def point(self, number: int, metrics: Mapping[str, float]) -> None:
        """Log what was measured of a point.

        Args:
            number: the point's, from 1; 0 for a model that is no merge.
            metrics: numbers by name.
        """

    def finish(self, files: Sequence[Path], *, failed: bool) -> None:
        """End the run.

        Args:
            files: the study's results, to be stored with the run.
            failed: whether the study ended early.
        """


Track = TrackerName | Literal["none"] | Tracker
"""What a study is logged with: a tracker, the name of one, or ``none``."""


def choose(track: Track | None, default: TrackerName | None) -> Tracker | None:
    """Return the tracker of a study, which has not started yet.

    Args:
        track: what the caller asks for.
        default: what the study's file asks for.

    Raises:
        MerganserError: its package is not installed.
    """
    name = track or default
    if name is None or name == "none":
        return None
    if not isinstance(name, str):
        return name
    extras.check(name, name)
    module = importlib.import_module(f"merganser.tracking.{name}_runs")
    tracker: Tracker = module.Runs()
    return tracker
