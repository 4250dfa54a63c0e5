"""What ``config.json`` says of its layers one by one, cut and joined as the layers are.

Configs describe layers in several ways: a count, a list with an entry for each, the numbers of some,
how many there are of a kind at the start, or a period. Which key is which is data in the tables.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merganser.architecture import DECODER, ENCODER, Module
from merganser.errors import InputError
from merganser.planning.plans import Source

Layers = Sequence[Sequence[tuple[int, int]]]
Section = dict[str, Any]

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
"""Lists (or texts) with one entry a layer. Any other list as long as the model is deep is treated
alike; these are named for models so shallow that lengths may coincide."""

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
        "mtp_layers_block_type",
        "image_size",
        "patch_size",
        "supported_aspect_ratios",
        "keys_to_ignore_at_inference",
        "block_types",
        "attention_types",
    }
)
"""Lists that may be as long as the model is deep by chance."""

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
"""Lists of the numbers of some layers. ``pruned_heads`` has them as keys."""

NUMBERED_KEYS = frozenset({"pruned_heads"})

UNSAYABLE = ("num_kv_shared_layers",)
"""What depends on the order of the layers, and cannot be told of another."""


@dataclass(frozen=True, slots=True)
class Leading:
    """So many layers at the start are of a kind.

    Attributes:
        key: of their number.
        instead: a list with an entry a layer that the family reads before this number, if any.
        kinds: its entries for these layers and for the others.
        only_if: a key that must be true for the number to mean anything.
    """

    key: str
    instead: str | None = None
    kinds: tuple[str, str] = ("", "")
    only_if: str | None = None


LEADING = (
    Leading("first_k_dense_replace"),
    Leading("num_dense_layers"),
    Leading(
        "max_window_layers",
        "layer_types",
        ("full_attention", "sliding_attention"),
        "use_sliding_window",
    ),
)


@dataclass(frozen=True, slots=True)
class Period:
    """Every so many layers there is one of another kind.

    Attributes:
        key: of the period.
        at: which of each period it is: a number (-1 for the last), or the key of that number.
        instead: a list that the family reads before the period, if any.
        kinds: its entries for these layers and for the others; none if it lists their numbers.
        implied: model types that have this period without saying so.
    """

    key: str
    at: int | str
    instead: str | None = None
    kinds: tuple[Any, Any] | None = None
    implied: Mapping[str, int] | None = None


_SLIDING = ("full_attention", "sliding_attention")

PERIODS = (
    Period(
        "sliding_window_pattern",
        -1,
        "layer_types",
        _SLIDING,
        {"gemma2": 2, "cohere2": 4, "gemma3_text": 6},
    ),
    Period("global_attn_every_n_layers", 0, "layer_types", _SLIDING),
    Period("full_attention_interval", -1, "layer_types", ("full_attention", "linear_attention")),
    Period("no_rope_layer_interval", -1, "no_rope_layers", (0, 1)),
    Period("interleave_moe_layer_step", -1, "moe_layers"),
    Period("attn_layer_period", "attn_layer_offset"),
    Period("expert_layer_period", "expert_layer_offset"),
)


def restacked(
    config: Mapping[str, Any],
    sources: Sequence[Source],
    donor: int,
    layers: Mapping[str, Layers],
) -> tuple[dict[str, Any], list[str]]:
    """A config for stacked layers.

    Args:
        config: the donor's, perhaps edited.
        sources: the plan's.
        donor: which of them the config is of.
        layers: of each stacked module, what its output layers are made of.

    Returns:
        A new config, and warnings of what it cannot say.

    Raises:
        InputError: when it does not say how many layers there are.
    """
    edited = copy.deepcopy(dict(config))
    warnings: list[str] = []
    architecture = sources[donor].architecture
    for name, made_of in layers.items():
        module = architecture.modules.get(name)
        if not edited or module is None or (not module.stacks and not made_of):
            continue
        if module.section is None:
            raise InputError(
                f"{sources[donor].reference}: its config.json does not say how many layers there "
                "are, so that it cannot be told of the new ones"
            )
        others = [m for m in architecture.modules.values() if m.name != name and m.stacks]
        own = all(other.section != module.section for other in others)
        stack = _Stack(name, module, _section(edited, module.section), sources, donor, made_of, own)
        warnings += stack.edit()
        if name == ENCODER and DECODER in architecture.modules and "num_layers" in module.counts:
            depth = architecture.modules[DECODER].depth  # T5's decoder is as deep if not told
            stack.section.setdefault("num_decoder_layers", depth)
    return edited, warnings


def _section(config: Any, path: Sequence[str]) -> dict[str, Any]:
    for key in path:
        config = config[key]
    assert isinstance(config, dict)
    return config


class _Stack:
    """One module's layers, and the section of the config that describes them."""

    def __init__(
        self,
        name: str,
        module: Module,
        section: Section,
        sources: Sequence[Source],
        donor: int,
        layers: Layers,
        own: bool,
    ) -> None:
        self.module = module
        self.section = section
        self.old = module.depth
        self.depth = len(layers)
        self.own = own  # or shared with the other side of an encoder–decoder model
        self.donor = sources[donor]
        self.origins = [layer[0] for layer in layers]
        """The first model of each layer, and its layer there: the one that the config speaks for."""
        self.sections = {s: self._of(sources[s], name) for s, _ in self.origins}
        self.depths = {s: self._depth(sources[s], name) for s, _ in self.origins}

    def _of(self, source: Source, name: str) -> Mapping[str, Any]:
        architecture, config = source.architecture, source.checkpoint.config
        module = architecture.modules.get(name) or architecture.main
        section = _section(config, module.section) if module.section is not None else {}
        _check(section, source)
        return section

    def _depth(self, source: Source, name: str) -> int:
        architecture = source.architecture
        return (architecture.modules.get(name) or architecture.main).depth

    def edit(self) -> list[str]:
        """Edit the section; see :func:`restacked`."""
        before = dict(self.section)
        for key in self.module.counts:
            self.section[key] = self.depth
        for key, value in before.items():
            if not self.own and not key.startswith(self.module.name):
                continue
            if isinstance(value, list | str) and self._is_per_layer(key, value):
                self.section[key] = self._joined(key, value)
            elif key in NUMBERS and isinstance(value, list):
                self.section[key] = self._numbers(key)
            elif key in NUMBERED_KEYS and isinstance(value, dict):
                self.section[key] = self._keyed(key)
        if not self.own:
            return []
        if before.get("num_nextn_predict_layers"):
            self.section["num_nextn_predict_layers"] = 0
        self._step()
        self._cycles(before)
        in_order = [layer for _, layer in self.origins] == list(range(self.old))
        unsaid = [self._unsaid(key) for key in UNSAYABLE if before.get(key) and not in_order]
        return [*unsaid, *self._leading(before), *self._periods(before)]

    def _is_per_layer(self, key: str, value: Sequence[Any]) -> bool:
        if len(value) != self.old or key in NOT_PER_LAYER or key in NUMBERS:
            return False
        return key in PER_LAYER or (self.old > 3 and not isinstance(value, str))

    def _joined(self, key: str, own: Sequence[Any]) -> Any:
        """The entries that go with the layers: their own models', as long as those have the list."""
        found = []
        for source, layer in self.origins:
            listed = self.sections[source].get(key)
            listed = listed if type(listed) is type(own) and len(listed) > layer else own
            found.append(listed[min(layer, len(listed) - 1)])
        return "".join(found) if isinstance(own, str) else found

    def _numbers(self, key: str) -> list[int]:
        chosen = {source: set(section.get(key) or ()) for source, section in self.sections.items()}
        return [i for i, (source, layer) in enumerate(self.origins) if layer in chosen[source]]

    def _keyed(self, key: str) -> dict[str, Any]:
        given = {s: dict(section.get(key) or {}) for s, section in self.sections.items()}
        return {
            str(i): given[source][str(layer)]
            for i, (source, layer) in enumerate(self.origins)
            if str(layer) in given[source]
        }

    def _cycles(self, before: Section) -> None:
        """Lists that are repeated until they are as long as the model is deep."""
        for key in ("block_types",):  # RecurrentGemma
            if isinstance(before.get(key), list) and before[key]:
                kinds = [
                    (listed := self.sections[source].get(key) or before[key])[layer % len(listed)]
                    for source, layer in self.origins
                ]
                if kinds != [before[key][i % len(before[key])] for i in range(self.depth)]:
                    self.section[key] = kinds
        if "attention_types" in before and "attention_layers" in before:  # GPT-Neo reads the first
            self.section["attention_types"] = [[self.section["attention_layers"], 1]]

    def _step(self) -> None:
        """Qwen's mixtures have experts in every so many layers, but for those that are listed."""
        steps = {s: section.get("decoder_sparse_step") or 1 for s, section in self.sections.items()}
        if "decoder_sparse_step" not in self.section or set(steps.values()) == {1}:
            return
        lists = {s: section.get("mlp_only_layers") or () for s, section in self.sections.items()}
        self.section["mlp_only_layers"] = [
            i
            for i, (source, layer) in enumerate(self.origins)
            if layer in lists[source] or (layer + 1) % steps[source]
        ]
        self.section["decoder_sparse_step"] = 1

    def _leading(self, before: Section) -> Iterator[str]:
        for rule in LEADING:
            own = before.get(rule.key)
            if not isinstance(own, int):
                continue
            if rule.only_if is not None and not before.get(rule.only_if):
                self.section[rule.key] = self.depth if own == self.old else min(own, self.depth)
                continue
            first = []
            for source, layer in self.origins:
                count = self.sections[source].get(rule.key)
                first.append(layer < (own if count is None else count))
            leading = first.index(False) if False in first else self.depth
            self.section[rule.key] = leading
            if any(first[leading:]):
                if rule.instead is None:
                    yield self._unsaid(rule.key)
                elif rule.instead not in before:
                    self.section[rule.instead] = [rule.kinds[not f] for f in first]

    def _periods(self, before: Section) -> Iterator[str]:
        for rule in PERIODS:
            if rule.instead is not None and isinstance(before.get(rule.instead), list):
                continue
            own = self._period(rule, before)
            if own is None:
                continue
            marked = []
            for source, layer in self.origins:
                period, at = self._period(rule, self.sections[source]) or own
                marked.append(layer % period == at)
            if marked == [i % own[0] == own[1] for i in range(self.depth)]:
                continue
            if rule.instead is None:
                if (found := _period_of(marked)) is not None and isinstance(rule.at, str):
                    self.section[rule.key], self.section[rule.at] = found
                else:
                    yield self._unsaid(rule.key)
            elif rule.kinds is None:
                self.section[rule.instead] = [i for i, mark in enumerate(marked) if mark]
            else:
                self.section[rule.instead] = [rule.kinds[not mark] for mark in marked]

    def _period(self, rule: Period, section: Mapping[str, Any]) -> tuple[int, int] | None:
        implied = (rule.implied or {}).get(str(section.get("model_type")))
        period = section.get(rule.key, section.get(f"_{rule.key}", implied))
        if isinstance(period, bool) or not isinstance(period, int) or period < 1:
            return None
        at = section.get(rule.at, 0) if isinstance(rule.at, str) else rule.at
        return (period, at % period) if isinstance(at, int) else None

    def _unsaid(self, key: str) -> str:
        return (
            f"config.json cannot say which of the stacked layers are of which kind: {key} of "
            f"{self.donor.reference} is one number for all of them, and programs will take some "
            "layers for what they are not; stack ranges that keep its order"
        )


def _check(section: Mapping[str, Any], source: Source) -> None:
    """Refuse a section whose words on layers are of other types than they are everywhere.

    Raises:
        InputError: naming the first such key.
    """

    def whole(value: Any, least: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    right: dict[str, Callable[[Any], bool]] = dict.fromkeys(
        NUMBERS, lambda v: isinstance(v, list) and all(whole(n, 0) for n in v)
    )
    right |= dict.fromkeys(NUMBERED_KEYS, lambda v: isinstance(v, dict))
    right |= dict.fromkeys([rule.key for rule in LEADING], lambda v: whole(v, 0))
    right["block_types"] = lambda v: isinstance(v, list)
    right["decoder_sparse_step"] = lambda v: whole(v, 1)
    for key, is_right in right.items():
        value = section.get(key)
        if value is not None and not is_right(value):
            raise InputError(
                f"{source.reference}: its config.json has {key} {str(value)[:40]!r}, which tells nothing "
                "of layers; correct it"
            )


def _period_of(marked: Sequence[bool]) -> tuple[int, int] | None:
    """A period and the place in it that give these marks."""
    if not any(marked):
        return None
    first = marked.index(True)
    for period in range(first + 1, len(marked) + 1):
        if list(marked) == [i % period == first for i in range(len(marked))]:
            return period, first
    return None
