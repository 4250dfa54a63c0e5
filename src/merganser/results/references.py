"""Scores that were measured elsewhere, such as in a paper, with their uncertainty."""

from __future__ import annotations

import math

from merganser.evaluation.significance import Z
from merganser.evaluation.statistics import Score, digits


def stated_score(
    mean: float,
    *,
    error: float | None = None,
    low: float | None = None,
    high: float | None = None,
    problems: int | None = None,
) -> Score:
    """Return a score that was measured elsewhere, with its missing values derived.

    A 95 % interval is 3.92 standard errors wide. A share of solved problems gets Wilson's interval, and the
    width / 3.92 as standard error.

    Raises:
        ValueError: the uncertainty is missing, or the numbers contradict each other.
    """
    if (low is None) != (high is None):
        raise ValueError("give both low and high, or neither")
    if low is not None and high is not None:
        if not low <= mean <= high:
            raise ValueError(f"the mean {mean:g} is not between low {low:g} and high {high:g}")
        error = (high - low) / (2 * Z) if error is None else error
    elif error is not None:
        low, high = mean - Z * error, mean + Z * error
    elif problems is not None and 0 <= mean <= 1:
        low, high = wilson(mean, problems)
        error = (high - low) / (2 * Z)
    else:
        raise ValueError(
            "its uncertainty is missing: give error (one standard error), low and high (95 %), or "
            "problems for a score from 0 to 1"
        )
    return Score(digits(mean), digits(error), digits(low), digits(high), problems or 0)


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share of ``count`` problems (Wilson 1927)."""
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    width = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2)) / (1 + Z**2 / count)
    return middle - width, middle + width
