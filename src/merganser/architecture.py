"""Infer layers, modules and roles of tensors from names, shapes and ``config.json``: no file per family.

Numbered blocks whose count matches a layer count of the config are layers. Words in tensor names
distinguish the modules (text decoder, vision tower …). A matrix with a vocabulary-sized side is an
embedding or a head. Tensors keep their names on disk; tensors that models name differently are
matched by *key*, the name without wrappers. Exceptions are data in the tables below.
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
"""First words of tensor names that some checkpoints of a family have and others lack: base models
saved without a head, vision–language models saved by transformers 4 and 5."""

SAME_WORDS = (("vision_tower.vision_model.", "vision_tower."),)
"""Pairs of prefixes with the same meaning, other than wrappers."""

FIRST_LAYER_ONLY = ("relative_attention_bias", "rel_attn_embed")
"""Tensors that only the first layer has and all layers use (T5, WavLM): they stay in the first layer
of the output, whichever layers are stacked."""

SHARED_BY_LAYERS = ("shared_transf",)
"""Blocks that several layers share by number (Zamba), so that those layers cannot be renumbered."""

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
    """The position of a tensor in its model.

    Attributes:
        stack: the prefix of its numbered blocks (``model.layers.``), or None outside the layers.
        layer: its block's number, or None outside the layers.
        rest: its name without prefix and number; outside the layers its full name.
        role: embedding, head, attention, mlp, norm, buffer or other.
        after_layers: whether it comes after the layers (final norm, head) rather than before.
        module: the name of its module.
        vocabulary: whether it is an embedding or a head with one row per token.
        layer_axis: for a tensor outside the layers with one block per layer: the axis of these blocks.
        beside: for a tensor that belongs to a layer but is numbered in a separate list: the list's
            prefix, the layer of its first entry, and the rest of the name after the number.
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
        """The tensor's name in layer ``layer``, in a stack with prefix ``stack`` if that is given."""
        if self.beside is not None:
            prefix, first, rest = self.beside
            return f"{prefix}{layer - first}{rest}"
        return self.rest if self.stack is None else f"{stack or self.stack}{layer}.{self.rest}"


@dataclass(frozen=True)
class Architecture:
    """The structure of a model: its modules, and the place of every tensor."""

    modules: Mapping[str, Module]
    places: Mapping[str, Place]

    @cached_property
    def names(self) -> Mapping[str, str]:
        """Tensor names by key; see :meth:`key`."""
        return {self.key(name): name for name in self.places}

    @cached_property
    def layers(self) -> Mapping[tuple[str | None, int], list[str]]:
        """The names of each layer's tensors, by (prefix of the stack, number of the layer)."""
        layers: dict[tuple[str | None, int], list[str]] = {}
        for name, place in self.places.items():
            if place.layer is not None:
                layers.setdefault((place.stack, place.layer), []).append(name)
        return layers

    def key(self, name: str) -> str:
        """The name without wrappers: tensors of two models with one key are the same tensor."""
        return self._keys.get(name) or (_unwrapped(name) if self._unwraps else name)

    @cached_property
    def _keys(self) -> Mapping[str, str]:
        return keys(self.places)

    @cached_property
    def _unwraps(self) -> bool:
        """Whether unwrapped names are unique; they are not in a model of two language models."""
        return len({_unwrapped(name) for name in self.places}) == len(self.places)

    @property
    def main(self) -> Module:
        """The module whose layers are called the model's layers."""
        names = (name for name in (DEFAULT, TEXT, DECODER) if name in self.modules)
        return self.modules[next(names, next(iter(self.modules)))]

    @property
    def depth(self) -> int:
        """Number of layers of the main module."""
        return self.main.depth

    def module(self, name: str) -> Module | None:
        """The module that a recipe names: by MergeKit's name, an alias or its path; None if unknown."""
        names = (name, MODULE_ALIASES.get(name, name), name.removeprefix("model."))
        return next((self.modules[each] for each in names if each in self.modules), None)

    def module_serving_as(self, name: str) -> Module | None:
        """A module by name; a language model alone serves as the text decoder of a larger one."""
        found = self.module(name)
        if found is None and name in (DEFAULT, TEXT):
            alone = len(self.modules) == 1 or name == DEFAULT
            found = self.main if alone else None
        return found


def keys(names: Collection[str]) -> dict[str, str]:
    """Keys of a model's tensors by name; see :meth:`Architecture.key`.

    If two tensors would get one key, as in a model of two language models, all names are their own
    keys.
    """
    unwrapped = {name: _unwrapped(name) for name in names}
    if len(set(unwrapped.values())) < len(unwrapped):
        return {name: name for name in names}
    return unwrapped


def infer(
    specs: Mapping[str, TensorSpec], config: Mapping[str, Any], paths: Iterable[str] = ()
) -> Architecture:
    """Infer a model's architecture.

    Args:
        specs: dtype and shape of every tensor by name.
        config: the model's ``config.json``.
        paths: module names in a recipe; see :func:`merganser.modules.find_parts`.
    """
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
    """Assign tensors in separate numbered lists to layers.

    A list counts if it has as many blocks as there are layers and is next to them (XLM), or if it
    has one tensor per layer, or per layer except the first (Inkling).
    """
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
    """The axis along which a tensor has one block per layer, or None.

    The axis has the number of layers times a size that the config names as per layer, or times the
    number of heads, unless the config explains the length otherwise.
    """
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
    """The same tensors without layers and heads, so that each is merged by its name alone."""
    places = {
        name: Place(None, None, name, "other")
        if place.role == "head"
        else Place(None, None, name, place.role, vocabulary=place.vocabulary)
        for name, place in architecture.places.items()
    }
    return Architecture({DEFAULT: Module(DEFAULT, {}, None, ())}, places)


def layer_counts(config: Mapping[str, Any]) -> list[int]:
    """All layer counts in the config, the text model's first."""
    return [
        section[key]
        for section in sections(config)
        for key in LAYER_COUNT_KEYS
        if is_count(section.get(key))
    ]


def vocabulary_sizes(specs: Mapping[str, TensorSpec], config: Mapping[str, Any]) -> set[int]:
    """All vocabulary sizes of a model: those in its config, and the rows of its embeddings."""
    stated = (section.get(key) for section in sections(config) for key in VOCABULARY_KEYS)
    return roles.vocabulary_sizes(specs, (size for size in stated if isinstance(size, int)))


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """The vocabulary size in the config, or None."""
    for section in sections(config):
        for key in VOCABULARY_KEYS:
            if isinstance(value := section.get(key), int):
                return value
    return None


def vocabulary_axis(name: str, spec: TensorSpec) -> int:
    """The axis of a tensor's token rows: the first, except for biases of shape [1, tokens]
    (BART's), which have the same memory layout as [tokens]."""
    return int(len(spec.shape) == 2 and spec.shape[0] == 1 and name.endswith("bias"))


def ties_embeddings(config: Mapping[str, Any]) -> bool:
    """Whether the config ties the head to the embedding. The top level overrides sections, as in
    transformers."""
    return stated_tie(config) is True


def stated_tie(config: Mapping[str, Any]) -> bool | None:
    """The config's ``tie_word_embeddings``, or None if it has none."""
    values = (section.get("tie_word_embeddings") for section in sections(config))
    return next((value for value in values if isinstance(value, bool)), None)


def lends_embedding(config: Mapping[str, Any]) -> bool:
    """Whether a model that stores no head uses its embedding as head.

    Without ``tie_word_embeddings`` it does, unless its class has no head, such as ``BertModel``.
    """
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
    if words[first].isdigit():  # the last wrapper is the name of a stack
        first -= 1
    name = ".".join(words[first:])
    for old, new in SAME_WORDS:
        if name.startswith(old):
            name = new + name[len(old) :]
    return name


def _place(name: str, spec: TensorSpec, module: Module, vocabularies: set[int]) -> Place:
    for stack, depth in module.stacks.items():
        match = re.match(r"(\d+)\.(.+)", name[len(stack) :]) if name.startswith(stack) else None
        if match is not None and int(match[1]) < depth:
            return Place(stack, int(match[1]), match[2], roles.role(name, spec), False, module.name)
    role = roles.role(name, spec)
    if role != "buffer":
        role = roles.outer_role(name, spec, vocabularies) or role
    before = any(word in name for word in _BEFORE_LAYERS)
    after = role == "head" or not before or any(word in name for word in _AFTER_LAYERS)
    tokens = role in ("embedding", "head") and roles.has_row_per_token(name, spec, vocabularies)
    return Place(None, None, name, role, after, module.name, tokens)
