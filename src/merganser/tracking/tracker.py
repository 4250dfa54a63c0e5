"""The interface of an experiment tracker, and the choice of one."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from merganser import extras
from merganser.errors import MerganserError

TrackerName = Literal["trackio", "wandb", "mlflow"]

PROJECT = "merganser"
"""Default project of the logged studies; a tracker's environment variable can name another."""


@dataclass(frozen=True, slots=True)
class Run:
    """A study as a run of a tracker.

    Attributes:
        name: the study's name.
        digest: identifies the study in its folder, so that running it again continues its run.
        config: settings of the study, a flat mapping to numbers, texts and booleans.
    """

    name: str
    digest: str
    config: Mapping[str, Any]


class Tracker(Protocol):
    """Logs one study. Its exceptions become warnings; see :class:`merganser.tracking.Following`.

    Attributes:
        name: the tracker's name in warnings.
    """

    name: str

    def start(self, run: Run) -> None:
        """Begin or continue a run."""

    def point(self, number: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a model.

        Args:
            number: the point's number, from 1; 0 for a model that is not a merge.
            metrics: numbers by name.
        """

    def finish(self, files: Sequence[Path], *, failed: bool) -> None:
        """End the run.

        Args:
            files: files of the study's results, to store with the run.
            failed: whether the study ended early.
        """


Track = TrackerName | Literal["none"] | Tracker
"""A tracker, the name of one, or ``none``."""


def choose(track: Track | None, default: TrackerName | None) -> Tracker | None:
    """Return the tracker of a study, not started yet; None for none.

    Args:
        track: the caller's choice; None for the file's.
        default: the choice of the study's file.

    Raises:
        MerganserError: its package is not installed.
    """
    name = track or default
    if name is None or name == "none":
        return None
    if not isinstance(name, str):
        return name
    try:
        extras.check(name, name)
    except MerganserError as error:
        hint = "" if track else f"; the file has track: {name}, and track='none' goes without"
        raise type(error)(f"{error}{hint}") from None
    module = importlib.import_module(f"merganser.tracking.{name}_runs")
    tracker: Tracker = module.Runs()
    return tracker
