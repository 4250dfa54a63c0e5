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


SHARDS = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

shapes = {"model.embed_tokens.weight": (151936, 1536), "lm_head.weight": (151936, 1536)}
for i in range(28):
    for name, shape in {
        "mlp.gate_proj": (8960, 1536), "mlp.up_proj": (8960, 1536), "mlp.down_proj": (1536, 8960),
        "self_attn.q_proj": (1536, 1536), "self_attn.o_proj": (1536, 1536),
        "self_attn.k_proj": (256, 1536), "self_attn.v_proj": (256, 1536),
    }.items():
        shapes[f"model.layers.{i}.{name}.weight"] = shape
for rank in range(8):
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=8)
    mesh = init_device_mesh("cpu", (8,), mesh_dim_names=("fsdp",))
    state = {}
    for name, shape in shapes.items():
        part = torch.empty(shape[0] // 8, shape[1])
        placed = DTensor.from_local(part, mesh, (Shard(0),), run_check=False)
        state[name] = placed
    with torch.serialization.skip_data():
        torch.save(state, Path(sys.argv[1]) / f"model_world_size_8_rank_{rank}.pt")
    dist.destroy_process_group()
"""
"""Writes a float32 model of 1.777 B parameters as 8 ranks have it; files with holes, all zeros."""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's accounts")
def test_memory_of_a_pair_of_training_steps(tmp_path: Path) -> None:
    for model in "ab":
        (tmp_path / model).mkdir()
        subprocess.run([sys.executable, "-c", SHARDS, tmp_path / model], check=True)
    found, with_torch = peak(tmp_path)
    assert not with_torch
    assert found < LIMIT
