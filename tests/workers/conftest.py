"""Workers load the method files of a study: those of other tests, in the same process, are none of it."""

from __future__ import annotations

import sys

import pytest

from merganser.methods import registry


@pytest.fixture(autouse=True)
def _only_built_in_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    built_in = {key: each for key, each in registry._registry.items() if each.origin is None}
    monkeypatch.setattr(registry, "_registry", built_in)
    for name in [name for name in sys.modules if name.startswith(registry.FILE_PREFIX)]:
        monkeypatch.delitem(sys.modules, name)
