"""Tiny models that vLLM's kernels take, and merges of them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import peers

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2": {
        **{"hidden_size": 128, "head_dim": 32, "max_window_layers": 3},
        **{"sliding_window": None, "use_sliding_window": False},
    },
    "llama": {"hidden_size": 128, "head_dim": 32},
    "gpt2": {"n_embd": 128, "n_head": 4},
}
"""With a head of its own, a tied one, and weights that are transposed; vLLM's kernels want wide heads."""


def make_models(folder: Path, family: str, dtype: str = "bfloat16") -> Path:
    for seed, name in enumerate("ab"):
        peers.make_model(folder / name, family, seed=seed, dtype=dtype, **SHAPES[family])
        file = folder / name / "config.json"
        config = json.loads(file.read_text())
        if "layer_types" in config:  # vLLM's Qwen2 has one kind of attention in all layers
            config["layer_types"] = ["full_attention"] * config["num_hidden_layers"]
            file.write_text(json.dumps(config))
    return folder


def linear(folder: Path, weight: float, dtype: str = "bfloat16") -> dict[str, Any]:
    models = [
        {"model": str(folder / "a"), "parameters": {"weight": weight}},
        {"model": str(folder / "b"), "parameters": {"weight": 1 - weight}},
    ]
    return {"merge_method": "linear", "models": models, "dtype": dtype}


def name_all_tokens(folder: Path) -> None:
    """Give every token of the models in a folder a word, so that texts tell answers apart."""
    for file in folder.glob("*/tokenizer.json"):
        tokenizer = json.loads(file.read_text())
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary |= {f"w{token}": token for token in range(len(vocabulary), peers.VOCABULARY)}
        file.write_text(json.dumps(tokenizer))


CALL = '{"name":"add","arguments":{"a":1}}'


def make_caller(folder: Path, words: list[str]) -> None:
    """Make a model of a folder say fixed words after "1", as a chain from each word to the next.

    Its layers add nothing, so that the last token alone decides the next one.
    """
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    for word in words:
        vocabulary.setdefault(word, len(vocabulary))
    file.write_text(json.dumps(tokenizer))
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor.zero_()
    embedding, head = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    embedding.copy_(torch.eye(*embedding.shape))
    head.zero_()
    chain = [vocabulary[word] for word in ("1", *words, "</s>")]
    for now, following in itertools.pairwise(chain):
        head[following, now] = 1.0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
