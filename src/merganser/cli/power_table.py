"""The differences that a study can detect, as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from merganser import number_format
from merganser.cli.columns import Column, print_columns, stdout

if TYPE_CHECKING:
    from merganser.results.power import Power


SAMPLES = (1, 4, 16, 64, math.inf)
"""Columns of the table of detectable differences."""


def show_power(powers: Sequence[Power], detect: float | None) -> None:
    """Print what differences can be seen, and what it takes to see one."""
    console = stdout()
    for power in powers:
        unit = " points" if power.points == 100 else ""
        detectable = power.detectable() or 0.0
        at = f"{power.problems} problems" + (f" × {power.samples} samples" if power.samples else "")
        difference = f"a difference of {detectable * power.points:.2g}{unit}"
        shown = "no difference" if _is_beyond(detectable, power) else difference
        console.print(
            f"[bold]{power.score}[/]: {at} show {shown}",
            highlight=False,
            soft_wrap=True,
        )
        if power.between is None or power.within is None:
            console.print(
                "  with one sample a problem, luck cannot be told from differences: only problems can be counted"
                if power.samples == 1
                else "  of this score, only problems can be counted",
                soft_wrap=True,
            )
        else:
            console.print(
                f"  true differences vary over problems with variance {power.between:.3g}, "
                f"samples of a problem with {power.within:.3g}",
                highlight=False,
                soft_wrap=True,
            )
        samples = (
            sorted({*SAMPLES, power.samples} - {0})
            if power.between is not None
            else [power.samples]
        )
        rows = sorted({30, 60, 200, 500, 2000, power.problems})
        table = [
            Column(r"problems \ samples", [str(row) for row in rows], True),
            *(
                Column(
                    "∞" if math.isinf(k) else str(int(k)) if k else "as now",
                    [_points(power, power.detectable(n, k or None)) for n in rows],
                    True,
                )
                for k in samples
            ),
        ]
        print_columns(console, table)
        if detect is not None:
            for line in _needed(power, detect / power.points):
                console.print("  " + line, highlight=False, markup=False, soft_wrap=True)
        console.print()


def _is_beyond(difference: float, power: Power) -> bool:
    """Whether two models cannot differ by as much: rates differ by 100 points at most."""
    return power.points == 100 and difference >= 1


def _points(power: Power, value: float | None) -> str:
    shown = None if value is None or _is_beyond(value, power) else value * power.points
    return number_format.compact(shown, 2)


def _needed(power: Power, difference: float) -> list[str]:
    """What it takes to see a difference, as sentences."""
    unit = " points" if power.points == 100 else ""
    shown = f"{difference * power.points:g}{unit}"
    samples = f" × {power.samples} samples" if power.samples else ""
    lines = [f"to see {shown}: {power.problems_for(difference):,} problems{samples}"]
    if power.between is None:
        return lines
    count = power.samples_for(difference)
    if count is not None:
        lines.append(f"or {count:,} samples of each of these {power.problems} problems")
    else:
        most = power.problems_for(difference, math.inf)
        lines.append(
            f"no number of samples of these {power.problems} problems shows it: even without luck it takes "
            f"{most:,} problems"
        )
    return lines
