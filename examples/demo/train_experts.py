"""Train a small language model on sums, and three experts from it by reinforcement learning.

    python train_experts.py OUT_DIR [--seed 0]

The base model learns from examples, and is mediocre at sums, at format and at brevity. Each expert
starts from it and is rewarded for one of these (`rewards.py`) with GRPO (arXiv:2402.03300): it replies
eight times to each problem, and replies that are better than the others to the same problem become more
likely. A fourth run has two rewards at once. Steps are saved as verl saves them. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

# Set before torch loads: its threads then sleep while they wait for work. Spinning ones hinder each
# other as soon as anything else runs.
os.environ["OMP_WAIT_POLICY"] = "passive"

import sums
import torch
from checkpoint import save_step
from model import (
    MAX_REPLY,
    build_model,
    build_tokenizer,
    encode_questions,
    encode_replies,
    log_likelihoods,
    sample,
)
from rewards import REWARDS, Reply
from transformers import Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.utils import logging

HERE = Path(__file__).parent
MARKER = ".complete.json"
PROCESSES = 2
"""Experts that are trained at the same time, each on one thread: more threads would not be quicker, and
the order of additions, and so the last bits of a weight, depends on their number."""


@dataclass(frozen=True)
class Pretraining:
    """How the base model learns from examples."""

    steps: int = 1000
    batch: int = 32
    peak_rate: float = 3e-3


@dataclass(frozen=True)
class Expert:
    """How an expert is trained, and under what name it is saved."""

    reward: str
    steps: int
    problems: int = 32
    rollouts: int = 8
    rate: float = 2e-4

    @property
    def run(self) -> str:
        """The run's folder, named as in the reference study: reward, longest response, rollouts, rate."""
        rate = f"{self.rate:.0e}".replace("e-0", "e-")
        return f"{self.reward}_MRL{MAX_REPLY}_ROLLOUT{self.rollouts}_LR{rate}"


BASE = "base"
PRETRAINING = Pretraining()
EXPERTS = (Expert("acc", 54), Expert("accfmt", 30), Expert("len", 30))
MIXED = Expert("acclen", 40, problems=16)
"""A reference for the merges of ``acc`` and ``len``: trained on the mean of their rewards, for fewer replies."""


def pretrain(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, plan: Pretraining, seed: int
) -> float:
    """Teach the model the replies that people give, in place; return the mean loss of the last steps."""
    rng = random.Random(f"{BASE} {seed}")
    optimizer = _optimizer(model, plan.peak_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, plan.peak_rate, plan.steps, pct_start=0.1, cycle_momentum=False
    )
    losses = []
    for _ in range(plan.steps):
        problems = [sums.draw(rng) for _ in range(plan.batch)]
        replies = encode_replies(tokenizer, [sums.human_reply(p, rng) for p in problems])
        found, _ = log_likelihoods(model, encode_questions(tokenizer, problems), replies)
        losses.append(_step(model, optimizer, -found.mean()))
        schedule.step()
    last = losses[-max(1, plan.steps // 10) :]
    return sum(last) / len(last)


def reinforce(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, expert: Expert, seed: int
) -> None:
    """Train the model for a reward, in place, by GRPO; print how it goes."""
    rng = random.Random(f"{expert.reward} {seed}")
    generator = torch.Generator().manual_seed(seed)
    optimizer = _optimizer(model, expert.rate)
    for step in range(1, expert.steps + 1):
        problems = [sums.draw(rng) for _ in range(expert.problems)]
        prompts = encode_questions(tokenizer, problems).repeat_interleave(expert.rollouts, dim=0)
        ids = sample(model, prompts, generator)
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        sizes = (ids != tokenizer.pad_token_id).sum(dim=1).tolist()
        replies = list(map(Reply, texts, sizes))
        rewards = torch.tensor(
            [
                REWARDS[expert.reward](problem.answer, replies[i : i + expert.rollouts])
                for problem, i in zip(
                    problems, range(0, len(replies), expert.rollouts), strict=True
                )
            ]
        )
        spread = rewards.std(dim=1, keepdim=True) + 1e-4
        advantages = ((rewards - rewards.mean(dim=1, keepdim=True)) / spread).reshape(-1)
        # Each reply serves for one step only, so the ratio to the model that drew it is 1, and the
        # gradient is the policy gradient.
        found, rows = log_likelihoods(model, prompts, ids)
        _step(model, optimizer, -(advantages[rows] * found).mean())
        if step % 10 == 0 or step in (1, expert.steps):
            told = f"reward {rewards.mean():.2f}, {sum(sizes) / len(sizes):.0f} tokens a reply"
            print(f"{expert.reward:7} step {step:2}: {told}", flush=True)


def train_base(out_dir: Path, plan: Pretraining, seed: int) -> None:
    """Train the base model and save it in bfloat16, as models are published."""
    started = time.perf_counter()
    _prepare(seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    loss = pretrain(model, tokenizer, plan, seed)
    model.to(torch.bfloat16).save_pretrained(out_dir / BASE)
    tokenizer.save_pretrained(out_dir / BASE)
    print(f"base    loss {loss:.3f}, {time.perf_counter() - started:.0f} s", flush=True)


def load_base(out_dir: Path) -> tuple[Qwen2ForCausalLM, Qwen2Tokenizer]:
    """Load the saved base model in float32, in which verl trains, and its tokenizer."""
    model = Qwen2ForCausalLM.from_pretrained(out_dir / BASE, dtype=torch.float32)
    return model, Qwen2Tokenizer.from_pretrained(out_dir / BASE)


def train_expert(out_dir: Path, expert: Expert, seed: int) -> None:
    """Train one expert from the saved base model and save its last step."""
    started = time.perf_counter()
    _prepare(seed)
    model, tokenizer = load_base(out_dir)
    reinforce(model, tokenizer, expert, seed)
    save_step(model, tokenizer, out_dir / expert.run, expert.steps)
    print(f"{expert.reward:7} saved after {time.perf_counter() - started:.0f} s", flush=True)


def train_all(out_dir: Path, seed: int) -> None:
    """Train and save the base model and its experts."""
    out_dir.mkdir(parents=True, exist_ok=True)
    train_base(out_dir, PRETRAINING, seed)
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        for done in [
            pool.submit(train_expert, out_dir, expert, seed) for expert in (*EXPERTS, MIXED)
        ]:
            done.result()


def fingerprint(seed: int) -> str:
    """Hash whatever decides the weights: the seed and the sources."""
    sources = [path.read_bytes() for path in sorted(HERE.glob("*.py")) if path.stem != "demo"]
    return hashlib.sha256(b"\0".join([str(seed).encode(), *sources])).hexdigest()


def is_complete(marker: Path, settings_hash: str) -> bool:
    """Whether the marker says that a run with these settings has finished."""
    try:
        return bool(json.loads(marker.read_text())["settings"] == settings_hash)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def main() -> None:
    """Train unless the folder already holds the same finished models."""
    parser = argparse.ArgumentParser(description="Train a base model and three experts on sums.")
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out_dir: Path = arguments.out_dir
    marker, settings_hash = out_dir / MARKER, fingerprint(arguments.seed)
    if is_complete(marker, settings_hash):
        print(f"cached: {out_dir} already holds these models")
        return
    # Without its marker an interrupted run cannot pass for a finished one.
    marker.unlink(missing_ok=True)
    train_all(out_dir, arguments.seed)
    partial = marker.with_suffix(".partial")
    partial.write_text(json.dumps({"settings": settings_hash, "seed": arguments.seed}))
    partial.replace(marker)


def _prepare(seed: int) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)


def _optimizer(model: Qwen2ForCausalLM, rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )


def _step(model: Qwen2ForCausalLM, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> float:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


if __name__ == "__main__":
    main()
