"""Rewrite the layer descriptions in ``config.json`` for stacked layers.

Configs describe layers in several ways: a count, a list or mapping with one entry per layer, a
list of layer numbers, the number of leading layers of a kind, or a period.
:mod:`planning.layer_keys` lists the keys of each kind. An order of layers that the config cannot
express is an error.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from merganser.errors import InputError
from merganser.modules import DECODER, ENCODER, Module
from merganser.planning.layer_keys import (
    BY_DEPTH_TYPES,
    BY_NUMBER,
    BY_NUMBER_TYPES,
    BY_ROOT_OF_DEPTH,
    ENDS,
    FROM_ONE,
    IN_ORDER,
    KEYED,
    LEADING,
    NUMBERS,
    PERIODS,
    SOURCES,
    SPANS,
    Leading,
    Period,
    Span,
    check_values,
    is_keyed,
    is_numbers,
    is_per_layer,
)
from merganser.planning.layer_kinds import check_kinds
from merganser.planning.plan_data import Source

Layers = Sequence[Sequence[tuple[int, int]]]
Section = dict[str, Any]


def restacked(
    config: Mapping[str, Any],
    sources: Sequence[Source],
    donor: int,
    layers: Mapping[str, Layers],
) -> dict[str, Any]:
    """The config with its layer descriptions rewritten for stacked layers.

    Args:
        config: the donor's config, possibly with other edits.
        sources: the plan's inputs.
        donor: index of the input that the config belongs to.
        layers: for each stacked module, the sources of its output layers.

    Raises:
        InputError: when the config states no number of layers, or cannot express their order.
    """
    edited = copy.deepcopy(dict(config))
    architecture = sources[donor].architecture
    for name, made_of in layers.items():
        module = architecture.modules.get(name)
        if not edited or module is None or (not module.stacks and not made_of):
            continue
        if module.section is None:
            raise InputError(
                f"{sources[donor].reference}: its config.json has no key for the number of layers, "
                "so the stacked model's number cannot be written"
            )
        others = [m for m in architecture.modules.values() if m.name != name and m.stacks]
        alone = all(other.section != module.section for other in others)
        for other in others:
            if other.section == module.section and not set(module.counts).isdisjoint(other.counts):
                raise InputError(
                    f"{sources[donor].reference}: {module.counts[0]} of its config.json counts the "
                    f"layers of {name} and of {other.name}, so neither can be stacked without the "
                    "other; merge whole models"
                )
        stack = _Stack(
            name, module, _section(edited, module.section), sources, donor, made_of, alone
        )
        stack.edit()
        if name == ENCODER and DECODER in architecture.modules and "num_layers" in module.counts:
            depth = architecture.modules[DECODER].depth  # T5's default is the encoder's
            stack.section.setdefault("num_decoder_layers", depth)
    return edited


def _section(config: Any, path: Sequence[str]) -> dict[str, Any]:
    for key in path:
        config = config[key]
    assert isinstance(config, dict)
    return config


class _Stack:
    """One module's layers and the config section that describes them."""

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
        self.own = own  # False if another stack of layers shares the section
        self.donor = sources[donor]
        self.origins = [layer[0] for layer in layers]
        """For each output layer the source and layer of its first model, which the config describes."""
        self.modules = {
            s: sources[s].architecture.module(name) or sources[s].architecture.main
            for s, _ in self.origins
        }
        self.sections = {s: self._of(sources[s], m) for s, m in self.modules.items()}
        self.depths = {s: m.depth for s, m in self.modules.items()}
        self.sources = {s: sources[s] for s in self.modules}
        self.in_order = [layer for _, layer in self.origins] == list(range(self.old))

    @staticmethod
    def _of(source: Source, module: Module) -> Mapping[str, Any]:
        config = source.checkpoint.config
        section = _section(config, module.section) if module.section is not None else {}
        check_values(section, str(source.reference))
        return section

    def edit(self) -> None:
        """Edit the section; see :func:`restacked`."""
        before = dict(self.section)
        for key in self.module.counts:
            self.section[key] = self.depth
        for key, value in self._values(before).items():
            if key in self.module.counts or not self._speaks_for(key):
                continue
            if key in SOURCES and isinstance(value, list):
                self.section[key] = self._taken_from(key, value)
            elif is_numbers(key, value, self.old):
                self.section[key] = self._numbers(key)
            elif is_keyed(key, value, self.old):
                self.section[key] = self._keyed(key)
            elif isinstance(value, list | str) and is_per_layer(key, value, self.old):
                self.section[key] = self._joined(key, value)
        if self.own:
            if before.get("num_nextn_predict_layers") and not self.in_order:
                self.section["num_nextn_predict_layers"] = 0
            self._step()
            self._cycles(before)
            for key, harmless in IN_ORDER.items():
                if before.get(key) not in (None, harmless) and not self.in_order:
                    raise self._unsayable(key)
            self._check_numbers(before)
            self._scale(before)
            self._shared(before)
            self._ends()
            for leading in LEADING:
                self._leading(leading, before)
            for span in SPANS:
                self._span(span, before)
        for period in PERIODS:
            if self._speaks_for(period.key):
                self._periods(period, before)
        for s, source in self.sources.items():
            if self.sections[s]:
                facts = [self._facts(s, layer) for layer in range(self.depths[s])]
                placed = [(i, layer) for i, (o, layer) in enumerate(self.origins) if o == s]
                check_kinds(source, self.modules[s], facts, placed, self.depth)

    def _speaks_for(self, key: str) -> bool:
        """Whether a key of the section concerns this module."""
        return self.own or key.startswith(self.module.name)

    def _values(self, before: Section) -> Section:
        """The donor's values, plus lists of layer numbers that only other models have."""
        values = dict(before)
        for section in self.sections.values():
            for key, value in section.items():
                if values.get(key) is None and (key in KEYED or key in NUMBERS):
                    values[key] = value
        return values

    def _joined(self, key: str, default: Sequence[Any]) -> Any:
        """A list (or string) with the entry of each output layer, from the config of the model that
        provides the layer, or from ``default`` if that config lacks the list."""
        values = []
        for source, layer in self.origins:
            listed = self.sections[source].get(key)
            listed = listed if type(listed) is type(default) and len(listed) > layer else default
            values.append(listed[min(layer, len(listed) - 1)])
        return "".join(values) if isinstance(default, str) else values

    def _numbers(self, key: str) -> list[int]:
        """The numbers of the output layers whose sources are in their models' lists."""
        first = int(key in FROM_ONE)
        chosen = {source: set(section.get(key) or ()) for source, section in self.sections.items()}
        return [
            i + first
            for i, (source, layer) in enumerate(self.origins)
            if layer + first in chosen[source]
        ]

    def _keyed(self, key: str) -> dict[str, Any]:
        """A mapping by number of the output layers' entries, with the models' zero padding."""
        given = {s: dict(section.get(key) or {}) for s, section in self.sections.items()}
        padded = any(len(k) > 1 and k.startswith("0") for keys in given.values() for k in keys)
        width = len(str(self.depth - 1)) if padded else 0
        entries = {s: {int(k): v for k, v in keys.items()} for s, keys in given.items()}
        return {
            str(i).zfill(width): entries[source][layer]
            for i, (source, layer) in enumerate(self.origins)
            if layer in entries[source]
        }

    def _taken_from(self, key: str, default: Sequence[int]) -> list[int]:
        """For each output layer the number of the output layer whose values it reuses, or its own.

        Raises:
            InputError: when that layer is not earlier in the stack.
        """
        numbers = []
        for i, (source, layer) in enumerate(self.origins):
            wanted = (self.sections[source].get(key) or default)[layer]
            earlier = [j for j in range(i) if self.origins[j] == (source, wanted)]
            if wanted != layer and not earlier:
                raise InputError(
                    f"{self.sources[source].reference}: {key} in its config.json lets layer {layer} "
                    f"use layer {wanted}, which does not come before it in the stack; stack them "
                    "together"
                )
            numbers.append(i if wanted == layer else earlier[-1])
        return numbers

    def _check_numbers(self, before: Section) -> None:
        """Raise InputError if a moved layer computes with its number or the number of layers."""
        in_place = all(i == layer for i, (_, layer) in enumerate(self.origins))
        for key in BY_NUMBER:
            if before.get(key) and not in_place:
                raise self._unsayable(key)
        kind = str(before.get("model_type"))
        if (kind in BY_NUMBER_TYPES and not in_place) or (
            kind in BY_DEPTH_TYPES and not self.in_order
        ):
            raise InputError(
                f"{self.donor.reference}: a layer of {kind} computes with "
                + ("its index" if kind in BY_NUMBER_TYPES else "the number of layers")
                + ", so it cannot be moved in a stack; merge whole models"
            )

    def _scale(self, before: Section) -> None:
        """Adjust factors that the model divides by the square root of the number of layers, so
        that the quotients stay the same."""
        for key in BY_ROOT_OF_DEPTH:
            factors = {
                section[key] / math.sqrt(self.depths[s])
                for s, section in self.sections.items()
                if isinstance(section.get(key), int | float)
            }
            if len(factors) > 1:
                raise self._unsayable(key)
            if factors and isinstance(before.get(key), int | float) and self.depth != self.old:
                self.section[key] = factors.pop() * math.sqrt(self.depth)

    def _cycles(self, before: Section) -> None:
        """Rewrite lists that the model repeats cyclically up to its depth."""
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
        """Rewrite Qwen's rule, experts in every n-th layer except listed ones: list all exceptions."""
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

    def _shared(self, before: Section) -> None:
        """Rewrite the number of last layers that reuse keys and values of the last earlier layer of
        their type; raise InputError if the stack changes what they reuse."""
        key = "num_kv_shared_layers"
        if not any(section.get(key) for section in self.sections.values()):
            return
        shares = [layer >= self._first_shared(s) for s, layer in self.origins]
        first = shares.index(True) if True in shares else self.depth
        types = self._types(self.section, self.depth)
        for i, (source, layer) in enumerate(self.origins[first:], first):
            old_types = self._types(self.sections[source], self.depths[source])
            wanted = _last(old_types, self._first_shared(source), old_types[layer])
            earlier = _last(types, first, types[i])
            there = self.origins[earlier] if earlier is not None else None
            if not shares[i] or there != (None if wanted is None else (source, wanted)):
                raise self._unsayable(key)
        self.section[key] = self.depth - first

    def _ends(self) -> None:
        """Raise InputError unless the first and last layer of a type, which compute differently in
        some model types, remain first and last."""
        wanted = ENDS.get(str(self.section.get("model_type")))
        if wanted is None:
            return
        ends = {
            s: _ends(self._types(self.sections[s], self.depths[s]), wanted) for s in self.sources
        }
        marked = _ends(self._types(self.section, self.depth), wanted)
        if marked != {i for i, (source, layer) in enumerate(self.origins) if layer in ends[source]}:
            raise self._unsayable("layer_types")

    def _first_shared(self, source: int) -> int:
        shared = self.sections[source].get("num_kv_shared_layers") or 0
        return self.depths[source] - int(shared)

    @staticmethod
    def _types(section: Mapping[str, Any], depth: int) -> Sequence[object]:
        types = section.get("layer_types")
        return types if isinstance(types, list) and len(types) == depth else [None] * depth

    def _leading(self, rule: Leading, before: Section) -> None:
        count_before = before.get(rule.key)
        if not isinstance(count_before, int):
            return
        if rule.only_if is not None and not before.get(rule.only_if):
            self.section[rule.key] = (
                self.depth if count_before == self.old else min(count_before, self.depth)
            )
            return
        first = []
        for source, layer in self.origins:
            count = self.sections[source].get(rule.key)
            first.append(layer < (count_before if count is None else count))
        leading = first.index(False) if False in first else self.depth
        self.section[rule.key] = leading
        if any(first[leading:]) and (rule.instead is None or before.get(rule.instead) is None):
            if rule.instead is None or rule.kinds is None:
                raise self._unsayable(rule.key)
            self.section[rule.instead] = [rule.kinds[not f] for f in first]

    def _span(self, rule: Span, before: Section) -> None:
        if not isinstance(before.get(rule.last), int):
            return
        marked = [rule.holds(self.sections[s], self.depths[s], n) for s, n in self.origins]
        if True not in marked:
            raise self._unsayable(rule.last)
        self.section[rule.first] = marked.index(True)
        self.section[rule.last] = self.depth - 1 - marked[::-1].index(True)
        for every in dict.fromkeys((before.get(rule.every) or 1, 1)):
            section = self.section | {rule.every: every}
            if marked == [rule.holds(section, self.depth, i) for i in range(self.depth)]:
                self.section[rule.every] = every
                return
        raise self._unsayable(rule.first)

    def _periods(self, rule: Period, before: Section) -> None:
        if rule.instead is not None and isinstance(before.get(rule.instead), list):
            return
        pattern = rule.of(before)
        if pattern is None:
            return
        marked = []
        for source, layer in self.origins:
            period, at = rule.of(self.sections[source]) or pattern
            marked.append(layer % period == at)
        if marked != [i % pattern[0] == pattern[1] for i in range(self.depth)]:
            if rule.instead is not None and rule.addable:
                self.section[rule.instead] = (
                    [i for i, mark in enumerate(marked) if mark]
                    if rule.kinds is None
                    else [rule.kinds[not mark] for mark in marked]
                )
                return
            new = _period_of(marked, rule.at)
            if new is None:
                raise self._unsayable(rule.key)
            self.section[rule.key], at = pattern = new
            if isinstance(rule.at, str):
                self.section[rule.at] = at
        if rule.parts is not None:
            self.section[rule.parts] = self.depth // pattern[0]
            if not self.section[rule.parts] or self.depth // self.section[rule.parts] != pattern[0]:
                raise self._unsayable(rule.parts)

    def _facts(self, source: int, layer: int) -> str:
        """Everything that a model's config states about one of its layers, as JSON for comparison."""
        section, depth = self.sections[source], self.depths[source]
        facts: list[Any] = [layer >= self._first_shared(source)]
        for key, value in section.items():
            if is_numbers(key, value, depth):
                facts.append(layer + (key in FROM_ONE) in value)
            elif is_keyed(key, value, depth):
                facts.append({int(k): v for k, v in value.items()}.get(layer))
            elif key == "block_types" and value:
                facts.append(value[layer % len(value)])
            elif isinstance(value, list | str) and is_per_layer(key, value, depth):
                facts.append(value[layer] == layer if key in SOURCES else value[layer])
        facts += [layer < (section.get(rule.key) or 0) for rule in LEADING]
        facts += [rule.holds(section, depth, layer) for rule in SPANS]
        facts.append((layer + 1) % (section.get("decoder_sparse_step") or 1))
        for period in PERIODS:
            if (every := period.of(section)) is not None:
                facts.append(layer % every[0] == every[1])
        return json.dumps(facts, sort_keys=True, default=str)

    def _unsayable(self, key: str) -> InputError:
        return InputError(
            f"{self.donor.reference}: {key} in its config.json cannot describe the layers in the "
            "order of the slices, so some would be loaded as layers of another kind; stack ranges "
            "that keep its order"
        )


def _ends(types: Sequence[object], wanted: object) -> set[int]:
    """The numbers of the first and the last layer of a type."""
    numbers = [i for i, kind in enumerate(types) if kind == wanted]
    return {*numbers[:1], *numbers[-1:]}


def _last(types: Sequence[object], stop: int, wanted: object) -> int | None:
    """The number of the last layer of a type before ``stop``; None if there is none."""
    return next((i for i in range(stop - 1, -1, -1) if types[i] == wanted), None)


def _period_of(marked: Sequence[bool], at: int | str) -> tuple[int, int] | None:
    """The period and the index within it that mark exactly these layers; None if none does.

    The index is ``at``, or any if ``at`` is a key of the config.
    """
    first = marked.index(True) if True in marked else len(marked)
    for period in range(1, len(marked) + 2):
        place = first if isinstance(at, str) else at % period
        if list(marked) == [i % period == place for i in range(len(marked))]:
            return period, place
    return None
