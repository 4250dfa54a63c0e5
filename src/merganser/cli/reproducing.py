"""The command that makes a published merge again, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from merganser.cli.options import json_option, methods_option
from merganser.cli.output import print_json
from merganser.cli.progress import merge_progress

if TYPE_CHECKING:
    from merganser.merging.reproduce import Attempt, Reproduction

MOST_NAMES = 5
"""Number of tensors that are listed; of more, only the number is printed."""


@click.command()
@click.argument("model", metavar="ORG/NAME|FOLDER")
@click.option(
    "--against",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder in which relative paths of inputs are searched, in place of the recipe's.",
)
@methods_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing if all is well.")
@json_option
def reproduce(model: str, against: Path | None, quiet: bool, as_json: bool) -> None:
    """Make a published merge again, and compare every tensor.

    The recipe is the repository's mergekit_config.yml. For a merge by MergeKit, the arithmetics of its
    versions are tried, and the one that agrees is named. Nothing is written. The exit code is 3 if no
    merge agrees.

    \b
    Examples:
      merganser reproduce org/name
      merganser reproduce OUT
    """
    from merganser.merging.reproduce import reproduce as make_again

    with merge_progress(quiet or as_json) as on_event:
        reproduction = make_again(model, against=against, on_event=on_event)
    if as_json:
        print_json(reproduction.as_dict())
    elif not quiet or reproduction.arithmetic is None or reproduction.inputs:
        show_reproduction(reproduction)
    if reproduction.arithmetic is None:
        raise click.exceptions.Exit(3)


def show_reproduction(reproduction: Reproduction) -> None:
    """Print whether a merge was reproduced, and what differs."""
    agreed = reproduction.arithmetic
    if agreed is not None:
        click.echo(
            f"{reproduction.model}: all {reproduction.tensors} tensors are what its recipe gives, bit for bit"
            f" (--arithmetic {agreed})"
        )
    else:
        click.echo(f"{reproduction.model}: is not what its recipe gives now")
    for attempt in reproduction.attempts:
        if not attempt.agrees:
            click.echo(
                f"  --arithmetic {attempt.arithmetic}: {_agreement(attempt, reproduction.tensors)}"
            )
    for problem in reproduction.inputs:
        click.echo(f"  {problem}")
    for reference, commit in reproduction.commits.items():
        click.echo(f"  merged now: {reference} at commit {commit}")
    if agreed is None and reproduction.made_by == "MergeKit":
        click.echo(
            "  mergekit_config.yml names no commits, no versions and no seed that was not given: inputs may "
            "have changed since, and random methods draw anew"
        )


def _agreement(attempt: Attempt, total: int) -> str:
    if attempt.failed is not None:
        return attempt.failed
    parts = [f"{attempt.equal} of {total} tensors are equal"]
    for names, what in (
        (attempt.different, "differ"),
        (attempt.missing, "are only in what is published"),
        (attempt.added, "are only in the merge"),
    ):
        if names:
            more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
            parts.append(f"{len(names)} {what}: {', '.join(names[:MOST_NAMES])}{more}")
    return "; ".join(parts)
