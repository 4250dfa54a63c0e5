"""Merges whose files several workers write: the bytes of one process, whatever dies."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

import merganser
from checkpoints_on_disk import make_model
from merganser import cli, methods
from merganser.checkpoints.state_dict import MemoryCheckpoint
from merganser.engine.events import Started
from merganser.errors import InputError, OutputExistsError, RecipeError
from merganser.merging import output_folder
from merganser.merging.merge import merge
from merganser.merging.options import WriteOptions
from merganser.merging.output_folder import Partial, partial_of
from merganser.merging.verify import verify
from merganser.planning.units import Unit, split
from merganser.workers import merge_job, merge_worker
from merganser.workers.claims import Claim, Claims
from merganser.workers.merge_driver import merge_with_workers
from merganser.workers.merge_job import MergeJob
from merganser.workers.merge_worker import MergeWorker, shared_folder_of, work_on_merge
from messages import assert_one_line
from split_merges import SHARDS, UNIT, contents, join, join_hastily, make_models, write_recipe

METHODS: Mapping[str, Mapping[str, Any]] = {
    "linear": {},
    "linear, stochastic": {"rounding": "stochastic", "seed": 3},
    "ties": {"parameters": {"density": 0.3}},
    "dare_ties": {"parameters": {"density": 0.5}},
    "model_stock": {},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for method in METHODS:  # families that a test loads are gone after it
        methods.get(method.partition(",")[0], "exact")
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def recipe(home: Path) -> Path:
    return write_recipe(home)


@pytest.fixture(scope="module")
def alone(home: Path, recipe: Path) -> dict[str, Any]:
    """What one process writes, into the folder that the tests' merges are written to."""
    merge(recipe, home / "out", shard_size=SHARDS, write_card=False)
    found = contents(home / "out")
    shutil.rmtree(home / "out")
    return found


@pytest.fixture
def out(home: Path) -> Iterator[Path]:
    yield home / "out"
    for folder in (home / "out", partial_of(home / "out")):
        shutil.rmtree(folder, ignore_errors=True)


def begin(recipe: Path, out: Path) -> MergeJob:
    """Begin a merge as a driver does that is killed at once."""
    plan = merganser.plan(recipe, shard_size=SHARDS)
    partial = Partial(out, plan, force=False, leftover="refuse", shared=True)
    partial.shared.mkdir()
    job = MergeJob.of(plan, split(plan, UNIT), WriteOptions())
    job.write(partial.shared)
    partial.journal.close()
    partial._lock.release(unlink=False)
    return job


# -- the same bytes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_parts_of_files_have_the_bytes_of_one_process(home: Path, out: Path, method: str) -> None:
    """Measurements, draws and statistics do not depend on which process has which tensors."""
    options = dict(METHODS[method])
    planning = {key: options.pop(key) for key in ("rounding", "seed") if key in options}
    recipe = write_recipe(home, method.partition(",")[0], **options)
    merge(recipe, out, shard_size=SHARDS, **planning)
    expected = contents(out)
    shutil.rmtree(out)
    shared = join(recipe, out, write_card=True, **planning)
    assert contents(out) == expected
    [result] = shared.results
    assert expected["merge_manifest.json"]["effective_weights"] is not None
    assert sum(shared.shares.values()) == shared.written == result.plan.output_bytes
    assert not partial_of(out).exists()
    assert verify(out) == []


def test_a_worker_writes_all_and_the_command_finishes(
    recipe: Path, out: Path, alone: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a driver's death its workers go on; the command, run again, computes nothing."""
    job = begin(recipe, out)
    done = CliRunner().invoke(cli.main, ["worker", str(out), "--json"])
    assert json.loads(done.stdout)["units"] == [unit.name for unit in job.units], done.output
    assert work_on_merge(out) == []
    monkeypatch.setattr(MergeWorker, "_write", None)
    shared = join(recipe, out)
    assert shared.written == 0
    assert contents(out) == alone
    assert work_on_merge(out) == []
    assert not partial_of(out).exists()
    again = join(recipe, out)
    assert (again.results, again.written) == ((), 0)


def test_resume_without_workers_takes_files_whose_parts_are_all_there(
    recipe: Path, out: Path, alone: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = begin(recipe, out)
    stop_after(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        work_on_merge(out)
    begun: list[int] = []

    def listen(event: Any) -> None:
        if isinstance(event, Started):
            begun.append(event.tensors)

    merge(recipe, out, resume=True, shard_size=SHARDS, write_card=False, on_event=listen)
    first = [unit for unit in job.units if unit.file == job.units[0].file]
    assert len(first) < 4
    tensors = len(merganser.plan(recipe).jobs)
    assert 0 < begun[0] < tensors
    assert contents(out) == alone


def stop_after(units: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers be stopped when they have written so many units."""
    write = MergeWorker._write

    def count(self: MergeWorker, unit: Unit, claim: Claim, *others: Any) -> None:
        if len(self.written) == units:
            claim.release()
            raise KeyboardInterrupt
        write(self, unit, claim, *others)

    monkeypatch.setattr(MergeWorker, "_write", count)


def test_parts_that_are_damaged_are_written_again(
    recipe: Path, out: Path, alone: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part's bytes, and a part's results, as after a power loss."""
    job = begin(recipe, out)
    with monkeypatch.context() as patch:
        stop_after(5, patch)
        with pytest.raises(KeyboardInterrupt):
            work_on_merge(out)
    new, shared = partial_of(out) / "new", shared_folder_of(out)
    with (new / job.units[1].file).open("r+b") as file:
        file.seek(job.units[1].begin + 100)
        file.write(b"\1\2\3")
    (shared / f"{job.units[4].name}.result").write_bytes(b"")
    shared_merge = join(recipe, out)
    assert contents(out) == alone
    kept = [job.units[n] for n in (0, 2, 3)]
    assert shared_merge.written <= sum(unit.size for unit in job.units if unit not in kept)


def test_a_worker_whose_claim_is_gone_stops(
    recipe: Path, out: Path, alone: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(recipe, out)
    claims = Claims(shared_folder_of(out))
    notes: list[str] = []
    take = Claims.take

    def take_and_lose(self: Claims, name: str) -> Any:
        claim = take(self, name)
        if claim is not None and not notes and name.endswith(".2"):
            claim.file.rename(claim.file.with_suffix(".lost"))
            notes.append(name)
        return claim

    with monkeypatch.context() as patch:
        patch.setattr(Claims, "take", take_and_lose)
        written = work_on_merge(out, on_warning=notes.append)
    assert notes[1].startswith("another worker has taken over a part of model-00001")
    assert written is not None
    assert claims.state(notes[0]) == "done"
    join(recipe, out)
    assert contents(out) == alone


def test_a_worker_takes_nothing_of_a_merge_that_ends_meanwhile(
    recipe: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that finishes removes the merge's file first, then what is done."""
    begin(recipe, out)
    take = Claims.take

    def take_late(self: Claims, name: str) -> Any:
        (shared_folder_of(out) / merge_job.NAME).unlink()
        return take(self, name)

    monkeypatch.setattr(Claims, "take", take_late)
    assert work_on_merge(out) == []
    assert not list(shared_folder_of(out).glob("*.claim"))
    assert not list((partial_of(out) / "new").iterdir())


def test_a_part_that_fails_because_the_merge_has_ended_is_no_error(
    recipe: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(recipe, out)

    def fail(*_: Any, **__: Any) -> Any:
        (shared_folder_of(out) / merge_job.NAME).unlink()
        raise InputError("gone")

    monkeypatch.setattr(merge_worker.engine, "run", fail)
    assert work_on_merge(out) == []
    assert not list(shared_folder_of(out).glob("*.failed"))


# -- what is refused ---------------------------------------------------------------------------------


def test_a_worker_names_the_input_that_it_does_not_see(tmp_path: Path) -> None:
    home = make_models(tmp_path, layers=1)
    recipe, out = write_recipe(home), home / "out"
    begin(recipe, out)
    weights = home / "b" / "model.safetensors"
    times = weights.stat()
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    with pytest.raises(InputError) as refused:
        work_on_merge(out)
    assert_one_line(str(refused.value), f"sees another {weights} than")
    weights.rename(home / "gone")
    done = CliRunner().invoke(cli.main, ["worker", str(out)])
    assert done.exit_code == 3
    assert_one_line(done.stderr, f"does not see {weights}, which")
    assert not list(shared_folder_of(out).glob("*.claim"))


def test_a_file_of_another_version_is_refused(recipe: Path, out: Path) -> None:
    begin(recipe, out)
    file = shared_folder_of(out) / merge_job.NAME
    file.write_text(file.read_text().replace('"merganser": "', '"merganser": "9'))
    with pytest.raises(InputError, match="was written by another version of Merganser"):
        work_on_merge(out)


def test_checkpoints_in_memory_are_refused(home: Path, out: Path) -> None:
    checkpoints = {"x": MemoryCheckpoint({"w": torch.ones(4)})}
    config = {"merge_method": "passthrough", "models": [{"model": "x"}]}
    with pytest.raises(RecipeError, match="x: is a checkpoint in memory, which other processes"):
        merge_with_workers(config, out, "join", checkpoints=checkpoints)
    assert not partial_of(out).exists()


def test_join_takes_one_recipe(home: Path, out: Path) -> None:
    first = {"name": "first", "merge_method": "passthrough", "models": [{"model": "./a"}]}
    second = {"merge_method": "passthrough", "models": [{"model": "first"}]}
    file = home / "chain.yml"
    file.write_text(yaml.safe_dump_all([first, second]))
    with pytest.raises(RecipeError, match="workers=join: merges one recipe, and the file has 2"):
        merge_with_workers(file, out, "join")
    done = CliRunner().invoke(cli.main, ["merge", str(file), "--sink", "null", "--workers", "join"])
    assert done.exit_code == 2
    assert "--workers shares out the files of OUT; --sink null has none" in done.stderr


def test_a_part_that_fails_ends_the_merge_with_its_error(
    recipe: Path, out: Path, alone: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = merge_worker.engine.run

    def fail(plans: Any, *arguments: Any, **options: Any) -> Any:
        if any(job.name == "layers.07.w" for job in plans[0].jobs):
            raise InputError("layers.07.w: is broken")
        return run(plans, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(merge_worker.engine, "run", fail)
        with pytest.raises(InputError, match=r"^layers\.07\.w: is broken") as failed:
            join(recipe, out)
    assert "resume=True continues from there" in failed.value.__notes__[0]
    assert not out.exists()
    assert work_on_merge(out) is None  # nobody goes on with it
    shared = join(recipe, out)
    assert 0 < shared.written < sum(unit.size for unit in split(merganser.plan(recipe), UNIT))
    assert contents(out) == alone


@pytest.mark.parametrize("option", ["resume", "force"])
def test_nobody_else_touches_files_that_workers_write(
    recipe: Path, out: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(recipe, out)
    claims = Claims(shared_folder_of(out))
    claim = claims.take("00001.1")
    assert claim is not None
    with pytest.raises(OutputExistsError) as refused:
        merge(recipe, out, shard_size=SHARDS, **{option: True})
    assert_one_line(str(refused.value), f"process {os.getpid()} on ", "writes files of this merge")
    claim.release()
    merge(recipe, out, shard_size=SHARDS, **{option: True})
    assert out.exists()


def test_another_merge_in_the_folder_is_refused(home: Path, recipe: Path, out: Path) -> None:
    begin(recipe, out)
    other = write_recipe(home, "ties", parameters={"density": 0.9})
    with pytest.raises(OutputExistsError, match="cannot be resumed: "):
        join(other, out)
    lock = output_folder.Lock(partial_of(out) / output_folder.LOCK)
    with pytest.raises(OutputExistsError, match="workers write another merge there"):
        join(other, out)
    lock.release(unlink=False)


# -- conversions, and real processes ------------------------------------------------------------------


def test_conversions_are_shared_too(tmp_path: Path) -> None:
    source = make_model(tmp_path / "m", dtype=torch.float32)
    (source / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    lender = make_model(tmp_path / "base", seed=1)
    arguments = [str(source), str(tmp_path / "out"), "--dtype", "bfloat16", "--base", str(lender)]
    done = CliRunner().invoke(cli.main, ["convert", *arguments, "-q"])
    assert done.exit_code == 0, done.output
    expected = contents(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    done = CliRunner().invoke(cli.main, ["convert", *arguments, "--workers", "join"])
    assert done.exit_code == 0, done.output
    assert "by 1 worker; process" in done.stdout
    assert contents(tmp_path / "out") == expected


def test_processes_on_this_machine(
    home: Path, recipe: Path, out: Path, alone: dict[str, Any]
) -> None:
    arguments = ["--shard-size", SHARDS, "--no-card", "--workers", "local:2", "--json"]
    done = CliRunner().invoke(cli.main, ["merge", str(recipe), str(out), *arguments])
    assert done.exit_code == 0, done.output
    workers = json.loads(done.stdout)["workers"]
    assert str(os.getpid()) not in workers
    assert contents(out) == alone


def start_two(context: Any, recipe: Path, out: Path) -> list[Any]:
    """Start two processes that write one merge, and wait until they begin."""
    events = [context.Event() for _ in range(2)]
    processes = [
        context.Process(target=join_hastily, args=(recipe, out, 0.02, event)) for event in events
    ]
    for process in processes:
        process.start()
    for event in events:
        assert event.wait(100)
    return processes


def read_if_there(file: Path) -> str:
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""


def kill_at_random(
    recipe: Path, out: Path, alone: Mapping[str, Any], kills: int, seed: int
) -> dict[str, int]:
    """Kill processes of which each is worker and may be driver, within the time that a merge takes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["split_merges", "merganser.engine.running"])
    draw = random.Random(seed)
    counts = dict.fromkeys(("kills", "of drivers", "with a part in hand", "merges"), 0)
    span = 0.0
    while counts["kills"] < kills or not counts["merges"]:
        processes = start_two(context, recipe, out)
        began = time.monotonic()
        for process in processes:
            wait = draw.uniform(0, span) if span and counts["kills"] < kills else 100.0
            process.join(wait)
            if process.is_alive():
                driver = read_if_there(partial_of(out) / output_folder.LOCK)
                claims = "".join(map(read_if_there, shared_folder_of(out).glob("*.claim")))
                process.kill()
                counts["kills"] += 1
                counts["of drivers"] += driver.startswith(f"{process.pid} ")
                counts["with a part in hand"] += f'"process": {process.pid},' in claims
            process.join()
        span = span or time.monotonic() - began
        if out.exists() and not partial_of(out).exists():
            assert contents(out) == alone
            shutil.rmtree(out)
            counts["merges"] += 1
    return counts


def test_a_few_kills(recipe: Path, out: Path, alone: dict[str, Any]) -> None:
    counts = kill_at_random(recipe, out, alone, kills=2, seed=1)
    assert counts["kills"] == 2
    assert counts["merges"]


@pytest.mark.slow
def test_after_kills_at_random_moments_the_bytes_are_the_same(
    recipe: Path, out: Path, alone: dict[str, Any]
) -> None:
    """Thirty kills of processes that write, join, finish, or wait."""
    counts = kill_at_random(recipe, out, alone, kills=30, seed=0)
    assert counts["merges"]
    assert counts["of drivers"]
    assert counts["with a part in hand"]
