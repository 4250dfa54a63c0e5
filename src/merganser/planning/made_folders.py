"""Recreate temporary folders that belong to open checkpoints, such as the tokenizer of a GGUF
file."""

from __future__ import annotations

from pathlib import Path

from merganser.checkpoints.readers import Readers
from merganser.planning.plan_data import Plan, relocated


def with_made_folders(plan: Plan) -> Plan:
    """The plan with tokenizer folders that exist: temporary ones, which only the process that planned
    has, are written again.

    Raises:
        InputError: when an input cannot be opened.
    """
    moved: dict[Path, Path] = {}
    with Readers() as readers:
        for source in plan.all_sources:
            model = source.checkpoint
            if model.path is None or model.path.exists() or model.locator is None:
                continue
            folder = readers.open(model).path
            if folder is not None and folder != model.path:
                moved[model.path] = folder
    return relocated(plan, lambda path: moved.get(path, path)) if moved else plan
