"""Searches find known optima, go on where they were cut off, and say what is wrong before they start."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import merganser
from checkpoints_on_disk import make_model, tree
from merganser import cli
from merganser.errors import InputError, MerganserError, OutputExistsError, RecipeError
from merganser.planning import PlanOptions
from merganser.publishing import study_cards
from merganser.reports import live
from merganser.results import scores
from merganser.study import history
from merganser.study.exploration import Candidate
from merganser.study.optimisers import Front, Verdict
from merganser.study.search_axes import Axis
from merganser.study.search_loop import Standing, best, explore, invalid_ends
from merganser.study.search_space import load_search
from messages import assert_one_line
from recipe_files import RecipeFile

SEARCH = """
name: m_w{{ w }}
search:
  over:
    w: {from: 0, to: 1}
    d: {from: 0.01, to: 1, log: true}
  objectives: {accuracy: max}
  budget: 40
  seed: 1
merge_method: task_arithmetic
base_model: ./a
models:
  - {model: ./b, parameters: {weight: "{{ w }}"}}
  - {model: ./c, parameters: {weight: "{{ d }}"}}
dtype: bfloat16
"""

Score = Callable[[Candidate], Mapping[str, float]]


def search_for(over: Mapping[str, Any], objectives: Any, **block: Any) -> dict[str, Any]:
    """A search as a mapping, whose recipe speaks of all its keys."""
    models = [{"model": "a"}] + [
        {"model": f"b{i}", "parameters": {"weight": f"{{{{ {key} }}}}"}}
        for i, key in enumerate(over)
    ]
    found = {"over": dict(over), "objectives": objectives} | block
    return {"merge_method": "linear", "models": models, "search": found}


def values(candidate: Candidate) -> Mapping[str, Any]:
    return candidate.values


def sphere(candidate: Candidate) -> dict[str, float]:
    """Best, with 0, where all numbers are 0.3."""
    numbers = [n for v in values(candidate).values() for n in (v if isinstance(v, list) else [v])]
    return {"loss": sum((number - 0.3) ** 2 for number in numbers)}


def schaffer(candidate: Candidate) -> dict[str, float]:
    """Two objectives whose front is x from 0 to 2 (Schaffer 1985)."""
    x = values(candidate)["x"]
    return {"left": x**2, "right": (x - 2) ** 2}


UNIT = {"from": 0, "to": 1}


# -- finding -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "over", "budget", "loss"),
    [
        ("cma-es", {"x": UNIT, "y": UNIT}, 120, 1e-4),
        ("cma-es", {"g": {**UNIT, "length": 4}}, 250, 1e-3),
        ("cma-es", {"x": UNIT, "k": {**UNIT, "step": 0.1}}, 120, 1e-4),
        ("tpe", {"x": UNIT, "y": UNIT}, 80, 5e-3),
        ("tpe", {"x": UNIT, "k": [0.1, 0.3, 0.5]}, 60, 2e-3),
        ("random", {"x": UNIT}, 60, 1e-2),
    ],
)
def test_it_finds_the_optimum_that_is_known(
    tmp_path: Path, method: str, over: dict[str, Any], budget: int, loss: float
) -> None:
    search = load_search(search_for(over, {"loss": "min"}, method=method, budget=budget))
    trials = explore(search, sphere, tmp_path)
    assert len(trials) == budget
    [winner] = best(search, trials)
    assert winner.scores["loss"].mean <= loss
    if method != "random":
        chance = load_search(search_for(over, {"loss": "min"}, method="random", budget=budget))
        [other] = best(chance, explore(chance, sphere, tmp_path / "chance"))
        assert winner.scores["loss"].mean <= other.scores["loss"].mean


@pytest.mark.parametrize(("method", "budget"), [("tpe", 48), ("nsga-ii", 96), ("front", 48)])
def test_it_finds_the_front_that_is_known(tmp_path: Path, method: str, budget: int) -> None:
    over = {"x": {"from": -4, "to": 6}}
    objectives = {"left": "min", "right": "min"}
    search = load_search(search_for(over, objectives, method=method, budget=budget))
    trials = explore(search, schaffer, tmp_path)
    found = [values(trial.candidate)["x"] for trial in best(search, trials)]
    assert len(found) >= 12
    assert all(-0.3 < x < 2.3 for x in found)  # beyond the ends where nothing better was tried
    assert max(b - a for a, b in zip(sorted(found), sorted(found)[1:], strict=False)) < 0.6
    assert min(found) < 0.3
    assert max(found) > 1.7


def test_more_can_be_better(tmp_path: Path) -> None:
    search = load_search(search_for({"x": UNIT, "y": UNIT}, "gain", budget=60))
    assert search.method == "cma-es"
    trials = explore(search, lambda c: {"gain": -sphere(c)["loss"]}, tmp_path)
    assert best(search, trials)[0].scores["gain"].mean > -1e-3


@pytest.mark.parametrize("method", ["cma-es", "tpe"])
def test_constraints_come_before_objectives(tmp_path: Path, method: str) -> None:
    """The best of the line x + y >= 1 is (0.5, 0.5), and of all (0, 0)."""
    rules = {"sum": {"least": 1}}
    over = {"x": UNIT, "y": UNIT}
    search = load_search(
        search_for(over, {"loss": "min"}, constraints=rules, method=method, budget=100)
    )

    def score(candidate: Candidate) -> dict[str, float]:
        x, y = values(candidate).values()
        return {"loss": x * x + y * y, "sum": x + y}

    trials = explore(search, score, tmp_path)
    [winner] = best(search, trials)
    assert winner.scores["sum"].mean >= 1
    assert winner.scores["loss"].mean < 0.56
    impossible = search_for(over, {"loss": "min"}, constraints={"sum": {"least": 3}}, budget=4)
    search = load_search(impossible)
    assert best(search, explore(search, score, tmp_path / "none")) == ()


def test_the_front_is_filled_where_its_gap_is_widest() -> None:
    chooser = Front([Axis()], 3)
    asked = []
    for _ in range(4):
        positions = chooser.ask()
        asked += [x for (x,) in positions]
        # A cliff between 0.5 and 0.75: that is where points are missing.
        chooser.tell([Verdict((x,), (-x if x < 0.6 else -x - 9, x), (), 0) for (x,) in positions])
    assert asked == [0.0, 0.5, 1.0, 0.75, 0.625, 0.5625]


def test_a_front_of_few_values_ends(tmp_path: Path) -> None:
    over = {"x": {"from": 0, "to": 3, "int": True}}
    objectives = {"left": "min", "right": "min"}
    search = load_search(search_for(over, objectives, method="front", budget=40))
    assert len(explore(search, schaffer, tmp_path)) == 4


# -- values --------------------------------------------------------------------------------------


@given(
    low=st.integers(-1000, 1000),
    width=st.integers(1, 1000),
    digits=st.integers(0, 4),
    position=st.floats(0, 1),
)
def test_values_lie_in_their_range_and_are_short(
    low: int, width: int, digits: int, position: float
) -> None:
    ends = {"from": low / 10**digits, "to": (low + width) / 10**digits}
    search = load_search(search_for({"x": ends}, "s"))
    number = search.values((position,))["x"]
    assert ends["from"] <= number <= ends["to"]
    exact = ends["from"] + position * (ends["to"] - ends["from"])
    assert abs(number - exact) <= 1e-4 * (ends["to"] - ends["from"])
    assert len(f"{abs(number):.12g}") <= 10


def test_every_kind_of_range(tmp_path: Path) -> None:
    over = {
        "n": {"from": 1, "to": 4, "int": True},
        "s": {"from": 0, "to": 1, "step": 0.25},
        "r": {"from": "1e-4", "to": 1, "log": True},
        "p": {"from": 1, "to": 1000, "log": True, "int": True},
        "g": {"from": 0, "to": 1, "length": 3},
        "m": [{"first": "a", "second": "b"}, {"first": "a", "second": "c"}],
        "one": "text",
    }
    search = load_search(search_for(over, "score", method="random"))
    assert len(search.axes) == 8
    low = search.values((0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0))
    assert low == {
        **{"n": 1, "s": 0.0, "r": 0.0001, "p": 1, "g": [0.0, 0.0, 0.0]},
        **{"m": {"first": "a", "second": "b"}, "one": "text"},
    }
    high = search.values((3, 4, 1.0, 1.0, 1.0, 1.0, 1.0, 1))
    assert [type(high[key]) for key in ("n", "s", "p")] == [int, float, int]
    assert (high["n"], high["s"], high["p"], high["m"]["second"]) == (4, 1.0, 1000, "c")
    middle = search.values((1, 2, 0.5, 0.5, 0.25, 0.5, 0.75, 1))
    assert (middle["s"], middle["r"], middle["p"]) == (0.5, 0.01, 32)
    assert middle["g"] == [0.25, 0.5, 0.75]


def test_a_vector_is_a_gradient(recipe_file: RecipeFile) -> None:
    file = recipe_file(
        """
        search: {over: {g: {from: 0, to: 1, length: 3}}, objectives: accuracy}
        merge_method: slerp
        base_model: a
        models: [{model: a}, {model: b}]
        parameters: {t: "{{ g }}"}
        """
    )
    search = load_search(file)
    point = search.pattern.point(search.values((0.25, 0.5, 1.0)), 7)
    assert point.name == "candidate_007"
    assert point.values == {"g": [0.25, 0.5, 1.0]}
    assert point.recipe.data["parameters"] == {"t": [0.25, 0.5, 1.0]}


def test_candidates_of_the_same_values_are_scored_once(tmp_path: Path) -> None:
    search = load_search(search_for({"k": ["x", "y"]}, "score", budget=12))
    asked: list[str] = []

    def score(candidate: Candidate) -> dict[str, float]:
        asked.append(values(candidate)["k"])
        return {"score": len(asked)}

    trials = explore(search, score, tmp_path)
    assert len(trials) == 12
    assert sorted(asked) == ["x", "y"]
    for trial in trials:
        first = trials[(trial.same_as or trial.candidate.number) - 1]
        assert first.candidate.values == trial.candidate.values
        assert first.scores == trial.scores
    assert len(best(search, trials)) == 1


# -- going on ------------------------------------------------------------------------------------


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / history.NAME).read_text().splitlines()]


@pytest.mark.parametrize("method", ["cma-es", "tpe", "nsga-ii", "random"])
def test_a_search_that_was_cut_off_anywhere_goes_on(tmp_path: Path, method: str) -> None:
    over = {"x": UNIT, "y": UNIT}
    objectives = {"loss": "min"} if method != "nsga-ii" else {"loss": "min", "x": "min"}
    source = search_for(over, objectives, method=method, budget=23, population=6)

    def score(candidate: Candidate) -> dict[str, float]:
        return {**sphere(candidate), "x": values(candidate)["x"]}

    explore(load_search(source), score, tmp_path / "whole")
    whole = (tmp_path / "whole" / history.NAME).read_bytes()
    cuts = [0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 1, len(whole)]
    for cut in cuts:
        folder = tmp_path / f"{cut}"
        folder.mkdir()
        (folder / history.NAME).write_bytes(whole[:cut])
        explore(load_search(source), score, folder)
        assert (folder / history.NAME).read_bytes() == whole
    source["search"]["budget"] = 31
    explore(load_search(source), score, tmp_path / "whole")
    longer = (tmp_path / "whole" / history.NAME).read_bytes()
    assert longer.startswith(whole)
    explore(load_search(source), score, tmp_path / "long")
    assert (tmp_path / "long" / history.NAME).read_bytes() == longer


KILLED = """
import sys, time
from pathlib import Path
from merganser.study.search_loop import explore
from merganser.study.search_space import load_search

def score(candidate):
    print(candidate.number, flush=True)
    time.sleep(0.02)
    x, y = candidate.values.values()
    return {"accuracy": -((x - 0.4) ** 2) - (y - 0.2) ** 2}

explore(load_search(sys.argv[1]), score, Path(sys.argv[2]))
"""


def test_a_search_that_is_killed_goes_on_to_the_same_history(
    tmp_path: Path, recipe_file: RecipeFile
) -> None:
    file = recipe_file(SEARCH.replace("40", "20"))
    command = [sys.executable, "-c", KILLED, str(file)]
    paths = os.pathsep.join([str(Path(merganser.__file__).parent.parent)])
    environment = os.environ | {"PYTHONPATH": paths}
    with subprocess.Popen(
        [*command, str(tmp_path / "killed")],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 9:
                process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert 9 <= len(lines(tmp_path / "killed")) <= 12
    asked = [
        subprocess.run(
            [*command, str(tmp_path / name)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for name in ("killed", "undisturbed")
    ]
    assert asked[1][-len(asked[0]) :] == asked[0]
    assert 9 <= len(asked[0]) <= 12
    histories = [
        (tmp_path / name / history.NAME).read_bytes() for name in ("killed", "undisturbed")
    ]
    assert histories[0] == histories[1]
    assert len(lines(tmp_path / "killed")) == 21


def test_the_history_says_all(tmp_path: Path, recipe_file: RecipeFile) -> None:
    seen: list[Standing] = []
    search = load_search(recipe_file(SEARCH.replace("budget: 40", "budget: 3")))
    explore(search, lambda c: {"accuracy": values(c)["w"]}, tmp_path, on_standing=seen.append)
    head, *trials = lines(tmp_path)
    assert head["settings"]["search"]["seed"] == 1
    assert head["digest"] == history.digest(head["settings"])
    for number, trial in enumerate(trials, 1):
        w = trial["values"]["w"]
        assert trial["candidate"] == number
        assert trial["name"] == f"m_w{w}_{number:03d}"
        assert trial["scores"] == {
            "accuracy": {"mean": w, "error": 0.0, "low": w, "high": w, "problems": 1}
        }
    assert [each.trial.candidate.number for each in seen] == [1, 2, 3]
    assert seen[-1].best[0].scores["accuracy"].mean == max(t["values"]["w"] for t in trials)
    assert seen[-1].seconds_left == 0


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("seed: 1", "seed: 2", "differs in search.seed; choose another OUT"),
        ("to: 1, log", "to: 2, log", "differs in search.over.d.to"),
        (
            "{accuracy: max}",
            "{tokens: min}",
            "search.objectives.accuracy, search.objectives.tokens",
        ),
        ("dtype: bfloat16", "dtype: float32", "differs in recipe.dtype"),
        ("budget: 40", "budget: 2", "has 3 candidates already, more than the budget of 2"),
    ],
)
def test_another_search_is_refused(
    tmp_path: Path, recipe_file: RecipeFile, old: str, new: str, complaint: str
) -> None:
    def score(_: Candidate) -> dict[str, float]:
        return {"accuracy": 0.5, "tokens": 7.0}

    explore(load_search(recipe_file(SEARCH.replace("40", "3"))), score, tmp_path / "out")
    assert old in SEARCH
    before = (tmp_path / "out" / history.NAME).read_bytes()
    with pytest.raises(MerganserError) as error:
        explore(load_search(recipe_file(SEARCH.replace(old, new))), score, tmp_path / "out")
    assert_one_line(str(error.value), str(tmp_path / "out" / history.NAME), complaint)
    assert error.value.exit_code == 2
    assert (tmp_path / "out" / history.NAME).read_bytes() == before


def test_damaged_histories_are_refused(tmp_path: Path, recipe_file: RecipeFile) -> None:
    search = load_search(recipe_file(SEARCH.replace("40", "4")))

    def score(candidate: Candidate) -> dict[str, float]:
        return {"accuracy": values(candidate)["w"]}

    explore(search, score, tmp_path)
    file = tmp_path / history.NAME
    good = file.read_text().splitlines(keepends=True)

    def refused(text: str, complaint: str) -> None:
        file.write_text(text)
        with pytest.raises(InputError) as error:
            explore(search, score, tmp_path)
        assert_one_line(str(error.value), str(file), complaint)

    refused("".join([*good[:2], "{]\n", *good[3:]]), ":3: is not a line")
    refused("".join([good[0], *good[2:]]), "candidate 1 was another one")
    refused("".join([good[0], '{"candidate": 1}\n']), "candidate 1 cannot be read")
    refused('{"format": 0}\n', "is not a search history of this version")


def test_two_searches_cannot_share_a_folder(tmp_path: Path) -> None:
    with (
        closing(history.History(tmp_path, {})),
        pytest.raises(OutputExistsError, match="another search"),
    ):
        history.History(tmp_path, {})
    history.History(tmp_path, {}).close()


# -- what is wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "line", "complaint"),
    [
        ("{from: 0, to: 1}", "{from: 1, to: 1}", 4, "search.over.w: 'to' must be more than 'from'"),
        ("{from: 0, to: 1}", "{from: 0}", 4, "search.over.w: 'to' must be a number"),
        ("{from: 0, to: 1}", "{from: x, to: 1}", 4, "search.over.w: 'from' must be a number"),
        ("{from: 0, to: 1}", "{from: 0, to: .inf}", 4, "search.over.w: 'to' must be a number"),
        ("{from: 0, to: 1}", "{from: 0, to: 1, lenght: 3}", 4, "did you mean 'length'?"),
        ("{from: 0, to: 1}", "{from: 0, to: 1, length: 0}", 4, "'length' must be a whole number"),
        ("{from: 0, to: 1}", "{from: 0, to: 1, step: 2}", 4, "'step' must lead"),
        ("{from: 0, to: 1}", "{from: 0, to: 1.5, int: true}", 4, "'int' has whole ends"),
        ("{from: 0, to: 1}", "{from: 0, to: 1, int: 1}", 4, "'int' must be true or false"),
        ("{from: 0, to: 1}", "{least: 0, most: 1}", 4, "give a range {from, to}, or a list"),
        ("{from: 0, to: 1}", "[]", 4, "search.over.w: there are no values"),
        ("from: 0.01", "from: 0", 5, "search.over.d: a range with 'log' begins above 0"),
        ("log: true", "log: true, step: 0.1", 5, "a range with 'log' takes no 'step'"),
        ("    w: {from", "    or: {from", 4, "'or' cannot be a name"),
        ("    w: {from", "    v: {from: 0, to: 1}\n    w: {from", 4, "nothing in the recipe depends on it"),
        ("    w: {from", "    v: {from", 1, "name: the search has no 'w'; it has v, d"),
        ("  objectives: {accuracy: max}\n", "", 2, "search: the key 'objectives' is missing"),
        ("{accuracy: max}", "{accuracy: more}", 6, "search.objectives.accuracy: must be max or min"),
        ("{accuracy: max}", "[]", 6, "search.objectives: give scores with max or min"),
        ("seed: 1", "seed: -1", 8, "search.seed: must be a whole number"),
        ("seed: 1", "seeds: 1", 8, "search.seeds: unknown key; did you mean 'seed'?"),
        ("budget: 40", "budget: 0", 7, "search.budget: must be a whole number from 1"),
        ("budget: 40", "budget: many", 7, "search.budget: must be a whole number from 1"),
        ("budget: 40", "population: 1", 7, "search.population: must be a whole number from 2"),
        ("budget: 40", "held_out: 1.5", 7, "search.held_out: must be a share"),
        ("budget: 40", "held_out: [1]", 7, "search.held_out: must be a share"),
        ("budget: 40", "keep: all", 7, "search.keep: must be a whole number from 0 to 1000"),
        ("budget: 40", "constraints: {tokens: 800}", 7, "search.constraints.tokens: give a mapping"),
        ("budget: 40", "constraints: {tokens: {max: 8}}", 7, "search.constraints.tokens.max: unknown"),
        ("budget: 40", "constraints: {tokens: {most: x}}", 7, "tokens.most: must be a number"),
        ("budget: 40", "method: cma", 7, "search.method: must be one of cma-es, tpe, nsga-ii, random, front"),
        ("budget: 40", "method: front", 7, "front fills the gaps of a front"),
        ("{accuracy: max}", "{a: max, b: min}\n  method: cma-es", 7, "cma-es searches for one objective"),
        ("{accuracy: max}", "{a: max, b: min}\n  method: front", 7, "front walks along one number"),
        ("search:", "sweep: {w: 1}\nsearch:", 2, "sweep: a search cannot have this block too"),
        ("weight: \"{{ w }}\"", "weight: \"{{ w + }}\"", 12, "models[0].parameters.weight: cannot be read"),
    ],
)  # fmt: skip
def test_what_is_wrong_has_an_address(
    recipe_file: RecipeFile, old: str, new: str, line: int, complaint: str
) -> None:
    assert old in SEARCH
    file = recipe_file(SEARCH.replace(old, new, 1))
    with pytest.raises(RecipeError) as error:
        load_search(file)
    assert_one_line(str(error.value), f"{file}:{line}: ", complaint)


def test_choices_are_not_for_cma(recipe_file: RecipeFile) -> None:
    file = recipe_file(
        SEARCH.replace("{from: 0, to: 1}", "[0, 1]").replace("budget: 40", "method: cma-es")
    )
    with pytest.raises(RecipeError, match="cma-es searches over numbers; tpe takes choices too"):
        load_search(file)


def test_scores_that_cannot_be_used(tmp_path: Path, recipe_file: RecipeFile) -> None:
    file = recipe_file(SEARCH)
    with pytest.raises(RecipeError) as error:
        explore(load_search(file), lambda _: {"format": 1.0}, tmp_path)
    assert_one_line(str(error.value), f"{file}:6: search.objectives.accuracy", "there are format")
    with pytest.raises(InputError, match=r"m_w.*_001: accuracy is nan"):
        explore(load_search(file), lambda _: {"accuracy": float("nan")}, tmp_path)
    assert len(lines(tmp_path)) == 1


def test_a_search_is_no_single_merge(recipe_file: RecipeFile) -> None:
    with pytest.raises(RecipeError, match=r"search: this file is a search"):
        merganser.plan(recipe_file(SEARCH))
    with pytest.raises(RecipeError, match="no search: block"):
        load_search(recipe_file("merge_method: linear\nmodels: [{model: a}]\n"))


@pytest.mark.parametrize("method", ["cma-es", "tpe", "nsga-ii", "random", "front"])
def test_candidates_that_cannot_be_merged_count_and_lose(tmp_path: Path, method: str) -> None:
    """Recipes that expressions have no value for, and those that a plan refuses."""
    over = {"x": {"from": 0, "to": 8, "int": True}}
    objectives = {"left": "min"} if method == "cma-es" else {"left": "min", "right": "min"}
    source = search_for(over, objectives, method=method, budget=24, population=6)
    source["models"][0]["parameters"] = {"weight": "{{ 1 / (x - 4) }}"}

    def prepare(candidates: Any) -> dict[int, str]:
        return {c.number: "is not a merge" for c in candidates if c.values["x"] == 2}

    search = load_search(source)
    trials = explore(search, schaffer, tmp_path, prepare=prepare)
    known = {trial.candidate.values["x"]: trial for trial in trials}
    assert not {2, 4}.isdisjoint(known)
    for x, trial in known.items():
        assert (trial.invalid is not None) == (x in (2, 4))
    assert 4 not in known or "a division by zero" in str(known[4].invalid)
    assert all(trial.invalid is None for trial in best(search, trials))
    again = (tmp_path / history.NAME).read_bytes()
    explore(search, schaffer, tmp_path, prepare=prepare)
    assert (tmp_path / history.NAME).read_bytes() == again
    with pytest.raises(RecipeError, match="search: no candidate can be merged: "):
        explore(search, schaffer, tmp_path / "x", prepare=lambda c: {e.number: "never" for e in c})


# -- the whole story -----------------------------------------------------------------------------

STORY = """
name: m
search:
  over:
    w: {from: 0, to: 1}
    g: {from: 0, to: 1, length: 2}
  objectives: {letters: max}
  method: random
  population: 2
  budget: 4
  held_out: 0.25
merge_method: linear
models:
  - {model: ./a, parameters: {weight: "{{ g }}"}}
  - {model: ./b, parameters: {weight: "{{ w }}"}}
dtype: bfloat16
evaluate:
  tasks:
    - name: sums
      problems: sums.jsonl
      max_tokens: 3
      temperature: 0
      chat: false
      scorers: [{scorer: "letters.py:letters", name: letters}]
"""


def run(*arguments: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(cli.main, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def story(pair: tuple[Path, Path], tmp_path: Path, recipe_file: RecipeFile) -> Path:
    sums = [{"id": f"{i}", "problem": f"{i} + 1 =", "answer": f"{i + 1}"} for i in range(8)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(each) + "\n" for each in sums))
    (tmp_path / "letters.py").write_text(
        "def letters(completion, problem):\n    return len(set(completion)) + len(completion) / 100\n"
    )
    return recipe_file(STORY)


def test_the_whole_story(story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    trackio = MagicMock()
    trackio.__spec__ = ModuleSpec("trackio", None)
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    monkeypatch.setattr(live, "FIRST", 0.0)
    text = run("search", story, out, "--track", "trackio")
    assert f"watch it: {out / 'report.html'}" in text
    assert "data-every" not in (out / "report.html").read_text()  # the last page
    assert re.search(r"candidate 4 of 4 \(w=[\d.]+, g=\S+\): letters", text)
    assert "4 candidates, 4 of them different" in text
    found, apart = scores.read(out), scores.read(out / "held_out")
    scored = {entry.name: entry.scores["letters"] for entry in found.points}
    assert {name: score.mean for name, score in scored.items()} == {
        line["name"]: line["scores"]["letters"]["mean"] for line in lines(out)[1:]
    }
    [name] = found.chosen
    assert scored[name].mean == max(score.mean for score in scored.values())
    assert [entry.name for entry in found.entries if entry.folder] == [name]
    assert [score.problems for score in scored.values()] == [6] * 4
    assert apart.points[0].scores["letters"].problems == 2
    for study, problems in ((found, 6), (apart, 2)):
        experts = [entry for entry in study.entries if entry.role == "expert"]
        assert [entry.model for entry in experts] == ["./a", "./b"]
        assert all(entry.scores["letters"].problems == problems for entry in experts)
    for entry in (*found.points, *apart.points):
        folder = out if entry in found.points else out / "held_out"
        assert entry.samples is not None
        assert (folder / entry.samples).is_file()
        assert set(entry.weights) == set(entry.effective) == {"./a", "./b"}
    logged = trackio.init.return_value.log.call_args_list
    best = int(name[-1])
    assert [each.kwargs["step"] for each in logged] == [1, 2, 3, 4, 0, 0, 0, 0, best]
    assert logged[best - 1].args[0]["letters"] == scored[name].mean
    assert logged[best - 1].args[0]["effective_b"] == found.points[best - 1].effective["./b"]
    assert logged[-1].args[0]["held_out/letters"] == apart.points[0].scores["letters"].mean
    assert apart.chosen == found.chosen
    place = study_cards.find(out / name)
    assert place is not None
    assert place.entry.scores == apart.points[0].scores

    by_hand = load_search(story).pattern.point(
        found.points[int(name[-1]) - 1].values, int(name[-1])
    )
    merganser.merge(by_hand.recipe, tmp_path / name)
    written = tree(out / name)
    for file, content in tree(tmp_path / name).items():
        assert file in ("merge_manifest.json", "README.md") or written[file] == content
    assert "The problems were held out: " in (out / name / "README.md").read_text()

    more = json.loads(run("search", story, out, "--budget", "5", "--json", "--no-write"))
    assert more["candidates"] == 5
    assert more["folders"] == []
    assert [entry["role"] for entry in more["results"]["entries"]] == ["expert"] * 2 + ["point"] * 5
    again = {entry["name"]: entry for entry in more["results"]["entries"]}
    for entry in found.points:
        assert again[entry.name]["scores"]["letters"]["mean"] == scored[entry.name].mean
        assert again[entry.name]["effective"] == entry.effective
    assert "the budget of 4" in run("search", story, out, code=2)


def test_ends_of_ranges_that_cannot_be_merged_are_told_at_the_start(tmp_path: Path) -> None:
    for seed, name in enumerate("abc"):
        make_model(tmp_path / name, seed=seed)
    density = '{weight: "{{ w }}", density: "{{ d }}"}'
    text = SEARCH.replace("task_arithmetic", "ties").replace('{weight: "{{ w }}"}', density)
    file = tmp_path / "search.yml"
    file.write_text(text)
    assert invalid_ends(load_search(file), PlanOptions()) == []
    file.write_text(text.replace("d: {from: 0.01, to: 1, log: true}", "d: {from: 0.5, to: 1.5}"))
    [problem] = invalid_ends(load_search(file), PlanOptions())
    assert_one_line(
        problem, "search.over: d=1.5 cannot be merged", f"{file}:13: ", "between 0 and 1"
    )


def test_scores_of_other_weights_are_not_taken_for_these(story: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("search", story, out, "--budget", "2", "--no-write", "--no-report")
    before = (out / history.NAME).read_bytes()
    make_model(tmp_path / "b", seed=5)
    told = run("search", story, out, "--no-write", code=2)
    assert_one_line(told.strip(), f"{out / history.NAME}: ", "the model ./b changed", "another OUT")
    assert (out / history.NAME).read_bytes() == before


def test_a_search_is_planned(story: Path) -> None:
    text = run("plan", story)
    for part in ("0 to 1, 2 numbers", "random, 4 candidates", "25% of the problems", "w=0.5"):
        assert part in text
    planned = json.loads(run("plan", story, "--json"))
    assert planned["search"]["objectives"] == {"letters": "max"}
    assert planned["samples"][0]["values"] == {"w": 0.5, "g": [0.5, 0.5]}


@pytest.mark.parametrize(
    ("old", "new", "line", "complaint"),
    [
        ("{letters: max}", "{words: max}", 6, "objectives.words: there is no such score; there are letters"),
        ("held_out: 0.25", "constraints: {words: {least: 1}}", 10, "constraints.words: there is no such"),
        ("held_out: 0.25", "held_out: other", 10, "held_out: there is no task 'other'; there are sums"),
        ("held_out: 0.25", "held_out: sums", 10, "held_out: names all tasks"),
        ("held_out: 0.25", "held_out: 0.01", 10, "0.01 of the 8 problems of 'sums' leaves one part"),
        ("problems:", "problem:", 19, "problem: unknown key; did you mean 'problems'?"),
        ("evaluate:", "evaluatee:", 1, "the evaluate: block, which says"),
        ("evaluate:", "evaluate:\n  keep: all", 17, "evaluate.keep: a search takes search.keep"),
        ("method: linear", "method: linaer", 11, "merge_method"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_before_anything_starts(
    story: Path, tmp_path: Path, old: str, new: str, line: int, complaint: str
) -> None:
    assert old in STORY
    story.write_text(story.read_text().replace(old, new, 1))
    message = run("search", story, tmp_path / "out", code=2)
    assert f"{story}:{line}: " in message
    assert complaint in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("[" * 200_000, "history.jsonl:1: is not a line"),
        ('{"format": 1, "digest": "", "settings": {"inputs": "b"}}', "differs in inputs"),
        (
            '{"format": 1, "digest": "", "settings": {"inputs": {"./b": "1"}}}',
            "of other weights: the model ./b changed",
        ),
    ],
)
def test_histories_that_are_none_or_others_are_told(line: str, told: str, tmp_path: Path) -> None:
    (tmp_path / history.NAME).write_text(line + "\n")
    with pytest.raises(MerganserError) as error:
        history.History(tmp_path, {history.INPUTS: {"./b": "2"}})
    assert_one_line(str(error.value), told)
