"""Measurements before a merge: Gram matrices, thresholds, norms, counts.

A measurement is a generator. It yields the passes over the tensor that it needs and continues
when each is complete; it stores its results in the parts that need them. A pass receives tiles
in any order from any thread, and its result does not depend on the order or on the tiles' size.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from merganser.engine import steps
from merganser.engine.fusion import find_bound
from merganser.engine.grams import measure_grams
from merganser.engine.passes import Cut, Measurement, cells_of, numel, rows_of_cells
from merganser.engine.running_plan import Facts, RunningPlan, Scratch
from merganser.engine.thresholds import Sample, Selection, find_cuts
from merganser.kernels import CELL, measuring, selecting
from merganser.kernels import rules as rule
from merganser.kernels.arguments import Array, Inputs
from merganser.methods import Largest, MostVaried, Random, Ranked


def measurements_of(
    parts: Sequence[RunningPlan], shape: tuple[int, ...], sample: Sample, tile: int
) -> list[Measurement]:
    """All measurements for a group's parts, in tiles of about so many elements; parts that need the
    same one share it."""
    grams: dict[Any, list[RunningPlan]] = {}
    consensus: dict[Any, list[RunningPlan]] = {}
    measurements: list[Measurement] = []
    for part in parts:
        if part.copies or part.combination is not None:
            continue
        key = part.rows, part.dtypes, part.job.cast
        if part.method.gram is not None:
            vectors = part.method.vectors(**part.job.numbers)
            grams.setdefault((*key, part.based, vectors), []).append(part)
        elif part.method.form == "consensus":
            consensus.setdefault((*key, part.job.work), []).append(part)
        elif part.method.measure is not None:
            measurements.append(_count(part))
        elif part.method.fused == "arcee_fusion":
            measurements.append(find_bound(part, shape))
    measurements += [measure_grams(alike, shape, key[-1]) for key, alike in grams.items()]
    measurements += [_settle_consensus(alike, shape, sample, tile) for alike in consensus.values()]
    return measurements


# -- counts for methods in torch -------------------------------------------------------------------


def _count(part: RunningPlan) -> Measurement:
    counts = _Counts(part)
    yield counts
    part.counted = counts.total


class _Counts:
    """Sums what a method's ``measure`` counts in tiles."""

    cut: Cut = "cells"

    def __init__(self, part: RunningPlan) -> None:
        self.part = part
        self.total: Any = None
        self._lock = threading.Lock()

    def add(self, inputs: Inputs, start: int, count: int, scratch: Scratch) -> None:
        counts: Any = steps.counts_of(self.part, inputs, count)
        if counts is None:
            from merganser.engine import reference

            counts = reference.measure(self.part, inputs.rows, count)
        with self._lock:
            self.total = counts if self.total is None else self.total + counts


# -- which deltas are kept -------------------------------------------------------------------------


def _settle_consensus(
    parts: Sequence[RunningPlan], shape: tuple[int, ...], sample: Sample, tile: int
) -> Measurement:
    """Decide which deltas the parts keep, and with which factors: thresholds first, then masks by
    rank, then norms; parts share common results."""
    size = numel(shape)
    first = parts[0]
    models = len(first.rows) - 1
    wishes: dict[RunningPlan, list[list[Selection | None]]] = {}
    selections: dict[tuple[int, float], Selection] = {}

    def select(what: int, rank: int) -> Selection | None:
        if rank <= 0 or rank >= size:
            return None
        return selections.setdefault((what, rank), Selection(what, rank, size))

    for part in parts:
        keep = part.consensus.keep
        part.facts = facts = Facts.of(part, size)
        if isinstance(keep, MostVaried):
            key = rule.VARIANCE, keep.share
            if size:
                selections.setdefault(key, Selection(rule.VARIANCE, 0, size, keep.share))
            wishes[part] = [[None, None] for _ in range(models)]
            wishes[part].append([None, selections.get(key)])
            facts.rules.kinds[-1] = rule.BETWEEN
            continue
        wishes[part] = []
        for i, keep_rule in enumerate(keep):
            wish: list[Selection | None] = [None, None]
            if isinstance(keep_rule, Largest):
                begin, end = keep_rule.ranks(size)
                facts.rules.kinds[i] = rule.BETWEEN if begin < end else rule.NOTHING
                if begin < end:
                    wish = [select(i, begin), select(i, end)]
            elif isinstance(keep_rule, Random):
                facts.rules.kinds[i] = rule.DRAWN if keep_rule.density > 0 else rule.NOTHING
                facts.rules.chances[i] = min(2**64 - 1, int(keep_rule.density * 2.0**64))
                facts.rules.seeds[i] = part.seed_of_draws(i)
            elif isinstance(keep_rule, Ranked):
                facts.rules.kinds[i] = rule.MASKED if keep_rule.density > 0 else rule.NOTHING
                facts.rules.seeds[i] = part.seed_of_draws(i)
            wishes[part].append(wish)
    yield from find_cuts(list(selections.values()), first, size, sample)
    for part, wished in wishes.items():
        if isinstance(part.consensus.keep, MostVaried):
            rank = wished[-1][1].rank if wished[-1][1] else 0  # known now
            if not 0 < rank < size:
                kinds = np.full(models, rule.NOTHING if rank <= 0 else rule.ALL)
                part.facts.rules = part.facts.rules._replace(kinds=kinds)
        for i, pair in enumerate(wished[: len(part.facts.rules.kinds)]):
            for c, selection in enumerate(pair):
                if selection is not None:
                    part.facts.rules.cuts[i, c] = selection.cut
                    part.facts.rules.allowed[i, c] = selection.allowed
                    part.facts.rules.present[i, c] = selection.present
    for part in parts:
        rules, norms, measured = part.facts.rules, _norms_of(part, size), False
        if rule.MASKED in rules.kinds:
            part.facts.make_room(size)
            ranks = _Ranks(part, shape, norms, tile)
            yield ranks
            measured = ranks.cut == "rows of cells"
        if norms is not None and not measured:
            drawn = rules.kinds == rule.DRAWN
            if drawn.any():
                part.facts.make_room(size)
            yield norms
            rules.kinds[drawn] = rule.MASKED  # the pass stored its draws as masks
        _weigh(part, norms)


def _norms_of(part: RunningPlan, size: int) -> _Norms | None:
    """A pass for the norms that a part's weights or factors depend on, if they do."""
    sparse_deltas = part.consensus
    if sparse_deltas.weights is None:
        return _Norms(part, size, rule.L2)
    if sparse_deltas.rescale is not None and np.any(part.facts.rules.kinds != rule.ALL):
        return _Norms(part, size, rule.NORMS[sparse_deltas.rescale])
    return None


def _weigh(part: RunningPlan, norms: _Norms | None) -> None:
    """Set a part's weights (given, or shares of the squares of all kept deltas) and its factors
    (weights times given factors, or times ratios of norms that rescale the kept deltas)."""
    sparse_deltas, facts = part.consensus, part.facts
    models = len(part.rows) - 1
    factors = np.array(sparse_deltas.factors or (1.0,) * models)
    if sparse_deltas.weights is None:
        assert norms is not None
        energies = norms.joined()[:, 1]
        total = energies.sum()
        weights = energies / total if total > 0 else np.full(models, 1.0 / models)
    else:
        weights = np.array(sparse_deltas.weights, np.float64)
        if norms is not None:
            before, after = norms.joined().T
            kept = (after > 0) & (before > 0)
            factors = np.divide(before, after, out=np.ones(models), where=kept)
            if sparse_deltas.rescale == "l2":
                factors = np.sqrt(factors)
    dtype = part.wide
    facts.weights = weights.astype(dtype)
    facts.factors = (weights * factors).astype(dtype)
    total = float(weights.sum())
    facts.total_weight = dtype.type(total if abs(total) >= 1e-8 else 1.0)


class _Ranks:
    """Draws masks by the deltas' ranks in their rows, and sums the norms of what they keep where
    tiles of complete rows are tiles of complete cells too."""

    cut: Cut = "rows"

    def __init__(
        self, part: RunningPlan, shape: tuple[int, ...], norms: _Norms | None, tile: int
    ) -> None:
        self.part = part
        self.length = max(1, shape[-1]) if shape else 1
        self.norms = norms
        if norms is not None and rows_of_cells(self.length) <= 2 * tile:
            self.cut = "rows of cells"

    def add(self, inputs: Inputs, start: int, count: int, scratch: Scratch) -> None:
        self._draw(self.part.stored(inputs), start, count)
        if self.norms is not None and self.cut == "rows of cells":
            self.norms.add(inputs, start, count, scratch)

    def _draw(self, inputs: Inputs, start: int, count: int) -> None:
        facts, keep = self.part.facts, self.part.consensus.keep
        assert not isinstance(keep, MostVaried)
        for i, ranked in enumerate(keep):
            if isinstance(ranked, Ranked) and facts.rules.kinds[i] == rule.MASKED:
                selecting.draw_by_rank(
                    inputs,
                    self.part.wide,
                    i,
                    count // self.length,
                    self.length,
                    ranked.density,
                    ranked.epsilon,
                    int(facts.rules.seeds[i]),
                    start,
                    facts.rules.masks[i],
                )


class _Norms:
    """Sums norms of all deltas and of the kept ones."""

    cut: Cut = "cells"

    def __init__(self, part: RunningPlan, size: int, norm: int) -> None:
        self.part = part
        self.norm = norm
        self.sums = np.zeros((-(-size // CELL), len(part.rows) - 1, 2))

    def add(self, inputs: Inputs, start: int, count: int, scratch: Scratch) -> None:
        inputs, sums = self.part.stored(inputs), self.sums[cells_of(start, count)]
        rules, work = self.part.facts.rules, self.part.wide
        measuring.norms(inputs, count, work, rules, self.norm, start, sums)

    def joined(self) -> Array:
        """Sums (or maxima) over the tensor, of all deltas and of the kept ones: float64 [models, 2]."""
        joined: Array = self.sums.max(axis=0) if self.norm == rule.LINF else self.sums.sum(axis=0)
        return joined
