"""Logs studies with Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merganser import extras
from merganser.tracking.tracker import PROJECT, Run

STEP = "point"
"""The metric on the horizontal axis of all others, since points may be scored in any order."""


class Runs:
    """See :class:`merganser.tracking.Tracker`."""

    name = "wandb"

    def __init__(self) -> None:
        self._run: Any = None

    def start(self, run: Run) -> None:
        """See :meth:`merganser.tracking.Tracker.start`."""
        wandb = extras.load("wandb", "wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=run.digest,
            resume="allow",
            config=dict(run.config),
            save_code=False,
            settings=wandb.Settings(
                console="off", disable_code=True, disable_git=True, x_disable_stats=True
            ),
        )
        self._run.define_metric(STEP, hidden=True)
        self._run.define_metric("*", step_metric=STEP)

    def point(self, number: int, metrics: Mapping[str, float]) -> None:
        """See :meth:`merganser.tracking.Tracker.point`."""
        self._run.log({STEP: number, **metrics})

    def finish(self, files: Sequence[Path], *, failed: bool) -> None:
        """See :meth:`merganser.tracking.Tracker.finish`."""
        if files:
            wandb = extras.load("wandb", "wandb")
            artifact = wandb.Artifact(f"results-{self._run.id}", type="results")
            for file in files:
                artifact.add_file(str(file))
            self._run.log_artifact(artifact)
        self._run.finish(exit_code=int(failed))
