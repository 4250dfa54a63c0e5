"""Convert a GGUF file's keys: tensor names, layout, ``config.json``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from merganser.checkpoints.gguf import ggml
from merganser.checkpoints.gguf.header import GgufTensor
from merganser.checkpoints.stored import Piece, StoredTensor
from merganser.errors import InputError
from merganser.tensors import BY_NAME, FLOAT32, DType, TensorSpec

Array = np.ndarray[Any, Any]

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

_BFLOAT16 = BY_NAME["bfloat16"]
_UINT8 = BY_NAME["uint8"]

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

FACTORS = "rope_freqs.weight"
"""The divisors of llama 3's rotary frequencies, float32 [head size / 2]; elsewhere in the
config."""


class ModelKeys:
    """A GGUF file's keys that describe its tensors and the model's config."""

    def __init__(
        self, file: Path, keys: Mapping[str, Any], entries: Mapping[str, GgufTensor]
    ) -> None:
        self.file = file
        self.keys = keys
        self.entries = entries
        self.kind = str(keys.get("general.architecture"))[:40]
        if self.kind not in ARCHITECTURES:
            raise self._wrong(
                f"holds a model of the architecture {self.kind!r}; GGUF is read for dense models of "
                f"{', '.join(ARCHITECTURES)}"
            )
        if "token_embd.weight" not in entries:
            raise self._wrong("lacks tensor 'token_embd.weight'")
        self.layers = self._whole("block_count")
        self.hidden = self._whole("embedding_length")
        self.heads = self._whole("attention.head_count")
        self.key_heads = self._whole("attention.head_count_kv", self.heads)
        self.names = {name: self._name(name) for name in entries}
        self.vector = self._type_of_vectors()

    def _wrong(self, what: str) -> InputError:
        return InputError(f"{self.file}: {what}")

    def _key(self, name: str, default: Any = None) -> Any:
        return self.keys.get(f"{self.kind}.{name}", default)

    def _whole(self, name: str, default: int | None = None) -> int:
        value = self._key(name, default)
        if isinstance(value, np.ndarray) and len(value) and (value == value[0]).all():
            value = value[0].item()  # an array with one number per layer
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
            reason = (
                "is missing"
                if value is None
                else "is not a positive whole number that fits all layers"
            )
            raise self._wrong(f"{self.kind}.{name} {reason}")
        return value

    def _real(self, name: str, default: float | None = None) -> float | None:
        """A number that was rounded to float32, as the original decimal number."""
        value = self._key(name)
        if not isinstance(value, int | float) or not math.isfinite(value):
            return default
        return float(f"{value:.6g}")

    def _name(self, name: str) -> str:
        """A tensor's name in transformers."""
        whole, _, leaf = name.rpartition(".")
        if leaf in ("weight", "bias"):
            if whole in _NAMES:
                return f"{_NAMES[whole]}.{leaf}"
            layer = re.fullmatch(r"blk\.(\d{1,6})\.(\w+)", whole)
            if layer and layer[2] in _LAYER_NAMES and int(layer[1]) < self.layers:
                return f"model.layers.{int(layer[1])}.{_LAYER_NAMES[layer[2]]}.{leaf}"
        raise self._wrong(f"tensor {name[:80]!r} is not one of a dense {self.kind} model")

    def _type_of_vectors(self) -> DType | None:
        """The original dtype of float32 vectors, if the matrices are narrower."""
        sizes: dict[DType, int] = {}
        for entry in self.entries.values():
            plain = ggml.PLAIN.get(entry.kind)
            dtype = BY_NAME[plain] if plain else _BFLOAT16
            sizes[dtype] = sizes.get(dtype, 0) + math.prod(entry.shape)
        widest = max(sizes, key=lambda dtype: sizes[dtype])
        return widest if widest.itemsize < FLOAT32.itemsize else None

    def stored(self, name: str) -> StoredTensor:
        """The location of a tensor's bytes; quantised ones are uint8 [..., bytes per row]."""
        entry = self.entries[name]
        form = ggml.FORMATS.get(entry.kind)
        if form is not None:
            spec = TensorSpec(
                _UINT8, (*entry.shape[:-1], entry.shape[-1] // form.count * form.size)
            )
        else:
            spec = TensorSpec(BY_NAME[ggml.PLAIN[entry.kind]], entry.shape)
            if len(entry.shape) == 1 and spec.dtype == FLOAT32:
                spec = replace(spec, narrow=self.vector)
        part = name.split(".")[-2]
        if self.kind != "llama" or part not in ("attn_q", "attn_k"):
            return StoredTensor.dense(spec, entry.file, entry.offset)
        heads = self.heads if part == "attn_q" else self.key_heads
        rows, width = spec.shape[0], math.prod(spec.shape[1:])
        half = rows // heads // 2
        if half * heads * 2 != rows:
            raise self._wrong(f"tensor {name!r} has {rows} rows, which cannot be {heads} heads")
        grid = (heads, 2, half, width)  # the file has [heads, half, 2, width]
        stride = (2 * half * width, width, 2 * width, 1)
        piece = Piece(entry.file, entry.offset, grid, stride, (0, 0, 0, 0))
        return StoredTensor.of_pieces(spec, [piece], grid)

    def check(self, config: Mapping[str, Any], file: Path) -> None:
        """Raise if a config belongs to another model."""
        stated = config.get("num_hidden_layers"), config.get("hidden_size")
        if stated != (self.layers, self.hidden):
            raise InputError(
                f"{file}: says {stated[0]} layers of size {stated[1]}, but {self.file.name} has "
                f"{self.layers} of size {self.hidden}; move the wrong one away"
            )

    def config(self, factors: Array | None) -> dict[str, Any]:
        """The model's ``config.json``, built from the keys.

        Raises:
            InputError: when the keys are incomplete.
        """
        head = self._whole("attention.key_length", self.hidden // self.heads)
        data: dict[str, Any] = {
            "architectures": [ARCHITECTURES[self.kind]],
            "model_type": self.kind,
            "vocab_size": self.entries["token_embd.weight"].shape[0],
            "hidden_size": self.hidden,
            "intermediate_size": self._whole("feed_forward_length"),
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "head_dim": head,
            "hidden_act": "silu",
            "max_position_embeddings": self._whole("context_length"),
            "rms_norm_eps": self._real("attention.layer_norm_rms_epsilon", 1e-6),
            "rope_theta": self._real("rope.freq_base", 10000.0),
            "tie_word_embeddings": "output.weight" not in self.entries,
        }
        if self.kind == "qwen2":
            del data["head_dim"]
        else:
            data["attention_bias"] = "blk.0.attn_q.bias" in self.entries
        if self.kind == "llama":
            data["mlp_bias"] = "blk.0.ffn_up.bias" in self.entries
        scaling = self._scaling(factors, head, data["rope_theta"])
        if scaling is not None:
            data["rope_scaling"] = scaling
        for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
            token = self.keys.get(f"tokenizer.ggml.{key}_token_id")
            if isinstance(token, int):
                data[f"{role}_token_id"] = token
        return data

    def _scaling(self, factors: Array | None, head: int, theta: float) -> dict[str, Any] | None:
        """The config of scaled rotary positions."""
        how = str(self._key("rope.scaling.type", "none"))[:40]
        if factors is not None:
            scaling = _llama3(factors, head, theta)
            if scaling is None:
                raise self._wrong(
                    f"it scales rotary positions by a table ({FACTORS}) that config.json cannot be derived "
                    "from; put the model's config.json into the same folder"
                )
            return scaling
        if how == "none":
            return None
        factor = self._real("rope.scaling.factor")
        if how not in ("linear", "yarn") or factor is None:
            raise self._wrong(
                f"rope.scaling.type is {how!r}, which config.json cannot be derived from; put the "
                "model's config.json into the same folder"
            )
        data: dict[str, Any] = {"rope_type": how, "factor": factor}
        original = "rope.scaling.original_context_length"
        if how == "yarn" and self._key(original) is not None:
            data["original_max_position_embeddings"] = self._whole(original)
        return data


def read_factors(entry: GgufTensor | None) -> Array | None:
    """The few numbers of :data:`FACTORS`."""
    if entry is None or entry.kind != 0 or len(entry.shape) != 1 or entry.shape[0] > 4096:
        return None
    with entry.file.open("rb") as stream:
        stream.seek(entry.offset)
        return np.frombuffer(stream.read(4 * entry.shape[0]), "<f4") if entry.shape[0] else None


def _llama3(factors: Array, head: int, theta: float) -> dict[str, Any] | None:
    """The config of llama 3's scaled positions; versions differ only in the factor."""
    low, high, context = 1.0, 4.0, 8192
    if factors.shape != (len(range(0, head, 2)),) or not theta > 0:
        return None
    factor = float(f"{factors.max():.6g}")
    waves = 2 * math.pi * theta ** (np.arange(0, head, 2) / head)
    smooth = np.clip((context / waves - low) / (high - low), 0.0, 1.0)
    with np.errstate(all="ignore"):  # damaged files may have any factors
        expected = 1 / ((1 - smooth) / factor + smooth)
        if not np.allclose(factors, expected, rtol=1e-3):
            return None
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }
