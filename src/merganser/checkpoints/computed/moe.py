"""Convert mixtures of experts between one matrix per expert and stacks of all experts.

Published checkpoints name each expert's matrices (``mlp.experts.7.gate_proj.weight``; Mixtral's
``block_sparse_moe.experts.7.w1.weight``). transformers 5 computes with stacks and can write them,
as trainers do: ``mlp.experts.gate_up_proj`` [experts, 2 * inner, hidden], an expert's gate above
its up matrix, and ``mlp.experts.down_proj`` [experts, hidden, inner]. Both layouts contain the same bytes at
different offsets, so a range of one consists of ranges of the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from merganser.checkpoints.computed.derived import Derived, DerivedCheckpoint
from merganser.checkpoints.locators import ExpertsNamed, after
from merganser.checkpoints.protocol import Checkpoint
from merganser.errors import InputError
from merganser.tensors import TensorSpec

if TYPE_CHECKING:
    from merganser.checkpoints.computed.derived import Array

_BLOCKS = "mlp|block_sparse_moe|feed_forward|moe"
_SINGLE = re.compile(rf"(.+)\.({_BLOCKS})\.experts\.(\d+)\.(\w+)\.weight")
_STACKED = re.compile(rf"(.+)\.({_BLOCKS})\.experts\.(gate_up_proj|down_proj)")

GATE, UP, DOWN = "gate", "up", "down"

_NAMES = (
    {GATE: "gate_proj", UP: "up_proj", DOWN: "down_proj"},
    {GATE: "w1", UP: "w3", DOWN: "w2"},
)
"""Names of an expert's matrices, by family."""


@dataclass(frozen=True, slots=True)
class _Style:
    """How a checkpoint names its experts.

    Attributes:
        block: a layer's name of the block with router and experts.
        names: names of an expert's matrices, an element of ``_NAMES``; None for stacks.
    """

    block: str
    names: int | None


@dataclass(frozen=True, slots=True)
class _Matrix:
    """An expert's matrix: its first element in a tensor, and its spec."""

    name: str
    start: int
    spec: TensorSpec


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer's experts: their matrices by number and part, and all names of their tensors."""

    style: _Style
    matrices: dict[tuple[int, str], _Matrix]
    names: set[str]


def named_like(checkpoint: Checkpoint, donor: Checkpoint) -> Checkpoint:
    """Return a checkpoint with its experts in another's names and layout; itself if they already are.

    Raises:
        InputError: when its experts cannot be converted to those names.
    """
    if checkpoint.specs.keys() == donor.specs.keys():
        return checkpoint
    wanted = {_pattern(layer): experts.style for layer, experts in _layers(donor).items()}
    layers = {
        layer: experts
        for layer, experts in _layers(checkpoint).items()
        if wanted.get(_pattern(layer), experts.style) != experts.style
    }
    if not layers:
        return checkpoint
    tensors: dict[str, Derived | str] = {}
    done: set[str] = set()
    for name in checkpoint.specs:
        layer = _layer_of(name, layers)
        if layer is None:
            tensors[name] = name
        elif name not in layers[layer].names:  # the router and similar tensors
            block = wanted[_pattern(layer)].block
            rest = name.removeprefix(f"{layer}.{layers[layer].style.block}.")
            tensors[name if rest == name else f"{layer}.{block}.{rest}"] = name
        elif layer not in done:
            done.add(layer)
            experts = layers[layer]
            for new, matrices in _arranged(checkpoint, layer, experts, wanted[_pattern(layer)]):
                tensors[new] = _joined(checkpoint, new, matrices)
    return DerivedCheckpoint(
        checkpoint,
        tensors,
        checkpoint.config,
        "experts under other names",
        format=checkpoint.format,
        notes=[f"{checkpoint.label}: its experts are renamed to the names that {donor.label} has"],
        locator=after(ExpertsNamed, checkpoint.locator, donor.locator),
    )


def _pattern(layer: str) -> str:
    return re.sub(r"\d+", "*", layer)


def _layer_of(name: str, layers: dict[str, _Layer]) -> str | None:
    """The layer of a tensor, out of the given layers."""
    parts = name.split(".")
    prefixes = (".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1))
    return next((prefix for prefix in prefixes if prefix in layers), None)


def _layers(checkpoint: Checkpoint) -> dict[str, _Layer]:
    """All layers with experts, recognised by names and shapes."""
    layers: dict[str, _Layer] = {}
    for name, spec in checkpoint.specs.items():
        if ".experts." not in name:
            continue
        if match := _SINGLE.fullmatch(name):
            layer, block, expert, leaf = match.groups()
            for family, names in enumerate(_NAMES):
                part = next((part for part, known in names.items() if known == leaf), None)
                if part is not None:
                    experts = layers.setdefault(layer, _Layer(_Style(block, family), {}, set()))
                    experts.matrices[int(expert), part] = _Matrix(name, 0, spec)
                    experts.names.add(name)
        elif match := _STACKED.fullmatch(name):
            layer, block, leaf = match.groups()
            experts = layers.setdefault(layer, _Layer(_Style(block, None), {}, set()))
            experts.names.add(name)
            stacked = [DOWN] if leaf == "down_proj" else [GATE, UP]
            if len(spec.shape) != 3 or spec.shape[1] % len(stacked):
                continue
            one = spec.shape[1] // len(stacked), spec.shape[2]
            matrix = TensorSpec(spec.dtype, one, spec.narrow)
            for i in range(spec.shape[0] * len(stacked)):
                key = i // len(stacked), stacked[i % len(stacked)]
                experts.matrices[key] = _Matrix(name, i * matrix.numel, matrix)
    return layers


def _arranged(
    checkpoint: Checkpoint, layer: str, layer_experts: _Layer, style: _Style
) -> Iterator[tuple[str, list[_Matrix]]]:
    """A layer's tensors in another style: their names and the matrices that they consist of."""
    count = 1 + max((expert for expert, _ in layer_experts.matrices), default=-1)
    experts = []
    for expert in range(count):
        gate, up, down = (layer_experts.matrices.get((expert, part)) for part in (GATE, UP, DOWN))
        if gate is None or up is None or down is None:
            raise InputError(
                f"{checkpoint.label}: expert {expert} of {layer} lacks a matrix (gate, up or down)"
            )
        inner, hidden = gate.spec.shape[0], gate.spec.shape[-1]
        if gate.spec.shape != up.spec.shape or down.spec.shape != (hidden, inner):
            raise InputError(
                f"{checkpoint.label}: the experts of {layer} are {gate.spec}, {up.spec} and {down.spec}, "
                "not [inner, hidden] twice and [hidden, inner]; they cannot be stored as the other models' are"
            )
        experts.append({GATE: gate, UP: up, DOWN: down})
    prefix = f"{layer}.{style.block}.experts."
    if style.names is None:
        yield prefix + "gate_up_proj", [e[part] for e in experts for part in (GATE, UP)]
        yield prefix + "down_proj", [e[DOWN] for e in experts]
        return
    for expert, parts in enumerate(experts):
        for part, matrix in parts.items():
            yield f"{prefix}{expert}.{_NAMES[style.names][part]}.weight", [matrix]


def _joined(checkpoint: Checkpoint, name: str, matrices: list[_Matrix]) -> Derived:
    """A tensor of matrices of one shape, one after another."""
    first = matrices[0].spec
    odd = next((matrix for matrix in matrices if matrix.spec != first), None)
    if odd is not None:
        raise InputError(
            f"{checkpoint.label}: {odd.name!r} is {odd.spec}, and {matrices[0].name!r} is {first}; "
            f"they cannot be joined to {name!r}"
        )
    shape = first.shape
    if name.endswith("_proj"):
        parts = 2 if name.endswith("gate_up_proj") else 1
        shape = (len(matrices) // parts, parts * first.shape[0], first.shape[1])
    places = [(matrix.name, matrix.start) for matrix in matrices]
    spec = TensorSpec(first.dtype, shape, first.narrow)
    return Derived(spec, partial(_fill, checkpoint, places, first.numel, first.dtype.itemsize))


def _fill(
    checkpoint: Checkpoint,
    places: list[tuple[str, int]],
    numel: int,
    itemsize: int,
    start: int,
    into: Array,
) -> None:
    view, position = into.data, start
    while len(view):
        index, within = divmod(position, numel)
        count = min(numel - within, len(view) // itemsize)
        name, begin = places[index]
        checkpoint.read(name, (begin + within) * itemsize, view[: count * itemsize])
        view = view[count * itemsize :]
        position += count
