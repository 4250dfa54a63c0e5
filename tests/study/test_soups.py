"""Searches over weights that add up to one, and greedy soups of models."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints_on_disk import make_model
from merganser.errors import RecipeError
from merganser.results.scores import Addition
from merganser.study import search_loop
from merganser.study.exploration import Candidate
from merganser.study.optimisers import Greedy, Verdict
from merganser.study.search_axes import Axis, Simplex
from merganser.study.search_loop import explore
from merganser.study.search_space import load_search
from messages import assert_one_line

NAMES = ("acc", "fmt", "len")


def simplex_search(**block: Any) -> dict[str, Any]:
    models = [{"model": name, "parameters": {"weight": f"{{{{ w.{name} }}}}"}} for name in NAMES]
    given = {"over": {"w": {"simplex": list(NAMES)}}, "objectives": {"accuracy": "max"}}
    return {"merge_method": "linear", "models": models, "search": given | block}


@given(
    position=st.lists(st.floats(0, 1), min_size=1, max_size=6),
    parts=st.none() | st.sampled_from([1, 2, 5, 10, 20]),
)
@settings(deadline=None)
def test_every_position_gives_weights_that_sum_to_one(
    position: list[float], parts: int | None
) -> None:
    names = tuple(f"m{i}" for i in range(len(position) + 1))
    simplex = Simplex(names, parts)
    assert len(simplex.axes) == len(position)
    weights = [Decimal(repr(weight)) for weight in simplex.value(position).values()]
    assert sum(weights) == 1
    assert min(weights) >= 0
    if parts is not None:
        assert all(weight * parts == int(weight * parts) for weight in weights)


@pytest.mark.parametrize("method", ["cma-es", "tpe"])
def test_it_finds_the_best_weights(tmp_path: Path, method: str) -> None:
    best = {"acc": 0.6, "fmt": 0.3, "len": 0.1}

    def score(candidate: Candidate) -> Mapping[str, float]:
        return {"accuracy": -sum((candidate.values[f"w.{n}"] - best[n]) ** 2 for n in NAMES)}

    search = load_search(simplex_search(method=method, budget=80))
    trials = explore(search, score, tmp_path)
    [found] = search_loop.best(search, trials)
    assert found.scores["accuracy"].mean > -0.01
    for trial in trials:
        assert sum(Decimal(repr(w)) for w in trial.candidate.values.values()) == 1


def test_steps_of_a_simplex_are_tried_once_each(tmp_path: Path) -> None:
    over = {"w": {"simplex": list(NAMES), "step": 0.5}}
    search = load_search(simplex_search(over=over, method="random", budget=60))
    trials = explore(search, lambda _: {"accuracy": 1.0}, tmp_path)
    fresh = [trial for trial in trials if trial.same_as is None]
    assert len(fresh) == 6
    assert str(search.over["w"]) == "acc, fmt, len, which add up to 1 in steps of 1/2"


# -- greedy ----------------------------------------------------------------------------------------


def greedy(models: Sequence[Any], **block: Any) -> dict[str, Any]:
    given = {"method": "greedy", "from": list(models), "objectives": {"accuracy": "max"}}
    return {"search": given | block, "dtype": "bfloat16"}


def souped(worth: Mapping[str, float], pairs: Mapping[frozenset[str], float]) -> Any:
    """A score of soups: the mean of the models' worths, and what some of them are worth together."""

    def score(candidate: Candidate) -> Mapping[str, float]:
        assert candidate.point is not None
        models = [m["model"] for m in candidate.point.recipe.data["models"]]
        mean = sum(worth[m] for m in models) / len(models)
        return {"accuracy": mean + sum(v for pair, v in pairs.items() if pair <= set(models))}

    return score


def test_a_soup_keeps_what_makes_it_better(tmp_path: Path) -> None:
    worth = {"a": 0.5, "b": 0.8, "c": 0.7, "d": 0.6}
    together = {frozenset("bd"): 0.3, frozenset("bc"): 0.01}
    search = load_search(greedy("abcd"))
    assert search.budget == 7
    trials = explore(search, souped(worth, together), tmp_path)
    tried = [
        "".join(m["model"] for m in t.candidate.point.recipe.data["models"])  # type: ignore[union-attr]
        for t in trials
    ]
    # b is best alone; c makes it worse; d makes it better; then a makes it worse.
    assert tried == ["a", "b", "c", "d", "bc", "bd", "abd"]
    [best] = search_loop.best(search, trials)
    assert best.candidate.values == {"soup.a": 0, "soup.b": 1, "soup.c": 0, "soup.d": 1}
    point = best.candidate.point
    assert point is not None
    assert point.recipe.data["models"] == [
        {"model": "b", "parameters": {"weight": 1}},
        {"model": "d", "parameters": {"weight": 1}},
    ]
    assert point.recipe.data["merge_method"] == "linear"
    name = dict(zip(tried, (trial.candidate.name for trial in trials), strict=True))
    assert search_loop.additions(search, trials) == (
        Addition(name["bc"], name["b"], False),
        Addition(name["bd"], name["b"], True),
        Addition(name["abd"], name["bd"], False),
    )
    assert len(search_loop.additions(search, trials[:6])) == 2
    assert search_loop.additions(search, trials[:3]) == ()


@given(seed=st.integers(0, 10_000), count=st.integers(2, 7), equal=st.booleans())
@settings(deadline=None, max_examples=40)
def test_greedy_is_the_published_loop(seed: int, count: int, equal: bool) -> None:
    draw = random.Random(seed)
    scores: dict[tuple[float, ...], float] = {}

    def score(position: tuple[float, ...]) -> float:
        return scores.setdefault(position, float(draw.randrange(4)))

    own = Greedy((Axis(2),) * count, equal)
    asked = []
    while positions := own.ask():
        asked += positions
        own.tell([Verdict(p, (-score(p),), (), 0) for p in positions])

    singles = [tuple(float(i == j) for j in range(count)) for i in range(count)]
    order = sorted(range(count), key=lambda i: -score(singles[i]))
    soup, best = singles[order[0]], score(singles[order[0]])
    wanted = list(singles)
    for i in order[1:]:
        tried = tuple(1.0 if i == j else x for j, x in enumerate(soup))
        wanted.append(tried)
        if score(tried) > best or (equal and score(tried) == best):
            soup, best = tried, score(tried)
    assert asked == wanted


def test_models_may_be_taken_again_until_none_helps(tmp_path: Path) -> None:
    def score(candidate: Candidate) -> Mapping[str, float]:
        a, b = candidate.values["soup.a"], candidate.values["soup.b"]
        return {"accuracy": -abs(a / (a + b) - 0.66)}

    search = load_search(greedy("ab", again=True))
    trials = explore(search, score, tmp_path)
    [best] = search_loop.best(search, trials)
    assert best.candidate.values == {"soup.a": 2, "soup.b": 1}
    assert len(trials) < search.budget


def test_broken_models_and_constraints_come_last(tmp_path: Path) -> None:
    def score(candidate: Candidate) -> Mapping[str, float]:
        a, b = candidate.values["soup.a"], candidate.values["soup.b"]
        return {"accuracy": 0.9 * a + 0.1 * b, "tokens": 1000.0 * a + 10 * b}

    search = load_search(greedy("ab", constraints={"tokens": {"most": 100}}))
    [best] = search_loop.best(search, explore(search, score, tmp_path))
    assert best.candidate.values == {"soup.a": 0, "soup.b": 1}


def test_a_soup_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    worth = {"a": 0.5, "b": 0.8, "c": 0.7}
    score = souped(worth, {frozenset("abc"): 1.0})
    whole = explore(load_search(greedy("abc")), score, tmp_path / "whole")
    calls = 0

    def failing(candidate: Candidate) -> Mapping[str, float]:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise KeyboardInterrupt
        found: Mapping[str, float] = score(candidate)
        return found

    with pytest.raises(KeyboardInterrupt):
        explore(load_search(greedy("abc")), failing, tmp_path / "cut")
    assert calls == 5
    again = explore(load_search(greedy("abc")), score, tmp_path / "cut")
    assert [t.candidate.values for t in again] == [t.candidate.values for t in whole]
    histories = [(tmp_path / n / "history.jsonl").read_text() for n in ("whole", "cut")]
    assert histories[0] == histories[1]
    assert json.loads(histories[0].splitlines()[0])["settings"]["search"]["from"] == ["a", "b", "c"]


def test_steps_of_a_run_are_souped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for step in (6, 12, 18):
        make_model(tmp_path / "runs" / "acc" / f"global_step_{step}", seed=step)
    search = load_search(greedy([{"run": "runs/acc", "steps": {"last": 2}}, "other"]))
    values = search.values((1.0, 0.0, 1.0))
    point = search.pattern.point(values, 3)
    assert [m["model"] for m in point.recipe.data["models"]] == ["runs/acc/global_step_12", "other"]
    assert point.name.endswith("_003")


@pytest.mark.parametrize(
    ("block", "parts"),
    [
        ({"from": ["a"]}, ("search.from", "2 to 200 models")),
        ({"from": []}, ("search.from", "2 to 200 models")),
        ({"from": ["a", "a"]}, ("search.from", "a is listed twice")),
        ({"from": ["a", 3]}, ("search.from[1]", "is a model, or steps of a run")),
        ({"from": ["a", {"run": "nowhere"}]}, ("nowhere: is not a folder of a run",)),
        ({"over": {"w": [1, 2]}}, ("search.over", "a greedy search has from")),
        ({"objectives": {"a": "max", "b": "min"}}, ("greedy takes one objective",)),
        ({"again": 1}, ("search.again", "true or false")),
        ({"method": "tpe"}, ("the key 'over' is missing",)),
    ],
)
def test_what_is_wrong_with_a_greedy_search(block: Any, parts: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError) as error:
        load_search(greedy("ab", **block))
    assert_one_line(str(error.value), *parts)


def test_a_greedy_search_has_no_models_of_its_own() -> None:
    with pytest.raises(RecipeError) as error:
        load_search(greedy("ab") | {"models": [{"model": "c"}]})
    assert_one_line(str(error.value), "models: a greedy search merges the models of search.from")


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"simplex": ["a"]}, ("search.over.w.simplex", "two or more names")),
        ({"simplex": ["a", "b"], "step": 0.3}, ("search.over.w.step", "cannot add up to 1")),
        ({"simplex": ["a", "b"], "layers": [3]}, ("search.over.w.layers", "simplex takes step")),
    ],
)
def test_what_is_wrong_with_a_simplex(given: Any, parts: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError) as error:
        load_search(simplex_search(over={"w": given}))
    assert_one_line(str(error.value), *parts)
