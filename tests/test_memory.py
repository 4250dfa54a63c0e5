"""Memory does not grow with the model, and the command line of a merge needs no torch."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

LIMIT = 350 * 10**6

MEASURE = """
import json, resource, sys
from merganser import cli
try:
    cli.main(sys.argv[1:])
except SystemExit as exit:
    assert not exit.code, exit.code
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({"peak": int(status["VmHWM"].split()[0]) * 1024, "torch": "torch" in sys.modules}), file=sys.stderr)
"""


def sparse_model(folder: Path, tensors: int, rows: int = 4096, columns: int = 4096) -> Path:
    """A checkpoint of zeros that takes no room on disk."""
    folder.mkdir()
    size = rows * columns * 2
    entries = {
        f"model.layers.{i}.mlp.weight": {
            "dtype": "BF16",
            "shape": [rows, columns],
            "data_offsets": [i * size, (i + 1) * size],
        }
        for i in range(tensors)
    }
    header = json.dumps(entries).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + tensors * size)
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": tensors}))
    return folder


def peak(folder: Path, method: str = "linear") -> tuple[int, bool]:
    """Resident bytes at their peak, and whether torch was imported."""
    base = f"base_model: {folder / 'a'}\n" if method != "linear" else ""
    parameters = {"linear": "weight: 0.5", "task_arithmetic": "weight: 0.5", "slerp": "t: 0.5"}[
        method
    ]
    (folder / "recipe.yml").write_text(
        f"merge_method: {method}\nmodels: [{{model: {folder / 'a'}}}, {{model: {folder / 'b'}}}]\n"
        f"{base}parameters: {{{parameters}}}\ndtype: bfloat16\n"
    )
    command = [
        sys.executable,
        "-c",
        MEASURE,
        "merge",
        str(folder / "recipe.yml"),
        "--sink",
        "null",
        "-q",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stderr.strip().splitlines()[-1])
    return found["peak"], found["torch"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's accounts")
@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_memory_is_the_same_for_any_size(tmp_path: Path, method: str) -> None:
    for name, tensors in (("small", 3), ("large", 40)):
        (tmp_path / name).mkdir()
        for model in "ab":
            sparse_model(tmp_path / name / model, tensors)
    small, with_torch = peak(tmp_path / "small", method)
    large, _ = peak(tmp_path / "large", method)
    assert not with_torch
    assert large < LIMIT
    assert large < 1.1 * small


@pytest.mark.slow
def test_memory_of_a_70b_pair(tmp_path: Path) -> None:
    for model in "ab":
        sparse_model(tmp_path / model, 520, 8192, 16384)
    found, _ = peak(tmp_path)
    assert found < LIMIT
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < 2 * LIMIT
