"""What a tensor is in its model, inferred from names, shapes and ``config.json``: no file per family.

Numbered blocks whose count matches a layer count of the config are layers. The parts of models with
several (the text decoder, the vision tower ...) are told by the words in tensor names. A matrix with
a vocabulary-sized side is an embedding or a head. Names stay as they are on disk; where models call
the same tensor differently, their *keys* (names without wrappers) are compared. What cannot be
inferred is data in the tables below.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from merganser import roles
from merganser.modules import (
    DECODER,
    DEFAULT,
    LAYER_COUNT_KEYS,
    MODULE_ALIASES,
    TEXT,
    Module,
    find_module,
    find_parts,
    is_count,
    sections,
)
from merganser.tensors import TensorSpec

HEAD_COUNT_KEYS = ("num_attention_heads", "n_head", "n_heads")

VOCABULARY_KEYS = ("vocab_size", "padded_vocab_size")

WRAPPERS = (
    "module",  # torch's data parallel models
    "_orig_mod",  # torch.compile
    "model",
    "language_model",
    "transformer",
    "backbone",
    "bert",
    "roberta",
    "distilbert",
    "electra",
    "deberta",
    "gpt_neox",
    "rwkv",
)
"""Words that wrap a model's names in some checkpoints and not in others: a base model saved without
its head, or vision–language models as transformers 4 and 5 name their tensors."""

SAME_WORDS = (("vision_tower.vision_model.", "vision_tower."),)
"""Parts of names that mean the same, other than wrappers."""

FIRST_LAYER_ONLY = ("relative_attention_bias", "rel_attn_embed")
"""Tensors that the first layer holds for all: where no other layer has them, they stay with the
first layer of the output rather than follow a layer (T5, WavLM)."""

SHARED_BY_LAYERS = ("shared_transf",)
"""Parts of layers that several of them share, by their numbers, so that those cannot change (Zamba)."""

_LISTED = re.compile(r"(.+\.)(\d+)")

_BEFORE_LAYERS = (
    "embed",
    "emb.",
    "wte",
    "wpe",
    "shared.weight",
    "conv_in",
    "conv1.",  # Whisper
    "conv2.",
    "patch",
    "cls_token",
    "ln_pre",
    "pre_layr",  # CLIP's spelling
    "pre_layernorm",
    "layernorm_pre",
    "rotary",
    *FIRST_LAYER_ONLY,
)
_AFTER_LAYERS = ("embedding_norm",)  # LFM2's final norm, for all its name


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor sits in its model.

    Attributes:
        stack: the prefix of the numbered blocks it lies in (``model.layers.``), or None.
        layer: its block's number, or None outside the layers.
        rest: its name without prefix and number; outside the layers the whole name.
        role: a word for people: embedding, head, attention, mlp, norm, buffer, other.
        after_layers: whether it comes after the layers (final norm, head) rather than before.
        module: the part of the model that it belongs to.
        vocabulary: whether it is an embedding or a head with a row for every token.
        layer_axis: the axis along which a tensor outside the layers has a block for each of them.
        beside: of a tensor that goes with a layer but lies in numbered blocks of their own: their
            prefix, the layer of the first of them, and what follows the number.
    """

    stack: str | None
    layer: int | None
    rest: str
    role: str
    after_layers: bool = False
    module: str = DEFAULT
    vocabulary: bool = False
    layer_axis: int | None = None
    beside: tuple[str, int, str] | None = None

    def name_at(self, layer: int, stack: str | None = None) -> str:
        """This tensor's name in another layer, perhaps of a stack with another prefix."""
        if self.beside is not None:
            prefix, first, rest = self.beside
            return f"{prefix}{layer - first}{rest}"
        return self.rest if self.stack is None else f"{stack or self.stack}{layer}.{self.rest}"


@dataclass(frozen=True)
class Architecture:
    """The shape of a model: its modules, and the place of every tensor."""

    modules: Mapping[str, Module]
    places: Mapping[str, Place]

    @cached_property
    def names(self) -> Mapping[str, str]:
        """The model's own name for a key; see :meth:`key`."""
        return {self.key(name): name for name in self.places}

    @cached_property
    def layers(self) -> Mapping[tuple[str | None, int], list[str]]:
        """The tensors of each layer, by the prefix of its stack and its number."""
        found: dict[tuple[str | None, int], list[str]] = {}
        for name, place in self.places.items():
            if place.layer is not None:
                found.setdefault((place.stack, place.layer), []).append(name)
        return found

    def key(self, name: str) -> str:
        """A name without the wrappers that some checkpoints of a family have and others lack. Two
        models' tensors with the same key are the same tensor."""
        return self._keys.get(name) or (_unwrapped(name) if self._unwraps else name)

    @cached_property
    def _keys(self) -> Mapping[str, str]:
        return keys(self.places)

    @cached_property
    def _unwraps(self) -> bool:
        """Whether unwrapped names are unique, as they are not in a model of two language models."""
        return len({_unwrapped(name) for name in self.places}) == len(self.places)

    @property
    def main(self) -> Module:
        """The module that people mean by a model's layers."""
        wanted = (DEFAULT, TEXT, DECODER)
        found = next((self.modules[name] for name in wanted if name in self.modules), None)
        return found or next(iter(self.modules.values()))

    @property
    def depth(self) -> int:
        """Number of layers of the main module."""
        return self.main.depth

    def module(self, name: str) -> Module | None:
        """The module that a recipe calls so, by MergeKit's name for it, another, or its path."""
        names = (name, MODULE_ALIASES.get(name, name), name.removeprefix("model."))
        return next((self.modules[each] for each in names if each in self.modules), None)


def keys(names: Collection[str]) -> dict[str, str]:
    """The key of each tensor of a model; see :meth:`Architecture.key`. Names stay as they are where two
    tensors would have one key, as in a model of two language models."""
    unwrapped = {name: _unwrapped(name) for name in names}
    if len(set(unwrapped.values())) < len(unwrapped):
        return {name: name for name in names}
    return unwrapped


def infer(
    specs: Mapping[str, TensorSpec], config: Mapping[str, Any], paths: Iterable[str] = ()
) -> Architecture:
    """Find modules, layers and roles from tensor names, their shapes and the config."""
    parts = find_parts(specs, config, paths)
    of_module: dict[str, list[str]] = {}
    for name in specs:
        of_module.setdefault(parts[name], []).append(name)
    modules = {m: find_module(m, specs, names, config) for m, names in of_module.items()} or {
        DEFAULT: Module(DEFAULT, {}, None, ())
    }
    vocabularies = vocabulary_sizes(specs, config)
    places = {
        name: _place(name, spec, modules[parts[name]], vocabularies) for name, spec in specs.items()
    }
    widespread = {
        (place.stack, place.rest) for place in places.values() if place.layer not in (None, 0)
    }
    for name, place in places.items():
        first_only = any(word in name for word in FIRST_LAYER_ONLY)
        if first_only and (place.stack, place.rest) not in widespread:
            places[name] = Place(None, None, name, place.role, False, place.module)
        elif place.layer is None:
            axis = _layer_axis(name, specs[name].shape, modules[place.module], config)
            if axis is not None:
                places[name] = replace(place, layer_axis=axis)
    _add_blocks_beside(modules, places)
    return Architecture(modules, places)


def _add_blocks_beside(modules: dict[str, Module], places: dict[str, Place]) -> None:
    """Find what goes with the layers in blocks of their own: as many as there are layers, next to
    them (XLM), or lists of tensors with one for each layer, or for each but the first (Inkling)."""
    for module in list(modules.values()):
        if module.stack is None or module.section is None or module.depth < 3:
            continue
        parent = _parent(module.stack)
        stacks = module.stacks.items()
        others = {p for p, depth in stacks if depth == module.depth and _parent(p) == parent}
        others -= {module.stack}
        lists: dict[str, dict[int, str]] = {}
        for name, place in places.items():
            if place.module != module.name:
                continue
            if place.stack in others and place.layer is not None:
                beside = (place.stack, 0, f".{place.rest}")
                rest = f"{place.stack}{place.rest}"
                places[name] = replace(place, stack=module.stack, rest=rest, beside=beside)
            elif place.layer is None and (match := _LISTED.fullmatch(name)) is not None:
                lists.setdefault(match[1], {})[int(match[2])] = name
        modules[module.name] = replace(
            module, stacks={p: depth for p, depth in stacks if p not in others}
        )
        for prefix, names in lists.items():
            first = module.depth - len(names)
            if first not in (0, 1) or set(names) != set(range(len(names))):
                continue
            for number, name in names.items():
                place, layer = places[name], number + first
                beside = (prefix, first, "")
                places[name] = replace(
                    place, stack=module.stack, layer=layer, rest=prefix, beside=beside
                )


def _parent(prefix: str) -> str:
    return prefix.rstrip(".").rpartition(".")[0]


def _layer_axis(
    name: str, shape: Sequence[int], module: Module, config: Mapping[str, Any]
) -> int | None:
    """The axis along which a tensor has a block for each layer: its side is the number of layers
    times a size that the config gives as one for each layer, or times the number of heads where
    the config has no number for that side."""
    if module.depth < 2 or module.section is None:
        return None
    section: Any = config
    for key in module.section:
        section = section[key]
    numbers = {key: value for key, value in section.items() if is_count(value)}
    sizes = {value for key, value in numbers.items() if "per_layer" in key}
    heads = {numbers[key] for key in HEAD_COUNT_KEYS if key in numbers} - {module.depth, 1}
    for axis, side in enumerate(shape):
        size, rest = divmod(side, module.depth)
        if rest == 0 and "per_layer" in name and size in sizes:
            return axis
        if rest == 0 and size in heads and side not in numbers.values():
            return axis
    return None


def without_layers(architecture: Architecture) -> Architecture:
    """The same tensors, each by itself: no layers, and no head that an embedding could stand for."""
    places = {
        name: Place(None, None, name, "other")
        if place.role == "head"
        else Place(None, None, name, place.role, vocabulary=place.vocabulary)
        for name, place in architecture.places.items()
    }
    return Architecture({DEFAULT: Module(DEFAULT, {}, None, ())}, places)


def layer_counts(config: Mapping[str, Any]) -> list[int]:
    """All layer counts that the config states, the text model's first."""
    return [
        section[key]
        for section in sections(config)
        for key in LAYER_COUNT_KEYS
        if is_count(section.get(key))
    ]


def vocabulary_sizes(specs: Mapping[str, TensorSpec], config: Mapping[str, Any]) -> set[int]:
    """All vocabulary sizes of a model: those that its config states, and the rows of its embeddings."""
    stated = (section.get(key) for section in sections(config) for key in VOCABULARY_KEYS)
    return roles.vocabulary_sizes(specs, (size for size in stated if isinstance(size, int)))


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """The vocabulary size that the config states."""
    for section in sections(config):
        for key in VOCABULARY_KEYS:
            if isinstance(value := section.get(key), int):
                return value
    return None


def ties_embeddings(config: Mapping[str, Any]) -> bool:
    """Whether the config says that the head is the embedding. In a config of several sections its
    own word goes before theirs, as in transformers."""
    return stated_tie(config) is True


def stated_tie(config: Mapping[str, Any]) -> bool | None:
    """What the config says of the head being the embedding, if it does."""
    said = (section.get("tie_word_embeddings") for section in sections(config))
    return next((value for value in said if isinstance(value, bool)), None)


def lends_embedding(config: Mapping[str, Any]) -> bool:
    """Whether the head of a model that stores none is its embedding. A model without a head, such
    as ``BertModel``, has none to lend it to, unless the config says so."""
    stated = stated_tie(config)
    if stated is not None:
        return stated
    classes = config.get("architectures")
    named = [name for name in classes if isinstance(name, str)] if isinstance(classes, list) else []
    return not any(n.endswith("Model") and not n.endswith("LMHeadModel") for n in named)


def _unwrapped(name: str) -> str:
    words = name.split(".")
    first = 0
    while words[first] in WRAPPERS and first < len(words) - 2:
        first += 1
    if words[first].isdigit():  # of a stack that is itself called so
        first -= 1
    name = ".".join(words[first:])
    for old, new in SAME_WORDS:
        if name.startswith(old):
            name = new + name[len(old) :]
    return name


def _place(name: str, spec: TensorSpec, module: Module, vocabularies: set[int]) -> Place:
    for stack, depth in module.stacks.items():
        found = re.match(r"(\d+)\.(.+)", name[len(stack) :]) if name.startswith(stack) else None
        if found is not None and int(found[1]) < depth:
            return Place(stack, int(found[1]), found[2], roles.role(name, spec), False, module.name)
    role = roles.role(name, spec)
    if role != "buffer":
        role = roles.outer_role(name, spec, vocabularies) or role
    before = any(word in name for word in _BEFORE_LAYERS)
    after = role == "head" or not before or any(word in name for word in _AFTER_LAYERS)
    tokens = role in ("embedding", "head") and roles.has_row_per_token(name, spec, vocabularies)
    return Place(None, None, name, role, after, module.name, tokens)
