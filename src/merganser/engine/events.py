"""Progress events. A listener is a callable; one thread at a time calls it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Started:
    """A run begins; the total is in bytes of output."""

    total_bytes: int
    tensors: int
    threads: int


@dataclass(frozen=True, slots=True)
class Merged:
    """A tile of an output tensor is merged; ``done_bytes`` counts the output of the run so far."""

    tensor: str
    done_bytes: int


@dataclass(frozen=True, slots=True)
class Finished:
    """All outputs are written."""

    seconds: float


Event = Started | Merged | Finished
Listener = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """The listener that ignores events."""
