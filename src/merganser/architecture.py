"""What a tensor is in its model, inferred from names, shapes and ``config.json``: no file per family.

Numbered blocks whose count matches the config's layer count are the layers. A matrix with a
vocabulary-sized side is an embedding or a head. Names stay as they are on disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from merganser.tensors import TensorSpec

LAYER_COUNT_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth")
"""Names that configs give to the number of layers."""

VOCABULARY_KEYS = ("vocab_size", "padded_vocab_size")

PER_LAYER_KEYS = ("layer_types", "no_rope_layers", "no_rope_layer_interval", "mlp_layer_types")
"""Lists in ``config.json`` with one entry a layer, to be cut and joined with the layers. Any other
list as long as the model is deep is treated alike; these are named for when lengths coincide."""

_NUMBER = re.compile(r"(?:^|(?<=\.))(\d+)(?=\.)")

_BEFORE_LAYERS = ("embed", "wte", "wpe", "shared.weight", "conv_in", "patch")
_HEADS = ("lm_head", "embed_out", "output_layer", "score", "classifier")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor sits in its model.

    Attributes:
        stack: the prefix of the numbered blocks it lies in (``model.layers.``), or None.
        layer: its block's number, or None outside the layers.
        rest: its name without prefix and number; outside the layers the whole name.
        role: a word for people: embedding, head, attention, mlp, norm, other.
        after_layers: whether it comes after the layers (final norm, head) rather than before.
    """

    stack: str | None
    layer: int | None
    rest: str
    role: str
    after_layers: bool = False

    def name_at(self, layer: int) -> str:
        """This tensor's name in another layer."""
        return self.rest if self.stack is None else f"{self.stack}{layer}.{self.rest}"


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of a model: its stacks of layers, and the place of every tensor."""

    stacks: Mapping[str, int]
    places: Mapping[str, Place]

    @property
    def depth(self) -> int:
        """Number of layers of the main (deepest-named) stack; 0 if there is none."""
        return next(iter(self.stacks.values()), 0)


def infer(specs: Mapping[str, TensorSpec], config: Mapping[str, Any]) -> Architecture:
    """Find layers and roles from tensor names, their shapes and the config."""
    stacks = _stacks(specs, layer_counts(config))
    vocabularies = {
        value
        for section in sections(config)
        for key in VOCABULARY_KEYS
        if isinstance(value := section.get(key), int)
    }
    places = {}
    for name, spec in specs.items():
        stack = next((prefix for prefix in stacks if name.startswith(prefix)), None)
        found = re.match(r"(\d+)\.(.+)", name[len(stack) :]) if stack is not None else None
        role = _role(name, spec, vocabularies)
        if found is not None:
            places[name] = Place(stack, int(found[1]), found[2], role)
        else:
            after = role == "head" or not any(mark in name for mark in _BEFORE_LAYERS)
            places[name] = Place(None, None, name, role, after)
    return Architecture(stacks, places)


def sections(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The config and those of its parts that describe a sub-model (``text_config`` …)."""
    inner = [
        value for key, value in config.items() if key.endswith("config") and isinstance(value, dict)
    ]
    return [config, *inner]


def layer_counts(config: Mapping[str, Any]) -> list[int]:
    """All layer counts that the config states, the text model's first."""
    return [
        value
        for section in sections(config)
        for key in LAYER_COUNT_KEYS
        if isinstance(value := section.get(key), int) and value > 0
    ]


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """The vocabulary size that the config states."""
    for section in sections(config):
        for key in VOCABULARY_KEYS:
            if isinstance(value := section.get(key), int):
                return value
    return None


def ties_embeddings(config: Mapping[str, Any]) -> bool:
    """Whether the config says that the head is the embedding."""
    return any(section.get("tie_word_embeddings") is True for section in sections(config))


def _stacks(names: Iterable[str], counts: list[int]) -> dict[str, int]:
    """Prefixes of numbered blocks, deepest first. The first number in a name counts: experts are
    numbered too, but inside a layer."""
    numbers: dict[str, set[int]] = {}
    for name in names:
        if found := _NUMBER.search(name):
            numbers.setdefault(name[: found.start()], set()).add(int(found[1]))
    whole = {prefix: len(seen) for prefix, seen in numbers.items() if seen == set(range(len(seen)))}
    stated = {prefix: depth for prefix, depth in whole.items() if depth in counts}
    chosen = stated or whole
    return dict(sorted(chosen.items(), key=lambda entry: -entry[1]))


def _role(name: str, spec: TensorSpec, vocabularies: set[int]) -> str:
    vocabulary = bool(spec.shape) and spec.shape[0] in vocabularies
    if any(mark in name for mark in _HEADS) or (vocabulary and name.startswith("output.")):
        return "head"
    if "embed" in name or ".wte" in name or ".wpe" in name or (vocabulary and len(spec.shape) == 2):
        return "embedding"
    if "norm" in name or ".ln_" in name:
        return "norm"
    if "attn" in name or "attention" in name:
        return "attention"
    if "mlp" in name or "feed_forward" in name or "expert" in name or "ffn" in name:
        return "mlp"
    return "other"
