"""A search whose candidates are scored in any order: its history gives the same candidates again."""

from __future__ import annotations

import json
import random
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from merganser.errors import InputError
from merganser.reports import live
from merganser.results.scores import Score
from merganser.study import history
from merganser.study.exploration import Candidate, Exploration, Trial, checked
from merganser.study.optimisers import Asynchronous, optimiser
from merganser.study.search_axes import Axis
from merganser.study.search_loop import best, explore, open_history
from merganser.study.search_space import Method, Search, load_search
from messages import assert_one_line

OVER = {"x": {"from": 0, "to": 1}, "y": {"from": 0, "to": 1}}
TWO = {"loss": "min", "x": "min"}
EARLY: list[Method] = ["tpe", "random", "front"]
METHODS: list[Method] = ["cma-es", "tpe", "nsga-ii", "random", "front"]


def search_by(method: Method, budget: int = 23) -> Search:
    over = {"x": OVER["x"]} if method == "front" else OVER
    models = [{"model": "a"}] + [
        {"model": key, "parameters": {"weight": f"{{{{ {key} }}}}"}} for key in over
    ]
    block = {
        **{"over": over, "method": method, "budget": budget, "population": 6},
        "objectives": TWO if method in ("nsga-ii", "front") else {"loss": "min"},
    }
    return load_search({"merge_method": "linear", "models": models, "search": block})


def score(candidate: Candidate) -> dict[str, float | Score]:
    x, y, *_ = [*candidate.values.values(), 0.3]
    return {"loss": (x - 0.3) ** 2 + (y - 0.3) ** 2, "x": x}


def at_once(search: Search, folder: Path, workers: int, *, stop: int = 10**6) -> list[Candidate]:
    """Search with imaginary workers, which end in a random order; return the candidates as they were asked.

    Args:
        search: the search.
        folder: the folder of its history.
        workers: how many candidates are scored at the same time.
        stop: how many results come in before the process is killed.
    """
    draw = random.Random(stop)
    asked: dict[int, Candidate] = {}
    with closing(open_history(search, folder, None)) as log:
        state = Exploration(search, log, lambda _: {})
        while len(state.trials) < stop and (state.open or state.ask()):
            settled = state.settled(next(iter(state.open.values())))
            while settled is None and len(state.to_score) < workers and state.ask_early():
                pass
            asked |= state.open
            free = state.to_score[:workers]
            candidate = draw.choice(free) if free else next(iter(state.open.values()))
            state.record(settled or Trial(candidate, checked(search, candidate, score(candidate))))
    return list(asked.values())


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / history.NAME).read_text().splitlines()][1:]


@pytest.mark.parametrize("method", METHODS)
def test_the_history_gives_the_same_candidates_again(tmp_path: Path, method: Method) -> None:
    """Whatever the order in which results came in: when it is replayed, resumed or goes on alone."""
    search = search_by(method)
    asked = at_once(search, tmp_path, 3)
    log = lines(tmp_path)
    results = [line["candidate"] for line in log if "candidate" in line]
    assert sorted(results) == list(range(1, 24))
    assert results != sorted(results)
    assert any("before" in line for line in log)
    assert any("ask" in line for line in log) == (method in EARLY)
    written = (tmp_path / history.NAME).read_bytes()
    trials = explore(search, pytest.fail, tmp_path)
    assert [trial.candidate for trial in trials] == asked
    assert (tmp_path / history.NAME).read_bytes() == written
    assert [entry.name for entry in live.read_history(tmp_path).entries] == [
        line["name"] for line in log if "candidate" in line and "same_as" not in line
    ]

    # Killed anywhere, it goes on with the candidates that were asked for.
    cut = tmp_path / "cut"
    cut.mkdir()
    for size in (len(written) // 3, len(written) // 2, len(written) * 3 // 4):
        (cut / history.NAME).write_bytes(written[:size])
        known = [line["candidate"] for line in lines_of(written[:size]) if "candidate" in line]
        early = [line["ask"] for line in lines_of(written[:size]) if "ask" in line]
        trials = explore(search, score, cut)
        assert len(trials) == 23
        upto = max([*known, *early])
        assert [t.candidate for t in trials[:upto]] == asked[:upto]


def lines_of(written: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written.rpartition(b"\n")[0].splitlines()][1:]


@pytest.mark.parametrize("method", METHODS)
def test_one_worker_is_none(tmp_path: Path, method: Method) -> None:
    """One worker gets the candidates of a search in one process, and leaves the same history."""
    search = search_by(method)
    explore(search, score, tmp_path / "alone")
    at_once(search, tmp_path / "one", 1, stop=9)
    at_once(search, tmp_path / "one", 1)
    histories = [(tmp_path / name / history.NAME).read_bytes() for name in ("alone", "one")]
    assert histories[0] == histories[1]


@pytest.mark.parametrize("method", ["cma-es", "nsga-ii", "random"])
def test_generations_do_not_depend_on_the_order_of_their_results(
    tmp_path: Path, method: Method
) -> None:
    search = search_by(method)
    alone = explore(search, score, tmp_path / "alone")
    assert at_once(search, tmp_path / "four", 4) == [trial.candidate for trial in alone]


@pytest.mark.parametrize("method", EARLY)
def test_workers_that_are_free_get_candidates(method: Method) -> None:
    """Three positions wait for results, and the next one is neither of them."""
    chooser = optimiser(method, [Axis()], objectives=2, population=5)
    assert isinstance(chooser, Asynchronous)
    first = chooser.ask()
    assert len(first) == 5
    if method == "front":  # the grid comes first
        assert chooser.ask_early() == []
        from merganser.study.optimisers import Verdict

        chooser.tell([Verdict(p, (p[0] ** 2, -p[0]), (), n) for n, p in enumerate(first, 1)])
    early = [position for _ in range(3) for position in chooser.ask_early()]
    assert len({*first, *early}) == 8


def test_tpe_with_many_workers_finds_what_one_finds(tmp_path: Path) -> None:
    search = search_by("tpe", 80)
    at_once(search, tmp_path, 4)
    [winner] = best(search, explore(search, pytest.fail, tmp_path))
    assert winner.scores["loss"].mean < 5e-3


def test_the_values_of_a_candidate_that_is_being_scored_are_not_scored_twice(
    tmp_path: Path,
) -> None:
    models = [
        {"model": "a"},
        {"model": "b", "parameters": {"weight": "{{ 1 if k == 'x' else 2 }}"}},
    ]
    block = {"over": {"k": ["x", "y"]}, "objectives": "gain", "budget": 6, "method": "random"}
    search = load_search({"merge_method": "linear", "models": models, "search": block})
    with closing(open_history(search, tmp_path, None)) as log:
        state = Exploration(search, log, lambda _: {})
        assert state.ask()
        first, second = state.to_score
        assert {first.values["k"], second.values["k"]} == {"x", "y"}
        state.record(Trial(second, checked(search, second, {"gain": 2.0})))
        same = [c for c in state.open.values() if state.settled(c)]
        assert same
        assert {c.values["k"] for c in same} == {second.values["k"]}
        assert state.to_score == [first]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda log: [line for line in log if '"candidate": 3,' not in line], "candidate 3 was"),
        (lambda log: [line for line in log if "ask" not in line], "was another one"),
        (lambda log: [line.replace('"before": 1', '"before": 2') for line in log], "was another"),
        (lambda log: [*log, '{"ask": 23}\n'], "candidate 23 was another one"),
    ],
)
def test_a_history_that_was_changed_is_refused(tmp_path: Path, change: Any, complaint: str) -> None:
    search = search_by("random")
    at_once(search, tmp_path, 3)
    file = tmp_path / history.NAME
    file.write_text("".join(change(file.read_text().splitlines(keepends=True))))
    with pytest.raises(InputError) as error:
        explore(search, score, tmp_path)
    assert_one_line(str(error.value), str(file), complaint)
