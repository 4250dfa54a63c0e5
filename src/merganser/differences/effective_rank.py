"""The effective rank of a matrix, such as the difference of two models' tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

AT_ONCE = 4_000_000
"""Elements per block of rows."""


def effective_rank(shape: tuple[int, int], rows: Callable[[int, int], Array]) -> float | None:
    """Return the exponential of the entropy of a matrix's singular values, normalised to a sum of 1.

    It is 1 if all rows are multiples of one row, and min(rows, columns) if all singular values are
    equal. Source: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality".

    The singular values are the square roots of the eigenvalues of the smaller Gram matrix in float64;
    those below about 1e-8 of the largest are lost, which hardly changes the rank. A matrix with more
    columns than rows is held in memory in float64; other matrices are read in blocks of rows.

    Args:
        shape: (rows, columns) of the matrix.
        rows: returns the rows begin to end (exclusive) as float64 [rows, columns].

    Returns:
        The rank, between 1 and min(rows, columns); None for a matrix of zeros or with infinities.
    """
    height, width = shape
    with np.errstate(over="ignore", invalid="ignore"):  # checked below
        if width <= height:
            gram = np.zeros((width, width))
            step = max(1, AT_ONCE // width)
            for begin in range(0, height, step):
                block = rows(begin, min(height, begin + step))
                gram += block.T @ block
        else:
            matrix = rows(0, height)
            gram = matrix @ matrix.T
    if not np.isfinite(gram).all() or not gram.any():
        return None
    eigenvalues = np.linalg.eigvalsh(gram)
    lost = len(gram) * np.finfo(np.float64).eps * eigenvalues[-1]
    singular = np.sqrt(eigenvalues[eigenvalues > lost])
    shares = singular / singular.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
