"""The page of differences from MergeKit is what its script measures."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
def test_the_page_is_what_the_script_measures() -> None:
    spec = importlib.util.spec_from_file_location("differences", DOCS / "differences.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert (DOCS / "differences.md").read_text(encoding="utf-8") == script.page()
