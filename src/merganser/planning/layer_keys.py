"""Keys of ``config.json`` that describe layers: what they mean, and the types of their values.

:mod:`planning.depth` rewrites them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merganser.errors import InputError

PER_LAYER = frozenset(
    {
        "layer_types",
        "layers_block_type",
        "mlp_layer_types",
        "no_rope_layers",
        "attention_layers",
        "block_configs",
        "hybrid_override_pattern",
    }
)
"""Lists (or strings) with one entry per layer. In models of more than three layers, any other list
whose length equals the depth counts as one; in shallower ones that may be chance."""

NOT_PER_LAYER = frozenset(
    {
        "architectures",
        "eos_token_id",
        "bos_token_id",
        "pad_token_id",
        "suppress_tokens",
        "begin_suppress_tokens",
        "time_step_limit",
        "mlp_multipliers",
        "ssm_multipliers",
        "image_size",
        "patch_size",
        "supported_aspect_ratios",
        "keys_to_ignore_at_inference",
        "block_types",
        "attention_types",
    }
)
"""Lists without entries per layer, whose length may equal the depth by chance."""

NUMBERS = frozenset(
    {
        "mlp_only_layers",
        "moe_layers",
        "attn_layer_indices",
        "full_attn_idxs",
        "hybrid_layer_ids",
        "cross_attention_layers",
        "fullatt_block_indexes",
        "window_block_indices",
        "deepstack_visual_indexes",
        "intermediate_layers_indices",
        "global_attn_idx",
        "ple_layer_ids",
    }
)
"""Lists of layer numbers."""

NAMED_AS_NUMBERS = re.compile(
    r"layers$|layer_(ids|idxs?|indices|indexes)$|(block|attn)_(ids|idxs|indices|indexes)$|_blocks$"
)
"""Names of further such lists, if all entries are layer numbers."""

FURTHER = "mtp_"
"""Prefix of keys for layers of multi-token prediction."""

FROM_ONE = frozenset({"ple_layer_ids"})
"""Lists of layer numbers that count from 1."""

SOURCES = frozenset({"kv_source_layers"})
"""Lists with one entry per layer: the number of the earlier layer whose keys and values it reuses,
or its own number."""

KEYED = frozenset({"pruned_heads", "per_layer_config"})
"""Mappings by layer number, possibly with leading zeros. A mapping with ``layer`` in its name and
only layer numbers as keys is treated alike."""

IN_ORDER = {
    "loop_layer_index_start": 0,
    "n_recurrent_layers": 0,
    "cross_layer_interval": 1,
    "depths": [],  # stages (Swin), each wider than the previous one
}
"""Keys whose meaning depends on the order of all layers, unless they have this value."""


BY_NUMBER = ("scale_attn_by_inverse_layer_idx",)
"""Keys that make layers compute with their number."""

BY_NUMBER_TYPES = frozenset({"beam", "diffllama"})
"""Model types whose layers compute with their number, whatever the config says."""

ENDS = {"neomme": "full_attention"}
"""Model types whose first and last layer of a type compute differently from those between."""

BY_DEPTH_TYPES = frozenset({"esmc"})
"""Model types whose layers compute with the number of all layers."""

BY_ROOT_OF_DEPTH = ("scale_depth",)
"""Factors that are divided by the square root of the number of layers (MiniCPM)."""


@dataclass(frozen=True, slots=True)
class Leading:
    """A rule of configs: the first n layers are of another kind.

    Attributes:
        key: the key of n.
        instead: a list with one entry per layer that takes precedence, if any.
        kinds: its entries for these layers and for the others; None if the list must not be added.
        only_if: a key that must be true for n to have an effect.
    """

    key: str
    instead: str | None = None
    kinds: tuple[str, str] | None = None
    only_if: str | None = None


LEADING = (
    Leading("first_k_dense_replace", "mlp_layer_types"),
    Leading("num_dense_layers", "mlp_layer_types"),
    Leading(
        "max_window_layers",
        "layer_types",
        ("full_attention", "sliding_attention"),
        "use_sliding_window",
    ),
)


@dataclass(frozen=True, slots=True)
class Period:
    """A rule of configs: one layer in every period, the marked one, is of another kind.

    Attributes:
        key: the key of the period.
        at: index within the period (-1 for the last), or the key of that index.
        instead: a list that takes precedence over the period, if any.
        kinds: its entries for marked layers and for the others; None if it lists the marked ones.
        addable: whether the list may be added to a config that lacks it.
        implied: model types with this period by default.
        only: the model types that read the key this way; None for all.
        parts: the key of the number of periods in all layers, if the model computes the period from it.
    """

    key: str
    at: int | str
    instead: str | None = None
    kinds: tuple[Any, Any] | None = None
    addable: bool = True
    implied: Mapping[str, int] | None = None
    only: frozenset[str] | None = None
    parts: str | None = None

    def of(self, section: Mapping[str, Any]) -> tuple[int, int] | None:
        """A config's period, and the index of the marked layer within it; None if it has none."""
        kind = str(section.get("model_type"))
        if self.only is not None and kind not in self.only:
            return None
        period = section.get(self.key, section.get(f"_{self.key}", (self.implied or {}).get(kind)))
        if isinstance(period, bool) or not isinstance(period, int) or period < 1:
            return None
        at = section.get(self.at, 0) if isinstance(self.at, str) else self.at
        return (period, at % period) if isinstance(at, int) else None


_SLIDING = ("full_attention", "sliding_attention")
_SWITCH, _NLLB = frozenset({"switch_transformers"}), frozenset({"nllb-moe"})

PERIODS = (
    Period(
        "sliding_window_pattern",
        -1,
        "layer_types",
        _SLIDING,
        implied={"gemma2": 2, "cohere2": 4, "gemma3_text": 6},
    ),
    Period("global_attn_every_n_layers", 0, "layer_types", _SLIDING),
    Period("full_attention_interval", -1, "layer_types", ("full_attention", "linear_attention")),
    Period("no_rope_layer_interval", -1, "no_rope_layers", (0, 1)),
    Period("interleave_moe_layer_step", -1, "moe_layers"),
    Period("attn_layer_period", "attn_layer_offset", "layers_block_type", addable=False),
    Period("expert_layer_period", "expert_layer_offset"),
    Period("n_layers_per_attn_res_block", 0),
    Period("encoder_sparse_step", 1, only=_SWITCH, parts="num_sparse_encoder_layers"),
    Period("decoder_sparse_step", 1, only=_SWITCH, parts="num_sparse_decoder_layers"),
    Period("encoder_sparse_step", -1, only=_NLLB),
    Period("decoder_sparse_step", -1, only=_NLLB),
    Period("cross_attention_frequency", 0),
)


@dataclass(frozen=True, slots=True)
class Span:
    """A rule of configs: a range of layers, or every n-th layer in it, is of another kind.

    Attributes:
        first, last: the keys of the first and the last layer; -1 is the last of all.
        every: the key of n.
    """

    first: str
    last: str
    every: str

    def holds(self, section: Mapping[str, Any], depth: int, layer: int) -> bool:
        """Whether a layer is of that kind in a config."""
        last = section.get(self.last)
        if not isinstance(last, int):
            return False
        stop = depth if last == -1 else last + 1
        first, every = section.get(self.first) or 0, section.get(self.every) or 1
        return first <= layer < stop and (layer + 1) % every == 0


SPANS = (Span("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval"),)


def is_numbers(key: str, value: object, depth: int) -> bool:
    """Whether a value is a list of layer numbers."""
    if not isinstance(value, list) or key in PER_LAYER or key in SOURCES or key in NOT_PER_LAYER:
        return False
    if key.startswith(FURTHER):
        return False
    if key in NUMBERS:
        return True
    integers = all(isinstance(n, int) and not isinstance(n, bool) for n in value)
    named = NAMED_AS_NUMBERS.search(key) is not None
    return named and integers and value == sorted({n for n in value if 0 <= n < depth})


def is_keyed(key: str, value: object, depth: int) -> bool:
    """Whether a value is a mapping by layer number."""
    if not isinstance(value, dict) or not all(str(k).isdecimal() for k in value):
        return False
    if key.startswith(FURTHER):
        return False
    return key in KEYED or (
        "layer" in key and bool(value) and all(int(number) < depth for number in value)
    )


def is_per_layer(key: str, value: Sequence[Any], depth: int) -> bool:
    """Whether a list or string has one entry per layer."""
    if len(value) != depth or key in NOT_PER_LAYER or is_numbers(key, value, depth):
        return False
    if key.startswith(FURTHER):
        return False
    return key in PER_LAYER or (depth > 3 and not isinstance(value, str))


def check_values(section: Mapping[str, Any], reference: str) -> None:
    """Check the types of the keys that describe layers.

    Args:
        section: a section of ``config.json``.
        reference: the model.

    Raises:
        InputError: naming the first key of another type.
    """

    def is_count(value: Any, least: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    right: dict[str, Callable[[Any], bool]] = dict.fromkeys(
        NUMBERS | SOURCES, lambda v: isinstance(v, list) and all(is_count(n, 0) for n in v)
    )
    right |= dict.fromkeys(
        KEYED, lambda v: isinstance(v, dict) and all(str(k).isdecimal() for k in v)
    )
    right |= dict.fromkeys([rule.key for rule in LEADING], lambda v: is_count(v, 0))
    for span in SPANS:
        right |= {span.first: lambda v: is_count(v, 0), span.every: lambda v: is_count(v, 1)}
        right[span.last] = lambda v: is_count(v, -1)
    right["num_kv_shared_layers"] = lambda v: is_count(v, 0)
    right["block_types"] = lambda v: isinstance(v, list)
    right["decoder_sparse_step"] = lambda v: is_count(v, 0)
    for key, is_right in right.items():
        value = section.get(key)
        if value is not None and not is_right(value):
            raise InputError(
                f"{reference}: its config.json has {key} {str(value)[:40]!r}, which says nothing "
                "about layers; correct it"
            )
