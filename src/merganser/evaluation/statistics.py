"""Statistics of samples' scores: means, standard errors, intervals, pass@k and maj@k."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Direction = Literal["max", "min"]
"""Whether larger values of a score are better (``max``) or smaller ones (``min``, such as token counts)."""

RESAMPLES = 10_000
"""Number of bootstrap resamples; the interval's ends then have an error of about 3 % of its width."""

Z = 1.959963984540054
"""Quantile of the normal distribution at 97.5 %: 95 % of values are within ±Z standard deviations."""

SEED = 20_230_424
"""Seed of the bootstrap, so that equal scores have equal intervals."""

_AT_ONCE = 4_000_000
"""Maximum number of random numbers drawn in one step."""


@dataclass(frozen=True, slots=True)
class Score:
    """A model's score on a task: the mean over problems, with its uncertainty.

    Attributes:
        mean: the mean over problems of each problem's mean over its samples.
        error: standard error of the mean, over problems; 0 if all problems have the same value, other than
            0 or 1.
        low, high: ends of the 95 % interval, by bootstrap over problems; by Wilson's method if all values
            are 0, or all are 1.
        problems: number of problems.
        failed: number of samples on which the scorer failed, by reason.
    """

    mean: float
    error: float
    low: float
    high: float
    problems: int
    failed: Mapping[str, int] = field(default_factory=dict, hash=False)

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain data; without ``failed`` if that is empty."""
        fields = asdict(self)
        return fields if self.failed else {k: v for k, v in fields.items() if k != "failed"}


def summarize(values: Sequence[float]) -> Score:
    """Return the mean of one value per problem, its standard error, and its 95 % interval.

    The interval is that of the percentile bootstrap over problems. Samples of one problem are not
    independent, so the value of a problem is their mean. The error is s / sqrt(n), where s is the standard
    deviation with n - 1 degrees of freedom. If all values are 0, or all are 1, all resamples are equal and
    the bootstrap is uninformative: then the interval is Wilson's, and the error is its width / (2 Z).

    Args:
        values: the value of each problem.

    Raises:
        ValueError: there are no values, or one is not finite.
    """
    import numpy as np

    numbers = np.asarray(values, np.float64)
    count = len(numbers)
    if not count or not np.all(np.isfinite(numbers)):
        raise ValueError("scores are finite numbers, at least one")
    mean = math.fsum(numbers) / count
    if np.ptp(numbers) == 0:
        return _of_equal(mean, count)
    error = float(np.std(numbers, ddof=1)) / math.sqrt(count)
    random = np.random.default_rng(SEED)
    means = np.empty(RESAMPLES)
    step = max(1, _AT_ONCE // count)
    for start in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - start)
        means[start : start + rows] = numbers[random.integers(0, count, (rows, count))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Score(digits(mean), digits(error), digits(low), digits(high), count)


def digits(value: float) -> float:
    """A number rounded to twelve significant digits: 0.3 instead of 0.30000000000000004."""
    return float(f"{value:.12g}")


def _of_equal(value: float, count: int) -> Score:
    """The score of ``count`` equal values; for zeros and ones the interval is Wilson's."""
    if value not in (0.0, 1.0):
        return Score(value, 0.0, value, value, count)
    width = Z**2 / (count + Z**2)
    low, high = (0.0, width) if value == 0 else (1 - width, 1.0)
    return Score(value, digits(width / (2 * Z)), digits(low), digits(high), count)


def pass_at(k: int, correct: Sequence[bool]) -> float:
    """Return pass@k, the probability that at least one of k samples is right: 1 - C(n - c, k) / C(n, k).

    The unbiased estimator of Chen et al. 2021 (arXiv:2107.03374), from n samples with c right ones.

    Raises:
        ValueError: there are fewer than k samples.
    """
    n, c = len(correct), sum(map(bool, correct))
    if not 0 < k <= n:
        raise ValueError(f"pass@{k} needs {k} samples a problem, not {n}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def pass_at_variance(k: int, correct: Sequence[bool]) -> float | None:
    """Return an unbiased estimate of the sampling variance of :func:`pass_at` on one problem.

    For n samples that are right with probability 1 - q, pass@k is a U-statistic with the variance
    sum over j of C(k, j) C(n - k, k - j) / C(n, k) (q^(2k - j) - q^2k). With c right samples, the power
    q^i is estimated by C(n - c, i) / C(n, i).

    Returns:
        The variance; None if there are fewer than 2k samples.
    """
    n, wrong = len(correct), len(correct) - sum(map(bool, correct))
    if n < 2 * k:
        return None
    powers = [math.comb(wrong, i) / math.comb(n, i) for i in range(2 * k + 1)]
    return math.fsum(
        math.comb(k, j)
        * math.comb(n - k, k - j)
        / math.comb(n, k)
        * (powers[2 * k - j] - powers[-1])
        for j in range(1, k + 1)
    )


def maj_at_spread(
    k: int,
    answers: Sequence[str | None],
    correct: Sequence[bool],
    *,
    draws: int = 400,
    seed: int = SEED,
) -> tuple[float, float]:
    """The bootstrap mean and variance of maj@k on one problem, over votes of k drawn samples.

    Samples are drawn with replacement, so any number of samples suffices.

    Args:
        k: number of samples in a vote.
        answers: the answer of each sample, or None.
        correct: whether each sample is right.
        draws: number of votes.
        seed: seed of the draws.
    """
    import numpy as np

    known = list(dict.fromkeys(answer for answer in answers if answer is not None))
    if not known:
        return 0.0, 0.0
    right = np.array([bool(correct[list(answers).index(answer)]) for answer in known])
    votes = np.array([[answer == each for each in known] for answer in answers], np.int64)
    drawn = np.random.default_rng(seed).integers(0, len(answers), (draws, k))
    counts = votes[drawn].sum(axis=1)
    first = (counts == counts.max(axis=1, keepdims=True)) & (counts > 0)
    shares = (first & right).sum(axis=1) / np.maximum(1, first.sum(axis=1))
    return float(shares.mean()), float(shares.var(ddof=1))


def maj_at(k: int, answers: Sequence[str | None], correct: Sequence[bool]) -> float:
    """Return maj@k: 1 if the most frequent answer of the first k samples is right, else 0.

    This is self-consistency (Wang et al. 2022, arXiv:2203.11171). Samples without an answer do not vote;
    without any vote the result is 0. If several answers are equally frequent, the result is the fraction
    of them that is right.

    Raises:
        ValueError: there are fewer than k samples.
    """
    if not 0 < k <= len(answers):
        raise ValueError(f"maj@{k} needs {k} samples a problem, not {len(answers)}")
    votes = Counter(answer for answer in answers[:k] if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    first = {answer: i for i, answer in reversed(list(enumerate(answers[:k])))}
    winners = [answer for answer, count in votes.items() if count == most]
    return sum(bool(correct[first[answer]]) for answer in winners) / len(winners)
