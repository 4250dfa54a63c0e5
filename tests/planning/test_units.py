"""Units: parts of output files that several processes write."""

from __future__ import annotations

import heapq
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import merganser
from checkpoints_on_disk import make_model
from merganser.planning import Plan
from merganser.planning.shards import ALIGNMENT
from merganser.planning.units import names_in, part_of, split

KB = 1000


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Twelve matrices of two pages, an empty tensor and an odd one, in three files."""
    folder = tmp_path_factory.mktemp("units")
    tensors = {f"layers.{i:02}.w": torch.zeros(64, 64) for i in range(12)}
    tensors |= {"layers.11.x": torch.zeros(0), "layers.11.y": torch.zeros(7)}
    tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(tensors, folder / "a.safetensors")
    models = [{"model": str(folder / "a.safetensors"), "parameters": {"weight": 1}}]
    return merganser.plan({"merge_method": "linear", "models": models}, shard_size="45kB")


@pytest.mark.parametrize("limit", [1, 9 * KB, 16 * KB, 20 * KB, 10**9])
def test_units_are_every_byte_and_every_tensor_once(plan: Plan, limit: int) -> None:
    units = split(plan, limit)
    assert len({unit.name for unit in units}) == len(units)
    assert sum(unit.size for unit in units) == plan.output_bytes
    names = []
    for shard in plan.shards:
        mine = [unit for unit in units if unit.file == shard.file]
        assert [unit.begin for unit in mine] == [0, *(unit.end for unit in mine[:-1])]
        assert mine[-1].end == shard.size
        for unit in mine:
            assert unit.begin % ALIGNMENT == 0
            own = names_in(shard, unit)
            assert own
            names += own
            specs = {job.name: job.spec for job in plan.jobs}
            assert all(shard.offsets[n] + specs[n].nbytes <= unit.end for n in own)
    assert names == [name for shard in plan.shards for name in shard.offsets]


def test_a_large_limit_leaves_files_whole_and_a_small_one_splits_them(plan: Plan) -> None:
    assert len(plan.shards) == 3
    assert len(split(plan, 10**9)) == len(split(plan)) == 3
    assert len(split(plan, 16 * KB)) > 6
    assert max(unit.size for unit in split(plan, 20 * KB)) <= 25 * KB


def test_files_are_not_split_within_a_page(tmp_path: Path) -> None:
    """Two processes never write to one page: they may be on two machines."""
    folder = make_model(tmp_path / "a")
    config = {"merge_method": "passthrough", "models": [{"model": str(folder)}]}
    plan = merganser.plan(config)
    inside = [o for o in plan.shards[0].offsets.values() if o % ALIGNMENT == 0]
    assert len(split(plan, 1)) <= len(inside)


def test_a_part_is_the_plan_of_its_tensors_alone(plan: Plan) -> None:
    for unit in split(plan, 20 * KB):
        part = part_of(plan, unit)
        [shard] = part.shards
        assert tuple(job.name for job in part.jobs) == names_in(shard, unit)
        assert replace(part, jobs=plan.jobs, shards=plan.shards) == plan


@pytest.mark.parametrize(("workers", "most"), [(2, 1.05), (4, 1.1), (8, 1.2)])
def test_workers_of_one_speed_get_equal_shares_of_70_b(
    plan: Plan, workers: int, most: float
) -> None:
    """Workers that each take the next unit write 141 GB: four of them within a tenth of each other."""
    hidden, wide, sizes = 8192, 28672, []
    for _ in range(80):
        sizes += [hidden * hidden, hidden * 1024, hidden * 1024, hidden * hidden]
        sizes += [hidden * wide] * 3 + [hidden, hidden]
    shards, files = [], [[128256 * hidden]]
    for size in [*sizes, hidden, 128256 * hidden]:
        if 2 * (sum(files[-1]) + size) > 5e9:
            files.append([])
        files[-1].append(size)
    for n, file in enumerate(files):
        offsets = {f"{n}.{i}": ALIGNMENT + 2 * sum(file[:i]) for i in range(len(file))}
        size = ALIGNMENT + 2 * sum(file)
        shards.append(replace(plan.shards[0], file=f"{n}", offsets=offsets, size=size))
    large = replace(plan, shards=tuple(shards))
    free = [(0, n) for n in range(workers)]
    for unit in split(large):
        done, who = heapq.heappop(free)
        heapq.heappush(free, (done + unit.size, who))
    shares = [done for done, _ in free]
    assert sum(shares) == large.output_bytes > 141e9
    assert max(shares) < most * min(shares)
