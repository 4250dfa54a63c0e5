"""Infer a model's modules and their layers from tensor names, shapes and ``config.json``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merganser.tensors import TensorSpec

LAYER_COUNT_KEYS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "depth",
    "encoder_layers",
    "num_encoder_layers",
    "decoder_layers",
    "num_decoder_layers",
    "num_global_layers",
    "num_blocks",  # xLSTM
    "layers",
)
"""Keys of configs for the number of layers."""

DEFAULT = "default"
"""Name of the only module of a model, as in MergeKit."""

TEXT, VISION, AUDIO, PROJECTOR = (
    "text_decoder",
    "vision_tower",
    "audio_tower",
    "multi_modal_projector",
)
ENCODER, DECODER, SHARED = "encoder", "decoder", "shared"

_SIDED = (ENCODER, DECODER, SHARED)

FURTHER = frozenset({"mtp", "mtp_layers"})
"""Words of modules for multi-token prediction; other models have them as blocks after the layers."""

WIDTH_KEYS = ("hidden_size", "d_model", "n_embd", "embed_dim", "dim", "width", "hidden_dim")
"""Keys of configs for the width of layers."""

_TOWER = re.compile(
    r"(?:^|[._])(image|img|vision|visual|vit|video|audio|speech|sam|protein|vq\w*|vae|codec)(?:$|[._])"
)
"""Words in paths of modules that are not language models."""

MODULE_WORDS: Mapping[str, str] = {
    "multi_modal_projector": PROJECTOR,
    "mm_projector": PROJECTOR,
    "connector": PROJECTOR,
    "aligner": PROJECTOR,
    "merger": PROJECTOR,  # of Qwen's vision tower, inside it
    "merger_list": PROJECTOR,
    "deepstack_merger_list": PROJECTOR,
    "img_projection": PROJECTOR,
    "resampler": PROJECTOR,
    "perceiver_resampler": PROJECTOR,
    "mlp1": PROJECTOR,  # InternVL's own
    "embed_vision": PROJECTOR,  # Gemma 3n
    "embed_audio": PROJECTOR,
    "image_newline": PROJECTOR,
    "vision_tower": VISION,
    "vision_model": VISION,
    "vision_encoder": VISION,
    "vision_embed_tokens": VISION,
    "visual": VISION,
    "vision": VISION,
    "vpm": VISION,
    "visual_projection": VISION,
    "audio_tower": AUDIO,
    "audio_model": AUDIO,
    "audio_encoder": AUDIO,
    "speech_encoder": AUDIO,
}
"""Modules by a word of a tensor's name (between dots); the first of this table that occurs wins.
In a model with any of them, all other tensors are the text decoder's. Module names are MergeKit's."""

MODULE_ALIASES: Mapping[str, str] = {
    "vision_model": VISION,  # MergeKit's name for that of Llama 4
    "visual": VISION,
    "vision_encoder": VISION,
    "language_model": TEXT,
    "text_model": TEXT,
    "projector": PROJECTOR,
}
"""Other names for modules in recipes."""

_SECTIONS: Mapping[str, tuple[str, ...]] = {
    TEXT: ("text_config", "llm_config", "language_config", "thinker_config"),
    VISION: ("vision_config", "vit_config", "visual", "vision"),
    AUDIO: ("audio_config", "speech_config"),
    ENCODER: ("encoder", "encoder_config"),
    DECODER: ("decoder", "decoder_config"),
}
"""Keys of a config's section for a module, if it has one."""

_SIDES: Mapping[str, tuple[str, ...]] = {
    ENCODER: (
        "encoder_layers",
        "num_encoder_layers",
        "num_layers",
        "num_hidden_layers",
        "n_layers",
    ),
    DECODER: ("decoder_layers", "num_decoder_layers"),
}
"""Keys for the layer counts of encoder and decoder in one config. ``num_hidden_layers`` is often the
encoder's."""

NUMBER = re.compile(r"(?:^|(?<=\.))(\d+)(?=\.)")


@dataclass(frozen=True, slots=True)
class Module:
    """A module of a model: its text decoder, its vision tower; or the model itself.

    Attributes:
        name: MergeKit's name for it.
        stacks: prefixes of numbered blocks and their numbers of blocks, the deepest first.
        section: path of keys to the config's section with its layer count, () for the top level;
            None if the config has no count for it.
        counts: keys of the layer count in that section.
    """

    name: str
    stacks: Mapping[str, int]
    section: tuple[str, ...] | None
    counts: tuple[str, ...]

    @property
    def stack(self) -> str | None:
        """Prefix of its layers; None if it has none."""
        return next(iter(self.stacks), None)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return next(iter(self.stacks.values()), 0)

    def predicts_further(self, name: str) -> bool:
        """Whether a tensor is part of multi-token prediction, which a model may lack."""
        return self.number_beyond(name) is not None or not FURTHER.isdisjoint(name.split("."))

    def number_beyond(self, name: str) -> int | None:
        """Number of a tensor's block, counted from the first block after the layers; None for others."""
        if self.stack is None or not name.startswith(self.stack):
            return None
        number = re.match(r"\d+", name[len(self.stack) :])
        past = int(number[0]) - self.depth if number is not None else -1
        return past if past >= 0 else None


def sections(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The config and its sections for sub-models (``text_config`` …), the text model's first."""
    return [section for _, section in located_sections(config)]


def located_sections(
    config: Mapping[str, Any], path: tuple[str, ...] = ()
) -> list[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """:func:`sections`, each with its path of keys."""
    text = _SECTIONS[TEXT]
    known = [key for keys in _SECTIONS.values() for key in keys]
    located = [(path, config)]
    inner = [
        k for k, v in config.items() if isinstance(v, dict) and (k.endswith("config") or k in known)
    ]
    for key in sorted(inner, key=lambda k: text.index(k) if k in text else len(text)):
        located += located_sections(config[key], (*path, key))
    return located


def find_parts(
    specs: Mapping[str, TensorSpec], config: Mapping[str, Any], paths: Iterable[str] = ()
) -> dict[str, str]:
    """Return the module of every tensor.

    Args:
        specs: dtype and shape of every tensor by name.
        config: the model's ``config.json``.
        paths: module names in a recipe. An unknown name is a path: consecutive words in the names of
            the module's tensors.
    """
    parts = _by_evidence(specs, config, _by_words(specs, config))
    known = set(parts.values())
    known |= {alias for alias, module in MODULE_ALIASES.items() if module in known}
    for path in paths:
        if path not in known:
            parts |= {name: path for name in specs if f".{path}." in f".{name}."}
    return parts


def _words(name: str) -> str:
    words = name.split(".")
    return next((MODULE_WORDS[word] for word in MODULE_WORDS if word in words), TEXT)


def _by_words(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    parts = {name: _words(name) for name in names}
    multimodal = not {VISION, AUDIO}.isdisjoint(parts.values())
    sides = {
        name: next((word for word in name.split(".") if word in (ENCODER, DECODER)), SHARED)
        for name in parts
    }
    if multimodal and any(parts[name] == TEXT and NUMBER.search(name) for name in parts):
        if all(isinstance(config.get(side), dict) for side in (ENCODER, DECODER)):  # T5Gemma 2
            return {name: sides[name] if part == TEXT else part for name, part in parts.items()}
        return parts
    stacked = {side for name, side in sides.items() if NUMBER.search(name)}
    if {ENCODER, DECODER} <= stacked:
        return sides
    return dict.fromkeys(parts, DEFAULT)


def _by_evidence(
    specs: Mapping[str, TensorSpec], config: Mapping[str, Any], parts: Mapping[str, str]
) -> dict[str, str]:
    """Correct the modules of a model whose other modules have names that ``MODULE_WORDS`` lacks.

    The language model's layers are the blocks with the text config's number and width. Other blocks
    belong to another module if their names, their width or another section of the config say so.
    The module is named by its path, up to the first word that differs from the language model's.
    """
    located = located_sections(config)
    counted = [(path, s) for path, s in located if _counts(s)]
    text = next((e for e in counted if e[0] and e[0][-1] in _SECTIONS[TEXT]), None)
    text = text or next((e for e in counted if not e[0]), None)
    others = [(path, s) for path, s in located if text is not None and path and path != text[0]]
    rest = [name for name, part in parts.items() if part in (TEXT, DEFAULT, *_SIDED)]
    blocks, sides = _blocks(rest), _widths(specs, rest)
    if text is None or not others:
        return dict(parts)

    def fits(prefix: str, section: Mapping[str, Any]) -> bool:
        width = _width(section)
        return len(blocks[prefix]) in _counts(section) and (width is None or width in sides[prefix])

    stems = {path[-1].removesuffix("_config") for path, _ in others} - {"text"}

    def foreign(path: str) -> bool:
        return _TOWER.search(path) is not None or not stems.isdisjoint(path.split("."))

    fitting = [prefix for prefix in blocks if fits(prefix, text[1])]
    main = min(fitting, key=foreign, default=None)
    two_sides = {ENCODER, DECODER} <= set(parts.values())
    if main is None or (two_sides and not {ENCODER, DECODER}.isdisjoint(main.split("."))):
        return dict(parts)
    separate = set()
    for prefix in blocks:
        path = _leaving(prefix, main)
        claimed = any(fits(prefix, section) for _, section in others) and prefix not in fitting
        narrow = (width := _width(text[1])) is not None and width not in sides[prefix]
        narrow = narrow and any(entry in counted for entry in others)
        if path is not None and (claimed or narrow or foreign(prefix)):
            separate.add(path)
    if not separate:
        return dict(parts)
    result = dict(parts)
    for name in rest:
        path = next((path for path in separate if name.startswith(f"{path}.")), None)
        result[name] = _words(name)
        if path is not None and result[name] == TEXT:
            result[name] = path.removeprefix("model.")
    return result


def _leaving(prefix: str, main: str) -> str | None:
    """A prefix up to the first word that differs from ``main``; None if none differs."""
    words, others = prefix.rstrip(".").split("."), main.rstrip(".").split(".")
    for i, word in enumerate(words):
        if i >= len(others) or word != others[i]:
            return ".".join(words[: i + 1])
    return None


def _widths(specs: Mapping[str, TensorSpec], names: Iterable[str]) -> dict[str, set[int]]:
    """Candidates for the width of blocks, by their prefix: the lengths of the norms in the first block,
    or all its sides if it has no norm."""
    norms: dict[str, set[int]] = {}
    sides: dict[str, set[int]] = {}
    for name in names:
        match = NUMBER.search(name)
        if match is not None and "/" not in name:
            prefix, shape = name[: match.start()], specs[name].shape
            widths = sides.setdefault(prefix, set())
            if int(match[1]) == 0:
                widths.update(shape)
                if len(shape) == 1 and ("norm" in name.lower() or ".ln_" in name):
                    norms.setdefault(prefix, set()).update(shape)
    return sides | norms


def _counts(section: Mapping[str, Any]) -> set[int]:
    beyond = section.get("num_nextn_predict_layers")
    extra = {0, beyond if isinstance(beyond, int) else 0}
    stated = {section[key] for key in LAYER_COUNT_KEYS if is_count(section.get(key))}
    return {count + more for count in stated for more in extra}


def _width(section: Mapping[str, Any]) -> int | None:
    return next((section[key] for key in WIDTH_KEYS if is_count(section.get(key))), None)


def find_module(
    name: str, specs: Mapping[str, TensorSpec], tensors: Sequence[str], config: Mapping[str, Any]
) -> Module:
    """Find a module's layers: the numbered blocks that the config counts, else all without gaps."""
    blocks, sides = _blocks(tensors), _widths(specs, tensors)
    further = _blocks(name for name in tensors if ".eh_proj." in name)
    stated = {
        prefix: count
        for prefix, numbers in blocks.items()
        if (count := _counted(name, numbers, sides[prefix], config, further.get(prefix)))
        is not None
    }
    gapless = {p: len(n) for p, n in blocks.items() if n == set(range(len(n)))}
    depths = {prefix: depth for prefix, (_, _, depth) in stated.items()} or gapless
    stacks = dict(sorted(depths.items(), key=lambda entry: -entry[1]))
    main = next(iter(stacks), "")
    section, counts, _ = stated.get(main, (None, (), 0))
    return Module(name, stacks, section, _of_side(main, counts))


def _of_side(prefix: str, counts: tuple[str, ...]) -> tuple[str, ...]:
    """For blocks of an encoder or a decoder, the count keys without the other side's."""
    words = prefix.split(".")
    for side, other in ((ENCODER, DECODER), (DECODER, ENCODER)):
        if side in words and other not in words:
            return tuple(key for key in counts if other not in key) or counts
    return counts


def _blocks(names: Iterable[str]) -> dict[str, set[int]]:
    """Numbers of blocks by prefix.

    The first number in a name is the block's; later ones number experts. Modules in folders
    (``2_Dense/``) have no layers.
    """
    numbers: dict[str, set[int]] = {}
    for name in names:
        if "/" not in name and (match := NUMBER.search(name)):
            numbers.setdefault(name[: match.start()], set()).add(int(match[1]))
    return numbers


def _counted(
    module: str,
    numbers: set[int],
    sides: set[int],
    config: Mapping[str, Any],
    further: set[int] | None,
) -> tuple[tuple[str, ...], tuple[str, ...], int] | None:
    """Find the config's count of some blocks: its section, its keys and the number; None if there is none.

    Blocks beyond the count are for multi-token prediction (DeepSeek), not layers; ``further`` has
    the numbers of such blocks, which the config may include in its count.
    """
    if numbers != set(range(len(numbers))):
        return None
    located = located_sections(config)
    own = _SECTIONS.get(module, ())
    mine = [entry for entry in located if entry[0] and entry[0][-1] in own]
    if module in _SIDED:  # and the text section of a multimodal side
        text = _SECTIONS[TEXT]
        mine += [e for e in located if len(e[0]) > 1 and e[0][-2] in own and e[0][-1] in text]
    others = [
        (path, section)
        for path, section in located
        if not any(path and path[-1] in keys for m, keys in _SECTIONS.items() if m != module)
    ]
    if not mine and module in _SIDED and len(located) > 1:  # an encoder of images (Pix2Struct)
        own = _SECTIONS[TEXT] if module == DECODER else (*_SECTIONS[VISION], *_SECTIONS[AUDIO])
        others = [entry for entry in located if entry[0] and entry[0][-1] in own] + others
    elif module not in (*_SECTIONS, DEFAULT, SHARED):  # one of another name: what has its width
        fitting = [e for e in located if (width := _width(e[1])) is None or width in sides]
        named = [
            e for e in fitting if e[0] and e[0][-1].removesuffix("_config") in module.split(".")
        ]
        others, located = named + sorted(fitting, key=lambda e: _width(e[1]) is None), []
    for path, section in mine or [*others, *located]:
        in_own = bool(path) and path[-1] in own
        known = LAYER_COUNT_KEYS if in_own else _SIDES.get(module, LAYER_COUNT_KEYS)
        beyond = section.get("num_nextn_predict_layers")
        for extra in (0, beyond if isinstance(beyond, int) else 0, len(further or ())):
            depth = len(numbers) - extra
            counts = [key for key in LAYER_COUNT_KEYS if section.get(key) == depth and depth]
            if keys := tuple(key for key in counts if key in known):
                return path, keys, depth
            if module == DECODER and "num_layers" in counts and not in_own:
                return path, (known[-1],), depth  # T5's, which is the encoder's by default
        lists = (section.get(key) for key in ("layer_types", "layers_block_type"))
        if any(isinstance(value, list) and len(value) == len(numbers) for value in lists):
            return path, (), len(numbers)
    return None


def is_count(value: object) -> bool:
    """Whether a config's value is a positive integer."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
