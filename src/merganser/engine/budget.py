"""Threads, tiles and memory for running plans."""

from __future__ import annotations

from collections.abc import Sequence

from merganser import number_format, system
from merganser.errors import ResourceError
from merganser.kernels import CELL
from merganser.planning import Plan, TensorJob

TILE = 32 * CELL
"""Elements that are read and merged at a time: enough to make Python's overhead small, a fifth of the
processor time of ``ties`` with 16 cells."""

SMALL_TILE = 2 * CELL
"""Elements that torch computes with at a time: each step traverses all of them, so they should
fit the cache."""

ROOM = 64 * 2**20
"""Maximum bytes of a thread's buffers without a memory limit; many inputs or outputs get smaller tiles."""

FEW = 8
"""Maximum number of inputs and outputs whose float32 tiles fit :data:`ROOM`."""

OVERHEAD = 210 * 2**20
"""Resident bytes of Python and the libraries, as measured."""


def default_threads(plans: Sequence[Plan]) -> int:
    """The default number of threads: three for two cores, since some wait for the disk, or one per core
    for methods that torch computes; at most 32. One for many tiny tensors, where the GIL is the
    bottleneck, and for methods that take whole tensors, where torch starts threads."""
    jobs = sum(len(plan.jobs) for plan in plans)
    if sum(plan.parameters for plan in plans) < jobs * CELL // 4:
        return 1
    if any(plan.method.whole for plan in plans):
        return 1
    cores = system.cores()
    slow = any(plan.method.form == "tensor" and plan.method.fused is None for plan in plans)
    return min(32, cores if slow else cores + (cores + 1) // 2)


def memory_needed(plan: Plan) -> int:
    """Estimated resident memory in bytes while running a plan."""
    threads, tile = within(None, default_threads([plan]), TILE, [plan])
    return OVERHEAD + threads * buffer_bytes([plan], tile)


def _in_torch(plan: Plan, job: TensorJob) -> bool:
    """Whether torch computes a job step by step, without a fused loop."""
    slow = plan.method.form == "tensor" and plan.method.fused is None
    return job.method != "copy" and (slow or job.cast is not None)


def tile_of(plan: Plan, job: TensorJob, tile: int) -> int:
    """Elements per tile of a job: ``tile``, or fewer for a job in torch."""
    return min(tile, SMALL_TILE) if _in_torch(plan, job) else tile


def buffer_bytes(plans: Sequence[Plan], tile: int) -> int:
    """Bytes of one thread's buffers when plans run together, for the job that needs most."""
    most = 0
    for plan in plans:
        whole = plan.method.whole
        for job in plan.jobs:
            elements = min(tile_of(plan, job, tile), job.spec.numel)
            if whole and job.method != "copy":
                elements = job.spec.numel
            inputs = [(plan.sources[r.source], r.name) for r in job.reads]
            reads = sum(source.checkpoint.specs[name].dtype.itemsize for source, name in inputs)
            reads += max((source.scratch.get(name, 0) for source, name in inputs), default=0)
            numbers = 4 * job.work.itemsize * len(job.reads) if _in_torch(plan, job) else 0
            most = max(most, elements * (reads + numbers + len(plans) * job.spec.dtype.itemsize))
    return most


def within(memory: int | None, threads: int, tile: int, plans: Sequence[Plan]) -> tuple[int, int]:
    """The number of threads and the tile size whose buffers fit the memory limit.

    Threads are reduced first, then the tile size; without a limit only the tile size.

    Raises:
        ResourceError: when one thread with the smallest tile needs more.
    """
    if memory is None:
        tensors = max((len(job.reads) for plan in plans for job in plan.jobs), default=0)
        many = len(plans) + tensors > FEW and not any(plan.method.whole for plan in plans)
        while many and tile > CELL and buffer_bytes(plans, tile) > ROOM:
            tile = max(CELL, tile // 2 // CELL * CELL)
        return threads, tile
    while True:
        buffers = buffer_bytes(plans, tile)
        if OVERHEAD + buffers * threads <= memory:
            return threads, tile
        if threads > 1:
            threads -= 1
        elif tile > CELL:
            tile = max(CELL, tile // 2 // CELL * CELL)
        else:
            raise ResourceError(
                f"this merge needs {number_format.size(OVERHEAD + buffers)} of memory, more than the "
                f"{number_format.size(memory)} allowed; allow at least that much"
            )
