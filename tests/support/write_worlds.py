"""Writes checkpoints as training runs leave them, with torch.distributed on the CPU.

    python write_worlds.py OUT

makes a folder below OUT for each layout, with ``full.pt``, the whole state dict, beside what the ranks
wrote. Worlds of 2 to 4 ranks are forked off the world of one, so that all imports are paid for once.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    ShardedStateDictConfig,
    ShardingStrategy,
    StateDictType,
    fully_shard,
)
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from checkpoints_on_disk import config, shapes


class Tree(nn.Module):
    """A module whose state dict has these names, the last of a name's dots first."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        inner: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            head, _, rest = name.partition(".")
            if rest:
                inner.setdefault(head, {})[rest] = tensor
            elif isinstance(tensor, nn.Buffer):
                self.register_buffer(head, tensor.data)
            else:
                kept = isinstance(tensor, nn.Parameter)
                self.register_parameter(head, tensor if kept else nn.Parameter(tensor))
        for head, parts in inner.items():
            self.add_module(head, Tree(parts))


def qwen(*, tied: bool = False, dtype: torch.dtype = torch.float32) -> Tree:
    """The model of ``checkpoints_on_disk``, with random weights."""
    torch.manual_seed(10 + dist.get_world_size())
    tensors = {name: (torch.randn(s) / 20).to(dtype) for name, s in shapes(vocab=33).items()}
    if tied:
        shared = nn.Parameter(tensors["model.embed_tokens.weight"])
        tensors |= {"model.embed_tokens.weight": shared, "lm_head.weight": shared}
    return Tree(tensors)


def edges(small: torch.dtype = torch.bfloat16) -> Tree:
    """Fewer rows than ranks, rows that do not divide, buffers, scalars, two dtypes."""
    torch.manual_seed(12)
    return Tree(
        {
            "model.layers.0.a.weight": torch.randn(3, 5),
            "model.layers.0.b.weight": torch.randn(65, 48).to(small),
            "model.layers.0.wide.weight": torch.randn(6, 7, 5).to(small),
            "model.layers.0.scale": nn.Buffer(torch.tensor(3.5)),
            "model.layers.0.steps": nn.Buffer(torch.arange(5)),
            "model.layers.1.c.bias": torch.randn(1).to(small),
            "model.norm.weight": torch.randn(7),
        }
    )


def fsdp1(model: Tree, mesh: DeviceMesh | None, *, hybrid: bool = False) -> nn.Module:
    wrap = functools.partial(
        FullyShardedDataParallel,
        device_mesh=mesh,
        device_id=torch.device("cpu"),
        sharding_strategy=ShardingStrategy.HYBRID_SHARD if hybrid else None,
        use_orig_params=True,
    )
    layers = model.get_submodule("model.layers")
    for name, layer in list(layers.named_children()):
        setattr(layers, name, wrap(layer))
    wrapped = wrap(model)
    FullyShardedDataParallel.set_state_dict_type(
        wrapped, StateDictType.SHARDED_STATE_DICT, ShardedStateDictConfig(offload_to_cpu=True)
    )
    return wrapped


def fsdp2(model: Tree, mesh: DeviceMesh, *, columns: bool = False) -> nn.Module:
    def place(parameter: nn.Parameter) -> Shard | None:
        return Shard(1) if columns and parameter.dim() > 1 else None

    for layer in model.get_submodule("model.layers").children():
        fully_shard(layer, mesh=mesh, shard_placement_fn=place)
    return fully_shard(model, mesh=mesh, shard_placement_fn=place)


def save_actor(out: Path, sharded: nn.Module, full: Callable[[], nn.Module]) -> None:
    """A step as verl writes it."""
    rank, world = dist.get_rank(), dist.get_world_size()
    actor = out / "global_step_30" / "actor"
    actor.mkdir(parents=True, exist_ok=True)
    torch.save(sharded.state_dict(), actor / f"model_world_size_{world}_rank_{rank}.pt")
    if rank == 0:
        torch.save(full().state_dict(), out / "full.pt")
        stated = {"FSDP_version": 2, "world_size": world}
        (actor / "fsdp_config.json").write_text(json.dumps(stated))
        (out / "latest_checkpointed_iteration.txt").write_text("30")


def write(out: Path) -> None:
    """All layouts of this world."""
    world = dist.get_world_size()
    line = init_device_mesh("cpu", (world,), mesh_dim_names=("fsdp",))
    plain, tied = qwen, functools.partial(qwen, tied=True)
    save_actor(out / f"fsdp2-{world}", fsdp2(plain(), line), plain)
    write_distributed(out, line)
    if world in (2, 4):
        save_actor(out / f"fsdp1-{world}", fsdp1(plain(), None), plain)
        save_actor(out / f"fsdp1-mesh-{world}", fsdp1(plain(), line), plain)
    if world == 3:
        save_actor(out / "fsdp1-3", fsdp1(tied(), None), tied)
    if world == 2:
        save_actor(out / "fsdp2-tied-2", fsdp2(tied(), line), tied)
        save_actor(out / "fsdp1-tied-2", fsdp1(tied(), line), tied)
        save_actor(out / "fsdp2-columns-2", fsdp2(plain(), line, columns=True), plain)
        with_old_names(lambda: save_actor(out / "fsdp2-old-2", fsdp2(plain(), line), plain))
    if world == 4:
        save_actor(out / "fsdp2-edges-4", fsdp2(edges(), line), edges)
        even = functools.partial(edges, torch.float32)
        save_actor(out / "fsdp1-edges-4", fsdp1(even(), line), even)
        square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("ddp", "fsdp"))
        save_actor(out / "hsdp1-4", fsdp1(plain(), square, hybrid=True), plain)
        save_actor(out / "hsdp2-4", fsdp2(plain(), square), plain)


def save_distributed(out: Path, state: dict[str, Any], full: Tree, folder: str = "") -> None:
    """A distributed checkpoint, by default with the model under a name, beside its optimizer."""
    dcp.save(state, checkpoint_id=out / folder)
    if dist.get_rank() == 0:
        torch.save(full.state_dict(), out / "full.pt")


def save_safetensors(out: Path, sharded: nn.Module, full: Tree, *, joined: bool = False) -> None:
    """A distributed checkpoint in safetensors; ``joined`` also as whole tensors, as PyTorch joins them."""
    writer = HuggingFaceStorageWriter(
        str(out), save_distributed=True, enable_consolidation=joined, thread_count=1
    )
    dcp.save(sharded.state_dict(), storage_writer=writer)
    if dist.get_rank() == 0:
        torch.save(full.state_dict(), out / "full.pt")


def write_distributed(out: Path, line: DeviceMesh) -> None:
    """Distributed checkpoints of this world."""
    world = dist.get_world_size()
    model = fsdp2(qwen(), line)
    optimizer = {"state": {"0": {"exp_avg": torch.zeros(3)}}, "lr": 1e-3}
    state = {"model": model.state_dict(), "optimizer": optimizer, "step": 3}
    save_distributed(out / f"dcp-{world}", state, qwen())
    if world == 2:
        save_safetensors(out / "dcp-hf-2", model, qwen(), joined=True)
        columns = fsdp2(qwen(), line, columns=True)
        save_safetensors(out / "dcp-hf-columns-2", columns, qwen())
        save_distributed(out / "dcp-columns-2", columns.state_dict(), qwen())
        shared = fsdp2(qwen(tied=True), line)
        save_distributed(
            out / "dcp-accelerate-2",
            {"model": shared.state_dict()},
            qwen(tied=True),
            "pytorch_model_fsdp_0",
        )
    if world == 3:
        save_safetensors(out / "dcp-hf-3", model, qwen())
    if world == 4:
        uneven = fsdp2(edges(), line)
        save_safetensors(out / "dcp-hf-edges-4", uneven, edges())
        save_distributed(out / "dcp-edges-4", {"app": {"model": uneven.state_dict()}}, edges())
        save_megatron(out / "megatron-4", {})
        save_megatron(out / "megatron-layers-4", {"numbered": True})


def save_megatron(out: Path, form: dict[str, bool]) -> None:
    """A model of Qwen2's in Megatron-core's names and packing, split along several axes.

    Written as megatron.core.dist_checkpointing does: one tensor for all layers with the layers'
    axis in front, or (``numbered``) one for each; rows of queries, keys and values by group.
    """
    full = qwen().state_dict()
    packed = {
        "embedding.word_embeddings.weight": torch.cat(
            [full["model.embed_tokens.weight"], torch.zeros(7, 16)]
        ),
        "output_layer.weight": torch.cat([full["lm_head.weight"], torch.ones(7, 16)]),
        "decoder.final_layernorm.weight": full["model.norm.weight"],
    }
    layers: dict[str, list[torch.Tensor]] = {}
    for i in range(2):
        own = {n.removeprefix(f"model.layers.{i}."): t for n, t in full.items()}
        for kind in ("weight", "bias"):
            parts = [own[f"self_attn.{part}_proj.{kind}"].chunk(2) for part in "qkv"]
            groups = torch.cat([part[group] for group in range(2) for part in parts])
            layers.setdefault(f"self_attention.linear_qkv.{kind}", []).append(groups)
        gates = torch.cat([own["mlp.gate_proj.weight"], own["mlp.up_proj.weight"]])
        for name, tensor in (
            ("self_attention.linear_qkv.layer_norm_weight", own["input_layernorm.weight"]),
            ("self_attention.linear_proj.weight", own["self_attn.o_proj.weight"]),
            ("mlp.linear_fc1.layer_norm_weight", own["post_attention_layernorm.weight"]),
            ("mlp.linear_fc1.weight", gates),
            ("mlp.linear_fc2.weight", own["mlp.down_proj.weight"]),
        ):
            layers.setdefault(name, []).append(tensor)
    for name, tensors in layers.items():
        if form.get("numbered"):
            packed |= {f"decoder.layers.{i}.{name}": tensor for i, tensor in enumerate(tensors)}
        else:
            packed[f"decoder.layers.{name}"] = torch.stack(tensors)
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pipeline", "tensor"))
    state: dict[str, Any] = {}
    for name, tensor in packed.items():
        last = Shard(tensor.dim() - 1) if "linear_fc2" in name else Shard(tensor.dim() - 2)
        if tensor.dim() < 2 or tensor.shape[0] % 2:
            last, tensor_first = Replicate(), Replicate()
        else:
            tensor_first = Shard(0) if tensor.dim() == 3 else Replicate()
        state[name] = distribute_tensor(tensor, square, (tensor_first, last))
    state["decoder.layers.self_attention.core_attention._extra_state"] = b"nothing"
    state["optimizer.state.exp_avg.output_layer.weight"] = torch.zeros(3)
    save_distributed(out / "global_step_30" / "actor" / "dist_ckpt", state, qwen())
    if dist.get_rank() == 0:
        actor = out / "global_step_30" / "actor"
        (actor / "dist_ckpt" / "full.pt").replace(out / "full.pt")
        (actor / "huggingface").mkdir()
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        text = json.dumps(config(vocab=33) | heads)
        (actor / "huggingface" / "config.json").write_text(text)


def with_old_names(save: Callable[[], None]) -> None:
    """Save as PyTorch 2.4 did on a GPU: meshes as tensors, storages on a device."""
    new, tag = DeviceMesh.__getstate__, torch.serialization.location_tag

    def old(mesh: DeviceMesh) -> dict[str, Any]:
        return {
            "device_type": "cuda",
            "mesh": mesh.mesh.int(),
            "mesh_dim_names": mesh.mesh_dim_names,
            "_dim_group_infos": [("", [0, 1], "0")],
            "_flatten_mesh_list": (0, 1),
        }

    DeviceMesh.__getstate__ = old  # type: ignore[method-assign]
    torch.serialization.location_tag = lambda storage: f"cuda:{dist.get_rank()}"
    try:
        save()
    finally:
        DeviceMesh.__getstate__ = new  # type: ignore[method-assign]
        torch.serialization.location_tag = tag


def be(rank: int, world: int, out: Path) -> None:
    """One rank."""
    warnings.simplefilter("ignore")
    store = dist.FileStore(str(out / f".store-{world}"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    write(out)
    dist.destroy_process_group()


def main(out: Path) -> None:
    """All worlds, one after the other."""
    be(0, 1, out)
    for world in (2, 3, 4):
        ranks = []
        for rank in range(world):
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    be(rank, world, out)
                    status = 0
                except Exception:
                    traceback.print_exc()
                finally:
                    sys.stderr.flush()
                    os._exit(status)
            ranks.append(pid)
        if any(os.waitpid(pid, 0)[1] for pid in ranks):
            sys.exit(f"the world of {world} ranks failed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
