"""The factors of LoRA adapters that change a model by products of factors and by nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from merganser.checkpoints.adapters import open_adapter
from merganser.checkpoints.computed.adapted import find_changes, is_transposed
from merganser.checkpoints.computed.adapter import Adapter, Change
from merganser.checkpoints.computed.derived import read_numbers
from merganser.checkpoints.protocol import Described
from merganser.errors import InputError

if TYPE_CHECKING:
    from merganser.checkpoints.computed.derived import Array


@dataclass(frozen=True)
class LowRank:
    """A tensor's change: ``scale`` times ``b @ a``.

    Attributes:
        a: [rank, in], in float64.
        b: [out, rank], in float64.
        scale: alpha / rank, or alpha / sqrt(rank) for rsLoRA.
    """

    a: Array
    b: Array
    scale: float


def ranks(model: Described, folder: Path) -> Mapping[str, int]:
    """Return the rank of each changed tensor, by the model's names, from headers alone.

    Args:
        model: the model, with or without the adapter.
        folder: the adapter's folder.

    Raises:
        InputError: the adapter is no plain LoRA adapter; the message is what it has besides.
    """
    adapter = open_adapter(folder)
    try:
        return {name: adapter.scale(change.module)[1] for name, change in _changes(model, adapter)}
    finally:
        adapter.weights.close()


def read(model: Described, folder: Path) -> Mapping[str, LowRank]:
    """Return the factors of each changed tensor, by the model's names.

    Args:
        model, folder: see :func:`ranks`.

    Raises:
        InputError: see :func:`ranks`.
    """
    adapter = open_adapter(folder)

    def matrix(name: str | None) -> Array:
        assert name is not None
        spec = adapter.weights.specs[name]
        numbers = read_numbers(adapter.weights, name, 0, spec.numel)
        return numbers.reshape(spec.shape).astype(np.float64)

    try:
        return {
            name: LowRank(matrix(change.a), matrix(change.b), adapter.scale(change.module)[0])
            for name, change in _changes(model, adapter)
        }
    finally:
        adapter.weights.close()


def _changes(model: Described, adapter: Adapter) -> list[tuple[str, Change]]:
    changes = find_changes(adapter, model, None)
    for name, change in changes.items():
        _check_plain(model, adapter, name, change)
    return list(changes.items())


def _check_plain(model: Described, adapter: Adapter, name: str, change: Change) -> None:
    label = adapter.weights.label
    special = {
        "a complete tensor": change.whole,
        "DoRA's lengths": change.magnitude,
        "a bias": change.bias,
        "factors of an embedding": change.a if change.embedding else None,
    }
    if kind := next((kind for kind, key in special.items() if key is not None), None):
        raise InputError(f"{label}: has {kind} for {name!r}")
    if change.a is None or change.b is None:
        raise InputError(f"{label}: lacks a factor for {name!r}")
    if is_transposed(adapter, model, change, model.specs[name].shape):
        raise InputError(f"{label}: changes {name!r}, which is stored transposed")
