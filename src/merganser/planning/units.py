"""Split a plan into units: parts of its output files, which processes on several machines can write."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from merganser.planning.plan_data import Plan, Shard
from merganser.planning.shards import ALIGNMENT

LEAST = 256 * 2**20
"""Smallest size of a unit in bytes, except for smaller files: each costs a claim and a sync."""

MOST = 128
"""Number of units that a large merge is split into, if files are not smaller: sixteen workers then
differ by one unit in eight."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A part of an output file: complete tensors, and the header if it is the first part.

    Attributes:
        name: the unit's name, which is the name of a file too.
        file: the output file.
        begin, end: its bytes in the file; ``begin`` is a multiple of a page.
    """

    name: str
    file: str
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Bytes of the unit."""
        return self.end - self.begin


def split(plan: Plan, limit: int | None = None) -> tuple[Unit, ...]:
    """Split the output files into units, in the order of the files.

    Files are cut only where a tensor begins at a multiple of a page, so that no two processes write
    to the same page.

    Args:
        plan: the plan.
        limit: the size in bytes above which a file is split; None for one that suits the plan's size.
    """
    limit = limit or max(LEAST, plan.output_bytes // MOST)
    return tuple(
        Unit(f"{index:05d}.{number}", shard.file, begin, end)
        for index, shard in enumerate(plan.shards, 1)
        for number, (begin, end) in enumerate(_ranges(shard, limit), 1)
    )


def _ranges(shard: Shard, limit: int) -> Iterator[tuple[int, int]]:
    """Cut a file into ranges of nearly equal size."""
    parts = -(-shard.size // limit)
    places = [o for o in shard.offsets.values() if o % ALIGNMENT == 0 and 0 < o < shard.size]
    wanted = [shard.size * part // parts for part in range(1, parts)]
    cuts = {min(places, key=lambda place: abs(place - cut)) for cut in wanted if places}
    # The header is no unit of its own.
    ends = [*sorted(cuts - {len(shard.header)}), shard.size]
    yield from zip([0, *ends], ends, strict=False)


def names_in(shard: Shard, unit: Unit) -> tuple[str, ...]:
    """The names of a unit's tensors; an empty tensor at the end of the file is in the last unit."""
    last = unit.end == shard.size
    return tuple(
        name
        for name, offset in shard.offsets.items()
        if unit.begin <= offset and (offset < unit.end or last)
    )


def part_of(plan: Plan, unit: Unit) -> Plan:
    """The part of a plan that computes a unit: the jobs of its tensors, and its file."""
    [shard] = [shard for shard in plan.shards if shard.file == unit.file]
    names = set(names_in(shard, unit))
    jobs = tuple(job for job in plan.jobs if job.name in names)
    return replace(plan, jobs=jobs, shards=(shard,))
