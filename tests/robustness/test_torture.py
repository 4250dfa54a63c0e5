"""The harness of ``make torture``, a little of it: random kills, full disks, faults."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def torture() -> ModuleType:
    file = Path(__file__).parent / "torture.py"
    spec = importlib.util.spec_from_file_location("torture", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["torture"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("chapter", ["kills", "disk", "faults"])
def test_nothing_is_lost(torture: ModuleType, tmp_path: Path, chapter: str) -> None:
    arguments = {"kills": (8, 1), "disk": (1,), "faults": (1, ("rename",))}[chapter]
    lines = getattr(torture, chapter)(tmp_path, *arguments)
    assert lines
    for line in lines:
        assert line.good, line


def test_a_limit_of_the_system_holds(torture: ModuleType) -> None:
    prefix, kind = torture.limited(300 * 2**20)
    if not prefix:
        pytest.skip("the system has none here")
    command = [*prefix, sys.executable, "-c", "bytearray(400 * 2**20)"]
    assert subprocess.run(command, capture_output=True).returncode != 0, kind
