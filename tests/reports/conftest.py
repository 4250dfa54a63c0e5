"""Reports that are drawn fast."""

from __future__ import annotations

import pytest

from merganser.reports import figure_style, pictures


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of few dots, as files of the format that pages need anyway."""
    monkeypatch.setattr(figure_style, "DPI", 50)
    monkeypatch.setattr(pictures, "ENDINGS", ("svg",))
