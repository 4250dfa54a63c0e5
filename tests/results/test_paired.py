"""Comparisons of models of a study: pairing, families, chosen models, tasks, and references."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import merganser
import simulated
from merganser import cli
from merganser.cli import search_table
from merganser.errors import MerganserError, RecipeError
from merganser.evaluation import samples
from merganser.evaluation.samples import Sample
from merganser.reports import comparisons
from merganser.results import paired, power, problem_scores, scores
from merganser.results.scores import Entry, Score
from messages import assert_one_line

stats = pytest.importorskip("scipy.stats")

VECTOR = json.loads((Path(__file__).parents[1] / "support" / "statistics.json").read_text())[
    "paired"
]

CHANCES = {"base": 0.3, "acc": 0.6, "w1": 0.45, "w2": 0.6, "w3": 0.65}


def entries(*names: str) -> list[Entry]:
    roles: dict[str, scores.Role] = {"base": "base", "acc": "expert"}
    return [Entry(name, roles.get(name, "point")) for name in names]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    drawn = simulated.verdicts(3, 60, 4, CHANCES)
    simulated.write(tmp_path / "s", entries(*CHANCES), {"sums": drawn})
    return tmp_path / "s"


def test_the_vector(tmp_path: Path) -> None:
    drawn = {name: np.array(VECTOR[name], float) for name in "AB"}
    two = [Entry("A", "expert"), Entry("B", "expert")]
    simulated.write(tmp_path / "s", two, {"sums": drawn})
    [row] = merganser.compare(tmp_path / "s", "A", "B").rows
    assert row.difference == VECTOR["difference"]
    assert row.error == pytest.approx(VECTOR["standard_error"], abs=1e-7)
    assert (row.low, row.high) == pytest.approx(tuple(VECTOR["t95"]), abs=1e-6)
    assert row.p_exact == pytest.approx(VECTOR["signflip_p_exact"])
    assert row.p is not None
    assert row.p < row.p_exact
    assert row.p_verdict == row.p
    assert row.verdict == "not significant"
    assert row.detectable == pytest.approx(2.8015852 * row.error)
    assert row.test == "all sign flips, mid-p"
    [found] = merganser.power(tmp_path / "s")
    assert found.between == pytest.approx(VECTOR["between_variance"], abs=1e-6)
    assert found.within == pytest.approx((VECTOR["within_A"] + VECTOR["within_B"]) / 2, abs=1e-6)


def test_all_merges_are_compared_with_each_reference(study: Path) -> None:
    found = paired.compare(study)
    assert [(r.model, r.reference) for r in found.rows] == [
        (w, reference) for reference in ("base", "acc") for w in ("w1", "w2", "w3")
    ]
    table = problem_scores.load(scores.read(study), study)["exact"]
    for row in found.rows:
        d = table.row(row.model) - table.row(row.reference)
        assert row.difference == pytest.approx(d.mean())
        assert row.error == pytest.approx(stats.sem(d))
        assert row.family == 3
        assert row.p_max_t is not None
        assert row.wins == (d > 0).sum()
        assert row.losses == (d < 0).sum()
        if row.p is not None:
            assert row.p <= row.p_max_t <= min(1, 3 * row.p) + 0.03
            assert row.p <= row.p_holm <= 3 * row.p
    assert {r.verdict for r in found.rows if r.reference == "base"} == {"better"}
    assert [r.model for r in found.rows if r.selected] == ["w3", "w3"]


def test_what_a_greedy_search_added_is_tested_together(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {"w1": (1, 0, 0), "w3": (1, 1, 0), "w2": (1, 1, 1)}
    found = scores.read(study)
    assert paired.additions(study) == ()
    entries = tuple(
        replace(e, values=dict(zip(("soup.a", "soup.b", "soup.c"), counts[e.name], strict=True)))
        if e.name in counts
        else e
        for e in found.entries
    )
    added = scores.Addition("w3", "w1", True), scores.Addition("w2", "w3", False)
    settings = {"search": {"objectives": {"exact": "max"}}}
    found = replace(found, entries=entries, additions=added, settings=settings)
    scores.write(found, study)
    assert scores.read(study) == found
    rows = paired.additions(study)
    table = problem_scores.load(found, study)["exact"]
    for row, each in zip(rows, added, strict=True):
        d = table.row(each.name) - table.row(each.soup)
        assert row.difference == pytest.approx(d.mean())
        assert row.high - row.low > 2 * stats.t.ppf(0.975, len(d) - 1) * stats.sem(d)
        assert row.p is None
        assert row.family == 2
    assert [row.verdict for row in rows] == ["better", "not significant"]
    search_table.show_additions(found, study)
    told = capsys.readouterr().out
    assert re.search(r"^b .*better +kept$", told, re.M), told
    assert re.search(r"^c .*not significant \(would see [\d.]+\) *$", told, re.M), told
    shown = comparisons.additions(found, study, {})
    assert shown is not None
    assert [(row["soup"], row["kept"]) for row in shown["rows"]] == [("w1", True), ("w3", False)]


def test_less_may_be_better(tmp_path: Path) -> None:
    drawn = simulated.verdicts(0, 80, 2, {"base": 0.3, "acc": 0.8})
    for direction, verdict in (("max", "better"), ("min", "worse")):
        home = tmp_path / direction
        directions: dict[str, scores.Direction] = {"exact": direction}
        simulated.write(home, entries("base", "acc"), {"sums": drawn}, directions=directions)
        [row] = paired.compare(home, "acc", "base").rows
        assert row.difference > 0
        assert row.verdict == verdict
        assert (row.wins > row.losses) is (verdict == "better")


def test_the_best_is_judged_by_all_merges_or_by_what_was_held_out(study: Path) -> None:
    every = {(r.model, r.reference): r for r in paired.compare(study, against=["acc"]).rows}
    [alone] = paired.compare(study, "w2", "acc").rows
    assert alone.p is not None
    assert alone.family == 1
    assert not alone.selected
    [best] = paired.compare(study, "w3", "acc").rows
    assert best.selected
    assert best.p is None
    assert best == every["w3", "acc"]
    assert best.low < every["w3", "acc"].difference - 2.3 * best.error  # wider than for one test
    [turned] = paired.compare(study, "acc", "w3").rows
    assert turned.selected
    assert turned.p_verdict == pytest.approx(best.p_verdict, abs=0.03)

    found = scores.read(study)
    unseen = simulated.verdicts(9, 30, 1, {n: CHANCES[n] for n in ("base", "acc", "w3")})
    scores.write(replace(found, chosen={"w3": "best: exact"}), study)
    simulated.write(study / "held_out", entries("base", "acc", "w3"), {"sums": unseen})
    [honest] = paired.compare(study, "w3", "acc").rows
    assert honest.held_out
    assert honest.p is not None
    assert not honest.selected
    assert honest.problems == 30
    assert honest.test == "McNemar, mid-p"
    a, b = unseen["w3"][:, 0], unseen["acc"][:, 0]
    gains, losses = int((a > b).sum()), int((a < b).sum())
    exact = stats.binomtest(gains, gains + losses).pvalue
    assert honest.p_exact == pytest.approx(exact)
    as_far = stats.binom.pmf(gains, gains + losses, 0.5) * (1 if gains == losses else 2)
    assert honest.p == pytest.approx(exact - as_far / 2)
    both = paired.compare(study).rows
    assert [(r.model, r.reference) for r in both if r.held_out] == [("w3", "base"), ("w3", "acc")]


def test_several_tasks(tmp_path: Path) -> None:
    parts = {
        "easy": simulated.verdicts(1, 40, 2, CHANCES),
        "hard": simulated.verdicts(2, 25, 4, {n: c / 2 for n, c in CHANCES.items()}),
    }
    simulated.write(tmp_path / "s", entries(*CHANCES), parts, tasks=["easy", "hard"])
    found = paired.compare(tmp_path / "s", "w1", "base", weights={"easy": 3, "hard": 1})
    assert [r.score for r in found.rows] == ["easy/exact", "hard/exact", "mean of tasks/exact"]
    easy, hard, mean = found.rows
    assert mean.difference == pytest.approx(0.75 * easy.difference + 0.25 * hard.difference)
    assert mean.error == pytest.approx(math.hypot(0.75 * easy.error, 0.25 * hard.error))
    assert easy.p is not None
    assert hard.p is not None
    smaller, larger = sorted([easy.p, hard.p])
    assert sorted([easy.p_holm, hard.p_holm]) == pytest.approx(
        [2 * smaller, max(2 * smaller, larger)]
    )
    assert mean.p_holm == mean.p
    with pytest.raises(RecipeError, match="weights: no task 'eazy'; did you mean 'easy'"):
        paired.compare(tmp_path / "s", weights={"eazy": 1})


def test_scores_from_a_paper_are_compared_without_pairing(study: Path) -> None:
    found = scores.read(study)
    typed = Entry("theirs", "expert", scores={"exact": Score(0.2, 0.03, 0.14, 0.26, 30)})
    scores.write(replace(found, entries=(*found.entries, typed)), study)
    row = next(r for r in paired.compare(study).rows if (r.model, r.reference) == ("w2", "theirs"))
    own = next(e for e in found.entries if e.name == "w2").scores["exact"]
    assert row.error == pytest.approx(math.hypot(own.error, 0.03))
    assert row.p == pytest.approx(2 * stats.norm.sf(row.difference / row.error))
    assert row.p_max_t is None
    assert row.p_verdict == row.p_holm
    assert row.verdict == "better"


def test_pass_and_majority_scores(tmp_path: Path) -> None:
    drawn = simulated.verdicts(5, 30, 8, {"base": 0.3, "acc": 0.5})
    directions: dict[str, scores.Direction] = {
        "exact": "max",
        "exact_pass@4": "max",
        "exact_maj@5": "max",
    }
    simulated.write(tmp_path / "s", entries("base", "acc"), {"sums": drawn}, directions=directions)
    for name in ("base", "acc"):  # right ones agree, wrong ones do not
        said = samples.read(tmp_path / "s" / "samples" / f"{name}.jsonl")
        said = [replace(s, completion=str(1 if s.scores["exact"] else 50 + s.sample)) for s in said]
        samples.write(said, tmp_path / "s" / "samples" / f"{name}.jsonl")
    found = scores.read(tmp_path / "s")
    tables = problem_scores.load(found, tmp_path / "s")
    right = drawn["acc"].sum(axis=1)
    wrong = np.array([math.comb(8 - int(c), 4) / math.comb(8, 4) for c in right])
    assert tables["exact_pass@4"].row("acc") == pytest.approx(1 - wrong)
    assert not np.isnan(tables["exact_pass@4"].spread).any()
    votes = tables["exact_maj@5"].row("acc")
    assert (votes[drawn["acc"][:, :5].sum(axis=1) >= 2] == 1).all()
    full = scores.read(tmp_path / "s")
    names = [r.score for r in paired.compare(tmp_path / "s", "acc", "base").rows]
    assert names == list(directions) == list(full.directions)
    told = {each.score: each for each in power.power(tmp_path / "s")}
    assert told["exact"].between is not None
    assert told["exact_maj@5"].between is None
    assert told["exact_maj@5"].problems_for(0.05) > 30


def test_problems_that_some_lack_are_left_out(study: Path) -> None:
    file = study / "samples" / "acc.jsonl"
    samples.write([s for s in samples.read(file) if s.problem not in ("p0", "p7")], file)
    found = paired.compare(study, "w1", "acc")
    assert found.left_out == {"sums": 2}
    assert found.rows[0].problems == 58


def test_an_empty_file_of_samples_is_no_study_without_pairs(study: Path) -> None:
    (study / "samples" / "acc.jsonl").write_text("")
    with pytest.raises(MerganserError) as refused:
        paired.compare(study)
    assert_one_line(str(refused.value), "acc.jsonl: is empty; run the study again to score acc")


def test_slips(study: Path) -> None:
    for call, told in (
        (
            lambda: paired.compare(study, "w2", "bsae"),
            "drawn has no model 'bsae'; did you mean 'base'",
        ),
        (lambda: paired.compare(study, scores=["exat"]), "no score 'exat'; did you mean 'exact'"),
        (lambda: paired.compare(study / "no"), "does not exist; evaluate the study first"),
        (lambda: paired.compare(study, "acc", "acc"), "there are no two models to compare"),
        (lambda: power.power(study, scores=["exat"]), "no samples of a score 'exat'"),
    ):
        with pytest.raises(MerganserError) as refused:
            call()
        assert_one_line(str(refused.value), told)


def test_verdicts_are_read_without_what_was_said(tmp_path: Path) -> None:
    """Also where a completion holds what looks like the end of one."""
    evil = 'x", "tokens": 3, "finish": "stop", "scores": {"exact": 7}, ", "prompt": '
    said = [
        Sample("t", f"p{n}", n, [{"role": evil, "content": evil}], evil, 3, "stop", {"exact": 1.0})
        for n in range(3)
    ]
    file = tmp_path / "s.jsonl"
    samples.write(said, file)
    wanted = [("t", f"p{n}", n, {"exact": 1.0}) for n in range(3)]
    read = samples.read_verdicts(file)
    assert [(v.task, v.problem, v.sample, v.scores) for v in read] == wanted
    turned = [dict(reversed(json.loads(line).items())) for line in file.read_text().splitlines()]
    file.write_text("\n".join(map(json.dumps, turned)))
    read = samples.read_verdicts(file)
    assert [(v.task, v.problem, v.sample, v.scores) for v in read] == wanted
    file.write_text('{"task": 1}\n')
    with pytest.raises(MerganserError) as refused:
        samples.read_verdicts(file)
    assert_one_line(str(refused.value), f"{file}:1: no sample")


def test_power_follows_its_formula(study: Path) -> None:
    [found] = power.power(study)
    assert found.points == 100
    assert (found.problems, found.samples, found.pairs) == (60, 4, 6)
    assert found.between is not None
    assert found.within is not None
    for n, k in ((30, 1), (500, 16)):
        wanted = 2.8015852 * math.sqrt((found.between + 2 * found.within / k) / n)
        assert found.detectable(n, k) == pytest.approx(wanted)
        least = found.problems_for(wanted, k)
        assert least is not None
        assert abs(least - n) <= 1
    assert found.samples_for(0.001) is None  # more samples never replace problems
    count = found.samples_for(0.05, 2000)
    assert count is not None
    assert found.detectable(2000, count) <= 0.05
    assert count == 1 or found.detectable(2000, count - 1) > 0.05


def test_equal_models_do_not_promise_that_every_difference_shows(tmp_path: Path) -> None:
    nothing = {name: np.zeros((3, 1)) for name in ("w1", "w2")}
    simulated.write(tmp_path / "s", entries(*nothing), {"sums": nothing})
    [found] = power.power(tmp_path / "s")
    assert found.detectable() == pytest.approx(2.8015852 / (3 + 2))
    assert found.detectable(300) == pytest.approx(found.detectable() / 10)


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ([9, 9, 9], [9, 9, 9], "the same on every problem"),
        ([9, 9, 9], [8, 8, 8], "too few problems to see any difference"),
        ([1, 0, 1], [0, 1, 0], "too few problems to see any difference"),
        ([9, 0, 5], [0, 9, 5], "would see 14.56"),
    ],
)
def test_what_would_be_seen_is_possible(
    tmp_path: Path, first: list[float], second: list[float], told: str
) -> None:
    drawn = {n: np.array(v, float)[:, None] for n, v in (("base", first), ("w1", second))}
    simulated.write(tmp_path / "s", entries(*drawn), {"sums": drawn})
    [row] = merganser.compare(tmp_path / "s", "w1", "base").rows
    assert row.verdict_text(2) == f"not significant ({told})"


def test_power_promises_no_difference_beyond_the_score(tmp_path: Path) -> None:
    drawn = {"base": np.array([[1.0], [0], [1]]), "w1": np.array([[0.0], [1], [0]])}
    simulated.write(tmp_path / "s", entries(*drawn), {"sums": drawn})
    done = CliRunner().invoke(cli.main, ["power", str(tmp_path / "s")])
    assert "3 problems × 1 samples show no difference" in done.stdout
    assert re.search(r"^ *3 +–", done.stdout, re.M)
    assert re.search(r"^ *2000 +\d", done.stdout, re.M)


def test_one_sample_cannot_tell_luck(tmp_path: Path) -> None:
    drawn = simulated.verdicts(0, 30, 1, CHANCES)
    simulated.write(tmp_path / "s", entries(*CHANCES), {"sums": drawn})
    [found] = power.power(tmp_path / "s")
    assert found.between is None
    assert found.samples_for(0.02) is None
    assert found.detectable(60, 4) is None
    assert found.problems_for(0.02) > 30


def test_on_the_command_line(study: Path) -> None:
    done = CliRunner().invoke(cli.main, ["compare", str(study), "--against", "acc"])
    assert done.exit_code == 0, done.output
    assert "exact ↑ against acc (0." in done.stdout
    assert "adjusted for 3 models" in done.stdout
    assert "not significant (would see 0." in done.stdout
    assert "w3 ‡" in done.stdout
    done = CliRunner().invoke(cli.main, ["compare", str(study), "w2", "base", "acc", "--json"])
    told = json.loads(done.stdout)
    assert [r["verdict"] for r in told["comparisons"]] == ["better", "not significant"]
    done = CliRunner().invoke(cli.main, ["power", str(study), "--detect", "2"])
    assert done.exit_code == 0, done.output
    assert "to see 2 points: " in done.stdout
    assert "60 problems × 4 samples show a difference of" in done.stdout
    done = CliRunner().invoke(cli.main, ["power", str(study), "--detect", "0.5", "--json"])
    [told] = json.loads(done.stdout)
    assert told["samples_needed"] is None
    assert told["problems_needed"] > 1000
    done = CliRunner().invoke(cli.main, ["compare", str(study), "--weights", "x"])
    assert done.exit_code == 2


def test_stated_scores() -> None:
    from merganser.results.references import stated_score, wilson

    intervals = pytest.importorskip("statsmodels.stats.proportion")
    for share, n in ((0.467, 30), (0.0, 12), (1.0, 500)):
        wanted = intervals.proportion_confint(share * n, n, method="wilson")
        assert wilson(share, n) == pytest.approx(wanted)
    found = stated_score(0.5, problems=30)
    assert found.problems == 30
    assert found.high - found.low == pytest.approx(2 * 1.959964 * found.error)
    assert stated_score(12.0, error=2).low == pytest.approx(12 - 3.919928)
    assert stated_score(12.0, low=10, high=14).error == pytest.approx(4 / 3.919928)
    for bad in ({}, {"low": 1}, {"problems": 30}, {"low": 13, "high": 14}):
        with pytest.raises(ValueError, match=r"is missing|or neither|is not between"):
            stated_score(12.0, **bad)
