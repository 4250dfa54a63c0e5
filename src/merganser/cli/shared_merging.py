"""Merges and conversions that several workers share, and what they print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from merganser import number_format
from merganser.cli.output import print_json, show_warning, shown_path
from merganser.cli.progress import merge_progress

if TYPE_CHECKING:
    from merganser.planning import Plan
    from merganser.planning.units import Unit
    from merganser.workers.merge_driver import SharedMerge


def merge_shared(
    config: Path | Plan | dict[str, Any],
    out: Path,
    workers: str,
    as_json: bool,
    quiet: bool,
    verbose: int,
    **options: Any,
) -> SharedMerge:
    """Merge with workers, and print the results of the merges that this process finished."""
    from merganser.workers.merge_driver import merge_with_workers

    with merge_progress(quiet or as_json) as on_event:
        shared = merge_with_workers(
            config, out, workers, on_event=on_event, on_warning=show_warning, **options
        )
    for result in shared.results:
        for warning in result.warnings:
            show_warning(warning)
    if as_json:
        merges = [
            {"out": str(result.folder), "timings": result.timings, **result.manifest}
            for result in shared.results
        ]
        facts = {"workers": dict(shared.shares), "written": shared.written}
        print_json({**merges[0], **facts} if len(merges) == 1 else {"merges": merges, **facts})
    elif not quiet:
        from merganser.cli.merge_table import show_result

        for result in shared.results:
            show_result(result, verbose=verbose > 0)
        if shared.shares:
            shares = [f"{who}: {number_format.size(size)}" for who, size in shared.shares.items()]
            count = f"{len(shares)} worker{'s' if len(shares) != 1 else ''}"
            click.echo(f"by {count}" + "".join(f"; {share}" for share in shares))
        if not shared.results:
            size = number_format.size(shared.written)
            click.echo(f"{shown_path(out)}: is complete; this process wrote {size} of it")
    return shared


def show_written(units: list[Unit], out: Path, as_json: bool, quiet: bool) -> None:
    """Print what a worker wrote of a merge."""
    size = sum(unit.size for unit in units)
    if as_json:
        print_json({"written": size, "units": [unit.name for unit in units]})
    elif not quiet:
        parts = f"{len(units)} part{'s' if len(units) != 1 else ''}"
        click.echo(f"wrote {number_format.size(size)} of {shown_path(out)} in {parts}")
