"""A study that several workers score, at its beginning, and its folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from merganser.workers import study_file
from merganser.workers.driving import sweep_with_workers
from merganser.workers.study_file import StudyFile
from merganser.workers.working import Worker


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def begin(file: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> StudyFile:
    """Begin a study as a driver does that dies at once."""
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sweep_with_workers(file, out, "join")
    return study_file.read(out)


def until(condition: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.005)
    raise AssertionError("it did not come")
