"""The engine's work: the plans' jobs, grouped by their inputs, cut into tiles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from merganser.checkpoints import Checkpoint
from merganser.checkpoints.computed.derived import look
from merganser.checkpoints.readers import Readers
from merganser.engine.budget import tile_of
from merganser.engine.digests import digest_of
from merganser.engine.effective_weights import MOST_MEASURED, InnerProducts, TensorOutcome
from merganser.engine.measurements import measurements_of
from merganser.engine.passes import BAND, Measurement, Pass, rows_of_cells
from merganser.engine.running_plan import RunningPlan, seed_of
from merganser.kernels import CELL, CODES
from merganser.kernels.arguments import Array, Inputs
from merganser.kernels.steps import Linear, Sums
from merganser.planning import Plan, TensorJob
from merganser.tensors import DType


@dataclass(frozen=True, slots=True)
class Row:
    """An input tensor."""

    checkpoint: Checkpoint
    name: str
    dtype: DType

    @property
    def size(self) -> int:
        """Bytes per element."""
        return self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Batch:
    """Parts that one call of the kernel for linear combinations computes.

    Attributes:
        parts: parts with common inputs and outputs of the same kind; their reports share the
            inputs' sums.
        combinations: one per part.
    """

    parts: tuple[RunningPlan, ...]
    combinations: tuple[Linear, ...]


@dataclass(slots=True)
class Group:
    """Jobs of any plans with the same first input; they share reads.

    Attributes:
        numel, shape: of the tensor.
        rows: the input tensors.
        parts: the jobs.
        tile: elements per tile.
        batches: parts that one kernel call computes, once measured.
        left: unfinished tiles of the current round.
        digests: uint64 for each row, by cells of its bytes; None if not requested.
    """

    numel: int
    shape: tuple[int, ...]
    rows: tuple[Row, ...]
    parts: tuple[RunningPlan, ...]
    tile: int
    batches: tuple[Batch, ...] = ()
    left: int = 0
    digests: tuple[Array | None, ...] = ()
    _measuring: list[Measurement] | None = None
    _waiting: list[tuple[Measurement, Pass]] = field(default_factory=list)

    def next_round(self) -> list[Tile]:
        """The tiles of the next pass: a measurement, or the merge.

        One thread at a time calls this, when all tiles of the previous round are done.
        """
        if self._measuring is None:
            self._measuring = measurements_of(self.parts, self.shape, self._sample, self.tile)
        for measurement in self._measuring:
            following = next(measurement, None)
            if following is not None:
                self._waiting.append((measurement, following))
        self._measuring = []
        if self._waiting:
            cut = min(entry[1].cut for entry in self._waiting)
            now = [entry for entry in self._waiting if entry[1].cut == cut]
            self._waiting = [entry for entry in self._waiting if entry[1].cut != cut]
            self._measuring = [measurement for measurement, _ in now]
            passes = tuple(entry[1] for entry in now)
        else:
            self.batches = tuple(_batches(self))
            cut, passes = "cells", ()
        step = self._step(cut, merging=not passes)
        tiles = [
            Tile(self, start, min(start + step, self.numel), passes)
            for start in range(0, max(1, self.numel), step)
        ]
        self.left = len(tiles)
        return tiles

    def _step(self, cut: str, *, merging: bool) -> int:
        """Elements per tile in a pass with this granularity."""
        if merging and any(part.whole for part in self.parts):
            return max(1, self.numel)
        if cut.startswith("rows"):
            length = max(1, self.shape[-1]) if self.shape else 1
            least = 8 * length if cut == "rows" else rows_of_cells(length)
            return least * max(1, self.tile // least)
        return BAND if cut == "bands" else self.tile

    @property
    def _codes(self) -> list[int]:
        return [CODES.get(row.dtype.name, -1) for row in self.rows]

    @property
    def itemsize(self) -> int:
        """Bytes per element of the widest row."""
        return max(row.size for row in self.rows)

    def read(self, start: int, count: int, buffer: Array) -> Inputs:
        """Elements ``start`` to ``start + count`` of all rows: views of memory if possible,
        otherwise copies in a buffer, uint8 [rows, bytes]."""
        return Inputs.of(
            (
                look(row.checkpoint, row.name, start * row.size, into[: count * row.size])
                for row, into in zip(self.rows, buffer, strict=True)
            ),
            self._codes,
        )

    def _input_digest(self, index: int) -> str | None:
        row, cells = self.rows[index], self.digests[index]
        return None if cells is None else digest_of(row.checkpoint.specs[row.name], cells)

    def _sample(self, places: Sequence[int], count: int) -> Inputs:
        rows = []
        for row in self.rows:
            size = count * row.size
            data = np.empty(len(places) * size, np.uint8)
            view, read, name = data.data, row.checkpoint.read, row.name
            for n, place in enumerate(places):
                read(name, place * row.size, view[n * size : (n + 1) * size])
            rows.append(data)
        return Inputs.of(rows, self._codes)

    def outcomes(self) -> Iterator[tuple[int, TensorOutcome]]:
        """The index of the plan and the outcome of each part, once all tiles are done."""
        for part in self.parts:
            digest = None
            if part.digests is not None:
                digest = digest_of(part.job.spec, part.digests)
            sources = tuple(read.source for read in part.job.reads)
            measurement = _measurement(part, part.sums) if part.sums is not None else None
            inputs = tuple(self._input_digest(row) for row in part.rows) if self.digests else ()
            outcome = TensorOutcome(
                part.job.name,
                part.job.spec,
                digest,
                sources,
                measurement,
                _counts(part),
                inputs,
            )
            yield part.plan, outcome


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile: elements ``start`` to ``stop`` of a group's tensors, for measurement passes, or
    for the merge if there are none."""

    group: Group
    start: int
    stop: int
    passes: tuple[Pass, ...]


def group_jobs(
    plans: Sequence[Plan],
    readers: Readers,
    digests: Sequence[bool],
    report: bool,
    tile: int,
    finished: Sequence[Mapping[str, object]],
    digest_inputs: bool,
) -> Iterator[Group]:
    """Group all plans' jobs by their first input, in the order of the plans, without finished
    tensors."""
    together: dict[tuple[int, str, tuple[int, ...]], list[tuple[int, TensorJob]]] = {}
    sources = _same_sources(plans)
    opened = _open_sources(plans, readers, sources)
    known = [[bool(source.hashes) for source in plan.sources] for plan in plans]
    for index, plan in enumerate(plans):
        for job in plan.jobs:
            if job.name in finished[index]:
                continue
            if len(plans) == 1:
                yield _group(
                    plans,
                    opened,
                    [(index, job)],
                    digests,
                    report,
                    sources,
                    tile,
                    digest_inputs,
                    known,
                )
                continue
            first = job.reads[0]
            key = (sources[index][first.source], first.name, job.spec.shape)
            together.setdefault(key, []).append((index, job))
    for jobs in together.values():
        yield _group(plans, opened, jobs, digests, report, sources, tile, digest_inputs, known)


def _same_sources(plans: Sequence[Plan]) -> list[list[int]]:
    """Numbers for every plan's sources, equal for the same model read the same way."""
    numbers: dict[tuple[str, str], int] = {}
    return [
        [
            numbers.setdefault((s.reference.text, s.checkpoint.header_digest), len(numbers))
            for s in plan.sources
        ]
        for plan in plans
    ]


def _open_sources(
    plans: Sequence[Plan], readers: Readers, sources: Sequence[Sequence[int]]
) -> dict[int, Checkpoint]:
    """The checkpoints that tensors are read from, by number."""
    opened: dict[int, Checkpoint] = {}
    for plan, numbers in zip(plans, sources, strict=True):
        for index in sorted({read.source for job in plan.jobs for read in job.reads}):
            if numbers[index] not in opened:
                opened[numbers[index]] = readers.open(plan.sources[index].checkpoint)
    return opened


def _group(
    plans: Sequence[Plan],
    opened: Mapping[int, Checkpoint],
    jobs: Sequence[tuple[int, TensorJob]],
    digests: Sequence[bool],
    report: bool,
    sources: Sequence[Sequence[int]],
    tile: int,
    digest_inputs: bool,
    known: Sequence[Sequence[bool]],
) -> Group:
    rows: dict[tuple[int, str], tuple[int, Row]] = {}
    unknown: list[bool] = []
    parts = []
    spec = jobs[0][1].spec
    cells = -(-spec.numel // CELL)
    for index, job in jobs:
        plan = plans[index]
        mine = []
        for read in job.reads:
            key = sources[index][read.source], read.name
            if key not in rows:
                checkpoint = opened[key[0]]
                rows[key] = len(rows), Row(checkpoint, read.name, checkpoint.specs[read.name].dtype)
                unknown.append(not known[index][read.source])
            mine.append(rows[key])
        part = RunningPlan(
            index,
            plan.seed,
            job,
            plan.method,
            tuple(row for row, _ in mine),
            tuple(row.dtype for _, row in mine),
            seed_of(plan.seed, f"{job.name}/rounding"),
            int(plan.rounding == "stochastic"),
            job.combination,
        )
        k = len(mine)
        if digests[index]:
            part.digests = np.zeros(-(-job.spec.nbytes // CELL), np.uint64)
        if report and not part.copies and 1 < k <= MOST_MEASURED:
            part.sums = Sums.zeros(cells, k)
        parts.append(part)
    all_rows = tuple(row for _, row in rows.values())
    tile = min(tile_of(plans[index], job, tile) for index, job in jobs)
    group = Group(spec.numel, spec.shape, all_rows, tuple(parts), tile)
    if digest_inputs:
        sizes = [spec.numel * row.size for row in all_rows]
        group.digests = tuple(
            np.zeros(-(-size // CELL), np.uint64) if wanted else None
            for size, wanted in zip(sizes, unknown, strict=True)
        )
    return group


def _counts(part: RunningPlan) -> tuple[int, ...]:
    """Counts of infinite and NaN values of all inputs and the output; empty if there are none."""
    if not part.nonfinite:
        return ()
    counts = [0] * (len(part.rows) + 1)
    for index, count in part.nonfinite:
        counts[index] += count
    return tuple(counts[-1:] * len(counts) if part.copies else counts)


def _batches(group: Group) -> Iterator[Batch]:
    """Batches: parts with the same rows and outputs of the same kind share a call and their
    inputs' sums."""
    alike: dict[tuple[Any, ...], list[RunningPlan]] = {}
    for part in group.parts:
        if part.fused and part.combination is not None:
            kind = part.job.work, part.job.spec.dtype, part.rounding
            key = part.rows, *kind, part.sums is not None
            alike.setdefault(key, []).append(part)
    for (_, work, *_), parts in alike.items():
        dtype = np.dtype(work.name)
        combinations = []
        for part in parts:
            assert part.combination is not None
            coefficients, finish = (
                np.array(part.combination.coefficients, dtype),
                part.combination.finish,
            )
            divisor = finish.divisors[dtype == np.float64]
            combinations.append(Linear(coefficients, divisor, finish.plus))
            first = parts[0].sums
            if part.sums is not None and first is not None:  # gram determines the ideal
                part.sums = part.sums._replace(gram=first.gram, differ=first.differ, ideal=None)
        yield Batch(tuple(parts), tuple(combinations))


def _symmetric(lower: Array) -> Array:
    """The full symmetric matrix from its lower triangle."""
    return lower if len(lower) == 1 else lower + np.tril(lower, -1).T


def _measurement(part: RunningPlan, sums: Sums) -> InnerProducts:
    assert sums.gram is not None
    assert sums.differ is not None
    gram = _symmetric(sums.gram.sum(axis=0))
    share, ideal = 1.0, None if sums.ideal is None else sums.ideal.sum(axis=0)
    if part.fused and part.combination is not None:
        coefficients = np.array(part.combination.shares)
        share, ideal = float(coefficients.sum()), gram @ coefficients[1:]
    assert ideal is not None
    cross, differ = sums.cross.sum(axis=0), sums.differ.sum(axis=0)
    return InnerProducts(gram, ideal, cross, differ, share, float(sums.noise.sum()))
