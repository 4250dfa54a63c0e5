"""Tests of differences against scipy, statsmodels, and vectors that were computed elsewhere."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merganser.evaluation import significance, statistics

stats = pytest.importorskip("scipy.stats")

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "support" / "statistics.json").read_text()
)
PAIRED = VECTORS["paired"]
A, B = (np.array(PAIRED[name], np.float64) for name in "AB")
D = A.mean(axis=1) - B.mean(axis=1)


@pytest.mark.parametrize("freedom", [1, 2, 7, 29.5, 199, 1e6])
def test_students_distribution(freedom: float) -> None:
    for t in (0.0, 0.1, 1.0, 2.0, 5.0, 40.0):
        assert significance.t_tail(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom))
    assert significance.t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom))


def test_the_vector() -> None:
    [found] = significance.differences([D[None]], [1.0])
    assert found.mean == PAIRED["difference"]
    assert found.error == pytest.approx(PAIRED["standard_error"], abs=1e-7)
    assert found.interval() == pytest.approx(PAIRED["t95"], abs=1e-6)
    t = found.mean / found.error
    assert significance.t_tail(t, found.freedom) == pytest.approx(PAIRED["t_test_p"], abs=1e-7)
    assert significance.exact_p(D, 4) == pytest.approx(PAIRED["signflip_p_exact"])
    listed = significance.family([D[None]], [1.0])
    assert listed.exact
    assert listed.single == pytest.approx((PAIRED["signflip_p_exact"],))
    assert significance.holm(VECTORS["holm"]["p"]) == pytest.approx(VECTORS["holm"]["adjusted"])
    assert found.detectable() == pytest.approx(VECTORS["z_sum_alpha05_power80"] * found.error)


def test_holm_is_that_of_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    for seed in range(5):
        p = np.random.default_rng(seed).random(9) ** 3
        wanted = multitest.multipletests(p, method="holm")[1]
        assert significance.holm(p.tolist()) == pytest.approx(wanted.tolist())


@given(st.lists(st.integers(-4, 4), min_size=2, max_size=9))
@settings(max_examples=60, deadline=None)
def test_exact_p_values_are_those_of_all_flips(steps: list[int]) -> None:
    d = np.array(steps) / 4
    sums = [
        abs(sum(s * x for s, x in zip(signs, steps, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(steps))
    ]
    wanted = sum(total >= abs(sum(steps)) for total in sums) / len(sums)
    assert significance.exact_p(d, 4) == pytest.approx(wanted)
    found = significance.family([d[None]], [1.0])
    assert found.single == pytest.approx((wanted,))
    assert found.adjusted == found.single  # one test needs no correction


def test_one_sample_is_mcnemar() -> None:
    mcnemar = pytest.importorskip("statsmodels.stats.contingency_tables").mcnemar
    random = np.random.default_rng(1)
    for n in (12, 40, 500):
        a, b = random.random((2, n)) < [[0.7], [0.55]]
        p = significance.exact_p(a.astype(float) - b, 1)
        table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
        assert p == pytest.approx(mcnemar(table, exact=True).pvalue)
        gains, losses = int((a & ~b).sum()), int((~a & b).sum())
        assert p == pytest.approx(stats.binomtest(gains, gains + losses).pvalue)


def test_drawn_flips_come_near_scipys_permutation_test() -> None:
    d = np.random.default_rng(2).normal(0.3, 1.0, 40)
    found = significance.family([d[None]], [1.0], draws=20_000)
    assert not found.exact
    wanted = stats.permutation_test(
        (d, np.zeros(40)),
        lambda x, y: np.mean(x - y),
        permutation_type="samples",
        n_resamples=20_000,
        rng=3,
    ).pvalue
    assert found.single[0] == pytest.approx(wanted, abs=0.012)
    assert found == significance.family([d[None]], [1.0], draws=20_000)


def test_max_t_by_hand() -> None:
    """Adjusted values are the share of flips in which any of the tests gets as far."""
    d = np.random.default_rng(3).normal(0.4, 1.0, (3, 9))
    found = significance.family([d], [1.0])
    tops = []
    for signs in itertools.product((1, -1), repeat=9):
        rows = d * np.array(signs)
        tops.append(max(abs(stats.ttest_1samp(row, 0).statistic) for row in rows))
    for row, adjusted in zip(d, found.adjusted, strict=True):
        t = abs(stats.ttest_1samp(row, 0).statistic)
        assert adjusted == pytest.approx(np.mean(np.array(tops) >= t - 1e-9))
    assert found.critical == pytest.approx(np.quantile(tops, 0.95, method="higher"))


def test_copies_cost_nothing() -> None:
    d = np.random.default_rng(4).normal(0.5, 1.0, 30)
    alone = significance.family([d[None]], [1.0])
    copies = significance.family([np.stack([d] * 9)], [1.0])
    assert copies.adjusted == pytest.approx(alone.single * 9, abs=0.01)


def test_several_tasks_weigh_as_they_are_told() -> None:
    random = np.random.default_rng(5)
    one, other = random.normal(0.2, 1, (1, 30)), random.normal(0.1, 2, (1, 80))
    [found] = significance.differences([one, other], [3, 1])
    assert found.mean == pytest.approx(0.75 * one.mean() + 0.25 * other.mean())
    sem = stats.sem(one[0]) * 0.75, stats.sem(other[0]) * 0.25
    assert found.error == pytest.approx(math.hypot(*sem))
    assert 29 < found.freedom < 108
    tested = significance.family([one, other], [3, 1])
    t = found.mean / found.error
    assert tested.single[0] == pytest.approx(stats.norm.sf(abs(t)) * 2, abs=0.03)


def test_equal_scores_do_not_show_that_models_are_equal() -> None:
    zeros = np.zeros((1, 30))
    [found] = significance.differences([zeros], [1.0], rates=True)
    assert found.error == 1 / 32
    assert significance.differences([zeros], [1.0])[0].error == 0
    tested = significance.family([zeros], [1.0])
    assert tested.single == tested.adjusted == (1.0,)
    assert significance.exact_p(zeros[0], 1) == 1.0


def test_what_lies_on_no_grid_is_not_listed() -> None:
    assert significance.exact_p(np.array([0.1234, 0.5]), 4) is None


@pytest.mark.parametrize("case", VECTORS["pass_at_k"])
def test_the_variance_of_pass_at_k(case: dict[str, Any]) -> None:
    """Over all numbers of right samples: its expectation is the variance."""
    n, k, p = case["n"], case["k"], case["p"]
    chances = [stats.binom.pmf(c, n, p) for c in range(n + 1)]
    values = [statistics.pass_at(k, [True] * c + [False] * (n - c)) for c in range(n + 1)]
    mean = sum(x * w for x, w in zip(values, chances, strict=True))
    variance = sum((x - mean) ** 2 * w for x, w in zip(values, chances, strict=True))
    assert mean == pytest.approx(case["expectation"], abs=1e-7)
    assert variance == pytest.approx(case["variance"], abs=1e-7)
    estimates = [
        statistics.pass_at_variance(k, [True] * c + [False] * (n - c)) for c in range(n + 1)
    ]
    if n < 2 * k:
        assert estimates == [None] * (n + 1)
        return
    expected = sum((x or 0) * w for x, w in zip(estimates, chances, strict=True))
    assert expected == pytest.approx(case["variance"], abs=1e-7)


def test_the_spread_of_votes() -> None:
    answers, correct = ["1", "1", "2", None], [True, True, False, False]
    mean, variance = statistics.maj_at_spread(3, answers, correct, draws=4000)
    votes = [
        statistics.maj_at(3, [answers[i] for i in drawn], [correct[i] for i in drawn])
        for drawn in itertools.product(range(4), repeat=3)
    ]
    assert mean == pytest.approx(np.mean(votes), abs=0.03)
    assert variance == pytest.approx(np.var(votes), abs=0.02)
    assert statistics.maj_at_spread(1, [None], [False]) == (0.0, 0.0)
    assert statistics.maj_at_spread(2, ["1", "1"], [True, True]) == (1.0, 0.0)
