"""Commands that publish a merge: card, push."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from merganser.cli.options import OutputPath, json_option
from merganser.cli.output import print_json
from merganser.cli.progress import merge_progress
from merganser.errors import RecipeError


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--benchmark",
    "benchmarks",
    multiple=True,
    metavar="SCORE=ORG/NAME:TASK",
    help="Data set on the Hub that a score was measured on, for .eval_results.",
)
def card(folder: Path, benchmarks: tuple[str, ...]) -> None:
    """Rewrite the card of a merged FOLDER.

    With its scores, if the folder belongs to an evaluated study.

    \b
    Examples:
      merganser card STUDY/merge_w0.4
      merganser card STUDY/merge_w0.4 --benchmark accuracy=org/dataset:task
    """
    from merganser.publishing import study_cards

    named = dict(benchmark.partition("=")[::2] for benchmark in benchmarks)
    study_cards.rewrite(folder, benchmarks=named)
    click.echo(f"{folder / 'README.md'}: written")


@click.command()
@click.argument("out", type=OutputPath())
@click.argument("name", metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="Make new repositories that only you see.")
@click.option("--collection", metavar="TITLE", help="Put them into a collection of that title.")
@click.option("--revision", metavar="BRANCH", help="Push to this branch; it is created if missing.")
@click.option(
    "--hide-paths", "--public", "public", is_flag=True, help="Send names in place of local paths."
)
@click.option(
    "--with-paths", is_flag=True, help="Send the local paths in card, recipe and manifest."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--dry-run", is_flag=True, help="Only show what would be sent; asks nothing of the Hub."
)
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@json_option
def push(
    out: Path,
    name: str,
    private: bool,
    collection: str | None,
    revision: str | None,
    public: bool,
    with_paths: bool,
    yes: bool,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Publish a merged folder, or a study's choice, on the Hub.

    OUT becomes ORG/NAME; for a study, each chosen point becomes ORG/POINT. Shows first what will be public,
    and asks. Repeat an interrupted push to finish it.

    \b
    Examples:
      merganser push OUT org/name --dry-run
      merganser push OUT org/name --private
      merganser push STUDY org --collection "Merges of acc and accfmt"
    """
    from merganser.cli.publication_table import show_publication
    from merganser.publishing import push as publishing

    with merge_progress(quiet or as_json) as on_event:
        prepared = publishing.prepare(
            out,
            name,
            private=private,
            public_names=public,
            collection=collection,
            revision=revision,
            on_event=on_event,
        )
    if dry_run:
        if as_json:
            print_json(publishing.describe(prepared))
        else:
            show_publication(prepared)
        return
    state = publishing.look(prepared)
    if not (as_json and yes):
        show_publication(prepared, state, on_stderr=True)
    publishing.check_paths(prepared, public=public, with_paths=with_paths)
    if not yes:
        if not _can_ask():
            raise RecipeError("nothing was sent: there is no terminal to ask at; --yes sends it")
        click.confirm("Send this?", abort=True, err=True)
    try:
        done = publishing.send(prepared, state, progress=not (quiet or as_json))
    except KeyboardInterrupt as error:
        error.add_note("the same command continues")
        raise
    if as_json:
        print_json({"commits": dict(done.commits), "collection": done.collection})
        return
    for address in (*done.commits.values(), done.collection):
        if address is not None:
            click.echo(address)


def _can_ask() -> bool:
    return sys.stdin.isatty()
