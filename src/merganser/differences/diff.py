"""What sets two models apart: tensor by tensor, layer by layer, in one pass over their weights."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from merganser import engine, hub, notebook, number_format, recipe
from merganser.architecture import Architecture, infer
from merganser.checkpoints import Checkpoint, as_numbers, open_checkpoint
from merganser.checkpoints.computed.derived import look
from merganser.checkpoints.state_dict import MemoryCheckpoint
from merganser.differences import effective_rank
from merganser.errors import InputError, RecipeError
from merganser.kernels import CELL, CODES, WIDTHS, storage
from merganser.kernels.arguments import Inputs
from merganser.kernels.merging import narrow
from merganser.planning import TILE, Plan
from merganser.planning.model_argument import find_merge
from merganser.planning.naming import named_alike
from merganser.recipe import ModelReference
from merganser.sinks import StateDictSink

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """How a tensor differs between two models.

    Attributes:
        name, role, layer: of the first model.
        elements: how many it has.
        histogram: [BUCKETS] elements by their distance in units in the last place: 0, 1, 2, 3–4 …
            Of two dtypes the wider of both, or float32, counts.
        sums: [FIGURES] squared lengths of the difference and of A; with a base of both changes, and
            their inner product; elements changed to the same side, and in both; lengths of the
            changes' sum and of both, element by element; squared length of the base.
        rank: the effective rank of a matrix's difference, if it was asked for.
    """

    name: str
    role: str
    layer: int | None
    elements: int
    histogram: Array
    sums: Array
    rank: float | None = None


@dataclass(frozen=True, slots=True)
class Diff:
    """How two models differ.

    Attributes:
        tensors: what both have.
        based: whether the figures of a base are there.
        ranked: whether effective ranks are.
        skipped: tensors that were not compared, each with the reason.
        ulp: the dtype that both were rounded to before differing elements and units in the last place
            were counted; None for the wider of a tensor's two, or float32.
    """

    tensors: tuple[TensorDiff, ...]
    based: bool
    skipped: Mapping[str, str]
    ranked: bool = False
    ulp: str | None = None

    def __repr__(self) -> str:
        changed = self.figures(self.tensors)["changed"] or 0.0
        skipped = f", {len(self.skipped)} not compared" if self.skipped else ""
        return f"Diff({len(self.tensors)} tensors, {changed:.3%} of their elements differ{skipped})"

    def _repr_html_(self) -> str:
        names = list(self.figures(self.tensors))
        groups = {
            **{f"layer {key}": tensors for key, tensors in self.groups("layer").items()},
            **self.groups("role"),
            "all": list(self.tensors),
        }
        rows = [
            (group, *(number_format.significant(self.figures(tensors)[name]) for name in names))
            for group, tensors in groups.items()
        ]
        head = ("", *(name.replace("_", " ") for name in names))
        skipped = [f"not compared: {name} ({reason})" for name, reason in self.skipped.items()]
        return notebook.table(head, rows) + notebook.notes(skipped)

    def groups(self, key: str) -> dict[str, list[TensorDiff]]:
        """The tensors by ``layer`` or ``role``; those of no layer are under ``–``."""
        found: dict[str, list[TensorDiff]] = {}
        for tensor in self.tensors:
            value = getattr(tensor, key)
            found.setdefault("–" if value is None else str(value), []).append(tensor)
        return found

    def figures(self, tensors: Iterable[TensorDiff]) -> dict[str, float | None]:
        """What is known of some of the tensors: see :func:`figures`."""
        return figures(tensors, self.based, self.ranked)

    def cells(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """Figures by kind of tensor (or role, where there are many kinds), then by layer, for a picture."""
        kinds = {tensor.name: _kind(tensor) for tensor in self.tensors}
        if len(set(kinds.values())) > MOST_KINDS:
            kinds = {tensor.name: tensor.role for tensor in self.tensors}
        found: dict[str, dict[str, list[TensorDiff]]] = {}
        for tensor in sorted(self.tensors, key=_depth):
            row = found.setdefault(kinds[tensor.name], {})
            row.setdefault("–" if tensor.layer is None else str(tensor.layer), []).append(tensor)
        return {
            kind: {layer: self.figures(chosen) for layer, chosen in row.items()}
            for kind, row in found.items()
        }

    def as_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {
            "whole": self.figures(self.tensors),
            "ulps": histogram(self.tensors),
            "ulp_dtype": self.ulp,
            "layers": {k: self.figures(v) for k, v in self.groups("layer").items()},
            "roles": {k: self.figures(v) for k, v in self.groups("role").items()},
            "cells": self.cells(),
            "tensors": {
                t.name: {"role": t.role, "layer": t.layer, **self.figures([t])}
                | {"ulps": histogram([t])}
                for t in self.tensors
            },
            "skipped": dict(self.skipped),
        }


MOST_KINDS = 24
"""Kinds of tensors that a picture has rows for."""


def _kind(tensor: TensorDiff) -> str:
    """A tensor's name within its layer, without numbers: ``self_attn.q_proj``."""
    parts = tensor.name.removesuffix(".weight").split(".")
    if tensor.layer is None or str(tensor.layer) not in parts:
        return ".".join(part for part in parts[-2:] if part not in ("model", "transformer"))
    inner = parts[parts.index(str(tensor.layer)) + 1 :]
    return ".".join(part for part in inner if not part.isdigit())


def _depth(tensor: TensorDiff) -> int:
    """Whether a tensor is before the layers, in them, or after them."""
    return 1 if tensor.layer is not None else 0 if tensor.role == "embedding" else 2


def histogram(tensors: Iterable[TensorDiff]) -> dict[str, int]:
    """Elements by their distance in units in the last place."""
    total = sum((t.histogram for t in tensors), np.zeros(storage.BUCKETS, np.int64))
    names = ["0", "1", "2", *(f"{2**n // 2 + 1}-{2**n}" for n in range(2, 16)), "more"]
    return {name: int(count) for name, count in zip(names, total, strict=True)}


def figures(
    tensors: Iterable[TensorDiff], based: bool, ranked: bool = False
) -> dict[str, float | None]:
    """Shares and lengths over some tensors.

    Returns:
        ``changed``, the share of elements that differ; ``distance``, the L2 norm of B - A; ``relative``,
        the same over A's. With a base also ``relative_a`` and ``relative_b``, the changes' norms over the
        base's; ``cosine`` of the changes; ``same_sign``, the share of the elements that both changed
        in which they went to the same side; ``interference``, the share of the changes' L1 norms that
        cancels in their sum. If ``ranked``, ``effective_rank``, the mean over the matrices. None where it is
        not defined.
    """
    chosen = list(tensors)
    elements = sum(t.elements for t in chosen)
    same = sum(int(t.histogram[0]) for t in chosen)
    total = [math.fsum(column) for column in zip(*(t.sums for t in chosen), strict=True)]
    apart, own, a, b, inner, agree, both, joint, sides, base = total or [0.0] * storage.FIGURES
    found = {
        "changed": _ratio(elements - same, elements),
        "distance": math.sqrt(apart),
        "relative": _ratio(math.sqrt(apart), math.sqrt(own)),
    }
    if based:
        found |= {
            "relative_a": _ratio(math.sqrt(a), math.sqrt(base)),
            "relative_b": _ratio(math.sqrt(b), math.sqrt(base)),
            "cosine": _ratio(inner, math.sqrt(a) * math.sqrt(b)),
            "same_sign": _ratio(agree, both),
            "interference": _ratio(sides - joint, sides),
        }
    if ranked:
        known = [t.rank for t in chosen if t.rank is not None]
        found["effective_rank"] = _ratio(math.fsum(known), len(known))
    return found


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def diff(
    first: str | ModelReference,
    second: str | ModelReference,
    *,
    base: str | ModelReference | None = None,
    threads: int | None = None,
    rank: bool = False,
    ulp: str | None = None,
) -> Diff:
    """Compare two models tensor by tensor, reading each byte once.

    Args:
        first, second: folders, files, training steps or Hub ids, with ``+adapter`` as in recipes;
            recipes and points of sweeps (``SWEEP.yml#w=0.7``), which are merged in memory.
        base: what both were trained from, to compare their changes too.
        threads: how many; None for one a core.
        rank: whether to find the effective ranks of the matrices' differences, see
            :func:`merganser.differences.effective_rank.effective_rank`: reads the matrices again, and takes long.
        ulp: bfloat16, float16 or float32 to round both models to it before elements that differ and units
            in the last place are counted, as they are stored by a merge of that dtype; None for the wider
            of both dtypes, or float32. Norms and cosines are those of the numbers as they are.

    Raises:
        RecipeError: when one is no reference to a model, or ``ulp`` is another dtype.
        InputError: when one is no model, or they have no tensor in common.
    """
    if ulp is not None and ulp not in ULPS:
        raise RecipeError(f"ulp: {ulp!r} is none of {', '.join(ULPS)}")
    with ExitStack() as stack:
        opened = [_open(name, stack) for name in (first, second, *([base] if base else []))]
        models = _with_one_set_of_names(opened)
        names, skipped = _common(models)
        if not names:
            raise InputError(f"{first} and {second} have no tensor in common that can be compared")
        with ThreadPoolExecutor(threads or os.cpu_count() or 1) as crew:
            tensors = [_begin(models, own) for own in names]
            tiles = [
                crew.submit(_compare, models, own, start, ulp, *arrays)
                for own, (_, *arrays) in zip(names, tensors, strict=True)
                for start in range(0, models[0][0].specs[own[0]].numel, TILE)
            ]
            try:
                for tile in tiles:
                    tile.result()
            except BaseException:
                crew.shutdown(cancel_futures=True)
                raise
        found = [_rank(models, own) if rank else None for own in names]
    return Diff(
        tuple(
            TensorDiff(name, role, layer, numel, counts.sum(axis=0), sums.sum(axis=0), each)
            for ((name, role, layer, numel), sums, counts), each in zip(tensors, found, strict=True)
        ),
        base is not None,
        skipped,
        rank,
        ulp,
    )


ULPS = ("bfloat16", "float16", "float32")
"""Dtypes whose units in the last place can be counted, whatever the models are stored in."""

Model = tuple[Checkpoint, Architecture]


def _open(name: str | ModelReference, stack: ExitStack) -> Model:
    try:
        reference = recipe.parse_reference(name)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    if isinstance(name, str) and (merge := find_merge(name)) is not None:
        return _merged(*merge)
    checkpoint = open_checkpoint(hub.resolve(reference.path, reference.revision), reference.text)
    adapter = reference.adapter and hub.resolve(reference.adapter, reference.adapter_revision)
    opened = as_numbers(checkpoint, adapter or None)
    stack.enter_context(closing(opened))
    return opened, infer(opened.specs, opened.config)


def _merged(name: str, plan: Plan) -> Model:
    """A merge as a model in memory."""
    sink = StateDictSink({job.name: job.spec for job in plan.jobs})
    with closing(plan):
        engine.run([plan], [sink], report=False)
        config = plan.sources[plan.donor].checkpoint.config
    checkpoint = MemoryCheckpoint(sink.tensors, name)
    return checkpoint, infer(checkpoint.specs, config)


def _with_one_set_of_names(models: list[Model]) -> list[Model]:
    """The models as a merge names their tensors; as they are where a merge refuses their names."""
    try:
        named = named_alike([checkpoint for checkpoint, _ in models], 0, refuse=False)
    except InputError:
        return models
    return [
        model
        if checkpoint is model[0]
        else (checkpoint, infer(checkpoint.specs, checkpoint.config))
        for checkpoint, model in zip(named, models, strict=True)
    ]


def _common(models: list[Model]) -> tuple[list[tuple[str, ...]], dict[str, str]]:
    """The names of each tensor that can be compared, in every model; and why others cannot."""
    (one, shape), *others = models
    found: list[tuple[str, ...]] = []
    skipped: dict[str, str] = {}
    for name, spec in one.specs.items():
        own = [name, *(each.names.get(shape.key(name), "") for _, each in others)]
        missing = [c.label for n, (c, _) in zip(own, models, strict=True) if n not in c.specs]
        if missing:
            skipped[name] = f"not in {missing[0]}"
            continue
        specs = [checkpoint.specs[n] for n, (checkpoint, _) in zip(own, models, strict=True)]
        if any(each.dtype.name not in CODES for each in specs):
            skipped[name] = f"{spec.dtype} is not compared"
        elif any(each.shape != spec.shape for each in specs):
            skipped[name] = "shapes differ: " + ", ".join(str(list(s.shape)) for s in specs)
        else:
            found.append(tuple(own))
    second, other = others[0]
    matched = {own[1] for own in found} | {other.names.get(shape.key(n), "") for n in skipped}
    skipped |= {n: f"not in {one.label}" for n in second.specs if n not in matched}
    return found, skipped


def _begin(models: list[Model], names: tuple[str, ...]) -> tuple[tuple[Any, ...], Array, Array]:
    checkpoint, shape = models[0]
    place, numel = shape.places[names[0]], checkpoint.specs[names[0]].numel
    cells = -(-numel // CELL)
    sums = np.zeros((cells, storage.FIGURES))
    counts = np.zeros((cells, storage.BUCKETS), np.int64)
    return (names[0], place.role, place.layer, numel), sums, counts


def _compare(
    models: list[Model],
    names: tuple[str, ...],
    start: int,
    ulp: str | None,
    sums: Array,
    counts: Array,
) -> None:
    """One tile of a tensor."""
    count = min(TILE, models[0][0].specs[names[0]].numel - start)
    rows, codes = [], []
    for name, (checkpoint, _) in zip(names, models, strict=True):
        dtype = checkpoint.specs[name].dtype
        buffer = np.empty(count * dtype.itemsize, np.uint8)
        rows.append(look(checkpoint, name, start * dtype.itemsize, buffer))
        codes.append(CODES[dtype.name])
    first = start // CELL
    cells = slice(first, first - (-count // CELL))
    inputs = Inputs.of(rows, codes)
    if ulp is None or codes[:2] == [CODES[ulp]] * 2:
        storage.compare(inputs, count, sums[cells], counts[cells])
        return
    storage.compare(inputs, count, sums[cells], np.zeros_like(counts[cells]))
    rounded = [_rounded(row, code, count, ulp) for row, code in zip(rows[:2], codes, strict=False)]
    inputs = Inputs.of(rounded, [CODES[ulp]] * 2)
    storage.compare(inputs, count, np.zeros_like(sums[cells]), counts[cells])


def _rounded(row: Array, code: int, count: int, dtype: str) -> Array:
    """Stored numbers of a tile, rounded to nearest in another dtype."""
    numbers = np.empty(count, np.float64 if code == CODES["float64"] else np.float32)
    storage.widen(row, code, count, numbers)
    into = np.empty(count * WIDTHS[CODES[dtype]], np.uint8)
    narrow(numbers, dtype, False, 0, 0, into)
    return into


def _rank(models: list[Model], names: tuple[str, ...]) -> float | None:
    """The effective rank of a tensor's difference, if it is a matrix."""
    pairs = [(checkpoint, name) for name, (checkpoint, _) in zip(names, models, strict=True)][:2]
    shape = pairs[0][0].specs[pairs[0][1]].shape
    if len(shape) != 2 or 0 in shape:
        return None

    def rows(begin: int, end: int) -> Array:
        one, other = (_numbers(*pair, begin * shape[1], (end - begin) * shape[1]) for pair in pairs)
        return np.subtract(other, one, out=one).reshape(-1, shape[1])

    return effective_rank.effective_rank((shape[0], shape[1]), rows)


def _numbers(checkpoint: Checkpoint, name: str, start: int, count: int) -> Array:
    """Elements of a tensor in float64."""
    dtype = checkpoint.specs[name].dtype
    buffer = np.empty(count * dtype.itemsize, np.uint8)
    stored = look(checkpoint, name, start * dtype.itemsize, buffer)
    numbers = np.empty(count)
    storage.widen(stored, CODES[dtype.name], count, numbers)
    return numbers
