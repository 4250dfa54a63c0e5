"""Crews: who is started, replaced and stopped, on this machine and on the nodes of a cluster."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from merganser import cli
from merganser.errors import MerganserError, RecipeError, ResourceError
from merganser.workers import crew, driving, nodes
from merganser.workers.claims import TRIES, Claims
from merganser.workers.crew import Crew, End, Where
from merganser.workers.driving import sweep_with_workers
from merganser.workers.inputs import inputs_of, make_look
from merganser.workers.nodes import Node
from messages import assert_one_line
from shared_study import begin


@dataclass
class Script:
    """A worker of a test: it takes a unit when it is looked at, and then ends as its script says."""

    name: str
    ends: End | None
    is_killed: bool = False


class Scripted(Crew[Script]):
    """A crew whose workers end as a test says, in the order in which they are started."""

    def __init__(self, ends: list[End | None], on_start: Callable[[str], None]) -> None:
        self.notes: list[str] = []
        super().__init__(2, most=3, on_warning=self.notes.append)
        self.ends = ends
        self.on_start = on_start
        self.places: list[int] = []
        self.dead: list[str] = []

    def start(self, worker: str, place: int) -> Script:
        self.places.append(place)
        self.on_start(worker)
        return Script(worker, self.ends.pop(0))

    def ended(self, member: Script) -> End | None:
        return End(True, "killed") if member.is_killed else member.ends

    def kill(self, member: Script) -> None:
        member.is_killed = True

    def stop(self, members: Mapping[str, Script]) -> None:
        self.notes.append(f"stopped {len(members)}")

    def gone(self, workers: Collection[str]) -> list[str]:
        return [worker for worker in workers if worker in self.dead]


def test_the_dead_are_replaced_in_their_places_until_there_were_too_many() -> None:
    died, good = End(True, "no memory"), End()
    ended: list[str] = []
    team = Scripted([died, None, died, died, died, good], lambda _: None)
    with team:
        assert team.places == [0, 1]
        for _ in range(3):
            team.collect(ended.append)
        assert len(ended) == 3
        assert team.places == [0, 1, 0, 0, 0]
        assert team.notes == []
        team.collect(ended.append)
        assert team.notes == ["no memory"]
        team.check()
        [(name, member)] = team.members.items()
        member.ends = good
        team.collect(ended.append)
        assert ended[-1] == name
        with pytest.raises(MerganserError, match="no memory"):
            team.check()
    assert team.notes[-1] == "stopped 0"


def test_a_dead_worker_s_unit_is_free_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So is that of a worker that an earlier command left; a unit that kills three is given up."""
    monkeypatch.setattr(driving, "WAIT", 0)
    monkeypatch.setattr(driving, "LOOK", 0)
    left = Claims(tmp_path)
    left.worker = "left"
    assert left.take("other") is not None
    started: list[str] = []

    def take(worker: str) -> None:
        started.append(worker)
        claims = Claims(tmp_path)
        claims.worker = worker
        claims.take("unit")

    team = Scripted([End(True), None, End(True), End(True), None], take)
    team.dead = ["left"]
    claims = Claims(tmp_path)

    def look() -> None:
        if claim := claims.take("other"):
            claim.finish({})

    with team:
        driving.lead(team, claims, ["unit", "other"], look)
    assert claims.state("unit") == "given up"
    assert claims.state("other") == "done"
    assert [owner.worker for owner in claims.tried("unit")] == [started[0], *started[2:4]]
    assert [owner.worker for owner in claims.tried("other")] == ["left"]
    assert len(started) == TRIES + 2


def test_a_worker_that_lost_its_claim_and_goes_on_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driving, "WAIT", 0)
    monkeypatch.setattr(driving, "LOOK", 0)
    claims = Claims(tmp_path)

    def take(worker: str) -> None:
        of_worker = Claims(tmp_path, stale=-1 if len(team.places) == 2 else 100)
        of_worker.worker = worker
        of_worker.take("unit")

    team = Scripted([None, None, None], take)
    rounds: list[int] = []

    def look() -> None:
        rounds.append(len(team.places))
        if len(rounds) == 4 and (claim := Claims(tmp_path, stale=-1).take("unit")):
            claim.finish({})

    with team:
        driving.lead(team, claims, ["unit"], look)
    assert team.places == [0, 1, 0]


@pytest.mark.parametrize(
    "text",
    ["local", "local:0", "local:two", "join:2", "ray:0", "ray:auto", "ray://head", "ray:", ""],
)
def test_slips_in_where_workers_run(text: str) -> None:
    with pytest.raises(
        RecipeError, match="none of local:N, local:auto, join, ray, ray:N and ray://"
    ):
        crew.parse(text)


def test_where_workers_run() -> None:
    assert crew.parse("local:auto") == Where("local")
    assert crew.parse("local:3") == Where("local", 3)
    assert crew.parse("join") == Where("join")
    assert crew.parse("ray") == Where("ray")
    assert crew.parse("ray:8") == Where("ray", 8)
    assert crew.parse("ray://head:10001") == Where("ray", address="ray://head:10001")


def test_gpus_and_cores_are_shared_out() -> None:
    def shared(count: int | None, devices: int, gpus: list[str]) -> list[tuple[str | None, str]]:
        found = crew.environments(count, devices, None, gpus, 8)
        return [(e.get("CUDA_VISIBLE_DEVICES"), e["OMP_NUM_THREADS"]) for e in found]

    assert shared(None, 1, ["4", "5"]) == [("4", "4"), ("5", "4")]
    assert shared(None, 2, ["0", "1", "2", "3", "4"]) == [("0,1", "4"), ("2,3", "4")]
    assert shared(3, 1, ["0", "1"]) == [("0", "2"), ("1", "2"), ("0", "2")]
    assert shared(None, 1, []) == [(None, "4"), (None, "4")]
    with pytest.raises(MerganserError, match="needs 2 GPUs, and this machine has 1"):
        shared(1, 2, ["0"])


def test_nodes_are_shared_out() -> None:
    """Workers and cores per worker."""
    one, eight = Node("1", "one", 1, 0), Node("8", "eight", 8, 0)
    assert nodes.shared([one, one], None, 0, None) == (2, 1)
    assert nodes.shared([eight, eight], None, 0, None) == (4, 4)
    assert nodes.shared([eight, eight], 8, 0, None) == (8, 2)
    assert nodes.shared([eight, one], None, 0, 2) == (4, 2)
    assert nodes.shared([eight], 20, 0, None) == (20, 1)
    gpus = Node("g", "gpus", 32, 4)
    assert nodes.shared([gpus, eight], None, 1, None) == (4, 8)
    assert nodes.shared([gpus, gpus], None, 2, None) == (4, 16)
    assert nodes.shared([gpus], None, 1, 4) == (4, 4)
    with pytest.raises(ResourceError) as refused:
        nodes.shared([gpus, eight], None, 8, None)
    assert_one_line(
        str(refused.value), "1 cores and 8 GPUs on one node", "gpus: 32 cores, 4 GPUs, eight: 8"
    )
    with pytest.raises(ResourceError, match="needs 2 cores on one node"):
        nodes.shared([one], None, 0, 2)


def test_a_node_that_sees_no_file_or_another_one_is_refused(
    file: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = begin(file, out, monkeypatch)
    inputs = [asdict(each) for each in inputs_of(study, study.prepare(out))]
    folder = file.parent
    names = {str(Path(each["path"]).relative_to(folder)) for each in inputs}
    assert {"study.yml", "sums.jsonl", "a/config.json", "b/model.safetensors"} <= names
    assert "shared/.claims/study.json" in names
    look = make_look()
    everything = look(inputs)
    assert nodes.refusal("n", everything) == ""
    there = (folder / "sums.jsonl").read_text()
    (folder / "sums.jsonl").write_text(there.replace("1", "2"))
    (folder / "b").rename(folder / "gone")
    try:
        seen = look(inputs)
    finally:
        (folder / "sums.jsonl").write_text(there)
        (folder / "gone").rename(folder / "b")
    assert seen["other"] == [str(folder / "sums.jsonl")]
    assert str(folder / "b" / "config.json") in seen["unseen"]
    text = nodes.refusal("n", seen)
    assert_one_line(text, f"node n does not see {folder}/b/", "more files; put it where every node")
    assert nodes.refusal("n", seen | {"unseen": []}).startswith(
        f"node n sees another {folder}/sums"
    )
    assert "node n has no merganser" in nodes.refusal("n", seen | {"lacking": ["merganser"]})


def test_models_of_the_hub_are_looked_for_in_the_node_s_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = "models--org--name/snapshots/0123/config.json"
    there = tmp_path / "cache" / kept
    there.parent.mkdir(parents=True)
    there.write_text("{}")
    each = {"path": f"/elsewhere/{kept}", "size": 2, "digest": "", "cached": kept}
    each |= {"repository": "org/name"}
    look = make_look()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    assert not any(look([each]).values())
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert look([each])["download"] == ["org/name"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert look([each])["unseen"] == ["org/name"]


def test_ray_is_named_where_it_is_missing(
    file: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "merganser.workers.ray_crew", raising=False)
    with pytest.raises(MerganserError, match=r"needs ray.*pip install 'merganser\[ray\]'"):
        sweep_with_workers(file, out, "ray")
    assert not out.exists()


def test_a_limit_of_time_is_for_workers(file: Path, out: Path) -> None:
    done = CliRunner().invoke(cli.main, ["sweep", str(file), str(out), "--stall", "5"])
    assert done.exit_code == 2
    assert "--stall is for --workers" in done.stderr
