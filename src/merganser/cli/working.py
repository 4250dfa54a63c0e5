"""The command of one worker among many: worker."""

from __future__ import annotations

import traceback
from pathlib import Path

import click

from merganser.cli.options import OutputPath, json_option
from merganser.cli.output import print_json, show_warning
from merganser.cli.progress import scoring_progress


@click.command()
@click.argument("out", type=OutputPath())
@click.option(
    "-j", "--threads", type=click.IntRange(1), default=None, help="Threads of the merges."
)
@click.option("-q", "--quiet", is_flag=True, help="No progress, no summary.")
@json_option
def worker(out: Path, threads: int | None, quiet: bool, as_json: bool) -> None:
    """Score models of a study, or write parts of a merge, with others.

    merganser sweep or search CONFIG OUT --workers … begins a study, merganser merge CONFIG OUT --workers … a
    merge, on this machine or on one that shares the folder. The worker checks that it sees the same inputs
    and versions, takes a model or a part of a file that nobody has, and ends when none is left. It runs the
    study's file and the files of --methods that the study or the merge names.

    \b
    Examples:
      merganser worker OUT
      sbatch --array=0-7 --gpus=1 --wrap "merganser worker OUT"
    """
    from merganser.workers.merge_worker import work_on_merge

    units = work_on_merge(out, threads=threads, on_warning=show_warning, on_hang=_leave)
    if units is not None:
        from merganser.cli.shared_merging import show_written

        show_written(units, out, as_json, quiet)
        return
    _score(out, threads, quiet, as_json)


def _leave(message: str) -> None:
    from merganser.workers.working import leave

    leave(message)


def _score(out: Path, threads: int | None, quiet: bool, as_json: bool) -> None:
    """Score models of the study in a folder."""
    from merganser.errors import MerganserError
    from merganser.workers.working import REPLACE, leave, work

    with scoring_progress(quiet or as_json) as on_progress:
        try:
            scored = work(
                out,
                threads=threads,
                on_progress=on_progress,
                on_warning=show_warning,
                on_hang=leave,
            )
        except MerganserError:
            raise
        except Exception:
            traceback.print_exc()
            raise SystemExit(REPLACE) from None
    if as_json:
        print_json({"scored": scored})
    elif not quiet:
        from merganser.number_format import counted

        names = f": {', '.join(scored)}" if scored else ""
        click.echo(f"scored {counted(len(scored), 'model')}{names}")
