"""Megatron-core's tensors of dense models: their names and packing.

Layers are numbered, or stacked along a first axis. ``linear_qkv`` contains, for each group of heads
that share a key and a value, the rows of its queries, its key and its value; ``linear_fc1`` is the
gate projection above the up projection. Vocabularies are padded.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from merganser.checkpoints.stored import Parts, cut
from merganser.checkpoints.torch_pickle import MALFORMED
from merganser.errors import InputError
from merganser.tensors import TensorSpec

MODELS = ("llama", "mistral", "qwen2", "qwen3")
"""Model types that consist of these tensors only."""

_OUTSIDE = {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "decoder.final_layernorm.weight": "model.norm.weight",
    "output_layer.weight": "lm_head.weight",
}

_INSIDE = {
    "input_layernorm.weight": "input_layernorm.weight",
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "self_attention.linear_proj.bias": "self_attn.o_proj.bias",
    "self_attention.q_layernorm.weight": "self_attn.q_norm.weight",
    "self_attention.k_layernorm.weight": "self_attn.k_norm.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    "mlp.linear_fc1.weight_w": "mlp.gate_proj.weight",
    "mlp.linear_fc1.weight_v": "mlp.up_proj.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}

_LAYERS = re.compile(r"decoder\.layers\.(?:(\d+)\.)?(.+)")

Split = tuple[str, list[tuple[int, int]]]
"""A tensor's name in transformers, and its rows in the packed tensor as pairs (first row, count)."""


def is_megatron(names: Collection[str]) -> bool:
    """Whether tensor names are Megatron-core's."""
    return any(name.removeprefix("model.").startswith("decoder.layers.") for name in names)


def renamed(
    tensors: Mapping[str, Parts], config: Mapping[str, Any], file: Path
) -> dict[str, Parts]:
    """Convert a model's tensors to those of transformers, layer by layer.

    Args:
        tensors: Megatron's tensors by name.
        config: the model's ``config.json``, for the numbers of heads.
        file: the file in messages.

    Raises:
        InputError: when it is not a dense model of a known type, or its config is missing.
    """
    kind = config.get("model_type")
    if kind not in MODELS:
        what = f"is of type {kind!r}" if kind else "has no config.json next to it"
        raise InputError(
            f"{file}: is a Megatron checkpoint that {what}; supported are {', '.join(MODELS)}; else use "
            "the weights that the trainer exports"
        )
    unpacked: dict[str, Parts] = {}
    for name, tensor in tensors.items():
        try:
            for new, parts in _unpacked(name.removeprefix("model."), tensor, config):
                if new in unpacked:
                    raise ValueError(f"{new} is there twice")
                unpacked[new] = parts
        except MALFORMED as error:
            raise InputError(
                f"{file}: tensor {name!r} is not one of the dense {kind} that its config.json describes ({error})"
            ) from None
    return dict(sorted(unpacked.items(), key=lambda entry: _order(entry[0])))


def _unpacked(name: str, tensor: Parts, config: Mapping[str, Any]) -> Iterator[tuple[str, Parts]]:
    if "_extra_state" in name:
        return
    if name in _OUTSIDE:
        rows = tensor[0].shape[0]
        if name != "decoder.final_layernorm.weight":
            rows = min(rows, int(config["vocab_size"]))
        yield _OUTSIDE[name], _rows(tensor, None, [(0, rows)])
        return
    layers = _LAYERS.fullmatch(name)
    if layers is None:
        raise ValueError("unknown")
    number, rest = layers[1], layers[2]
    shape = tensor[0].shape if number is not None else tensor[0].shape[1:]
    count = 1 if number is not None else tensor[0].shape[0]
    if number is None and count != config["num_hidden_layers"]:
        raise ValueError(f"{count} layers")
    parts = _parts(rest, shape, config)
    for layer in range(count):
        for new, runs in parts:
            stacked = _rows(tensor, layer if number is None else None, runs)
            yield f"model.layers.{layer if number is None else number}.{new}", stacked


def _parts(rest: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> list[Split]:
    """The tensors that a tensor of a layer contains."""
    if rest in _INSIDE:
        return [(_INSIDE[rest], [(0, shape[0])])]
    module, _, kind = rest.rpartition(".")
    if rest == "mlp.linear_fc1.weight":
        if shape[0] != 2 * config["intermediate_size"]:
            raise ValueError(f"{shape[0]} rows")
        half = shape[0] // 2
        return [("mlp.gate_proj.weight", [(0, half)]), ("mlp.up_proj.weight", [(half, half)])]
    if module == "self_attention.linear_qkv" and kind in ("weight", "bias"):
        heads = int(config["num_attention_heads"])
        groups = int(config.get("num_key_value_heads") or heads)
        width = int(config.get("head_dim") or config["hidden_size"] // heads)
        queries = heads // groups * width
        step = queries + 2 * width
        if shape[0] != groups * step:
            raise ValueError(f"{shape[0]} rows, not {groups * step}")
        starts = range(0, groups * step, step)
        return [
            (f"self_attn.q_proj.{kind}", [(s, queries) for s in starts]),
            (f"self_attn.k_proj.{kind}", [(s + queries, width) for s in starts]),
            (f"self_attn.v_proj.{kind}", [(s + queries + width, width) for s in starts]),
        ]
    raise ValueError("unknown")


def _rows(tensor: Parts, layer: int | None, runs: list[tuple[int, int]]) -> Parts:
    """Stack runs of rows of a tensor; for tensors with an axis of layers, of one layer."""
    dtype, front = tensor[0].dtype, () if layer is None else (layer,)
    inner = tensor[0].shape[len(front) + 1 :]
    pieces, done = [], 0
    for first, count in runs:
        begin = (*front, first, *(0 for _ in inner))
        size = (*(1 for _ in front), count, *inner)
        for piece in cut(tensor[1], begin, size, dtype.itemsize):
            skip = len(front)
            origin = (piece.origin[skip] + done, *piece.origin[skip + 1 :])
            pieces.append(
                replace(piece, size=piece.size[skip:], stride=piece.stride[skip:], origin=origin)
            )
        done += count
    return TensorSpec(dtype, (done, *inner)), pieces


def _order(name: str) -> tuple[int, int, str]:
    """Sort key: the embedding, the layers by number, then the rest."""
    match = re.match(r"model\.layers\.(\d+)\.", name)
    if match:
        return 1, int(match[1]), name
    return 0 if "embed" in name else 2, 0, name
