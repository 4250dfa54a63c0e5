"""One small model in every form that can be read: what the laws of sources are tried on.

A form is a function that writes the model below a folder, and returns what to open, and the tensors
that must be found there, in their order.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import functools
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import ggufs
from checkpoints_on_disk import config, make_model, save_weights, shapes, write_json
from shared_folder import shared_folder

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


def gguf(folder: Path) -> tuple[Path, Tensors]:
    tensors = model()
    kinds = {"lm_head.weight": "F16", "model.embed_tokens.weight": "BF16"}
    ggufs.save(folder / "m.gguf", tensors, config(), kinds=kinds)
    dtypes = {"F16": torch.float16, "BF16": torch.bfloat16}
    return folder, tensors | {name: tensors[name].to(dtypes[kind]) for name, kind in kinds.items()}


def gguf_quantised(folder: Path) -> tuple[Path, Tensors]:
    tensors = ggufs.llama()
    kinds = {"model.layers.1.mlp.down_proj.weight": "Q4_1", "model.norm.weight": "Q5_0"}
    file = ggufs.save(folder / "m.gguf", tensors, ggufs.LLAMA, "Q8_0", kinds=kinds)
    matrices = {name: "Q8_0" for name, tensor in tensors.items() if tensor.ndim > 1} | kinds
    return file, tensors | {n: ggufs.rounded(tensors[n], kind) for n, kind in matrices.items()}


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
    """What training runs of 1 to 4 ranks wrote, made once for all workers: see ``write_worlds.py``."""
    shared = shared_folder()
    folder, making = shared / "worlds", shared / "worlds.making"
    with (shared / "worlds.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            shutil.rmtree(making, ignore_errors=True)  # what another worker did not finish
            making.mkdir()
            script = Path(__file__).with_name("write_worlds.py")
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            subprocess.run(
                [sys.executable, script, making], env=environment, check=True, timeout=300
            )
            making.rename(folder)
    return folder


def world(name: str, path: str = ".") -> Form:
    """A form of what a training run wrote."""

    def form(folder: Path) -> tuple[Path, Tensors]:
        shutil.copytree(worlds() / name, folder)
        full = torch.load(folder / "full.pt", map_location="cpu")
        return folder / path, dict(full)

    return form


def zero(stage: int, ranks: int, groups: int = 1) -> Form:
    """A form of what DeepSpeed's optimizer leaves of a tied model, with a buffer and a frozen parameter."""

    def form(folder: Path) -> tuple[Path, Tensors]:
        make_model(folder, tied=True)
        (folder / "model.safetensors").unlink()
        tensors = model() | {"frozen": torch.randn(3, 5).bfloat16(), "buffer": torch.arange(3.0)}
        write_zero(folder / "global_step30", tensors, stage, ranks, groups)
        (folder / "latest").write_text("global_step30")
        tied = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
        return folder, tied

    return form


def write_zero(folder: Path, tensors: Tensors, stage: int, ranks: int, groups: int) -> None:
    """A step of DeepSpeed's, after the description of its own converter.

    Stages 1 and 2 deal every group's parameters, one behind the other, out to the ranks; stage 3 deals
    each parameter out, and cuts what a rank has of all into runs.
    """
    folder.mkdir(parents=True)
    special = ("frozen", "buffer", "lm_head.weight")
    trained = {name: tensor for name, tensor in tensors.items() if name not in special}
    names = [list(trained)[i::groups] for i in range(groups)]
    shares: list[list[torch.Tensor]] = [[] for _ in range(ranks)]
    if stage < 3:
        for group in names:
            flat = torch.cat([trained[name].reshape(-1) for name in group])
            flat = torch.nn.functional.pad(flat, (0, -len(flat) % (2 * ranks)), value=7.0)
            for own, share in zip(shares, flat.chunk(ranks), strict=True):
                own.append(share.clone())
    else:
        for rank, own in enumerate(shares):
            parts = [share_of(trained[name], rank, ranks) for group in names for name in group]
            run = torch.cat(parts)
            own += [part.clone() for part in run.split(-(-len(run) // groups))]
    frozen, half = tensors["frozen"], {n: t.bfloat16() for n, t in trained.items()}
    for rank in range(ranks if stage == 3 else 1):
        prefix = f"zero_pp_rank_{rank}_" if stage == 3 else ""
        fragment = share_of(frozen, rank, ranks) if stage == 3 else frozen
        state = {
            "module": {"frozen": frozen, "buffer": tensors["buffer"], **half},
            "buffer_names": ["buffer"],
            "param_shapes": [{name: trained[name].shape for name in group} for group in names],
            "frozen_param_shapes": {"frozen": frozen.shape},
            "frozen_param_fragments": {"frozen": fragment},
            "shared_params": {"lm_head.weight": "model.embed_tokens.weight"},
            "ds_version": "0.19.8",
        }
        torch.save(state, folder / f"{prefix}mp_rank_00_model_states.pt")
    key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    with deepspeed_classes() as (scaler, stages):
        for rank, own in enumerate(shares):
            optimizer = {
                "loss_scaler": scaler(),
                "zero_stage": stages(stage),
                "partition_count": ranks if stage == 3 else [ranks] * groups,
                key: own,
            }
            file = f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
            torch.save({"optimizer_state_dict": optimizer, "ds_version": "0.19.8"}, folder / file)


def share_of(tensor: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
    """A rank's part of a tensor in stage 3, padded."""
    share = -(-tensor.numel() // ranks)
    part = tensor.reshape(-1)[rank * share : (rank + 1) * share]
    return torch.nn.functional.pad(part, (0, share - len(part)), value=7.0)


@contextlib.contextmanager
def deepspeed_classes() -> Iterator[tuple[Any, Any]]:
    """Classes that pickle under the names of DeepSpeed's loss scaler and stages."""
    scaler = type("LossScaler", (), {"__init__": lambda self: setattr(self, "cur_scale", 1.0)})
    names = ["disabled", "optimizer_states", "gradients", "weights"]
    stages = enum.IntEnum("ZeroStageEnum", names, start=0)
    homes = {
        "deepspeed.runtime.fp16.loss_scaler": scaler,
        "deepspeed.runtime.zero.config": stages,
    }
    sys.modules["deepspeed"] = types.ModuleType("deepspeed")
    for home, cls in homes.items():
        cls.__module__ = home
        sys.modules[home] = types.ModuleType(home)
        setattr(sys.modules[home], cls.__name__, cls)
    try:
        yield scaler, stages
    finally:
        for home in ("deepspeed", *homes):
            del sys.modules[home]


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
    "dcp-hf-2": "sharded",
    "dcp-hf-3": ".",
    "dcp-hf-columns-2": ".",
    "dcp-hf-edges-4": ".",
    "megatron-4": "global_step_30",
    "megatron-layers-4": "global_step_30/actor",
}

ZERO = {
    "zero1-2": zero(1, 2),
    "zero2-3": zero(2, 3, groups=2),
    "zero3-2": zero(3, 2),
    "zero3-3": zero(3, 3, groups=4),
}

FORMS: dict[str, Form] = (
    {
        form.__name__: form
        for form in (
            safetensors,
            safetensors_shards,
            pickled,
            pickled_shards,
            pickled_file,
            gguf,
            gguf_quantised,
        )
    }
    | {name: world(name, path) for name, path in (FSDP | DCP).items()}
    | ZERO
)
