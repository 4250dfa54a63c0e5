"""Saves a step of training as verl does: sharded weights of two ranks, config and tokenizer beside them."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import PreTrainedModel, PreTrainedTokenizerBase

RANKS = 2


def save_step(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, run: Path, step: int
) -> None:
    """Write ``RUN/global_step_STEP/actor`` and the run's note of its latest step.

    As by default in verl, ``huggingface/`` has no weights: those are in the shards, in float32.
    """
    actor = run / f"global_step_{step}" / "actor"
    (actor / "huggingface").mkdir(parents=True, exist_ok=True)
    for rank in range(RANKS):
        state = _state_of_rank(model, rank)
        torch.save(state, actor / f"model_world_size_{RANKS}_rank_{rank}.pt")
    settings = {"FSDP_version": 2, "world_size": RANKS}
    (actor / "fsdp_config.json").write_text(json.dumps(settings, indent=4))
    model.config.save_pretrained(actor / "huggingface")
    tokenizer.save_pretrained(actor / "huggingface")
    (run / "latest_checkpointed_iteration.txt").write_text(str(step))


def _state_of_rank(model: PreTrainedModel, rank: int) -> dict[str, torch.Tensor]:
    """What a rank of FSDP2 has of the model.

    Sharding takes no talk between ranks, so one process can be each in turn: its group is a fake one.
    """
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=RANKS)
    try:
        mesh = init_device_mesh("cpu", (RANKS,), mesh_dim_names=("fsdp",))
        sharded = deepcopy(model)
        for layer in sharded.model.layers:
            fully_shard(layer, mesh=mesh)
        return fully_shard(sharded, mesh=mesh).state_dict()
    finally:
        dist.destroy_process_group()
