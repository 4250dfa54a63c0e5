"""Studies whose models several workers score: the same results as in one process, whatever dies."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import peers
from merganser import cli
from merganser.errors import InputError, MerganserError, OutputExistsError
from merganser.evaluation.scorer_calls import ScorerError
from merganser.results import scores as results
from merganser.study import participants
from merganser.study.evaluate import evaluate_sweep
from merganser.study.live_model import LiveModel
from merganser.study.progress import Event, Scored, Scoring
from merganser.workers import driving, study_file, working
from merganser.workers.claims import Claims
from merganser.workers.driving import sweep_with_workers
from merganser.workers.study_file import FOLDER
from merganser.workers.working import Worker, work
from messages import assert_one_line
from shared_study import begin, contents, until

NAMES = ["a", "b", "m_w0.3", "m_w0.7"]


def test_a_worker_scores_what_one_process_scores(
    made: tuple[Path, Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a worker, the command finds everything scored, and writes the same bytes."""
    file, alone = made
    begin(file, out, monkeypatch)
    done = CliRunner().invoke(cli.main, ["worker", str(out), "--json"])
    assert json.loads(done.stdout) == {"scored": NAMES}, done.output
    assert work(out) == []
    events: list[Event] = []
    found = sweep_with_workers(file, out, "join", on_progress=events.append)
    assert sum(event.generated for event in events if isinstance(event, Scoring)) == 0
    assert contents(out) == contents(alone)
    assert found == results.read(alone)
    assert work(out) == []  # a worker that comes late
    (out / results.JSON_NAME).unlink()
    with pytest.raises(
        InputError, match=r"no work with workers was begun there; begin it by merganser sweep"
    ):
        work(out)


def test_a_worker_whose_claim_is_gone_stops_without_writing(
    file: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one takes the completions over that it has generated."""
    study = begin(file, out, monkeypatch)
    claims = Claims(out / FOLDER, beat=0.005)
    notes: list[str] = []
    generated: dict[str, int] = {}

    def listen(event: Event) -> None:
        if isinstance(event, Scored):
            generated[event.turn.model] = event.generated
        elif not notes and event.done == 3:
            owner = json.loads(next((out / FOLDER).glob("a.1.claim")).read_text())
            assert claims.lose("a", owner["worker"])
            notes.append("lost")
            time.sleep(0.3)
        elif notes == ["lost"]:
            notes.append(f"went on with {event.turn.model}")

    def warn(text: str) -> None:
        notes.append(text)
        assert not (out / "samples" / "a.jsonl").exists()

    prepared = study.prepare(out)
    worker = Worker(prepared, study, prepared.make_live(None), listen, warn)
    worker.run(claims)
    assert notes[:2] == ["lost", "another worker has taken over a"]
    assert sorted(worker.scored) == NAMES
    assert generated["a"] == 0
    assert claims.tried("a")


def test_a_model_that_cannot_be_scored_is_named_and_the_others_are_scored(
    made: tuple[Path, Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, alone = made
    become = LiveModel.become

    def refuse(self: LiveModel, plan: Any, **options: Any) -> Any:
        if "0.3" in str(plan.recipe.recipe.models):
            raise InputError("broken")
        return become(self, plan, **options)

    with monkeypatch.context() as patch:
        patch.setattr(LiveModel, "become", refuse)
        notes: list[str] = []
        with pytest.raises(InputError, match="broken"):
            sweep_with_workers(file, out, "join", on_warning=notes.append)
    assert notes == ["m_w0.3 cannot be scored: broken", "m_w0.7 cannot be scored: broken"]
    assert Claims(out / FOLDER).record("m_w0.3")["kind"] == "InputError"
    assert work(out) == []
    scored: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Scored) and event.generated:
            scored.append(event.turn.model)

    sweep_with_workers(file, out, "join", on_progress=listen)
    assert scored == ["m_w0.3", "m_w0.7"]
    assert contents(out) == contents(alone)


def test_other_inputs_are_refused_before_anything_starts(
    tmp_path: Path, made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copied"
    shutil.copytree(made[0].parent, folder)
    file, out = folder / "study.yml", folder / "out"
    study = begin(file, out, monkeypatch)
    peers.make_model(folder / "b", seed=9, layers=1)
    with pytest.raises(InputError) as refused:
        work(out)
    assert_one_line(
        str(refused.value), "inputs or versions differ on this machine", "the model ./b"
    )
    units = {n: {**u, "the version of torch": "1.0"} for n, u in study.units.items()}
    with pytest.raises(InputError, match=r"the version of torch \(1\.0 here, \d.* there\)$"):
        study.check_same(units)
    with pytest.raises(InputError, match="the model c is not in both"):
        study.check_same({**study.units, "c": {}})
    shutil.move(folder / "b", folder / "gone")
    with pytest.raises(MerganserError) as refused:
        work(out)
    assert_one_line(str(refused.value), "on ", "./b")
    file.unlink()
    with pytest.raises(InputError, match=r"does not see .*study\.yml"):
        work(out)
    assert not list((out / FOLDER).glob("*.claim"))


def test_two_studies_in_one_folder_do_not_mix(
    file: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(file, out, monkeypatch)
    claim = Claims(out / FOLDER).take("a")
    assert claim is not None
    with pytest.raises(OutputExistsError, match="workers score other models there, such as a"):
        sweep_with_workers(file, out, "join", only=["w=0.7"])
    claim.release()


def test_a_scorer_that_fails_shows_what_it_shows_in_one_process(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    """The message, the traceback and what stays on disk, whichever process has run the scorer."""
    folder = tmp_path / "copied"
    shutil.copytree(made[0].parent, folder)
    file = folder / "study.yml"
    (folder / "mine.py").write_text(
        "def boxed(completion, problem):\n    return {True: 1}['boxed' in completion]\n"
    )
    file.write_text(file.read_text().replace("[exact, tokens]", "['mine.py:boxed']"))
    with pytest.raises(ScorerError) as alone:
        evaluate_sweep(file, folder / "one")
    with pytest.raises(ScorerError):
        sweep_with_workers(file, folder / "out", "join")
    claims = Claims(folder / "out" / FOLDER)
    with pytest.raises(MerganserError) as shared:
        driving.check_all_done(study_file.read(folder / "out"), claims)
    assert str(alone.value) in str(shared.value)
    assert "KeyError: False" in alone.value.details
    assert shared.value.details == alone.value.details
    [note] = alone.value.__notes__
    assert shared.value.__notes__ == [note.replace(f"{folder}/one", f"{folder}/out")]
    assert (folder / "out" / "samples" / "a.jsonl").exists()


def test_a_worker_that_hangs_gives_its_model_up(
    file: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its claim is free for others; it goes on if it wakes up; three of them are named."""
    study = begin(file, out, monkeypatch)
    claims = Claims(out / FOLDER, beat=0.005)
    become = LiveModel.become
    notes: list[str] = []
    hung = threading.Event()

    def hang(self: LiveModel, plan: Any, **options: Any) -> Any:
        if not notes:
            assert hung.wait(30)
        return become(self, plan, **options)

    def on_hang(text: str) -> None:
        notes.append(text)
        hung.set()

    monkeypatch.setattr(LiveModel, "become", hang)
    prepared = study.prepare(out)
    worker = Worker(prepared, replace(study, stall=1.0), prepared.make_live(None), on_hang=on_hang)
    worker.run(claims)
    [note] = notes
    assert_one_line(note, "no progress on a for 0.01", " minutes")
    assert sorted(worker.scored) == NAMES
    [owner] = claims.tried("a")
    assert owner.hung > 0.99
    claims.forget("b")
    for number in (1, 2, 3):
        file_of_claim = out / FOLDER / f"b.{number}.lost"
        file_of_claim.write_text((out / FOLDER / "a.1.lost").read_text())
    with pytest.raises(MerganserError) as named:
        driving.check_all_done(study, claims)
    assert_one_line(
        str(named.value), "model b: 3 workers died or hung", "without progress for", "stall=7200"
    )


def test_claims_of_workers_go_with_the_next_run_of_one_process(
    made: tuple[Path, Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, alone = made
    begin(file, out, monkeypatch)
    claim = Claims(out / FOLDER).take("a")
    assert claim is not None
    evaluate_sweep(file, out)
    assert (out / FOLDER).exists()  # a worker is at work
    claim.release()
    evaluate_sweep(file, out)
    assert contents(out) == contents(alone)


def test_a_study_with_workers_is_planned_once(
    file: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[str] = []
    make_plan = participants.make_plan

    def count(*arguments: Any) -> Any:
        planned.append("expert")
        return make_plan(*arguments)

    monkeypatch.setattr(participants, "make_plan", count)
    sweep_with_workers(file, out, "join")
    assert planned == ["expert", "expert"]


def test_results_that_kill_their_writers_are_given_up(
    file: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(file, out, monkeypatch)
    claims = Claims(out / FOLDER, stale=-1)
    for _ in range(3):
        assert claims.take(driving.RESULTS)
    assert claims.take(driving.RESULTS) is None
    with pytest.raises(MerganserError, match="3 processes died while they wrote the results"):
        driving._finish(out, claims, lambda: results.read(out))


@pytest.mark.slow
def test_a_killed_worker_s_model_goes_to_another(
    made: tuple[Path, Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, one of which is killed as it scores; the driver replaces it at once."""
    file, alone = made
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    killed: list[int] = []

    def kill() -> None:
        claims = lambda: sorted((out / FOLDER).glob("*.claim"))  # noqa: E731
        text = until(lambda: next(iter([t for c in claims() if (t := c.read_text())]), None))
        process = json.loads(text)["process"]
        os.kill(process, signal.SIGKILL)
        killed.append(process)

    killer = threading.Thread(target=kill)
    killer.start()
    found = sweep_with_workers(file, out, "local:2", threads=1)
    killer.join()
    assert killed
    assert killed[0] != os.getpid()
    assert contents(out) == contents(alone)
    assert found == results.read(alone)


def join_hastily(file: Path, out: Path) -> None:
    """Join a study, in a process that takes others for dead after a second."""
    defaults = Claims.__init__.__kwdefaults__
    assert defaults is not None
    defaults.update(beat=0.1, stale=1.0)
    working.WAIT = driving.WAIT = 0.05
    sweep_with_workers(file, out, "join", threads=1)


@pytest.mark.slow
def test_after_kills_at_random_moments_the_results_are_the_same(
    made: tuple[Path, Path], out: Path
) -> None:
    """Processes of which each is worker and driver; every study ends with one process's bytes."""
    file, alone = made
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["merganser.workers.driving", "transformers.models.llama.modeling_llama"]
    )
    draw = random.Random(0)
    kills = finished = 0
    while kills < 30 or not finished:
        processes = [context.Process(target=join_hastily, args=(file, out)) for _ in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(draw.uniform(0, 4) if kills < 30 else 100)
            if process.is_alive():
                process.kill()
                kills += 1
            process.join()
        if not (out / FOLDER).exists() and (out / "results.json").exists():
            assert contents(out) == contents(alone)
            shutil.rmtree(out)
            finished += 1
    assert finished
