"""What commands import: starting is fast because of what is not loaded. Times are in bench/startup.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROBE = """
import json, sys
from merganser.cli import main
main(json.loads(sys.argv[1]), standalone_mode=False)
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
NEVER = {
    "torch", "scipy", "numba", "transformers", "tokenizers", "huggingface_hub", "safetensors", "pydantic", "jinja2",
    "asyncio", "importlib.metadata", "email", "http", "ziglang", "html", "traceback",
    "merganser.recipe.expressions", "merganser.kernels.plain", "merganser.methods.mergekit", "merganser.study",
    "merganser.evaluation", "merganser.reports",
}  # fmt: skip

PLANNED_WITHOUT = {
    "numpy", "ctypes", "merganser.kernels.library", "merganser.engine.effective_weights", "merganser.merging.folders",
    "merganser.hub.publishing", "merganser.planning.alignment", "merganser.planning.depth",
    "merganser.checkpoints.computed.moe", "merganser.checkpoints.computed.dequantising",
}  # fmt: skip
"""Modules that merges need, or recipes with tokenizers, slices, experts or quantised models."""


def modules(*arguments: str | Path) -> set[str]:
    """All modules that a command's process ends with."""
    command = [sys.executable, "-c", PROBE, json.dumps([str(each) for each in arguments])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_a_merge_loads_what_it_uses(linear: Path, tmp_path: Path) -> None:
    found = modules("merge", linear, tmp_path / "out", "-q")
    assert not found & (NEVER | {"rich"})
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_plan_loads_what_it_uses(linear: Path, options: list[str]) -> None:
    found = modules("plan", linear, *options)
    assert not found & (NEVER | PLANNED_WITHOUT | ({"rich"} if options else set()))


def test_help_loads_neither_numpy_nor_yaml() -> None:
    assert not modules("--help") & (NEVER | {"numpy", "yaml", "rich", "merganser.planning"})
