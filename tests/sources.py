"""One small model in every form that can be read: what the laws of sources are tried on.

A form is a function that writes the model below a folder, and returns what to open, and the tensors
that must be found there, in their order.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from conftest import make_model, save_weights, shapes, write_json

Tensors = dict[str, torch.Tensor]
Form = Callable[[Path], tuple[Path, Tensors]]


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def model(dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensors:
    """The tensors of a Qwen2-shaped model."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (0.05 * torch.randn(shape, generator=generator)).to(dtype)
        for name, shape in shapes().items()
    }


def oddities() -> Tensors:
    """Tensors of every kind that a pickle can hold: views with gaps, of one storage, of any dtype."""
    wide = torch.randn(24, 40)
    return {
        "plain": wide,
        "tied": wide,
        "transposed": wide.t(),
        "turned": torch.randn(5, 6, 7).permute(2, 0, 1),
        "every_other": wide[::2, 1::3],
        "inside": wide[3:9, 4:20],
        "rows": wide[3:9],
        "repeated": torch.randn(1, 6).expand(5, 6),
        "scalar": torch.tensor(1.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "bfloat16": torch.randn(3, 5).bfloat16().t(),
        "float8": torch.randn(7, 3).to(torch.float8_e4m3fn),
        "int64": torch.arange(12).reshape(3, 4),
        "uint16": torch.arange(6).to(torch.uint16),
        "flags": torch.tensor([True, False, True]),
        "parameter": torch.nn.Parameter(torch.randn(4)),
        "buffer": torch.nn.Buffer(torch.randn(4)),
    }


def safetensors(folder: Path) -> tuple[Path, Tensors]:
    save_weights(make_model(folder), model())
    return folder, model()


def safetensors_shards(folder: Path) -> tuple[Path, Tensors]:
    tensors = model(torch.bfloat16)
    save_weights(make_model(folder, shards=3), tensors, shards=3)
    return folder, tensors


def pickled(folder: Path) -> tuple[Path, Tensors]:
    folder.mkdir(parents=True)
    tensors = oddities()
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder, tensors


def pickled_shards(folder: Path) -> tuple[Path, Tensors]:
    make_model(folder)
    (folder / "model.safetensors").unlink()
    tensors = model(torch.bfloat16)
    save_pickles(folder, tensors, 3)
    return folder, tensors


def pickled_file(folder: Path) -> tuple[Path, Tensors]:
    folder.mkdir(parents=True)
    tensors = model()
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()}
    torch.save({"step": 3, "state_dict": {"model": wrapped}}, folder / "last.pt")
    return folder / "last.pt", tensors


def save_pickles(folder: Path, tensors: Mapping[str, torch.Tensor], shards: int) -> None:
    """A model in shards with an index, as transformers wrote them."""
    names, weight_map = list(tensors), {}
    for k in range(shards):
        file = f"pytorch_model-{k + 1:05d}-of-{shards:05d}.bin"
        part = names[k::shards]
        torch.save({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    write_json(folder / "pytorch_model.bin.index.json", {"weight_map": weight_map})


@functools.cache
def worlds() -> Path:
    """What training runs of 1 to 4 ranks wrote, made once: see ``write_worlds.py``."""
    folder = Path(tempfile.mkdtemp(prefix="merganser-worlds-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    script = Path(__file__).with_name("write_worlds.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, script, folder], env=environment, check=True, timeout=300)
    return folder


def world(name: str, path: str = ".") -> Form:
    """A form of what a training run wrote."""

    def form(folder: Path) -> tuple[Path, Tensors]:
        shutil.copytree(worlds() / name, folder)
        full = torch.load(folder / "full.pt", map_location="cpu")
        return folder / path, dict(full)

    return form


FSDP = {
    "fsdp2-1": ".",
    "fsdp2-2": "global_step_30/actor",
    "fsdp2-3": "global_step_30",
    "fsdp2-4": ".",
    "fsdp2-tied-2": ".",
    "fsdp2-columns-2": ".",
    "fsdp2-edges-4": ".",
    "fsdp2-old-2": ".",
    "fsdp1-2": ".",
    "fsdp1-3": ".",
    "fsdp1-4": ".",
    "fsdp1-mesh-2": ".",
    "fsdp1-mesh-4": ".",
    "fsdp1-tied-2": ".",
    "fsdp1-edges-4": ".",
    "hsdp1-4": ".",
    "hsdp2-4": ".",
}

DCP = {
    "dcp-1": ".",
    "dcp-2": ".",
    "dcp-3": ".",
    "dcp-4": ".",
    "dcp-columns-2": ".",
    "dcp-accelerate-2": ".",
    "dcp-edges-4": ".",
    "megatron-4": "global_step_30",
    "megatron-layers-4": "global_step_30/actor",
}

FORMS: dict[str, Form] = {
    form.__name__: form
    for form in (safetensors, safetensors_shards, pickled, pickled_shards, pickled_file)
} | {name: world(name, path) for name, path in (FSDP | DCP).items()}
