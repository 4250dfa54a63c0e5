"""Estimate how long a merge takes: from earlier merges of this studio, or below its folder, or from the disk."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merganser.planning import Plan
from merganser.release import manifest
from merganser.studio.library import Library

PROBE = 64 * 2**20
"""Bytes that are read to measure the disk."""

MOST_MANIFESTS = 20

LEAST = 10 * 2**20
"""Bytes below which an earlier merge says nothing about the speed: starting it took longer."""


@dataclass(frozen=True, slots=True)
class Speed:
    """A measured speed of reading and writing weights.

    Attributes:
        rate: bytes read and written per second.
        source: where it comes from, for people.
    """

    rate: float
    source: str


class Estimates:
    """The speeds that a studio knows.

    Args:
        library: the studio's folder.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._disks: dict[int, Speed] = {}
        self._manifests: dict[Path, tuple[int, Speed | None]] = {}

    def of(self, plan: Plan, merged: list[str]) -> dict[str, Any] | None:
        """Return the estimated duration of a merge as plain data; None if nothing is known.

        Args:
            plan: the plan of the merge.
            merged: folders of earlier merges, below the root.
        """
        speed = self._of_merges(merged) or self._of_disk(plan)
        if speed is None:
            return None
        seconds = (plan.input_bytes + plan.output_bytes) / speed.rate
        return {"seconds": seconds, "rate": speed.rate, "source": speed.source}

    def _of_merges(self, merged: list[str]) -> Speed | None:
        """Return the speed of the newest earlier merge that is large enough."""
        files = []
        for name in merged:
            path = self._library.root / name / manifest.NAME
            with suppress(OSError):
                files.append((path.stat().st_mtime_ns, path, name))
        for stamp, path, name in sorted(files, reverse=True)[:MOST_MANIFESTS]:
            known = self._manifests.get(path)
            if known is None or known[0] != stamp:
                known = self._manifests[path] = (stamp, _speed_of(path, name))
            if known[1] is not None:
                return known[1]
        return None

    def _of_disk(self, plan: Plan) -> Speed | None:
        """Return the speed of reading a part of an input that is not in the page cache."""
        files = [Path(file) for s in plan.all_sources for file in s.checkpoint.stamps]
        with suppress(OSError, ValueError):
            path = max(files, key=lambda file: file.stat().st_size)
            disk = path.stat().st_dev
            if disk not in self._disks and (speed := _probe(path)) is not None:
                self._disks[disk] = speed
            return self._disks.get(disk)
        return None


def _speed_of(path: Path, name: str) -> Speed | None:
    """Return the speed of a merge by its manifest; inputs are taken to be as large as the output."""
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        size = sum(file["size"] for file in stated["files"].values())
        moved = size * (1 + len(stated["inputs"]))
        seconds = float(stated["log"]["seconds"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if moved < LEAST or seconds <= 0:
        return None
    return Speed(moved / seconds, f"the merge {name}")


def _probe(path: Path) -> Speed | None:
    """Read the beginning of a file past the page cache where the system can, and return the speed."""
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, PROBE, os.POSIX_FADV_DONTNEED)
        count, began = 0, time.perf_counter()
        while count < PROBE and (block := file.read(2**20)):
            count += len(block)
        seconds = time.perf_counter() - began
    if count < LEAST // 10 or seconds <= 0:
        return None
    return Speed(count / seconds, "the speed of reading an input")
