"""Train a small language model on sums, and two experts from it, in the layout that verl writes.

    python train_experts.py OUT_DIR [--seed 0]

The base model is mediocre at sums and at format. Each expert is a short fine-tuning of it: `acc`
learns right answers without tags, `accfmt` right answers in think and answer tags. Nothing is
downloaded. The folders are named after the runs of a real study, so that tools meet the names they
will meet later; the learning rates and lengths in those names are not the ones used here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import time
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

# Set before torch loads: its threads then sleep while they wait for work. Spinning ones hinder each
# other as soon as anything else runs.
os.environ["OMP_WAIT_POLICY"] = "passive"

import sums
import torch
from tokenizers import AddedToken, pre_tokenizers
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.utils import logging

MARKER = ".complete.json"
THREADS = 2
"""Fixed, since the order of additions, and so the last bits of a weight, depends on it."""

CONTEXT_LENGTH = 131072
"""As in the models that this one stands for; no sequence here has more than 40 tokens."""

IGNORED = -100
"""The label of a position that the loss leaves out."""

BOS, EOS, PAD, USER, ASSISTANT = SPECIAL = (
    "<|bos|>",
    "<|endoftext|>",
    "<|pad|>",
    "<|user|>",
    "<|assistant|>",
)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{{- '<|' + message['role'] + '|>' + message['content'] }}
{%- if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""


@dataclass(frozen=True)
class Phase:
    """One training: which replies it learns, for how long, and where the run is saved."""

    name: str
    reply: str
    steps: int
    batch: int
    peak_rate: float
    run: str = ""

    def folder(self, out_dir: Path) -> Path:
        """Where the model and its tokenizer go."""
        if not self.run:
            return out_dir / self.name
        return out_dir / self.run / f"global_step_{self.steps}" / "actor" / "huggingface"


BASE = Phase("base", "sloppy", steps=450, batch=16, peak_rate=1.5e-3)
EXPERTS = (
    Phase("acc", "plain", 54, 48, 9e-5, "baselines_openrs/acc_MRL4096_ROLLOUT4_LR2e-6"),
    Phase("accfmt", "tagged", 30, 24, 1.2e-4, "baselines_openrs/accfmt_MRL4096_ROLLOUT4_LR2e-6"),
)


def build_tokenizer() -> Qwen2Tokenizer:
    """Make a small Qwen2 tokenizer: bytes, digits among them, and the words of the questions.

    Of that class because transformers loads the tokenizer of every Qwen2 model as one.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {entry: index for index, entry in enumerate([*SPECIAL, *TAGS, *alphabet])}
    merges: dict[tuple[str, str], None] = {}
    # A word grows from its first byte, a capital or a space, which no word has further on. So the
    # merges of one word cannot disturb another.
    for word in (*sums.OPENINGS, *(f"\u0120{request}" for request in sums.REQUESTS)):
        for end in range(1, len(word)):
            merges[word[:end], word[end]] = None
            vocabulary.setdefault(word[: end + 1], len(vocabulary))
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=list(merges),
        bos_token=BOS,
        eos_token=EOS,
        unk_token=EOS,
        pad_token=PAD,
        extra_special_tokens=[USER, ASSISTANT],
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT_LENGTH,
    )
    # No special tokens: a decoder that skips those must leave the tags in the text.
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    return tokenizer


def build_model(tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """Make an untrained Qwen2 model of 2.4 million parameters."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        # Wider than the usual 0.02, which suits larger models: this one learns twice as fast.
        initializer_range=0.05,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def encode(
    tokenizer: Qwen2Tokenizer, problems: Iterable[sums.Problem], replies: Iterable[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn questions and replies into token ids and labels; only replies are learnt."""
    slot = "\0"
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": slot}], tokenize=False, add_generation_prompt=True
    )
    prompts = tokenizer([chat.replace(slot, problem.question) for problem in problems])["input_ids"]
    answers = tokenizer([reply + EOS for reply in replies])["input_ids"]
    pairs = list(zip(prompts, answers, strict=True))
    width = max(len(prompt) + len(answer) for prompt, answer in pairs)
    ids = torch.full((len(pairs), width), tokenizer.pad_token_id)
    labels = torch.full((len(pairs), width), IGNORED)
    for row, (prompt, answer) in enumerate(pairs):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return ids, labels


def train(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, phase: Phase, seed: int) -> float:
    """Train the model in place; return the mean loss of the last tenth of the steps."""
    rng = random.Random(f"{phase.name} {seed}")
    reply: sums.Reply = getattr(sums, phase.reply)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=phase.peak_rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, phase.peak_rate, phase.steps, pct_start=0.1, cycle_momentum=False
    )
    losses = []
    model.train()
    for _ in range(phase.steps):
        problems = [sums.training_problem(rng) for _ in range(phase.batch)]
        ids, labels = encode(tokenizer, problems, [reply(problem, rng) for problem in problems])
        # Padding is on the right here, so no position that counts can see it: no mask is needed.
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
    last = losses[-max(1, phase.steps // 10) :]
    return sum(last) / len(last)


def save(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, phase: Phase, out_dir: Path) -> None:
    """Save the model in bfloat16 with its tokenizer, and name the step in the run's folder."""
    folder = phase.folder(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if phase.run:
        (out_dir / phase.run / "latest_checkpointed_iteration.txt").write_text(str(phase.steps))


def train_all(out_dir: Path, seed: int) -> None:
    """Train and save the base and both experts, printing one line for each."""
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    base = build_model(tokenizer)
    for phase in (BASE, *EXPERTS):
        start = time.perf_counter()
        model = base if phase is BASE else deepcopy(base)
        loss = train(model, tokenizer, phase, seed)
        save(model, tokenizer, phase, out_dir)
        seconds = time.perf_counter() - start
        print(f"{phase.name:7}{phase.steps:4} steps   loss {loss:.3f}   {seconds:5.1f} s")


def fingerprint(seed: int) -> str:
    """Hash whatever decides the weights: the phases, the seed and these two source files."""
    settings = json.dumps([seed, *map(asdict, (BASE, *EXPERTS))]).encode()
    sources = [Path(path).read_bytes() for path in (__file__, sums.__file__)]
    return hashlib.sha256(b"\0".join([settings, *sources])).hexdigest()


def is_complete(marker: Path, settings_hash: str) -> bool:
    """Whether the marker says that a run with these settings has finished."""
    try:
        return bool(json.loads(marker.read_text())["settings"] == settings_hash)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def main() -> None:
    """Train unless the folder already holds the same finished models."""
    parser = argparse.ArgumentParser(description="Train a base model and two experts on sums.")
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out_dir: Path = arguments.out_dir
    marker, settings_hash = out_dir / MARKER, fingerprint(arguments.seed)
    if is_complete(marker, settings_hash):
        print(f"cached: {out_dir} already holds these models")
        return
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Without its marker an interrupted run cannot pass for a finished one.
    marker.unlink(missing_ok=True)
    train_all(out_dir, arguments.seed)
    partial = marker.with_suffix(".partial")
    partial.write_text(json.dumps({"settings": settings_hash, "seed": arguments.seed}))
    partial.replace(marker)


if __name__ == "__main__":
    main()
