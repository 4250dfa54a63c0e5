"""Compare two models tensor by tensor, in one pass over their weights."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from merganser.engine import TILE
from merganser.errors import InputError, RecipeError
from merganser.kernels import CELL, CODES, WIDTHS, storage
from merganser.kernels.arguments import Inputs
from merganser.kernels.library import kernels
from merganser.kernels.merging import narrow
from merganser.planning import Plan
from merganser.planning.model_argument import find_merge
from merganser.planning.naming import named_alike
from merganser.recipe import ModelReference
from merganser.sinks import StateDictSink

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """The difference of a tensor between two models.

    Attributes:
        name, role, layer: the tensor's name, role and layer in the first model.
        elements: number of elements.
        histogram: [BUCKETS] numbers of elements by their difference in units in the last place: 0, 1, 2,
            3–4 … The unit is that of the wider of both tensors' dtypes, or of float32.
        sums: [FIGURES] squared L2 norms of the difference and of A; with a base: squared L2 norms of
            both task vectors and their inner product, numbers of elements with equal signs and changed
            in both, L1 norms of the task vectors' sum and of both, squared L2 norm of the base.
        rank: the effective rank of a matrix's difference; None for other tensors, or if not requested.
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
    """The differences of two models.

    Attributes:
        tensors: the compared tensors.
        based: whether they were compared with a base.
        ranked: whether effective ranks were computed.
        skipped: by the name of each tensor that was not compared, the reason.
        ulp: the dtype to which both models were rounded before counting different elements and units
            in the last place; None for the wider dtype of a tensor's two, or float32.
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
        """Group the tensors by ``layer`` or ``role``; ``–`` for tensors outside the layers."""
        groups: dict[str, list[TensorDiff]] = {}
        for tensor in self.tensors:
            value = getattr(tensor, key)
            groups.setdefault("–" if value is None else str(value), []).append(tensor)
        return groups

    def figures(self, tensors: Iterable[TensorDiff]) -> dict[str, float | None]:
        """Aggregate the differences of some tensors: see :func:`figures`."""
        return figures(tensors, self.based, self.ranked)

    def cells(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """Return a heat map: measures by kind of tensor (by role if there are many) and by layer."""
        kinds = {tensor.name: _kind(tensor) for tensor in self.tensors}
        if len(set(kinds.values())) > MOST_KINDS:
            kinds = {tensor.name: tensor.role for tensor in self.tensors}
        cells: dict[str, dict[str, list[TensorDiff]]] = {}
        for tensor in sorted(self.tensors, key=_depth):
            row = cells.setdefault(kinds[tensor.name], {})
            row.setdefault("–" if tensor.layer is None else str(tensor.layer), []).append(tensor)
        return {
            kind: {layer: self.figures(chosen) for layer, chosen in row.items()}
            for kind, row in cells.items()
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the differences as plain data, for JSON."""
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
"""Maximum number of rows of a heat map."""


def _kind(tensor: TensorDiff) -> str:
    """Return a tensor's name within its layer, without numbers: ``self_attn.q_proj``."""
    parts = tensor.name.removesuffix(".weight").split(".")
    if tensor.layer is None or str(tensor.layer) not in parts:
        return ".".join(part for part in parts[-2:] if part not in ("model", "transformer"))
    inner = parts[parts.index(str(tensor.layer)) + 1 :]
    return ".".join(part for part in inner if not part.isdigit())


def _depth(tensor: TensorDiff) -> int:
    """Return a sort key: before the layers, in them, or after them."""
    return 1 if tensor.layer is not None else 0 if tensor.role == "embedding" else 2


def histogram(tensors: Iterable[TensorDiff]) -> dict[str, int]:
    """Return the numbers of elements by their difference in units in the last place."""
    total = sum((t.histogram for t in tensors), np.zeros(storage.BUCKETS, np.int64))
    names = ["0", "1", "2", *(f"{2**n // 2 + 1}-{2**n}" for n in range(2, 16)), "more"]
    return {name: int(count) for name, count in zip(names, total, strict=True)}


def figures(
    tensors: Iterable[TensorDiff], based: bool, ranked: bool = False
) -> dict[str, float | None]:
    """Aggregate the differences of some tensors.

    Returns:
        ``changed``, the share of elements that differ; ``distance``, the L2 norm of B - A; ``relative``,
        the distance over the norm of A. With a base also ``relative_a`` and ``relative_b``, the norms of
        the task vectors over the base's norm; ``cosine`` of the task vectors; ``same_sign``, the share of
        equal signs among elements that both models changed; ``interference``, the share of the task
        vectors' L1 norms that cancels in their sum. If ``ranked``, ``effective_rank``, the mean over the
        matrices. A value is None if it is not defined.
    """
    chosen = list(tensors)
    elements = sum(t.elements for t in chosen)
    same = sum(int(t.histogram[0]) for t in chosen)
    total = [math.fsum(column) for column in zip(*(t.sums for t in chosen), strict=True)]
    apart, own, a, b, inner, agree, both, joint, sides, base = total or [0.0] * storage.FIGURES
    values = {
        "changed": _ratio(elements - same, elements),
        "distance": math.sqrt(apart),
        "relative": _ratio(math.sqrt(apart), math.sqrt(own)),
    }
    if based:
        values |= {
            "relative_a": _ratio(math.sqrt(a), math.sqrt(base)),
            "relative_b": _ratio(math.sqrt(b), math.sqrt(base)),
            "cosine": _ratio(inner, math.sqrt(a) * math.sqrt(b)),
            "same_sign": _ratio(agree, both),
            "interference": _ratio(sides - joint, sides),
        }
    if ranked:
        known = [t.rank for t in chosen if t.rank is not None]
        values["effective_rank"] = _ratio(math.fsum(known), len(known))
    return values


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
    runner: Callable[[Comparison], list[TensorDiff]] | None = None,
) -> Diff:
    """Compare two models tensor by tensor, reading each byte once.

    Args:
        first: model A: a folder, file, training step or Hub id, with ``+adapter`` as in recipes; or a recipe
            or point of a sweep (``SWEEP.yml#w=0.7``), which is merged in memory.
        second: model B, in the same forms.
        base: the model that both were trained from, to compare task vectors too.
        threads: number of threads; None for one per core.
        rank: whether to compute the effective ranks of the matrices' differences, see
            :func:`merganser.differences.effective_rank.effective_rank`; slow, and reads the matrices again.
        ulp: bfloat16, float16 or float32: round both models to it before counting different elements and
            units in the last place, as a merge of that dtype would store them; None for the wider of
            both dtypes, or float32. Norms and cosines are of the unrounded numbers.
        runner: compares the tensors together with other processes; None for this process alone.

    Returns:
        The differences of all tensors, which can be aggregated by layer and by role.

    Raises:
        RecipeError: when an argument is not a reference to a model, or ``ulp`` is another dtype.
        InputError: when an argument is not a model, or the models have no tensor in common.
    """
    if ulp is not None and ulp not in ULPS:
        raise RecipeError(f"ulp: {ulp!r} is not one of {', '.join(ULPS)}")
    with ExitStack() as stack:
        opened = [_open(name, stack) for name in (first, second, *([base] if base else []))]
        models = _with_one_set_of_names(opened)
        names, skipped = _common(models)
        if not names:
            raise InputError(f"{first} and {second} have no tensor in common that can be compared")
        comparison = Comparison(tuple(models), tuple(names), ulp, rank, threads)
        tensors = runner(comparison) if runner else comparison.compare(comparison.names)
    return Diff(tuple(tensors), base is not None, skipped, rank, ulp)


ULPS = ("bfloat16", "float16", "float32")
"""Dtypes for the units in the last place, whatever the models' dtypes."""

ComparedModel = tuple[Checkpoint, Architecture]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Open models, and the tensors to compare.

    Attributes:
        models: A, B, and their base if there is one.
        names: each tensor's names in all models.
        ulp, rank, threads: as for :func:`diff`.
    """

    models: tuple[ComparedModel, ...]
    names: tuple[tuple[str, ...], ...]
    ulp: str | None
    rank: bool
    threads: int | None

    def compare(self, names: Sequence[tuple[str, ...]]) -> list[TensorDiff]:
        """Compare some tensors, reading each byte once."""
        models = list(self.models)
        with ThreadPoolExecutor(self.threads or os.cpu_count() or 1) as crew:
            tensors = [_begin(models, own) for own in names]
            tiles = [
                crew.submit(_compare, models, own, start, self.ulp, *arrays)
                for own, (_, *arrays) in zip(names, tensors, strict=True)
                for start in range(0, models[0][0].specs[own[0]].numel, TILE)
            ]
            try:
                for tile in tiles:
                    tile.result()
            except BaseException:
                crew.shutdown(cancel_futures=True)
                raise
        ranks = [_rank(models, own) if self.rank else None for own in names]
        return [
            TensorDiff(name, role, layer, numel, counts.sum(axis=0), sums.sum(axis=0), each)
            for ((name, role, layer, numel), sums, counts), each in zip(tensors, ranks, strict=True)
        ]


def _open(name: str | ModelReference, stack: ExitStack) -> ComparedModel:
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


def _merged(name: str, plan: Plan) -> ComparedModel:
    """Merge a plan in memory."""
    sink = StateDictSink({job.name: job.spec for job in plan.jobs})
    engine.run([plan], [sink], report=False)
    config = plan.sources[plan.donor].checkpoint.config
    checkpoint = MemoryCheckpoint(sink.tensors, name)
    return checkpoint, infer(checkpoint.specs, config)


def _with_one_set_of_names(models: list[ComparedModel]) -> list[ComparedModel]:
    """Map the models to one set of tensor names, as a merge does; unchanged if a merge would refuse them."""
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


def _common(models: list[ComparedModel]) -> tuple[list[tuple[str, ...]], dict[str, str]]:
    """Return each comparable tensor's names in all models, and the reason for each skipped tensor."""
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


def _begin(
    models: list[ComparedModel], names: tuple[str, ...]
) -> tuple[tuple[Any, ...], Array, Array]:
    checkpoint, shape = models[0]
    place, numel = shape.places[names[0]], checkpoint.specs[names[0]].numel
    cells = -(-numel // CELL)
    sums = np.zeros((cells, storage.FIGURES))
    counts = np.zeros((cells, storage.BUCKETS), np.int64)
    return (names[0], place.role, place.layer, numel), sums, counts


def _compare(
    models: list[ComparedModel],
    names: tuple[str, ...],
    start: int,
    ulp: str | None,
    sums: Array,
    counts: Array,
) -> None:
    """Compare one tile of a tensor."""
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
    """Round a tile's stored numbers to nearest in another dtype."""
    numbers = np.empty(count, np.float64 if code == CODES["float64"] else np.float32)
    storage.widen(row, code, count, numbers)
    into = np.empty(count * WIDTHS[CODES[dtype]], np.uint8)
    narrow(kernels(), numbers, dtype, False, 0, 0, into)
    return into


def _rank(models: list[ComparedModel], names: tuple[str, ...]) -> float | None:
    """Return the effective rank of a matrix's difference; None for other tensors."""
    pairs = [(checkpoint, name) for name, (checkpoint, _) in zip(names, models, strict=True)][:2]
    shape = pairs[0][0].specs[pairs[0][1]].shape
    if len(shape) != 2 or 0 in shape:
        return None

    def rows(begin: int, end: int) -> Array:
        one, other = (_numbers(*pair, begin * shape[1], (end - begin) * shape[1]) for pair in pairs)
        return np.subtract(other, one, out=one).reshape(-1, shape[1])

    return effective_rank.effective_rank((shape[0], shape[1]), rows)


def _numbers(checkpoint: Checkpoint, name: str, start: int, count: int) -> Array:
    """Read elements of a tensor as float64."""
    dtype = checkpoint.specs[name].dtype
    buffer = np.empty(count * dtype.itemsize, np.uint8)
    stored = look(checkpoint, name, start * dtype.itemsize, buffer)
    numbers = np.empty(count)
    storage.widen(stored, CODES[dtype.name], count, numbers)
    return numbers
