"""What the engine tells while it works. A listener is a callable; it is called by one thread at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Started:
    """Work begins: so many bytes of output are to be made."""

    total_bytes: int
    tensors: int
    threads: int


@dataclass(frozen=True, slots=True)
class Merged:
    """A tile of an output tensor is done."""

    tensor: str
    done_bytes: int


@dataclass(frozen=True, slots=True)
class Finished:
    """All is written."""

    seconds: float


Event = Started | Merged | Finished
Listener = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """The listener for those who do not listen."""
