"""Numbers as people read them, one function a kind: for tables, cards, pages and messages."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

MISSING = "–"
"""Printed in place of a missing number."""


def size(count: float) -> str:
    """A number of bytes in decimal units: ``3.55 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: float) -> str:
    """A time in one unit: ``70 s``, ``12 min``, ``3.5 h``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def grouped(value: Any, least: int = 0) -> str:
    """A whole number from ``least`` up with commas between thousands; anything else as it is."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= least
    return f"{value:,}" if is_count else str(value)


def counted(count: int, noun: str) -> str:
    """A number of things: ``1 point``, ``1,000 points``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def significant(value: float | None) -> str:
    """Four significant digits."""
    return MISSING if value is None else f"{value:.4g}"


def decimal(value: float | None, places: int = 3) -> str:
    """A fixed number of decimals."""
    return MISSING if value is None else f"{value:z.{places}f}"  # z: no -0.000


def signed(value: float, places: int) -> str:
    """A fixed number of decimals with a sign, even if it is a plus."""
    return f"{value:+.{places}f}"


def compact(value: float | None, digits: int) -> str:
    """Some significant digits of a small number, all digits of a large one's whole part."""
    if value is None:
        return MISSING
    return f"{value:.{digits}g}" if abs(value) < 10 ** (digits - 1) else f"{value:.0f}"


def trimmed(value: float | None) -> str:
    """Three decimals without zeros at their end; four significant digits of a smaller number."""
    if value is None or (value and abs(value) < 1e-3):
        return significant(value)
    return decimal(value).rstrip("0").rstrip(".")


def parameter(value: Any) -> str:
    """A value of a method's parameter, as a recipe has it."""
    if value is None or isinstance(value, float):
        return significant(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def ten_digits(value: Any) -> str:
    """A value of a sweep; ten significant digits of a number with decimals."""
    if isinstance(value, float):
        return f"{value:.10g}"
    return MISSING if value is None else str(value)


def p_value(value: float | None) -> str:
    """A p-value as papers write it: ``0.031``, ``<0.001``."""
    return "<0.001" if value is not None and value < 0.001 else decimal(value)


def with_error(mean: float, error: float, *, places: int | None = None, sign: str = " ±") -> str:
    """A mean and its standard error, which is left out where it is 0.

    Args:
        mean: four significant digits of it, or ``places`` decimals.
        error: two significant digits of it, or as many decimals.
        places: decimals that all numbers of a column have.
        sign: the text between both.
    """
    if places is not None:
        texts = decimal(mean, places), decimal(error, places)
    else:
        texts = significant(mean), f"{error:.2g}"
    return sign.join(texts) if error else texts[0]


def decimals(errors: Iterable[float]) -> int:
    """Decimals that show two digits of the largest of some standard errors: those of one column."""
    largest = max(errors, default=0.0)
    return min(6, max(0, 1 - math.floor(math.log10(largest)))) if largest > 0 else 3


def typeset(value: float, digits: int = 4) -> str:
    """Some significant digits, with a true minus, and with an exponent only if it must be."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    power = math.floor(math.log10(abs(value)))
    if not -5 < power < 12:
        return f"{value:.{digits}g}".replace("-", "−")
    text = typeset_decimal(value, max(0, digits - 1 - power))
    return text.rstrip("0").rstrip(".") if "." in text else text


def typeset_decimal(value: float, places: int) -> str:
    """A fixed number of decimals, with a true minus."""
    return decimal(value, places).replace("-", "−")


def typeset_difference(value: float) -> str:
    """Three significant digits with a sign, even if it is a plus."""
    return f"+{typeset(value, 3)}" if value > 0 else typeset(value, 3)
