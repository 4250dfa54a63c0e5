"""Make two tiny experts to try Merganser on: ``acc`` and ``accfmt`` in the current folder.

    python make_pair.py

Both are random Qwen2 models of 0.2 million parameters. They differ by about 3e-5, as experts do
after a short reinforcement learning run at a small learning rate. They answer nothing sensible.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

LAYERS, WIDTH, INNER = 4, 64, 128
WORDS = ["<s>", "</s>", "<unk>", *"0123456789+-="]
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 256,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
}
TOKENIZER = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {"type": "WhitespaceSplit"},
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
    "unk_token": "<unk>",
}


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of the model, by name."""
    block = {
        "input_layernorm.weight": (WIDTH,),
        "post_attention_layernorm.weight": (WIDTH,),
        **{f"self_attn.{kind}_proj.weight": (WIDTH, WIDTH) for kind in "qkvo"},
        **{f"self_attn.{kind}_proj.bias": (WIDTH,) for kind in "qkv"},
        "mlp.gate_proj.weight": (INNER, WIDTH),
        "mlp.up_proj.weight": (INNER, WIDTH),
        "mlp.down_proj.weight": (WIDTH, INNER),
    }
    layers = {
        f"model.layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in block.items()
    }
    ends = {"model.embed_tokens.weight": (256, WIDTH), "lm_head.weight": (256, WIDTH)}
    return {**ends, "model.norm.weight": (WIDTH,), **layers}


def main() -> None:
    """Write both folders."""
    generator = torch.Generator().manual_seed(0)
    base = {n: 0.02 * torch.randn(shape, generator=generator) for n, shape in shapes().items()}
    for name in ("acc", "accfmt"):
        folder = Path(name)
        folder.mkdir(exist_ok=True)
        tensors = {
            n: (t + 3e-5 * torch.randn(t.shape, generator=generator)).to(torch.bfloat16)
            for n, t in base.items()
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        for file, content in (
            ("config.json", CONFIG),
            ("tokenizer.json", TOKENIZER),
            ("tokenizer_config.json", TOKENIZER_CONFIG),
        ):
            (folder / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        print(f"{name}: written")


if __name__ == "__main__":
    main()
