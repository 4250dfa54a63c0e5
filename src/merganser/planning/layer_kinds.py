"""Check whether layers can be reordered, by their config entries and tensors.

If layers with equal config entries have different tensors, the model distinguishes them by
position alone, so a layer keeps its kind only at an equivalent position: first, last, or between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from merganser.errors import InputError
from merganser.modules import Module
from merganser.planning.plan_data import Source

Tensors = frozenset[tuple[str, tuple[int, ...]]]


def check_kinds(
    source: Source,
    module: Module,
    facts: Sequence[str],
    placed: Sequence[tuple[int, int]],
    depth: int,
) -> None:
    """Check that no layer of a stack turns into another kind.

    Args:
        source: a model.
        module: the stacked module.
        facts: everything its config states about each layer.
        placed: (output layer, layer in this model) pairs.
        depth: number of output layers.

    Raises:
        InputError: naming a tensor by which the layers differ.
    """
    kinds = [_tensors(source, module, layer) for layer in range(module.depth)]
    if _kinds_by(facts, kinds) is not None:
        return
    if depth == module.depth and all(i == layer for i, layer in placed):
        return
    for places in ((0,), (-1,), (0, -1)):
        keys = [_key(facts[n], n, module.depth, places) for n in range(module.depth)]
        by_place = _kinds_by(keys, kinds)
        if by_place is None:
            continue
        if all(
            by_place.get(_key(facts[layer], i, depth, places)) == kinds[layer]
            for i, layer in placed
        ):
            return
        break
    raise InputError(_difference(source, facts, kinds))


def _tensors(source: Source, module: Module, layer: int) -> Tensors:
    """A layer's tensors except buffers: names within the layer, and shapes."""
    architecture, specs = source.architecture, source.checkpoint.specs
    places = architecture.places
    return frozenset(
        (places[name].rest, specs[name].shape)
        for name in architecture.layers.get((module.stack, layer), ())
        if places[name].role != "buffer"
    )


def _key(fact: str, layer: int, depth: int, places: Sequence[int]) -> str:
    """What determines a layer's kind, including its position if that matters."""
    return f"{fact} {[place for place in places if layer == place % depth]}"


def _kinds_by(keys: Sequence[str], kinds: Sequence[Tensors]) -> Mapping[str, Tensors] | None:
    """The tensors of the layers of each key; None if layers of one key differ."""
    kind_by_key: dict[str, Tensors] = {}
    for key, kind in zip(keys, kinds, strict=True):
        if kind_by_key.setdefault(key, kind) != kind:
            return None
    return kind_by_key


def _difference(source: Source, facts: Sequence[str], kinds: Sequence[Tensors]) -> str:
    alike = ((i, j) for j in range(len(kinds)) for i in range(j) if facts[i] == facts[j])
    one, other = next((i, j) for i, j in alike if kinds[i] != kinds[j])
    rest, shape = min(kinds[one] ^ kinds[other])
    has, lacks = (one, other) if (rest, shape) in kinds[one] else (other, one)
    return (
        f"{source.reference}: its layer {has} has a tensor {rest!r} of {list(shape)}, its layer "
        f"{lacks} has none, and its config.json does not say which layers do; they cannot be put in "
        "another order, but whole models can be merged"
    )
