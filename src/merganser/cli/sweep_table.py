"""The table of a sweep's points."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from merganser import number_format
from merganser.cli.columns import Column, print_points, stdout, value_text, weights_column
from merganser.cli.merge_table import show_result
from merganser.engine.effective_weights import ModelWeight, why_unknown
from merganser.errors import MerganserError

if TYPE_CHECKING:
    from merganser.study.sweep import PointResult, SweepResult


def show_sweep(result: SweepResult, *, verbose: bool = False) -> None:
    """Print a sweep's result, one line per point; with ``verbose`` also the table of each merge."""
    console = stdout()
    points = result.points
    weights: list[dict[str, float | None] | None] = []
    reasons: dict[str, None] = {}
    for each in points:
        if verbose and each.merged is not None:
            show_result(each.merged, verbose=True)
        models = _weights(each)
        reason = "the manifest cannot be read" if models is None else why_unknown(models)
        if reason is None:
            weights.append({model.model: model.effective for model in models or ()})
        else:
            weights.append(None)
            reasons[reason] = None
    keys = list(dict.fromkeys(key for each in points for key in each.point.values))
    columns = [
        *(Column(key, [value_text(each.point, key) for each in points]) for key in keys),
        weights_column("effective weights", weights),
        Column("", ["is up to date" if each.merged is None else "" for each in points], shared=""),
    ]
    print_points(console, [each.point.name for each in points], columns)
    for reason in reasons:
        console.print(escape(f"no effective weights: {reason}"), style="dim", highlight=False)
    merged = [each for each in result.points if each.merged is not None]
    size = sum(each.plan.output_bytes for each in merged)
    passes = "1 pass" if result.passes == 1 else f"{result.passes} passes"
    all_points = number_format.counted(len(points), "point")
    console.print(
        f"{len(merged)} of {all_points} merged, {number_format.size(size)} in {passes} and "
        f"{result.seconds:.1f} s",
        highlight=False,
    )


def _weights(each: PointResult) -> list[ModelWeight] | None:
    """The weights of a point's models: measured now, or when its folder was written."""
    from merganser.release import manifest

    if each.merged is not None:
        report = each.merged.outcome.report
        return list(report.models) if report else []
    try:
        stored = manifest.read(each.folder)["effective_weights"]
        return [ModelWeight(**model) for model in stored["models"]] if stored else []
    except (MerganserError, KeyError, TypeError):
        return None
