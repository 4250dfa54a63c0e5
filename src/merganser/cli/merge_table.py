"""The result of a merge, as a table of its effective weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.text import Text

from merganser import number_format
from merganser.cli.columns import Column, letter, print_columns, stdout
from merganser.cli.output import shown_path

if TYPE_CHECKING:
    from merganser.merging.result import MergeResult


LEGEND = "asked: in the recipe; exact: before rounding; stored: after rounding"
"""What the columns of weights mean."""


def show_result(result: MergeResult, *, verbose: bool = False) -> None:
    """Print the result of a merge."""
    from merganser.engine.effective_weights import why_unknown

    console = stdout()
    report = result.outcome.report
    if report is not None:
        moved = [
            Text(
                number_format.decimal(m.effective),
                style="yellow" if _is_far(m.effective, m.requested) else "",
            )
            for m in report.models
        ]
        names = [model.model for model in report.models]
        letters = list(map(letter, range(len(names))))
        differ = ["–" if m.differ is None else f"{m.differ:.1%}" for m in report.models]
        columns = [
            *([Column("", letters)] if len(names) > 1 else []),
            Column("model", names),
            Column("asked", [number_format.decimal(model.given) for model in report.models], True),
            Column(
                "exact",
                [number_format.decimal(model.requested) for model in report.models],
                True,
            ),
            Column("stored", moved, True),
            Column("differs", differ, True),
        ]
        print_columns(console, columns)
        console.print(LEGEND, style="dim", highlight=False)
        if reason := why_unknown(report.models):
            console.print(escape(f"no stored weights: {reason}"), style="dim", highlight=False)
        if verbose and report.worst:
            tensors, models, wanted, got = zip(*report.worst, strict=True)
            known = dict(zip(names, letters, strict=True))
            console.print("\nfarthest from what was asked", highlight=False)
            columns = [
                Column("tensor", tensors),
                Column("model", [known[model] for model in models], shared="model "),
                Column("exact", [*map(number_format.decimal, wanted)], True),
                Column("stored", [*map(number_format.decimal, got)], True),
            ]
            print_columns(console, columns, "all of these")
    size, seconds = result.plan.output_bytes, result.timings["total_s"]
    where = f"[bold]{escape(shown_path(result.folder))}[/]: " if result.folder else ""
    console.print(
        f"{where}{result.plan.parameters:,} parameters, {number_format.size(size)} in {seconds:.1f} s "
        f"({number_format.size(size / max(seconds, 1e-9))}/s)",
        highlight=False,
        soft_wrap=True,
    )


def _is_far(got: float | None, asked: float | None) -> bool:
    return (
        number_format.decimal(got) != number_format.decimal(asked)
        and abs((got or 0) - (asked or 0)) > 0.02
    )
