"""A short test of a library that was just loaded, against numbers that are known beforehand."""

from __future__ import annotations

import ctypes

EXPECTED = 0x0
"""The digest of the bytes below."""


def problem(library: ctypes.CDLL) -> str | None:
    """What a library gets wrong; None if it is right."""
    return None
