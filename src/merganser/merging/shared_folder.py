"""What processes that write one merge together leave in ``OUT.partial/shared``: the results of units,
and claims.

A unit's results are the engine's outcomes for its tensors, in ``NAME.result``. The file appears when
the unit's bytes are on the disk.
"""

from __future__ import annotations

import json
import os
import platform
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from merganser import system
from merganser.engine import TensorOutcome
from merganser.errors import OutputExistsError
from merganser.merging.recorded_outcomes import entry_of
from merganser.planning import Plan

SHARED = "shared"
"""Name of the folder in ``OUT.partial``."""

STALE = 120.0
"""Seconds without a sign of life after which a worker counts as dead."""


def write_result(folder: Path, unit: str, file: str, outcomes: Iterable[TensorOutcome]) -> None:
    """Write a unit's results, so that they appear complete and survive a power loss.

    Args:
        folder: the shared folder.
        unit: the unit's name.
        file: the output file that the unit is part of.
        outcomes: the outcomes of the unit's tensors.

    Raises:
        OSError: when the file cannot be written.
    """
    record = {"file": file, "tensors": {outcome.name: entry_of(outcome) for outcome in outcomes}}
    fresh = folder / f".{unit}.{uuid.uuid4().hex}"
    with fresh.open("w", encoding="utf-8") as stream:
        json.dump(record, stream, ensure_ascii=False)
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(folder / f"{unit}.result")
    system.sync(folder)


def read_result(folder: Path, unit: str) -> dict[str, Any] | None:
    """Read a unit's results, as a mapping from tensors to entries; None if there are none."""
    return _read(folder / f"{unit}.result")[1]


def _read(file: Path) -> tuple[str, dict[str, Any] | None]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return str(record["file"]), dict(record["tensors"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", None


def complete_files(folder: Path, plan: Plan) -> dict[str, dict[str, Any]]:
    """Return the results by file, for the files of a plan all of whose tensors have results."""
    tensors: dict[str, dict[str, Any]] = {}
    for result in sorted(folder.glob("*.result")):
        file, entries = _read(result)
        tensors.setdefault(file, {}).update(entries or {})
    return {
        shard.file: tensors[shard.file]
        for shard in plan.shards
        if shard.file in tensors and tensors[shard.file].keys() == shard.offsets.keys()
    }


def check_no_workers(folder: Path) -> None:
    """Check that no worker writes files of the merge.

    Raises:
        OutputExistsError: a worker has shown a sign of life within :data:`STALE` seconds.
    """
    for owner in _living(folder):
        raise OutputExistsError(
            f"{folder.parent}: process {owner.get('process')} on {owner.get('host')} writes files of this "
            f"merge; let it finish, or end it and wait {STALE:.0f} seconds"
        )


def _living(folder: Path) -> Iterator[Mapping[str, Any]]:
    """The owners of claims that are not stale, except those that have died on this machine."""
    claims = sorted(folder.glob("*.claim"))
    if not claims:
        return
    clock = folder / f".clock-{uuid.uuid4().hex}"
    clock.touch()
    now = clock.stat().st_mtime
    clock.unlink()
    for claim in claims:
        with suppress(FileNotFoundError):
            owner: Any = {}
            with suppress(ValueError):
                owner = json.loads(claim.read_text(encoding="utf-8"))
            if now - claim.stat().st_mtime <= STALE and not is_dead(owner):
                yield owner


def is_dead(owner: Mapping[str, Any]) -> bool:
    """Whether the owner of a claim is a process of this machine that has ended."""
    number = owner.get("process")
    if owner.get("host") != platform.node() or not isinstance(number, int):
        return False
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
