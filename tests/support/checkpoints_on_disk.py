"""Tiny Qwen2-shaped checkpoints, written as published models are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", *"0123456789+-=?", "user"]

TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "WhitespaceSplit"},
    "post_processor": None,
    "decoder": None,
    "model": {
        "type": "WordLevel",
        "vocab": {word: i for i, word in enumerate(WORDS)},
        "unk_token": "<unk>",
    },
}
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "model_max_length": 131072,
}
CHAT_TEMPLATE = "{% for m in messages %}<|im_start|> {{ m.role }} {{ m.content }} {% endfor %}\n"
GENERATION_CONFIG = {"bos_token_id": 1, "eos_token_id": [2, 5], "temperature": 0.7}


def config(
    *, layers: int = 2, hidden: int = 16, vocab: int = 32, tied: bool = False
) -> dict[str, Any]:
    """A Qwen2 config with keys in an order of its own, as published models have it."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "model_type": "qwen2",
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def shapes(
    *, layers: int = 2, hidden: int = 16, vocab: int = 32, head: bool = True
) -> dict[str, tuple[int, ...]]:
    """The tensors of a Qwen2 model, in the order of the model."""
    wide, key = 2 * hidden, hidden // 2
    layer = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (hidden, hidden),
        "self_attn.q_proj.bias": (hidden,),
        "self_attn.k_proj.weight": (key, hidden),
        "self_attn.k_proj.bias": (key,),
        "self_attn.v_proj.weight": (key, hidden),
        "self_attn.v_proj.bias": (key,),
        "self_attn.o_proj.weight": (hidden, hidden),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (wide, hidden),
        "mlp.up_proj.weight": (wide, hidden),
        "mlp.down_proj.weight": (hidden, wide),
    }
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for i in range(layers):
        found |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    found["model.norm.weight"] = (hidden,)
    if head:
        found["lm_head.weight"] = (vocab, hidden)
    return found


def write_json(file: Path, data: object) -> Path:
    file.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    return file


def save_weights(folder: Path, tensors: Mapping[str, torch.Tensor], shards: int = 1) -> None:
    """Tensors as one safetensors file, or dealt out to shards with an index."""
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", {"format": "pt"})
        return
    names = list(tensors)
    weight_map = {}
    for k in range(shards):
        file = f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
        part = names[k * len(names) // shards : (k + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def make_model(
    folder: Path,
    *,
    layers: int = 2,
    hidden: int = 16,
    vocab: int = 32,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    tied: bool = False,
    head: bool | None = None,
    shards: int = 1,
    extra: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write a random Qwen2-shaped checkpoint with all that a published one has beside it.

    ``head`` says whether it stores an ``lm_head``, by default if it is not tied; in a tied model that is
    a copy of the embedding. ``extra`` are tensors that are added, or replace those of that name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    head = not tied if head is None else head
    tensors = {
        name: (0.05 * torch.randn(shape, generator=generator)).to(dtype)
        for name, shape in shapes(layers=layers, hidden=hidden, vocab=vocab, head=head).items()
    }
    if tied and head:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_weights(folder, tensors | dict(extra or {}), shards)
    write_json(folder / "config.json", config(layers=layers, hidden=hidden, vocab=vocab, tied=tied))
    write_json(folder / "generation_config.json", GENERATION_CONFIG)
    write_json(folder / "tokenizer.json", TOKENIZER)
    write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return folder


def change_config(folder: Path, **changes: Any) -> Path:
    """Change keys of a checkpoint's ``config.json``; None removes one."""
    file = folder / "config.json"
    data = json.loads(file.read_text(encoding="utf-8")) | changes
    write_json(file, {key: value for key, value in data.items() if value is not None})
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its bytes."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
