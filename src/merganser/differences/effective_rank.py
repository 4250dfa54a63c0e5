"""How many directions a matrix needs: the effective rank of the difference of two models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

AT_ONCE = 4_000_000
"""Elements of rows that are multiplied at once."""


def effective_rank(shape: tuple[int, int], rows: Callable[[int, int], Array]) -> float | None:
    """The exponential of the entropy of a matrix's singular values, as shares of their sum.

    It is 1 if all rows are multiples of one, and the smaller side if all singular values are equal.
    Source: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality".

    The singular values are the square roots of the eigenvalues of the smaller Gram matrix, in float64:
    those below about 1e-8 of the largest are lost, which moves the rank by less than they would. A
    matrix that is wider than high is held whole in float64, of others only some rows.

    Args:
        shape: of the matrix.
        rows: gives the rows from the first to before the second, as float64 [rows, columns].

    Returns:
        The rank, between 1 and the smaller side; None for a matrix of zeros, or one that is not finite.
    """
    height, width = shape
    with np.errstate(over="ignore", invalid="ignore"):  # it is looked at below
        if width <= height:
            gram = np.zeros((width, width))
            step = max(1, AT_ONCE // width)
            for begin in range(0, height, step):
                block = rows(begin, min(height, begin + step))
                gram += block.T @ block
        else:
            whole = rows(0, height)
            gram = whole @ whole.T
    if not np.isfinite(gram).all() or not gram.any():
        return None
    found = np.linalg.eigvalsh(gram)
    lost = len(gram) * np.finfo(np.float64).eps * found[-1]
    singular = np.sqrt(found[found > lost])
    shares = singular / singular.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
