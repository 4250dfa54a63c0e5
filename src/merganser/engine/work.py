"""What there is to do: the plans' jobs, grouped by what they read, cut into tiles."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from merganser.checkpoints import Checkpoint
from merganser.engine import kernels
from merganser.engine.report import Measurement, TensorOutcome
from merganser.errors import MerganserError
from merganser.methods import Combination, Method
from merganser.planning import CELL, Plan, TensorJob
from merganser.tensors import DType

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """A tensor that is read."""

    checkpoint: Checkpoint
    name: str
    dtype: DType


@dataclass(frozen=True, slots=True)
class Sums:
    """What is added up for the report, by cells: float64 arrays whose first axis is the cells.
    See :class:`merganser.engine.report.Measurement`."""

    gram: Array
    differ: Array
    ideal: Array
    cross: Array
    noise: Array

    @classmethod
    def zeros(cls, cells: int, k: int) -> Sums:
        """For a tensor of so many cells and inputs."""
        vector = (cells, k - 1)
        return cls(
            np.zeros((*vector, k - 1)),
            np.zeros(vector),
            np.zeros(vector),
            np.zeros(vector),
            np.zeros(cells),
        )


@dataclass(slots=True)
class Part:
    """One plan's job in a group.

    Attributes:
        plan: index of the plan.
        job: the job.
        method: its method.
        rows: which of the group's rows it takes.
        dtypes: what they are stored as.
        seed: for stochastic rounding.
        rounding: the kernels' code for it.
        combination: the coefficients, once they are known.
        measured: float64 [cells, k, k], the Gram matrix by cells, for methods that want it.
        digests: uint64, by cells of the output's bytes; None if not wanted.
        sums: for the report; None if not wanted.
    """

    plan: int
    job: TensorJob
    method: Method
    rows: tuple[int, ...]
    dtypes: tuple[DType, ...]
    seed: int
    rounding: int
    combination: Combination | None
    measured: Array | None = None
    digests: Array | None = None
    sums: Sums | None = None

    @property
    def codes(self) -> Array:
        """The kernels' codes of what the inputs are stored as."""
        return np.array([kernels.CODES[dtype.name] for dtype in self.dtypes])

    @property
    def copies(self) -> bool:
        """Whether the tensor is taken as it is, bit for bit."""
        return self.job.method == "copy"

    @property
    def fused(self) -> bool:
        """Whether the fused kernel serves it: a linear combination of inputs as they are stored."""
        return not self.copies and self.method.combination and self.job.cast is None

    @property
    def whole(self) -> bool:
        """Whether its method needs the whole tensor at once."""
        return not self.copies and not self.method.combination and not self.method.elementwise


@dataclass(frozen=True, slots=True)
class Batch:
    """Parts that one call of the fused kernel serves, and its arguments."""

    parts: tuple[Part, ...]
    codes: Array
    coefficients: Array
    divisors: Array
    seeds: Array
    from_zero: bool
    gram: Array
    differ: Array
    cross: Array
    noise: Array
    report: bool


@dataclass(slots=True)
class Group:
    """Jobs of any plans that start from the same tensor: their inputs are read together."""

    numel: int
    shape: tuple[int, ...]
    rows: tuple[Row, ...]
    parts: tuple[Part, ...]
    batches: tuple[Batch, ...] = ()
    tiles_left: int = 0
    unmeasured: int = 0
    ready: threading.Event = field(default_factory=threading.Event)

    @property
    def cells(self) -> int:
        """Number of cells of the tensor."""
        return -(-self.numel // CELL)

    @property
    def measures(self) -> bool:
        """Whether a pass of measuring comes first."""
        return any(part.measured is not None for part in self.parts)

    def settle(self) -> None:
        """All that had to be measured is: find coefficients, and make the kernel's batches."""
        for part in self.parts:
            if part.measured is not None:
                gram = _symmetric(part.measured.sum(axis=0))
                if not np.all(np.isfinite(gram)):
                    raise MerganserError(
                        f"tensor {part.job.name!r} holds numbers that are not finite (or too "
                        f"large to be squared), and {part.method.name} needs their lengths"
                    )
                part.combination = part.method.function(gram.tolist(), **part.job.numbers)
        self.batches = tuple(_batches(self))
        self.ready.set()

    def outcomes(self) -> Iterator[tuple[int, TensorOutcome]]:
        """What each part yielded, once all tiles are done."""
        for part in self.parts:
            digest = None
            if part.digests is not None:
                told = str(part.job.spec).encode() + part.digests.tobytes()
                digest = hashlib.blake2b(told, digest_size=16).hexdigest()
            sources = tuple(read.source for read in part.job.reads)
            measurement = _measurement(part, part.sums) if part.sums is not None else None
            outcome = TensorOutcome(part.job.name, part.job.spec, digest, sources, measurement)
            yield part.plan, outcome


@dataclass(frozen=True, slots=True)
class Work:
    """A tile to be measured or merged: elements ``start`` to ``stop`` of a group's tensors."""

    group: Group
    start: int
    stop: int
    measure: bool


def all_work(groups: Iterator[Group], tile: int) -> Iterator[Work]:
    """Tiles of all groups in order. A group that needs measuring is measured while the one before
    it is still being merged, so that nobody has to wait for the last of the measuring."""
    waiting: Iterator[Work] = iter(())
    for group in groups:
        if group.measures:
            tiles = list(_tiles(group, tile, measure=True))
            group.unmeasured = len(tiles)
            yield from tiles
        else:
            group.settle()
        yield from waiting
        merging = list(_tiles(group, tile, measure=False))
        group.tiles_left = len(merging)
        waiting = iter(merging)
    yield from waiting


def group_jobs(plans: Sequence[Plan], digests: Sequence[bool], report: bool) -> Iterator[Group]:
    """Group the jobs of all plans by the first tensor that they read, in the order of the plans."""
    together: dict[tuple[int, str, tuple[int, ...]], list[tuple[int, TensorJob]]] = {}
    sources = _same_sources(plans)
    for index, plan in enumerate(plans):
        for job in plan.jobs:
            if len(plans) == 1:
                yield _group(plans, [(index, job)], digests, report, sources)
                continue
            first = job.reads[0]
            key = (sources[index][first.source], first.name, job.spec.shape)
            together.setdefault(key, []).append((index, job))
    for jobs in together.values():
        yield _group(plans, jobs, digests, report, sources)


def _same_sources(plans: Sequence[Plan]) -> list[list[int]]:
    """For every plan's sources numbers that are equal for the same model."""
    numbers: dict[str, int] = {}
    return [
        [numbers.setdefault(s.reference.text, len(numbers)) for s in plan.sources] for plan in plans
    ]


def _group(
    plans: Sequence[Plan],
    jobs: Sequence[tuple[int, TensorJob]],
    digests: Sequence[bool],
    report: bool,
    sources: Sequence[Sequence[int]],
) -> Group:
    rows: dict[tuple[int, str], tuple[int, Row]] = {}
    parts = []
    spec = jobs[0][1].spec
    cells = -(-spec.numel // CELL)
    for index, job in jobs:
        plan = plans[index]
        mine = []
        for read in job.reads:
            key = sources[index][read.source], read.name
            if key not in rows:
                checkpoint = plan.sources[read.source].checkpoint
                rows[key] = len(rows), Row(checkpoint, read.name, checkpoint.specs[read.name].dtype)
            mine.append(rows[key])
        part = Part(
            index,
            job,
            plan.method,
            tuple(row for row, _ in mine),
            tuple(row.dtype for _, row in mine),
            _seed(plan.seed, job.name),
            int(plan.rounding == "stochastic"),
            job.combination,
        )
        k = len(mine)
        if plan.method.wants_gram and not part.copies:
            part.measured = np.zeros((cells, k, k))
        if digests[index]:
            part.digests = np.zeros(-(-job.spec.nbytes // CELL), np.uint64)
        if report and not part.copies and k > 1:
            part.sums = Sums.zeros(cells, k)
        parts.append(part)
    return Group(spec.numel, spec.shape, tuple(row for _, row in rows.values()), tuple(parts))


def _seed(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}/rounding".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _tiles(group: Group, tile: int, *, measure: bool) -> Iterator[Work]:
    step = max(1, group.numel) if any(part.whole for part in group.parts) else tile
    for start in range(0, max(1, group.numel), step):
        yield Work(group, start, min(start + step, group.numel), measure)


def _batches(group: Group) -> Iterator[Batch]:
    """Parts over the same rows with outputs of the same kind share a call, and their inputs' sums."""
    alike: dict[tuple[Any, ...], list[Part]] = {}
    for part in group.parts:
        if part.fused and part.combination is not None:
            kind = part.job.work, part.job.spec.dtype, part.rounding, part.combination.from_zero
            key = part.rows, *kind, part.sums is not None
            alike.setdefault(key, []).append(part)
    for (_, work, _, _, from_zero, report), parts in alike.items():
        first, k = parts[0], len(parts[0].rows)
        dtype = np.dtype(work.name)
        known = [part.combination for part in parts if part.combination is not None]
        cells = group.cells if report else 0
        batch = Batch(
            tuple(parts),
            first.codes,
            np.array([c.coefficients for c in known], dtype),
            np.array([total(c, dtype) if c.divide else 1 for c in known], dtype),
            np.array([part.seed for part in parts], np.uint64),
            from_zero,
            np.zeros((cells, k - 1, k - 1)),
            np.zeros((cells, k - 1)),
            np.zeros((len(parts), cells, k - 1)),
            np.zeros((len(parts), cells)),
            report,
        )
        if report:
            for p, part in enumerate(parts):
                unused = np.zeros((0, k - 1))
                part.sums = Sums(batch.gram, batch.differ, unused, batch.cross[p], batch.noise[p])
        yield batch


def total(combination: Combination, dtype: np.dtype[Any]) -> Any:
    """The coefficients' sum in a dtype, to the last bit as torch adds up a few numbers on a CPU: in
    vectors of 32 bytes, in four running sums each."""
    numbers = np.array(combination.coefficients, dtype)
    lanes = 32 // dtype.itemsize
    rows = len(numbers) // lanes
    if not rows:
        return _row_sum(numbers)
    added = dtype.type(0)
    for number in (
        *numbers[rows * lanes :],
        *_row_sum(numbers[: rows * lanes].reshape(rows, lanes)),
    ):
        added += number
    return added


def _row_sum(numbers: Array) -> Any:
    """Over the first axis in four running sums; the first takes what is left over."""
    whole = len(numbers) // 4 * 4
    sums = np.zeros((4, *numbers.shape[1:]), numbers.dtype)
    for i in range(0, whole, 4):
        sums += numbers[i : i + 4]
    for number in numbers[whole:]:
        sums[0] += number
    return ((sums[0] + sums[1]) + sums[2]) + sums[3]


def _symmetric(lower: Array) -> Array:
    """The whole of a symmetric matrix whose upper triangle is zero."""
    return lower if len(lower) == 1 else lower + np.tril(lower, -1).T


def _measurement(part: Part, sums: Sums) -> Measurement:
    gram = _symmetric(sums.gram.sum(axis=0))
    share, ideal = 1.0, sums.ideal.sum(axis=0)
    if part.combination is not None:
        coefficients = np.array(part.combination.coefficients)
        if part.combination.divide:
            coefficients = coefficients / coefficients.sum()
        share, ideal = float(coefficients.sum()), gram @ coefficients[1:]
    cross, differ = sums.cross.sum(axis=0), sums.differ.sum(axis=0)
    return Measurement(gram, ideal, cross, differ, share, float(sums.noise.sum()))
