"""The usual way from FSDP shards to a Hugging Face folder, as a baseline: verl's published algorithm.

    python bench/verl_baseline.py ACTOR OUT

Written from its description: load the files of all ranks in threads, round every local tensor to
bfloat16, concatenate the ranks' along the axis that they are sharded on, and let transformers save
the state dict as the weights of an empty model. The files are unpickled without restrictions, so give
it none that you do not trust.
"""

from __future__ import annotations

import argparse
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Shard
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging


def load(actor: Path) -> list[dict[str, Any]]:
    """The state dicts of all ranks, in memory."""
    files = sorted(
        actor.glob("model_world_size_*_rank_*.pt"),
        key=lambda file: int(re.findall(r"\d+", file.stem)[-1]),
    )
    with ThreadPoolExecutor(8) as pool:
        return list(
            pool.map(lambda file: torch.load(file, map_location="cpu", weights_only=False), files)
        )


def joined(ranks: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The whole tensors, in bfloat16; the ranks' are let go of one by one."""
    found = {}
    for name in list(ranks[0]):
        parts = [rank.pop(name) for rank in ranks]
        if isinstance(parts[0], DTensor):
            (placement,) = parts[0].placements
            local = [part.to_local().bfloat16() for part in parts]
            sharded = isinstance(placement, Shard)
            found[name] = torch.cat(local, placement.dim) if sharded else local[0]
        else:
            found[name] = parts[0].bfloat16()
    return found


def main() -> None:
    """Convert."""
    parser = argparse.ArgumentParser(description="Convert FSDP shards the usual way.")
    parser.add_argument("actor", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    state = joined(load(arguments.actor))
    published = arguments.actor / "huggingface"
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(published), dtype=torch.bfloat16
        )
    model.save_pretrained(arguments.out, state_dict=state, max_shard_size="5GB")
    for file in published.glob("tokenizer*"):
        shutil.copyfile(file, arguments.out / file.name)


if __name__ == "__main__":
    main()
