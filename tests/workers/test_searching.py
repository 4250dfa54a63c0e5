"""Searches whose candidates several workers score: one worker is none, and the history says the rest."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import merganser
import peers
from merganser import cli
from merganser.errors import InputError, MerganserError, OutputExistsError
from merganser.merging.options import MergeKeywords
from merganser.results import scores as results
from merganser.study import history
from merganser.study.participants import StudyModel
from merganser.study.preparing import Stage
from merganser.study.progress import Event, Scored
from merganser.study.search import SearchKeywords
from merganser.study.search_loop import Standing
from merganser.workers import driving, searching, working
from merganser.workers.candidates import LEADER
from merganser.workers.claims import Claim, Claims
from merganser.workers.crew import Crew, End
from merganser.workers.searching import search_with_workers
from merganser.workers.study_file import FOLDER
from merganser.workers.working import Worker, begin_work
from messages import assert_one_line

SEARCH = """
name: m
search:
  over:
    w: {from: 0, to: 1}
    v: {from: 0, to: 1}
  objectives: {letters: max}
  method: tpe
  population: 2
  budget: 6
  keep: 0
merge_method: linear
models:
  - {model: ./a, parameters: {weight: "{{ 1 + w }}"}}
  - {model: ./b, parameters: {weight: "{{ v }}"}}
dtype: bfloat16
evaluate:
  tasks:
    - problems: sums.jsonl
      max_tokens: 3
      scorers: [{scorer: "letters.py:letters", name: letters}]
"""


class Threads(Crew[threading.Thread]):
    """Workers in this process, which begin together; nothing kills them."""

    def __init__(self, home: Path, count: int) -> None:
        super().__init__(count, most=0, on_warning=lambda _: None)
        self.home = home
        self.begin = threading.Barrier(count)
        self.stopped = False

    def start(self, worker: str, place: int) -> threading.Thread:
        thread = threading.Thread(target=self._work, daemon=True)
        thread.start()
        return thread

    def _work(self) -> None:
        one = begin_work(self.home, 1)
        candidates = one.candidates
        assert candidates is not None
        turns, may_grow = candidates.turns, candidates.may_grow
        candidates.turns = lambda: [] if self.stopped else turns()  # type: ignore[method-assign]
        candidates.may_grow = lambda claims: not self.stopped and may_grow(claims)  # type: ignore[method-assign]
        self.begin.wait()
        try:
            one.run()
        finally:
            one.live.close()

    def ended(self, member: threading.Thread) -> End | None:
        return None if member.is_alive() else End()

    def kill(self, member: threading.Thread) -> None:
        raise AssertionError("a thread cannot be killed")

    def stop(self, members: Mapping[str, threading.Thread]) -> None:
        self.stopped = True
        for member in members.values():
            member.join(30)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A search's file, and the folder of its results by one process."""
    folder = tmp_path_factory.mktemp("search")
    for seed, name in enumerate("ab"):
        peers.make_model(folder / name, seed=seed, layers=1)
    lines = [{"problem": f"{n} + 1 =", "answer": str(n + 1), "id": f"n{n}"} for n in range(3)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "letters.py").write_text(
        "def letters(completion, problem):\n    return len(set(completion)) + len(completion) / 100\n"
    )
    (folder / "search.yml").write_text(SEARCH)
    merganser.search(folder / "search.yml", folder / "alone")
    return folder / "search.yml", folder / "alone"


@pytest.fixture
def file(made: tuple[Path, Path], tmp_path: Path) -> Path:
    """The search's file."""
    return made[0]


@pytest.fixture
def out(made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty folder for results; workers that a search starts are threads, which look often."""
    folder = made[1].with_name("shared")

    def crew(where: Any, *_: Any) -> Threads:
        return Threads(folder, where.count)

    monkeypatch.setattr(searching, "make_crew", crew)
    for room in (working, driving, searching):
        monkeypatch.setattr(room, "WAIT", 0.02)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / history.NAME).read_text().splitlines()][1:]


def unordered(folder: Path) -> dict[str, Any]:
    """The contents of a search's folder, with the history's candidates by number."""
    trials = {line["candidate"]: line for line in lines(folder)}
    for trial in trials.values():
        trial.pop("before", None)
    return {**contents(folder), history.NAME: trials}


def test_one_worker_is_none(made: tuple[Path, Path], out: Path) -> None:
    """The same candidates, completions, scores, weights and history, to the byte."""
    file, alone = made
    events: list[Event] = []
    standings: list[Standing] = []
    found = search_with_workers(
        file,
        out,
        "local:1",
        on_progress=events.append,
        on_standing=lambda standing, _: standings.append(standing),
    )
    assert contents(out) == contents(alone)
    assert found.found == results.read(alone)
    assert [each.trial.candidate.number for each in standings] == [1, 2, 3, 4, 5, 6]
    assert all(each.worker == f"process {os.getpid()}" for each in standings)
    scored = [event.turn.model for event in events if isinstance(event, Scored)]
    assert sorted(scored) == ["a", "b"]


def test_two_workers_leave_a_history_that_gives_the_same_candidates(
    made: tuple[Path, Path], out: Path, tmp_path: Path
) -> None:
    file, _ = made
    found = search_with_workers(file, out, "local:2")
    log = lines(out)
    assert sorted(line["candidate"] for line in log if "candidate" in line) == list(range(1, 7))
    assert any("ask" in line for line in log)
    written = contents(out)
    again = merganser.search(file, out)
    assert [t.candidate.values for t in again.trials] == [t.candidate.values for t in found.trials]
    assert contents(out) == written
    assert all(entry.effective for entry in again.found.points)


def test_a_command_of_which_one_leads_and_the_others_work(
    made: tuple[Path, Path], out: Path
) -> None:
    """Two that join: both end with the same results."""
    file, _ = made
    text = file.read_text()
    by_generation = file.with_name("generations.yml")
    by_generation.write_text(
        text.replace("tpe", "cma-es").replace("population: 2", "population: 4")
    )
    merganser.search(by_generation, out.with_name("apart"))
    found: list[Any] = []

    def join() -> None:
        found.append(search_with_workers(by_generation, out, "join"))

    others = [threading.Thread(target=join) for _ in range(2)]
    for each in others:
        each.start()
    for each in others:
        each.join(60)
    assert len(found) == 2
    apart = out.with_name("apart")
    assert found[0].found == found[1].found == results.read(apart)
    assert [t.candidate for t in found[0].trials] == [t.candidate for t in found[1].trials]
    names = sorted(path.name for path in (out / "samples").iterdir())
    assert names == sorted(path.name for path in (apart / "samples").iterdir())
    assert not (out / FOLDER).exists()
    shutil.rmtree(apart)


def stopped_after(count: int) -> Callable[[Standing, Any], None]:
    """Interrupt a search once it has some results."""

    def stop(standing: Standing, _search: Any) -> None:
        nonlocal count
        count -= 1
        if count == 0:
            raise KeyboardInterrupt

    return stop


def test_a_search_that_was_interrupted_goes_on(made: tuple[Path, Path], out: Path) -> None:
    """What was scored while nobody led is not scored again."""
    file, alone = made
    with pytest.raises(KeyboardInterrupt):
        search_with_workers(file, out, "local:1", on_standing=stopped_after(3))
    assert len(lines(out)) == 3
    assert not list((out / FOLDER).glob("*.claim"))
    done = CliRunner().invoke(cli.main, ["worker", str(out)])
    assert done.exit_code == 0, done.output
    assert "no process leads the search now" in done.output
    leader = Claims(out / FOLDER).take(LEADER)
    assert leader is not None
    leave_behind(leader)
    generated = {path.name: path.stat().st_mtime_ns for path in (out / "samples").glob("m_*")}
    assert len(generated) == 4
    search_with_workers(file, out, "local:1")
    assert contents(out) == contents(alone)
    for name, changed in generated.items():
        assert (out / "samples" / name).stat().st_mtime_ns == changed


def test_a_candidate_that_cannot_be_scored_ends_the_search(
    made: tuple[Path, Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, alone = made
    score = Stage.score

    def refuse(self: Stage, model: StudyModel, *arguments: Any) -> Any:
        if model.entry.name == "m_003":
            raise InputError("broken")
        return score(self, model, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "score", refuse)
        with pytest.raises(InputError) as error:
            search_with_workers(file, out, "local:1")
    assert_one_line(str(error.value), "candidate m_003, on ", "broken")
    assert len(lines(out)) == 2
    search_with_workers(file, out, "local:1")
    assert unordered(out) == unordered(alone)


def leave_behind(claim: Claim) -> None:
    """Leave a claim as a worker does that was killed long ago."""
    claim._over.set()
    claim._thread.join()
    os.utime(claim.file, (0, 0))


@pytest.mark.parametrize("deadly", ["m_001", "m_004"])
def test_a_candidate_that_kills_its_workers_counts_as_failed(
    made: tuple[Path, Path], out: Path, monkeypatch: pytest.MonkeyPatch, deadly: str
) -> None:
    """Others follow; but if none has scores yet, the search ends."""
    file, alone = made
    run = working._Unit.run

    def run_or_die(self: working._Unit) -> None:
        if self.name == deadly:
            leave_behind(self.claim)
        else:
            run(self)

    notes: list[str] = []

    def search() -> Any:
        return search_with_workers(file, out, "local:1", on_warning=notes.append)

    with monkeypatch.context() as patch:
        patch.setattr(working._Unit, "run", run_or_die)
        if deadly == "m_001":
            with pytest.raises(MerganserError, match="candidate m_001: 3 workers died while they"):
                search()
            assert lines(out) == []
        else:
            found = search()
    if deadly == "m_001":
        search()
        assert unordered(out) == unordered(alone)
        return
    [note] = [note for note in notes if "m_004" in note]
    assert_one_line(note, "candidate m_004 counts as failed: 3 workers died", str(os.getpid()))
    assert [trial.invalid is None for trial in found.trials] == [n != 4 for n in range(1, 7)]
    assert "m_004" not in [entry.name for entry in found.found.entries]
    assert "3 workers died" in lines(out)[3]["invalid"]


def test_a_search_has_one_leader(file: Path, out: Path) -> None:
    claims = Claims(out / FOLDER)
    leader = claims.take(LEADER)
    assert leader is not None
    with pytest.raises(OutputExistsError) as error:
        search_with_workers(file, out, "local:1")
    assert_one_line(str(error.value), "another process leads a search there", "merganser worker")
    leader.release()
    dead = Claims(out / FOLDER, stale=-1)
    while dead.take(LEADER):
        pass
    with pytest.raises(MerganserError, match="3 processes died while they led the search"):
        searching._take_lead(searching.parse("join"), claims, Worker(*_of(file, out)))


def _of(file: Path, out: Path) -> tuple[Any, ...]:
    from merganser.workers import study_file

    study = study_file.read(out)
    prepared = study.prepare(out)
    return prepared, study, None


def test_both_functions_take_the_same_keywords() -> None:
    known = inspect.signature(merganser.search).parameters.values()
    keywords = {each.name for each in known if each.kind is inspect.Parameter.KEYWORD_ONLY}
    assert keywords | set(MergeKeywords.__annotations__) == set(SearchKeywords.__annotations__)


def test_the_command(made: tuple[Path, Path], out: Path) -> None:
    file, alone = made
    arguments = ["search", str(file), str(out), "--workers", "local:1", "--no-report"]
    done = CliRunner().invoke(cli.main, arguments)
    assert done.exit_code == 0, done.output
    assert f"candidate 6 of 6 by process {os.getpid()} (w=" in done.output
    assert f"a by process {os.getpid()}: letters" in done.output
    assert contents(out) == contents(alone)


@pytest.mark.slow
def test_a_killed_worker_s_candidate_goes_to_another(
    made: tuple[Path, Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real processes, one of which is killed as it scores; with two workers, and generations."""
    file, _ = made
    monkeypatch.setattr(searching, "make_crew", driving.make_crew)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    by_generation = file.with_name("random.yml")
    by_generation.write_text(file.read_text().replace("tpe", "random"))
    merganser.search(by_generation, out.with_name("apart"))
    killed: list[int] = []

    def kill(standing: Standing, _search: Any) -> None:
        for claim in () if killed else sorted((out / FOLDER).glob("m_*.claim")):
            process = json.loads(claim.read_text())["process"]
            os.kill(process, signal.SIGKILL)
            killed.append(process)

    found = search_with_workers(by_generation, out, "local:2", threads=1, on_standing=kill)
    assert killed
    assert found.found == results.read(out.with_name("apart"))
    shutil.rmtree(out.with_name("apart"))
