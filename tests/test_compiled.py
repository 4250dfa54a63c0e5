"""Machine code on disk: that of this very text is found again, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from merganser import compiled
from merganser.checkpoints import lowrank
from merganser.engine import consensus, kernels, vectors


def test_a_loop_is_made_of_the_files_that_it_takes_functions_from() -> None:
    names = [module.__name__ for module in compiled.sources(consensus)]
    assert names == [
        "merganser.compiled",
        "merganser.engine.consensus",
        "merganser.engine.few",
        "merganser.engine.kernels",
        "merganser.engine.vectors",
    ]


def test_machine_code_is_made_anew_where_what_it_calls_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [compiled.stamp(module) for module in (consensus, kernels, lowrank)]
    changed = tmp_path / "vectors.py"
    changed.write_text(Path(vectors.__file__).read_text() + "\n# changed\n")
    monkeypatch.setattr(vectors, "__file__", str(changed))
    after = [compiled.stamp(module) for module in (consensus, kernels, lowrank)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, False, True]


def test_machine_code_is_made_anew_where_a_number_from_elsewhere_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = compiled.stamp(kernels)
    monkeypatch.setattr(kernels, "CELL", 2 * kernels.CELL)
    assert compiled.stamp(kernels) != before


CALL = """
import sys, numpy as np
from numba.core import event
from merganser.engine import kernels
told = event.RecordingListener()
with event.install_listener("numba:compile", told):
    print(kernels.count_nonfinite(np.full(6, 255, np.uint8), 0), len(told.buffer), end=" ")
print("numba.np.linalg" in sys.modules)
"""


def test_loading_needs_nothing_but_the_runtime() -> None:
    """In a process of its own, after one that has compiled what was not there yet."""
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", CALL], capture_output=True, text=True, check=True
        )
    assert done.stdout == "3 0 False\n"
