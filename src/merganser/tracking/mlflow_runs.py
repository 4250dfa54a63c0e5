"""Logs studies with MLflow."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merganser import extras
from merganser.tracking.tracker import PROJECT, Run

TAG = "merganser.study"
"""The tag that identifies a study's run when the study runs again."""

MOST_CHARACTERS = 500
"""Maximum length of a parameter's value."""

PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""Limits of the wait for a server that does not respond: MLflow's defaults take minutes."""


class Runs:
    """See :class:`merganser.tracking.Tracker`."""

    name = "mlflow"

    def __init__(self) -> None:
        self._mlflow: Any = None

    def start(self, run: Run) -> None:
        """See :meth:`merganser.tracking.Tracker.start`."""
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        self._mlflow = mlflow = extras.load("mlflow", "mlflow")
        if not {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"} & set(os.environ):
            mlflow.set_experiment(PROJECT)
        earlier = mlflow.search_runs(
            filter_string=f"tags.`{TAG}` = '{run.digest}'", max_results=1, output_format="list"
        )
        if earlier:
            mlflow.start_run(run_id=earlier[0].info.run_id)
            return  # MLflow cannot change a run's parameters
        mlflow.start_run(run_name=run.name, tags={TAG: run.digest})
        params = {_name(k): str(v)[:MOST_CHARACTERS] for k, v in run.config.items()}
        mlflow.log_params(params)

    def point(self, number: int, metrics: Mapping[str, float]) -> None:
        """See :meth:`merganser.tracking.Tracker.point`."""
        self._mlflow.log_metrics({_name(k): v for k, v in metrics.items()}, step=number)

    def finish(self, files: Sequence[Path], *, failed: bool) -> None:
        """See :meth:`merganser.tracking.Tracker.finish`."""
        for file in files:
            self._mlflow.log_artifact(str(file))
        self._mlflow.end_run("FAILED" if failed else "FINISHED")


def _name(text: str) -> str:
    """Return a name without characters that MLflow refuses."""
    return re.sub(r"[^\w./ -]", "_", text, flags=re.ASCII)
