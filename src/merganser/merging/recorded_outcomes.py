"""The engine's results for tensors as JSON, and whether files still have the recorded bytes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from merganser.engine import TensorOutcome
from merganser.engine.digests import read_digest
from merganser.engine.effective_weights import InnerProducts
from merganser.planning import Shard
from merganser.tensors import TensorSpec


def are_stored(
    path: Path,
    shard: Shard,
    tensors: Mapping[str, Any],
    specs: Mapping[str, TensorSpec],
    *,
    header: bool = True,
) -> bool:
    """Whether a file has the plan's size and header, and some tensors with the recorded digests.

    Args:
        path: the file.
        shard: its layout.
        tensors: the tensors' entries, by name.
        specs: all tensors' dtypes and shapes.
        header: whether to compare the header.
    """
    try:
        with path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size != shard.size:
                return False
            if header and stream.read(len(shard.header)) != shard.header:
                return False
            for name in tensors:
                offset = shard.offsets[name]

                def read(start: int, into: memoryview, offset: int = offset) -> None:
                    stream.seek(offset + start)
                    if stream.readinto(into) != len(into):
                        raise OSError("cut off")

                if read_digest(specs[name], read) != tensors[name]["digest"]:
                    return False
    except OSError:
        return False
    return True


def entry_of(outcome: TensorOutcome) -> dict[str, Any]:
    """A tensor's outcome as plain data for JSON; numbers keep all bits."""
    measured = outcome.measurement
    return {
        "digest": outcome.digest,
        "sources": outcome.sources,
        "measurement": measured
        and [
            measured.gram.tolist(),
            measured.ideal.tolist(),
            measured.cross.tolist(),
            measured.differ.tolist(),
            measured.share,
            measured.noise,
        ],
        "nonfinite": outcome.nonfinite,
        "inputs": outcome.inputs,
    }


def outcome_of(name: str, spec: TensorSpec, entry: Mapping[str, Any]) -> TensorOutcome:
    """The outcome that :func:`entry_of` described.

    Raises:
        KeyError, TypeError, ValueError: when the entry is something else.
    """
    measured = None
    if entry["measurement"] is not None:
        *arrays, share, noise = entry["measurement"]
        gram, ideal, cross, differ = (np.array(array, np.float64) for array in arrays)
        measured = InnerProducts(gram, ideal, cross, differ, share, noise)
    return TensorOutcome(
        name,
        spec,
        entry["digest"],
        tuple(entry["sources"]),
        measured,
        tuple(entry["nonfinite"]),
        tuple(entry["inputs"]),
    )
