"""Large merges with several workers: a sparse pair for real, and the arithmetic of others.

    python bench/scale.py run [--family sparse-70b] [--workers 4] [--threads 1] [--data DIR] [--out DIR]
    python bench/scale.py arithmetic [--data DIR] [--seconds-per-gb 0.35]

The pairs have the headers of real models, and data that is one hole. ``run`` merges one with
``merganser merge --workers``; what it writes is zeros, which become holes, so 141 GB take no disk. The
only thing that is left out is the check that the disk has room for the output. It prints how long
planning took, the memory of the driver, and what each worker wrote.

``arithmetic`` prints bytes and minutes of merges on machines of several kinds: from a formula, and from
a simulation of workers that take one unit of the real plan after the other and share a file system.
"""

from __future__ import annotations

import argparse
import heapq
import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import checkpoints
from merganser.planning import Plan, make_plan
from merganser.planning.units import split

RECIPE = {"merge_method": "linear", "dtype": "bfloat16"}


def recipe_of(folders: dict[str, Path]) -> dict[str, Any]:
    """A linear merge of a pair."""
    models = [
        {"model": str(folders[name]), "parameters": {"weight": weight}}
        for name, weight in (("a", 0.3), ("b", 0.7))
    ]
    return {**RECIPE, "models": models}


def peak_memory() -> float:
    """The greatest resident size of this process, in MB."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e6


# -- a merge for real ------------------------------------------------------------------------------


def run(family: str, workers: int, threads: int, data: Path, out: Path) -> None:
    """Merge a sparse pair with workers, and print what it took."""
    from merganser.merging import merge as merging
    from merganser.workers.merge_driver import merge_with_workers

    recipe = out.parent / f"{family}.yml"
    out.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(yaml.safe_dump(recipe_of(checkpoints.ensure(family, data))))
    merging.output_folder.check_space = lambda _: None  # the output is holes
    began = time.perf_counter()
    shared = merge_with_workers(recipe, out, f"local:{workers}", threads=threads)
    wall = time.perf_counter() - began
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    [result] = shared.results
    shares = sorted(shared.shares.values())
    stored = sum(512 * file.stat().st_blocks for file in out.iterdir())
    print(f"planning                {result.timings['plan_s']:.2f} s")
    print(
        f"all                     {wall:.0f} s, of which the end {result.timings['finish_s']:.1f} s"
    )
    print(f"memory of the driver    {peak_memory():.0f} MB")
    print(f"largest of the workers  {children.ru_maxrss * 1024 / 1e6:.0f} MB")
    cpu = children.ru_utime + children.ru_stime
    print(
        f"processors of workers   {cpu:.0f} s, {cpu / (result.plan.output_bytes / 1e9):.3f} s a GB"
    )
    print(
        f"output                  {result.plan.output_bytes / 1e9:.1f} GB, {stored / 1e6:.1f} MB stored"
    )
    print(f"units                   {len(split(result.plan))} of {len(result.plan.shards)} files")
    print("shares                  " + ", ".join(f"{size / 1e9:.2f} GB" for size in shares))
    print(f"largest to smallest     {shares[-1] / shares[0]:.3f}")
    shutil.rmtree(out)


# -- arithmetic ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """Where a merge runs. All speeds are in GB/s.

    Attributes:
        name: in words.
        nodes: machines, with one worker each.
        link: of a machine's network or bus, in each direction.
        storage: of the file system, for reads and writes of all machines together.
        cores: of a machine.
    """

    name: str
    nodes: int
    link: float
    storage: float
    cores: int


SITES = (
    Site("a workstation, one NVMe disk of 3 GB/s", 1, 16.0, 3.0, 16),
    Site("4 nodes, 10 Gbit/s each, a file server of 2 GB/s", 4, 1.25, 2.0, 32),
    Site("4 nodes, 25 Gbit/s each, parallel storage of 20 GB/s", 4, 3.1, 20.0, 32),
    Site("16 nodes, 100 Gbit/s each, parallel storage of 60 GB/s", 16, 12.5, 60.0, 64),
)
START = 0.1
"""Seconds between two units of a worker: a claim, the last tiles, a sync."""


def by_formula(read: float, written: float, site: Site, per_gb: float) -> float:
    """Seconds that the slowest resource takes: links, storage, or cores."""
    links = max(read, written) / (site.nodes * site.link)
    storage = (read + written) / site.storage
    return max(links, storage, written * per_gb / (site.nodes * site.cores))


def by_simulation(
    units: Sequence[tuple[float, float]], site: Site, per_gb: float
) -> tuple[float, float]:
    """Seconds until all units are written, by workers that take one after the other; and the largest
    share of a worker over the mean share.

    Each unit moves as fast as its machine's link and cores and an equal share of the storage allow.
    """
    waiting, left, now = list(reversed(units)), {}, 0.0
    idle = list(range(site.nodes))
    starting: list[tuple[float, int]] = []
    written = dict.fromkeys(idle, 0.0)
    current: dict[int, tuple[float, float]] = {}
    while waiting or left or starting:
        while idle and waiting:
            worker = idle.pop()
            current[worker] = waiting.pop()
            heapq.heappush(starting, (now + START, worker))
        speeds = {}
        for worker in left:
            read, out = current[worker]
            storage = site.storage / len(left)
            speeds[worker] = 1 / max(
                read / site.link,
                out / site.link,
                (read + out) / storage,
                out * per_gb / site.cores,
                1e-9,
            )
        ends = [now + left[worker] / speeds[worker] for worker in left]
        until = min([*ends, *(time for time, _ in starting)])
        for worker in list(left):
            left[worker] -= (until - now) * speeds[worker]
            if left[worker] < 1e-9:
                written[worker] += current[worker][1]
                del left[worker]
                idle.append(worker)
        now = until
        while starting and starting[0][0] <= now + 1e-12:
            left[heapq.heappop(starting)[1]] = 1.0
    shares = written.values()
    return now, max(shares) / (sum(shares) / site.nodes)


def units_of(plan: Plan) -> list[tuple[float, float]]:
    """The bytes that each unit of a plan reads and writes, in GB."""
    shards = {shard.file: shard for shard in plan.shards}
    reads = {
        job.name: sum(plan.sources[r.source].checkpoint.specs[r.name].nbytes for r in job.reads)
        for job in plan.jobs
    }
    found = []
    for unit in split(plan):
        offsets = shards[unit.file].offsets
        names = [name for name, offset in offsets.items() if unit.begin <= offset < unit.end]
        found.append((sum(reads[name] for name in names) / 1e9, unit.size / 1e9))
    return found


def arithmetic(data: Path, per_gb: float) -> None:
    """Print the table of ``docs/scale.md``."""
    print("| merge of two | reads | writes | where | formula | simulated | largest share |")
    print("|---|---:|---:|---|---:|---:|---:|")
    for family, label in (("sparse-70b", "70 B"), ("sparse-671b", "671 B")):
        began = time.perf_counter()
        plan = make_plan(recipe_of(checkpoints.ensure(family, data)))
        planned = time.perf_counter() - began
        units = units_of(plan)
        read, written = (sum(column) for column in zip(*units, strict=True))
        parameters = checkpoints.FAMILIES[family].parameters
        assert round(read, 3) == round(2 * 2 * parameters / 1e9, 3), "two inputs of two bytes"
        assert abs(written - 2 * parameters / 1e9) < 0.01 * written, "two bytes, and headers"
        for site in SITES:
            formula = by_formula(read, written, site, per_gb)
            simulated, share = by_simulation(units, site, per_gb)
            print(
                f"| {label} | {read:,.0f} GB | {written:,.0f} GB | {site.name} | {formula / 60:.1f} min | "
                f"{simulated / 60:.1f} min | {share:.2f} |"
            )
        print(
            f"{family}: {len(plan.jobs):,} tensors, {len(plan.shards)} files, {len(units)} units, "
            f"planned in {planned:.1f} s, {peak_memory():.0f} MB",
            file=sys.stderr,
        )


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "arithmetic"])
    parser.add_argument("--family", default="sparse-70b", choices=["sparse-70b", "sparse-671b"])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds-per-gb", type=float, default=0.35, help="a core's, of output")
    parser.add_argument("--data", type=Path, default=checkpoints.DEFAULT_DATA)
    parser.add_argument("--out", type=Path, default=Path("build/scale/out"))
    given = parser.parse_args()
    if given.what == "run":
        run(given.family, given.workers, given.threads, given.data, given.out)
    else:
        arithmetic(given.data, given.seconds_per_gb)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
