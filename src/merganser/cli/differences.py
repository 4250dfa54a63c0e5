"""The command that compares two models: diff."""

from __future__ import annotations

from pathlib import Path

import click

from merganser.cli.options import json_option, methods_option
from merganser.cli.output import print_json


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--base", metavar="C", help="The base of both models: compare their changes too.")
@click.option("-j", "--threads", type=click.IntRange(1), help="Threads; by default one a core.")
@click.option(
    "--figure",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also draw heat maps by layer and kind of tensor, as .png, .svg or .pdf.",
)
@methods_option
@click.option(
    "--rank", is_flag=True, help="Effective ranks of the matrices' differences too; takes long."
)
@click.option(
    "--ulp",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="Round both to this dtype, such as that of a merge, before elements that differ and units in the "
    "last place are counted; by default the wider of both.",
)
@click.option(
    "--share",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Share the tensors with other processes, on any machines, that run the same command with this FOLDER.",
)
@json_option
def diff(
    first: str,
    second: str,
    base: str | None,
    threads: int | None,
    figure: Path | None,
    rank: bool,
    ulp: str | None,
    share: Path | None,
    as_json: bool,
) -> None:
    """Show how the models A and B differ.

    By layers, roles and tensors; with a base, also how far their changes of it agree. A and B are models, or
    recipes and points of sweeps, which are merged in memory.

    \b
    Examples:
      merganser diff acc accfmt
      merganser diff acc accfmt --base base --figure difference.png
      merganser diff sweep.yml#w=0.7 acc
      merganser diff acc accfmt --share shared/diff   # on every machine
    """
    from merganser import extras
    from merganser.differences import diff as diffs

    if figure is not None and figure.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise click.UsageError(f"--figure {figure}: the name must end in .png, .svg or .pdf")
    figures = extras.load("merganser.reports.figures", "plot") if figure else None
    if share is not None:
        from merganser.workers.shared_diff import diff_with_others

        difference = diff_with_others(
            first, second, share, base=base, threads=threads, rank=rank, ulp=ulp
        )
    else:
        difference = diffs.diff(first, second, base=base, threads=threads, rank=rank, ulp=ulp)
    if figures and figure:
        figures.save(figures.layers(difference.cells(), f"{first} → {second}"), figure)
    if as_json:
        print_json(difference.as_dict())
        return
    from merganser.cli.diff_table import show_diff

    show_diff(difference)
