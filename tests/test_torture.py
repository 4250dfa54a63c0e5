"""The harness of ``make torture``, a little of it: random kills, full disks, flipped bits."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def torture() -> ModuleType:
    file = Path(__file__).parent.parent / "bench" / "torture.py"
    spec = importlib.util.spec_from_file_location("torture", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["torture"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("chapter", ["kills", "disk"])
def test_nothing_is_lost(torture: ModuleType, tmp_path: Path, chapter: str) -> None:
    arguments = {"kills": (8, 1), "disk": (1,)}[chapter]
    lines = getattr(torture, chapter)(tmp_path, *arguments)
    assert lines
    for line in lines:
        assert line.good, line
