"""Keep a user's function from ending the process without a word."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_calls = threading.local()
_leave = os._exit


@contextmanager
def exit_raises() -> Iterator[None]:
    """Let ``os._exit``, which ends a process at once, raise SystemExit in this thread instead.

    Other threads, and processes that the function forks, exit as ever.
    """
    os._exit = _exit  # type: ignore[assignment]
    _calls.process = os.getpid()
    try:
        yield
    finally:
        _calls.process = None


def _exit(status: int) -> None:
    if getattr(_calls, "process", None) == os.getpid():
        raise SystemExit(f"os._exit({status})")
    _leave(status)
