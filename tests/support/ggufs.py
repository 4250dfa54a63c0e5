"""Small GGUF files, written with the package of llama.cpp's own authors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import dequantize, quantize

Tensors = dict[str, torch.Tensor]

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 48,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-05,
    "rope_theta": 50000.0,
    "tie_word_embeddings": True,
}


def llama(seed: int = 0) -> Tensors:
    """The tensors of a small tied llama."""
    generator = torch.Generator().manual_seed(seed)
    hidden, wide, keys = 64, 96, 32
    layer = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (hidden, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, hidden),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (wide, hidden),
        "mlp.up_proj.weight": (wide, hidden),
        "mlp.down_proj.weight": (hidden, wide),
    }
    shapes = {"model.embed_tokens.weight": (48, hidden), "model.norm.weight": (hidden,)}
    shapes |= {f"model.layers.{i}.{name}": shape for i in range(2) for name, shape in layer.items()}
    return {
        name: 0.05 * torch.randn(shape, generator=generator) + (len(shape) == 1)
        for name, shape in shapes.items()
    }


def rounded(tensor: torch.Tensor, kind: str) -> torch.Tensor:
    """What is left of a tensor after quantising, by the package's own arithmetic."""
    quantised = gguf.GGMLQuantizationType[kind]
    return torch.from_numpy(dequantize(quantize(tensor.numpy(), quantised), quantised))


def name_in_gguf(name: str) -> str:
    whole, _, leaf = name.rpartition(".")
    if not whole.startswith("model.layers."):
        return f"{NAMES[whole]}.{leaf}"
    _, _, number, part = whole.split(".", 3)
    return f"blk.{number}.{NAMES[part]}.{leaf}"


def interleaved(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """What llama.cpp's converter makes of llama's queries and keys."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def save(
    file: Path,
    tensors: Tensors,
    config: Mapping[str, Any],
    kind: str = "F32",
    keys: Mapping[str, Any] | None = None,
    kinds: Mapping[str, str] | None = None,
) -> Path:
    """Write a model as a GGUF file: matrices of a kind, vectors in float32, as the converter does.

    ``kinds`` are those of some tensors, by their names in transformers; ``keys`` go over the model's.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    model = config["model_type"]
    writer = gguf.GGUFWriter(file, model)
    sizes = {
        "block_count": config["num_hidden_layers"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "context_length": config["max_position_embeddings"],
        "vocab_size": config["vocab_size"],
    }
    if "head_dim" in config:
        sizes["attention.key_length"] = config["head_dim"]
    given = {f"{model}.{key}": value for key, value in sizes.items()}
    given[f"{model}.attention.layer_norm_rms_epsilon"] = config["rms_norm_eps"]
    given[f"{model}.rope.freq_base"] = config["rope_theta"]
    given |= dict(keys or {})
    for key, value in given.items():
        add = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            list: writer.add_array,
        }[type(value)]
        add(key, value)
    for name, tensor in tensors.items():
        if model == "llama" and name.endswith(("q_proj.weight", "k_proj.weight", "q_proj.bias")):
            which = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
            tensor = interleaved(tensor, config[which])
        wanted = (kinds or {}).get(name, kind if tensor.ndim > 1 else "F32")
        quantised = gguf.GGMLQuantizationType[wanted]
        data = tensor.float().numpy()
        if wanted != "F32":
            data = quantize(data, quantised)
        writer.add_tensor(name_in_gguf(name), np.ascontiguousarray(data), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
