"""A study for several workers, and its folder as one process leaves it.

Workers load the method files of a study: those of other tests, in the same process, are none of it.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import peers
from merganser.methods import registry
from merganser.study.evaluate import evaluate_sweep

SWEEP = """
name: m_w{{ w }}
sweep: {w: [0.3, 0.7]}
merge_method: linear
models:
  - {model: ./a, parameters: {weight: "{{ 1 - w }}"}}
  - {model: ./b, parameters: {weight: "{{ w }}"}}
dtype: bfloat16
evaluate:
  tasks:
    - problems: sums.jsonl
      max_tokens: 4
      scorers: [exact, tokens]
  keep: none
"""


@pytest.fixture(autouse=True)
def _only_built_in_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    built_in = {key: each for key, each in registry._registry.items() if each.origin is None}
    monkeypatch.setattr(registry, "_registry", built_in)
    for name in [name for name in sys.modules if name.startswith(registry.FILE_PREFIX)]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A study's file, and the folder of its results by one process."""
    folder = tmp_path_factory.mktemp("study")
    for seed, name in enumerate("ab"):
        peers.make_model(folder / name, seed=seed, layers=1)
    lines = [{"problem": f"{n} + 1 =", "answer": str(n + 1), "id": f"n{n}"} for n in range(4)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "study.yml").write_text(SWEEP)
    evaluate_sweep(folder / "study.yml", folder / "alone")
    return folder / "study.yml", folder / "alone"


@pytest.fixture
def file(made: tuple[Path, Path], tmp_path: Path) -> Path:
    """The study's file."""
    return made[0]


@pytest.fixture
def out(made: tuple[Path, Path]) -> Any:
    """An empty folder for results, as near to the study's file as the one of one process."""
    folder = made[1].with_name("shared")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
