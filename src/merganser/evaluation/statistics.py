"""What scores of samples are worth: means, standard errors, intervals, pass@k and maj@k."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Direction = Literal["max", "min"]
"""Whether more of a score is better, or less (such as the number of tokens)."""

RESAMPLES = 10_000
"""Of the bootstrap: the ends of its interval are then known to about 3 % of its width."""

Z = 1.959963984540054
"""Standard deviations of the normal distribution that 95 % are within."""

SEED = 20_230_424
"""Of the bootstrap: the same scores always have the same interval."""

_AT_ONCE = 4_000_000
"""Numbers that are drawn at once, at most."""


@dataclass(frozen=True, slots=True)
class Score:
    """One scorer's verdict on one model, over the problems of a task.

    Attributes:
        mean: over problems, of each problem's mean over its samples.
        error: standard error of the mean, over problems; 0 for one problem that is neither 0 nor 1.
        low, high: 95 % interval, by bootstrap over problems; Wilson's where all are 0, or all 1.
        problems: number of problems.
        failed: how many samples the scorer failed on, by the reason.
    """

    mean: float
    error: float
    low: float
    high: float
    problems: int
    failed: Mapping[str, int] = field(default_factory=dict, hash=False)

    def as_dict(self) -> dict[str, Any]:
        """As plain data; without ``failed`` if nothing failed."""
        found = asdict(self)
        return found if self.failed else {k: v for k, v in found.items() if k != "failed"}


def summarize(values: Sequence[float]) -> Score:
    """Return the mean of one value per problem, its standard error, and the percentile bootstrap's
    95 % interval.

    Problems are what is drawn: samples of one problem are not independent, so they go in as their
    mean. The error is s / sqrt(n), with s the standard deviation of n - 1 degrees of freedom. Where all
    values are 0, or all are 1, every draw is the same, and says nothing of other problems: the interval
    is Wilson's, and the error is the one that belongs to its width.

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
    """A number of twelve significant digits: 0.3 rather than 0.30000000000000004."""
    return float(f"{value:.12g}")


def _of_equal(value: float, count: int) -> Score:
    """What as many equal values are worth: of zeros or ones by Wilson's interval."""
    if value not in (0.0, 1.0):
        return Score(value, 0.0, value, value, count)
    width = Z**2 / (count + Z**2)
    low, high = (0.0, width) if value == 0 else (1 - width, 1.0)
    return Score(value, digits(width / (2 * Z)), digits(low), digits(high), count)


def pass_at(k: int, correct: Sequence[bool]) -> float:
    """Return the probability that at least one of k samples is right: 1 - C(n - c, k) / C(n, k).

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

    Of n samples that are right with chance 1 - q, pass@k is a U-statistic with variance
    sum over j of C(k, j) C(n - k, k - j) / C(n, k) (q^(2k - j) - q^2k); powers of q are estimated by
    C(n - c, i) / C(n, i).

    Returns:
        None if there are fewer than 2k samples, which the estimate needs.
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
    """The mean and the variance of maj@k over votes of k samples drawn from those of one problem.

    The bootstrap: draws are with replacement, so the samples may be as few as k.
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
    """Whether the answer that most of the first k samples give is right (self-consistency,
    Wang et al. 2022, arXiv:2203.11171).

    Samples without an answer do not vote; where nobody does the vote is wrong. Answers with equally
    many votes share the verdict, as if one of them was drawn.

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
