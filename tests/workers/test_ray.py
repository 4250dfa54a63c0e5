"""Workers on a real Ray cluster of two nodes on this machine."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

import merganser
import split_merges
from merganser.errors import InputError, MerganserError
from merganser.merging.merge import merge
from merganser.results import scores as results
from merganser.study.progress import Event, Scored
from merganser.workers import driving, working
from merganser.workers.claims import Claims
from merganser.workers.driving import sweep_with_workers
from merganser.workers.merge_driver import merge_with_workers
from merganser.workers.searching import search_with_workers
from merganser.workers.study_file import FOLDER
from messages import assert_one_line
from shared_study import begin, contents, until

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.filterwarnings("default"),  # Ray's own
]

MEMORY = 80 * 2**20
"""Bytes of each node's object store, in which the workers put nothing."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head with one core; a test adds the second node, and may kill it."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False},
    )
    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = cluster.address
    yield cluster
    os.environ.pop("RAY_ADDRESS")
    if before is not None:
        os.environ["RAY_ADDRESS"] = before
    cluster.shutdown()


@pytest.fixture
def second(cluster: Any) -> Iterator[Any]:
    """The second node, with one core."""
    node = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    yield node
    if node in cluster.list_all_nodes():
        cluster.remove_node(node, allow_graceful=False)


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driving, "LOOK", 1.0)


def owner_of_a_claim(out: Path) -> dict[str, Any]:
    """The owner of the first claim that a worker has."""
    files = lambda: sorted((out / FOLDER).glob("*.claim"))  # noqa: E731
    text = until(lambda: next(iter([t for f in files() if (t := f.read_text())]), None))
    owner: dict[str, Any] = json.loads(text)
    return owner


def beside(action: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def test_two_nodes_write_the_bytes_of_one_process(
    made: tuple[Path, Path], out: Path, second: Any
) -> None:
    file, alone = made
    scored_by: dict[str, str] = {}

    def listen(event: Event) -> None:
        if isinstance(event, Scored) and event.generated:
            record = (out / FOLDER / f"{event.turn.model}.done").read_text()
            scored_by[event.turn.model] = json.loads(record)["worker"]

    found = sweep_with_workers(file, out, "ray", threads=1, on_progress=listen)
    assert contents(out) == contents(alone)
    assert found == results.read(alone)
    assert sorted(scored_by) == ["a", "b", "m_w0.3", "m_w0.7"]
    assert all(worker.startswith("ray-") for worker in scored_by.values())


SEARCH = {
    "method": "random",
    "over": {"w": {"from": 0, "to": 1}},
    "objectives": {"tokens": "max"},
    "budget": 5,
    "keep": 0,
}


def test_two_nodes_score_the_candidates_of_a_search(
    made: tuple[Path, Path], out: Path, second: Any
) -> None:
    study, _ = made
    recipe = yaml.safe_load(study.read_text())
    del recipe["sweep"], recipe["name"], recipe["evaluate"]["keep"]
    file, alone = study.with_name("search.yml"), out.with_name("searched")
    file.write_text(yaml.safe_dump({**recipe, "search": SEARCH}))
    merganser.search(file, alone)
    found = search_with_workers(file, out, "ray", threads=1)
    assert found.found == results.read(alone)
    assert contents(out / "samples") == contents(alone / "samples")


def test_a_merge_is_written_by_the_nodes(tmp_path: Path, second: Any) -> None:
    home = split_merges.make_models(tmp_path)
    recipe, out = split_merges.write_recipe(home), home / "out"
    options: Any = {"shard_size": split_merges.SHARDS, "write_card": False}
    merge(recipe, out, **options)
    alone = split_merges.contents(out)
    shutil.rmtree(out)
    shared = merge_with_workers(recipe, out, "ray:2", unit_bytes=split_merges.UNIT, **options)
    assert split_merges.contents(out) == alone
    assert shared.shares
    assert not any(worker.startswith(f"process {os.getpid()} ") for worker in shared.shares)


def test_a_killed_actor_s_model_goes_to_another(
    made: tuple[Path, Path], out: Path, second: Any
) -> None:
    file, alone = made
    killed: list[int] = []

    def kill() -> None:
        process = owner_of_a_claim(out)["process"]
        os.kill(process, signal.SIGKILL)
        killed.append(process)

    killer = beside(kill)
    sweep_with_workers(file, out, "ray:2", threads=1)
    killer.join()
    assert killed
    assert contents(out) == contents(alone)


def test_a_killed_node_s_models_go_to_another(
    made: tuple[Path, Path], out: Path, cluster: Any, second: Any
) -> None:
    file, alone = made
    killed: list[str] = []

    def kill() -> None:
        owner_of_a_claim(out)
        cluster.remove_node(second, allow_graceful=False)
        killed.append("second")

    killer = beside(kill)
    sweep_with_workers(file, out, "ray:2", threads=1)
    killer.join()
    assert killed
    assert contents(out) == contents(alone)


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0,
    reason="hiding a folder from a process needs root, and Linux",
)
def test_a_node_that_does_not_see_a_file_is_named_before_anything_starts(
    made: tuple[Path, Path], out: Path, cluster: Any
) -> None:
    """A node in which the folder of a model is empty."""
    file, _ = made
    alive = lambda: sum(each["Alive"] for each in cluster.global_state.node_table())  # noqa: E731
    before = alive()
    start = [Path(sys.executable).with_name("ray"), "start", "--address", cluster.address]
    start += ["--num-cpus=1", f"--object-store-memory={MEMORY}", "--block"]
    hidden = f'mount -t tmpfs none "{file.parent}/b" && exec "$@"'
    node = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", hidden, "sh", *map(str, start)],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until(lambda: alive() == before + 1)
        with pytest.raises(InputError) as refused:
            sweep_with_workers(file, out, "ray", threads=1)
    finally:
        os.killpg(node.pid, signal.SIGTERM)
        node.wait()
        until(lambda: alive() == before)
    assert_one_line(str(refused.value), "node ", f"does not see {file.parent}/b/", "more files")
    assert not list((out / FOLDER).glob("*.claim"))
    assert not list((out / FOLDER).glob("*.done"))


def drive(file: Path, out: Path, workers: str) -> None:
    """Run the command in a process of its own, with quick looks for those that died."""
    driving.LOOK = 1.0
    driving.WAIT = working.WAIT = 0.1
    sweep_with_workers(file, out, workers, threads=1)


def make_context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["merganser.workers.driving", "transformers.models.llama.modeling_llama"]
    )
    return context


def test_after_the_driver_is_killed_the_command_goes_on(
    made: tuple[Path, Path], out: Path, second: Any
) -> None:
    """Its workers die with it, or have scored everything by then."""
    file, alone = made
    driver = make_context().Process(target=drive, args=(file, out, "ray:2"), daemon=True)
    driver.start()
    owner_of_a_claim(out)
    driver.kill()
    driver.join()
    sweep_with_workers(file, out, "ray:2", threads=1)
    assert contents(out) == contents(alone)


def test_after_an_interrupt_completions_are_stored_and_claims_free(
    made: tuple[Path, Path], out: Path, second: Any
) -> None:
    file, alone = made

    def interrupt(_: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep_with_workers(file, out, "ray:2", threads=1, on_progress=interrupt)
    assert not list((out / FOLDER).glob("*.claim"))
    assert not list((out / FOLDER).glob("*.lost"))
    sweep_with_workers(file, out, "ray:2", threads=1)
    assert contents(out) == contents(alone)


def test_other_inputs_are_an_error_of_the_worker(
    made: tuple[Path, Path], out: Path, second: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = driving.units_of

    def older(*arguments: Any) -> dict[str, dict[str, str]]:
        return {n: u | {"the version of torch": "1.0"} for n, u in units(*arguments).items()}

    monkeypatch.setattr(driving, "units_of", older)
    with pytest.raises(MerganserError) as refused:
        sweep_with_workers(made[0], out, "ray:1", threads=1)
    assert_one_line(str(refused.value), "inputs or versions differ", "torch", "1.0 there")


def test_two_gpus_for_one_engine_are_on_one_node(
    made: tuple[Path, Path], out: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A placement group holds them; the GPUs are only numbers here, and the models run on the CPU."""
    from merganser.workers.inputs import inputs_of
    from merganser.workers.ray_crew import RayCrew

    node = cluster.add_node(num_cpus=2, num_gpus=2, object_store_memory=MEMORY)
    try:
        study = begin(made[0], out, monkeypatch)
        files = inputs_of(study, study.prepare(out))
        where = driving.parse("ray")
        team = RayCrew(out, where, 2, None, files, most=1, on_warning=print)
        claims = Claims(out / FOLDER)
        with team:
            assert len(team.members) == 1
            driving.lead(team, claims, list(study.units), lambda: None)
        assert all(claims.state(name) == "done" for name in study.units)
    finally:
        cluster.remove_node(node, allow_graceful=False)


@pytest.mark.slow
def test_after_kills_at_random_moments_through_ray_the_results_are_the_same(
    made: tuple[Path, Path], out: Path, second: Any
) -> None:
    """30 kills of workers and of drivers; every study ends with one process's bytes."""
    file, alone = made
    context = make_context()
    draw = random.Random(0)
    kills = {"worker": 0, "driver": 0}
    finished = 0
    while sum(kills.values()) < 30 or not finished:
        driver = context.Process(target=drive, args=(file, out, "ray:2"), daemon=True)
        driver.start()
        while driver.is_alive():
            driver.join(draw.uniform(0, 3))
            claims = sorted((out / FOLDER).glob("*.claim"))
            owners = [json.loads(text) for c in claims if (text := read(c))]
            if not driver.is_alive() or sum(kills.values()) >= 30 or not owners:
                continue
            victim = draw.choice(owners)
            if victim["process"] == driver.pid or draw.random() < 0.25:
                driver.kill()
                kills["driver"] += 1
            else:
                with suppress(ProcessLookupError):
                    os.kill(victim["process"], signal.SIGKILL)
                    kills["worker"] += 1
        driver.join()
        if not (out / FOLDER).exists() and (out / "results.json").exists():
            assert contents(out) == contents(alone)
            shutil.rmtree(out)
            finished += 1
        print(f"kills: {kills}; {finished} studies ended", flush=True)


def read(file: Path) -> str:
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""
