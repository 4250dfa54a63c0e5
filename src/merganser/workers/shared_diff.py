"""Compare two models with other processes that run the same command and share a folder."""

from __future__ import annotations

import json
import os
import platform
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from merganser.differences.diff import Comparison, Diff, TensorDiff, diff
from merganser.errors import (
    InputError,
    MerganserError,
    OutputExistsError,
    ResourceError,
    reraise_os_errors,
)
from merganser.recipe import ModelReference
from merganser.version import VERSION
from merganser.workers.claims import TRIES, Claims

NAME = "diff.json"

LEAST = 64 * 2**20
"""Smallest size in bytes of a unit, if there are more tensors."""

MOST = 128
"""Number of units of a comparison of large models."""

WAIT = 1.0
"""Seconds between two looks at tensors that other processes compare."""


def diff_with_others(
    first: str | ModelReference,
    second: str | ModelReference,
    folder: str | Path,
    *,
    base: str | ModelReference | None = None,
    threads: int | None = None,
    rank: bool = False,
    ulp: str | None = None,
) -> Diff:
    """Compare two models as :func:`merganser.diff` does, sharing the tensors with other processes.

    Each process that is called with the same arguments and folder takes tensors that none has, and
    returns the differences of all. The folder holds the tensors' differences; a later call reads them.

    Args:
        first, second, base, threads, rank, ulp: as for :func:`merganser.diff`.
        folder: a folder that all processes see; created if missing.

    Returns:
        The differences, equal to those of one process.

    Raises:
        OutputExistsError: another comparison uses the folder.
        InputError: this machine sees other files of the models than the process that began.
        MerganserError: one of its subclasses, by cause.
    """

    def compare(comparison: Comparison) -> list[TensorDiff]:
        return _compare_with_others(comparison, Path(folder))

    return diff(first, second, base=base, threads=threads, rank=rank, ulp=ulp, runner=compare)


def _compare_with_others(comparison: Comparison, folder: Path) -> list[TensorDiff]:
    units = dict(enumerate(_units(comparison)))
    with reraise_os_errors(ResourceError, "written", folder):
        claims = Claims(folder)
        try:
            _begin(comparison, folder)
            waiting = dict(units)
            while waiting:
                before = len(waiting)
                for number, names in list(waiting.items()):
                    unit = f"{number:05d}"
                    claim = claims.take(unit)
                    if claim is not None:
                        try:
                            _write(folder / f"{unit}.result", comparison.compare(names))
                        except BaseException:
                            claim.release()
                            raise
                        claim.finish({})
                    state = claims.state(unit)
                    if state == "given up":
                        died = ", ".join(map(str, claims.tried(unit)))
                        raise MerganserError(
                            f"{names[0][0]}: {TRIES} processes died while they compared it ({died})"
                        )
                    if state == "done":
                        del waiting[number]
                if waiting and len(waiting) == before:
                    time.sleep(WAIT)
        finally:
            claims.close()
    places = comparison.models[0][1].places
    tensors = []
    for number, names in units.items():
        file = folder / f"{number:05d}.result"
        try:
            entries = json.loads(file.read_text(encoding="utf-8"))
            for (name, *_), (histogram, sums, rank) in zip(names, entries, strict=True):
                place, spec = places[name], comparison.models[0][0].specs[name]
                counts = np.array(histogram, np.int64)
                values = np.array(sums, np.float64)
                tensors.append(
                    TensorDiff(name, place.role, place.layer, spec.numel, counts, values, rank)
                )
        except (OSError, ValueError, TypeError):
            raise ResourceError(f"{file}: is damaged; remove {folder} and compare again") from None
    return tensors


def _units(comparison: Comparison) -> Sequence[Sequence[tuple[str, ...]]]:
    """Runs of tensors of about equal sizes."""
    sizes = [
        sum(
            model.specs[name].nbytes
            for name, (model, _) in zip(own, comparison.models, strict=True)
        )
        for own in comparison.names
    ]
    limit = max(LEAST, sum(sizes) // MOST)
    units: list[list[tuple[str, ...]]] = []
    room = 0
    for own, size in zip(comparison.names, sizes, strict=True):
        if not units or size > room:
            units.append([])
            room = limit
        units[-1].append(own)
        room -= size
    return units


def _begin(comparison: Comparison, folder: Path) -> None:
    """Write what is compared into the folder, or check that it is the same."""
    models: list[dict[str, Any]] = []
    for model, _ in comparison.models:
        if model.home is None:
            raise InputError(
                f"{model.label}: is merged in memory; merge it into a folder, to share the comparison"
            )
        files = {str(f.absolute()): [s.size, s.mtime_ns] for f, s in model.stamps.items()}
        models.append({"headers": model.header_digest, "files": files})
    how = {"version": VERSION, "ulp": comparison.ulp, "rank": comparison.rank}
    record = {**how, "host": platform.node(), "models": models}
    file = folder / NAME
    fresh = folder / f".{NAME}.{uuid.uuid4().hex}"
    fresh.write_text(json.dumps(record), encoding="utf-8")
    try:
        os.link(fresh, file)  # of several processes that begin, one succeeds
    except FileExistsError:
        _check_same(file, record)
    except OSError:  # the file system has no hard links
        if not file.exists():
            fresh.replace(file)
        _check_same(file, record)
    finally:
        fresh.unlink(missing_ok=True)


def _check_same(file: Path, record: dict[str, Any]) -> None:
    try:
        stated = json.loads(file.read_text(encoding="utf-8"))
        there = {
            name: stamp for model in stated["models"] for name, stamp in model["files"].items()
        }
        same = {**stated, "host": ""} == {**record, "host": ""}
    except (ValueError, KeyError, TypeError, AttributeError):
        there, stated, same = {}, {}, False
    if same:
        return
    here = {name: stamp for model in record["models"] for name, stamp in model["files"].items()}
    for name, stamp in here.items():
        if there.get(name, stamp) != stamp:
            raise InputError(f"{record['host']} sees another {name} than {stated['host']}")
    raise OutputExistsError(f"{file.parent}: is of another comparison; choose another folder")


def _write(file: Path, tensors: Sequence[TensorDiff]) -> None:
    """Write tensors' differences, so that the file appears complete."""
    entries = [[t.histogram.tolist(), t.sums.tolist(), t.rank] for t in tensors]
    fresh = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    with fresh.open("w", encoding="utf-8") as stream:
        json.dump(entries, stream)
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(file)
