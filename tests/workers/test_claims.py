"""Claims: one worker has a unit, whatever they all do at once and whenever one dies."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from merganser.workers.claims import STALE, TRIES, Claim, ClaimLost, Claims


def die(claim: Claim, *, long_ago: bool = True) -> None:
    """Leave a claim as a killed worker does."""
    claim._over.set()
    claim._thread.join()
    if long_ago:
        past = time.time() - STALE - 1
        os.utime(claim.file, (past, past))


def at_once(count: int, work: Callable[[], None]) -> None:
    """Run work in several threads that start together."""
    start = threading.Barrier(count)

    def run(_: int) -> None:
        start.wait()
        work()

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(run, range(count)))


def test_of_four_workers_each_unit_is_one_s(tmp_path: Path) -> None:
    units = [f"m_w0.{n}" for n in range(12)]
    done: list[str] = []

    def work() -> None:
        claims = Claims(tmp_path)
        while any(claims.state(unit) in ("free", "claimed") for unit in units):
            for unit in units:
                if claim := claims.take(unit):
                    done.append(unit)
                    claim.finish({"by": claim.owner.token})

    at_once(4, work)
    assert Counter(done) == Counter(units)
    assert not list(tmp_path.glob("*.claim"))


def test_a_stale_claim_has_one_successor(tmp_path: Path) -> None:
    first = Claims(tmp_path).take("unit")
    assert first is not None
    assert Claims(tmp_path).take("unit") is None
    die(first)
    taken: list[Claim | None] = []
    at_once(8, lambda: taken.append(Claims(tmp_path).take("unit")))
    [successor] = [claim for claim in taken if claim is not None]
    successor.check()
    with pytest.raises(ClaimLost):
        first.finish({})
    assert Claims(tmp_path).state("unit") == "claimed"
    assert Claims(tmp_path).tried("unit") == [first.owner]
    successor.release()
    assert Claims(tmp_path).state("unit") == "free"


def test_age_is_by_the_file_system_s_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = Claims(tmp_path).take("unit")
    assert claim is not None
    real = time.time()
    monkeypatch.setattr(time, "time", lambda: real + 10 * STALE)
    assert Claims(tmp_path).take("unit") is None
    claim.release()


def test_a_living_worker_keeps_its_claim_fresh_and_learns_of_its_loss(tmp_path: Path) -> None:
    claims = Claims(tmp_path, beat=0.01)
    claim = claims.take("unit")
    assert claim is not None
    os.utime(claim.file, (0, 0))
    deadline = time.monotonic() + 10
    while claim.file.stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert claims.take("unit") is None
    assert claims.owner("unit") == claim.owner
    assert not claims.lose("unit", "another")
    assert claims.lose("unit", claim.owner.worker)
    while not claim.is_lost and time.monotonic() < deadline:
        time.sleep(0.01)
    assert claim.is_lost
    claim.release()
    assert claims.state("unit") == "free"


def test_a_unit_that_kills_its_workers_is_given_up(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    for _ in range(TRIES):
        claim = claims.take("unit")
        assert claim is not None
        die(claim)
    assert claims.take("unit") is None
    assert claims.state("unit") == "given up"
    assert len(claims.tried("unit")) == TRIES
    claims.forget("unit")
    again = claims.take("unit")
    assert again is not None
    again.fail({"error": "no"})
    assert claims.record("unit") == {"error": "no"}
    assert claims.take("unit") is None


def test_a_worker_without_progress_gives_its_claim_up(tmp_path: Path) -> None:
    claims = Claims(tmp_path, beat=0.01)
    claim = claims.take("unit")
    assert claim is not None
    hung: list[float] = []
    given_up = threading.Event()

    def on_hang(seconds: float) -> None:
        hung.append(seconds)
        given_up.set()

    claim.watch(0.3, on_hang)
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        claim.progress()
        time.sleep(0.001)
    assert not given_up.is_set()
    assert given_up.wait(10)
    assert hung[0] == pytest.approx(0.31, abs=0.015)
    with pytest.raises(ClaimLost):
        claim.finish({})
    [owner] = claims.tried("unit")
    assert (owner.token, owner.hung) == (claim.owner.token, hung[0])
    assert "without progress for 0.005" in str(owner)
    assert Claims(tmp_path).take("unit") is not None
