"""Whether paired scores differ: intervals, sign-flip permutation, and corrections for many tests.

The statistical unit is the problem. Samples of one problem are a cluster, so a problem contributes one
number: the difference of the two models' mean scores on it. If the models are equally good, the difference
of a problem has either sign with equal probability, whatever its number of samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

DRAWS = 10_000
"""Number of random sign flips, used if there are too many to enumerate."""

LEVEL = 0.05
"""Two-sided significance level of tests; intervals have the coverage ``1 - LEVEL``."""

POWER_Z = 0.8416212335729143
"""Quantile of the normal distribution at 80 %, the power for which detectable differences are computed."""

Z = 1.959963984540054

_MOST_LISTED = 20
"""Maximum number of problems whose sign flips are all enumerated: 2 ** 20 flips."""

_MOST_LISTED_CELLS = 2**22
"""Maximum of flips times models for which a family of tests enumerates all flips."""

_MOST_STEPS = 1_000_000
"""Maximum length of an exact distribution, in steps of its grid."""

_TIE = 1e-9
"""Relative difference below which statistics count as equal, since the order of a sum changes rounding."""


# -- Student's t ---------------------------------------------------------------------------------


def t_tail(t: float, freedom: float) -> float:
    """The probability that the absolute value of Student's t is at least ``|t|``."""
    if math.isinf(t):
        return 0.0
    return _incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


@lru_cache(maxsize=1024)
def t_quantile(freedom: float, level: float = LEVEL) -> float:
    """The value that the absolute value of Student's t exceeds with probability ``level``."""
    low, high = 0.0, 1.0
    while t_tail(high, freedom) > level:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, freedom) > level else (low, middle)
    return (low + high) / 2


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function, by its continued fraction."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1.0 - _incomplete_beta(1 - x, b, a)
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(scale + a * math.log(x) + b * math.log1p(-x)) / a
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 100_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 / (1.0 + term * d)
            c = 1.0 + term / c
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return front * value


def normal_tail(z: float) -> float:
    """The probability that the absolute value of a standard normal variable is at least ``|z|``."""
    return math.erfc(abs(z) / math.sqrt(2))


# -- one difference ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean difference between two models' scores.

    Attributes:
        mean: mean of the problems' differences; with several tasks, the weighted mean of their means.
        error: standard error of the mean, over problems.
        freedom: degrees of freedom of the error.
    """

    mean: float
    error: float
    freedom: float

    def interval(self, critical: float | None = None) -> tuple[float, float]:
        """The interval mean ± ``critical`` * error; by default Student's 95 % interval."""
        width = (t_quantile(self.freedom) if critical is None else critical) * self.error
        return self.mean - width, self.mean + width

    def detectable(self, critical: float | None = None) -> float:
        """The smallest true difference that a test detects with a power of 80 %.

        Args:
            critical: number of standard errors above which a difference is significant; by default
                the normal distribution's 1.96.
        """
        return ((Z if critical is None else critical) + POWER_Z) * self.error


def differences(
    parts: Sequence[Array], weights: Sequence[float], *, rates: bool = False
) -> list[Difference]:
    """Return the mean differences of some models from one reference.

    Args:
        parts: the differences of each task, float64 [models, problems], with at least two problems.
        weights: the weights of the tasks; they are scaled to sum to one.
        rates: whether scores are between 0 and 1. If so, and all differences of a task are equal, the
            error is not 0 but 1 / (problems + 2), after the adjustment of Agresti and Min (2005):
            equal scores on a few problems do not show that the models are equal.

    Returns:
        One difference per model.
    """
    shares = _shares(weights)
    means = np.stack([part.mean(axis=1) for part in parts])
    variances = np.stack([_variances(part, rates) for part in parts])
    mean = shares @ means
    each = shares[:, None] ** 2 * variances
    total = each.sum(axis=0)
    freedoms = np.array([part.shape[1] - 1 for part in parts], np.float64)
    spread = (each**2 / freedoms[:, None]).sum(axis=0)
    freedom = np.where(spread > 0, total**2 / np.where(spread > 0, spread, 1), freedoms.sum())
    return [
        Difference(float(m), math.sqrt(v), float(f))
        for m, v, f in zip(mean, total, freedom, strict=True)
    ]


def _shares(weights: Sequence[float]) -> Array:
    shares: Array = np.asarray(weights, np.float64)
    total: Array = shares / shares.sum()
    return total


def _variances(part: Array, rates: bool) -> Array:
    """Squared standard errors of the row means: float64 [models]."""
    count = part.shape[1]
    variances: Array = part.var(axis=1, ddof=1) / count
    if rates:
        variances[np.ptp(part, axis=1) == 0] = 1 / (count + 2) ** 2
    return variances


# -- permutation ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Family:
    """Tests of several models against one reference, by the same sign flips.

    Attributes:
        single: the p-value of each test, without correction.
        adjusted: p-values by max-T (Westfall and Young 1993): the probability that any of the tests
            reaches the statistic if no model differs. Accepting those up to 0.05 limits the
            probability of any false positive in a study to 5 %.
        critical: number of standard errors that the largest statistic exceeds with a probability of 5 %
            if no model differs.
        exact: whether all sign flips are enumerated.
    """

    single: tuple[float, ...]
    adjusted: tuple[float, ...]
    critical: float
    exact: bool


def family(
    parts: Sequence[Array], weights: Sequence[float], *, draws: int = DRAWS, seed: int = 0
) -> Family:
    """Test the mean differences of some models from one reference, by sign flips of problems.

    A flip changes the sign of a problem's difference for all models at once, which preserves the
    correlation between models: they share the reference, and may be similar to each other.

    Args:
        parts, weights: see :func:`differences`.
        draws: number of random flips, used if there are too many to enumerate.
        seed: seed of the draws.
    """
    shares = _shares(weights)
    counts = [part.shape[1] for part in parts]
    parts = [part[:, np.any(part != 0, axis=0)] for part in parts]  # flips of zeros have no effect
    models, problems = parts[0].shape[0], sum(part.shape[1] for part in parts)
    exact = problems <= _MOST_LISTED and models << max(0, problems - 1) <= _MOST_LISTED_CELLS
    observed = _statistics(parts, shares, np.ones((1, problems)), counts)
    total, single, adjusted = 0, np.zeros(models), np.zeros(models)
    largest: list[Array] = []
    for signs in _listed(problems) if exact else _drawn(problems, draws, models, seed):
        means, squares = _statistics(parts, shares, signs, counts)
        top = squares.max(axis=1)
        single += _reaches(means, observed[0]).sum(axis=0)
        adjusted += _reaches(top[:, None], observed[1]).sum(axis=0)
        largest.append(top)
        total += len(signs)
    extra = 0 if exact else 1  # the observed signs count as a flip; enumeration includes them
    single, adjusted = (
        (single + extra) / (total + extra),
        (adjusted + extra) / (total + extra),
    )
    square = float(np.quantile(np.concatenate(largest), 1 - LEVEL, method="higher"))
    critical = max(math.sqrt(square), t_quantile(max(1, sum(counts) - len(counts))))
    return Family(
        tuple(single.tolist()), tuple(np.maximum(adjusted, single).tolist()), critical, exact
    )


def _statistics(
    parts: Sequence[Array], shares: Array, signs: Array, counts: Sequence[int]
) -> tuple[Array, Array]:
    """Absolute means and squared t statistics of flipped differences: float64 [flips, models] twice."""
    mean, variance = np.zeros(()), np.zeros(())
    start = 0
    for part, share, count in zip(parts, shares, counts, strict=True):
        means = signs[:, start : start + part.shape[1]] @ part.T / count
        power = (part**2).sum(axis=1) / count
        mean = mean + share * means
        variance = variance + share**2 * np.maximum(power - means**2, 1e-12 * power) / (count - 1)
        start += part.shape[1]
    squares = np.divide(mean**2, variance, out=np.zeros_like(mean), where=variance > 0)
    return np.abs(mean), squares


def _reaches(drawn: Array, observed: Array) -> Array:
    """Whether each drawn statistic is at least the observed one, within :data:`_TIE`."""
    reached: Array = drawn >= observed * (1 - _TIE)
    return reached


def _listed(problems: int) -> Iterator[Array]:
    """Yield all sign flips, [flips, problems] of ±1, only one of a flip and its negative."""
    total = 1 << max(0, problems - 1)
    step = 1 << 14
    for start in range(0, total, step):
        numbers = np.arange(start, min(total, start + step))
        yield 1.0 - 2.0 * ((numbers[:, None] >> np.arange(problems)) & 1)


def _drawn(problems: int, draws: int, models: int, seed: int) -> Iterator[Array]:
    random = np.random.default_rng(seed)
    step = max(1, 4_000_000 // (problems + models))
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        yield random.integers(0, 2, (rows, problems), dtype=np.int8) * 2.0 - 1.0


def exact_p(differences: Array, grain: int) -> float | None:
    """The exact p-value of the sign-flip test, for differences that are multiples of ``1 / grain``.

    Differences of mean verdicts (0 or 1) over N samples are multiples of 1/N; with one sample this is
    McNemar's exact test. The sum of flipped equal absolute differences has a binomial distribution; the
    distribution of the total is the convolution of these.

    Args:
        differences: the difference of each problem, float64 [problems].
        grain: N such that all differences are multiples of 1/N, such as the number of samples.

    Returns:
        The p-value; None if a difference is not a multiple of 1/N, or the distribution is longer than
        :data:`_MOST_STEPS`.
    """
    tails = _tails(differences, grain)
    return None if tails is None else min(1.0, sum(tails))


def mid_p(differences: Array, grain: int) -> float | None:
    """The mid-p-value of :func:`exact_p`'s test (Lancaster 1961): sums equal to the observed count half.

    With few problems and samples the exact test is conservative, since its p-value takes few values. The
    mid-p-value's rate of false positives is closer to 5 %, but may exceed it.
    """
    tails = _tails(differences, grain)
    return None if tails is None else min(1.0, tails[0] + tails[1] / 2)


def _tails(differences: Array, grain: int) -> tuple[float, float] | None:
    """Probabilities of an absolute sum above the observed one, and equal to it."""
    scaled = differences * grain
    steps = np.rint(scaled).astype(np.int64)
    if np.abs(scaled - steps).max(initial=0) > 1e-6 or np.abs(steps).sum() > _MOST_STEPS:
        return None
    sizes, times = np.unique(np.abs(steps[steps != 0]), return_counts=True)
    chances = np.ones(1)
    for size, count in zip(sizes.tolist(), times.tolist(), strict=True):
        distribution = np.zeros(size * count + 1)
        distribution[::size] = _binomial(count)
        chances = np.convolve(chances, distribution)
    # Index i of the distribution stands for the sum 2 i - total.
    sums = np.abs(2 * np.arange(len(chances)) - (len(chances) - 1))
    seen = abs(int(steps.sum()))
    return float(chances[sums > seen].sum()), float(chances[sums == seen].sum())


@lru_cache(maxsize=4096)
def _binomial(count: int) -> Array:
    """Probabilities of 0 to ``count`` heads in ``count`` tosses of a fair coin."""
    logs = [
        math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1)
        for i in range(count + 1)
    ]
    return np.exp(np.array(logs) - count * math.log(2))


def holm(values: Sequence[float]) -> list[float]:
    """P-values corrected for multiple tests by the method of Holm (1979), in the order of ``values``."""
    adjusted, least = [0.0] * len(values), 0.0
    for place, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        least = max(least, min(1.0, (len(values) - place) * values[index]))
        adjusted[index] = least
    return adjusted
