"""The table of a sweep's points."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merganser import number_format
from merganser.cli.columns import Column, print_points, stdout, value_text
from merganser.cli.merge_table import show_result

if TYPE_CHECKING:
    from merganser.study.sweep import SweepResult


def show_sweep(result: SweepResult, *, verbose: bool = False) -> None:
    """Print a sweep's result, one line per point; with ``verbose`` also the table of each merge."""
    console = stdout()
    points, weights = result.points, []
    for each in points:
        if verbose and each.merged is not None:
            show_result(each.merged, verbose=True)
        report = each.merged.outcome.report if each.merged else None
        models = report.models if report else ()
        weights.append(", ".join(number_format.decimal(m.effective) for m in models) or "–")
    keys = list(dict.fromkeys(key for each in points for key in each.point.values))
    columns = [
        *(Column(key, [value_text(each.point, key) for each in points]) for key in keys),
        Column("effective weights", weights),
        Column("", ["is up to date" if each.merged is None else "" for each in points], shared=""),
    ]
    print_points(console, [each.point.name for each in points], columns)
    merged = [each for each in result.points if each.merged is not None]
    size = sum(each.plan.output_bytes for each in merged)
    passes = "1 pass" if result.passes == 1 else f"{result.passes} passes"
    console.print(
        f"{len(merged)} of {len(result.points)} points merged, {number_format.size(size)} in {passes} and "
        f"{result.seconds:.1f} s",
        highlight=False,
    )
