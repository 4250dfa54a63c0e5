"""Commands about many merges, and about what sets models apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from merganser.cli.options import (
    card_option,
    json_option,
    methods_option,
    prepare,
    print_json,
    progress,
    public_option,
    recipe_options,
    report_option,
    running_options,
    scoring,
    show_warning,
    tokenizer_option,
)


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@recipe_options
@running_options
@click.option(
    "--only",
    multiple=True,
    metavar="KEY=VALUES|NAME",
    help="Only points of these values, such as w=0.7,0.9, or of this name, which may be as short as in tables; "
    "given several times, all must hold.",
)
@click.option("--force", is_flag=True, help="Replace points that are there and are something else.")
@public_option
@card_option
@tokenizer_option
@click.option(
    "--no-write", is_flag=True, help="Score the points of CONFIG's evaluate: block; write no model."
)
@report_option
@json_option
def sweep(config: Path, out: Path, **options: Any) -> None:
    """Merge all points of the sweep CONFIG in one pass.

    Each goes into a folder of its name in OUT; points that are there already are kept. With an evaluate:
    block base, experts and points are scored in memory first, and only the points that its rule keeps are
    written.

    \b
    Examples:
      merganser sweep sweep.yml OUT
      merganser sweep sweep.yml OUT --only w=0.7,0.9
      merganser sweep study.yml OUT --no-write      # scores only
    """
    from merganser.recipe import sweep_file
    from merganser.study import sweep as sweeps

    as_json, quiet, verbose = options.pop("as_json"), options.pop("quiet"), options.pop("verbose")
    no_write, draw = options.pop("no_write"), options.pop("draw")
    prepare(options)
    if sweep_file.has_block(config, "evaluate"):
        _sweep_evaluated(config, out, as_json, quiet, not no_write, options)
        if draw:
            _draw(out, quiet or as_json)
        return
    if no_write:
        raise click.UsageError(f"--no-write is for evaluation, and {config} has no evaluate: block")
    with progress(quiet or as_json) as on_event:
        result = sweeps.sweep(config, out, on_event=on_event, **options)
    for each in result.points:
        for warning in each.merged.warnings if each.merged else ():
            click.echo(f"merganser: warning: {each.point.name}: {warning}", err=True)
    if as_json:
        print_json(
            {
                "passes": result.passes,
                "seconds": round(result.seconds, 3),
                "points": [
                    {
                        "name": each.point.name,
                        "values": each.point.values,
                        "out": str(each.folder),
                        "kept": each.merged is None,
                        "plan": each.plan.digest,
                        "manifest": each.merged.manifest if each.merged else None,
                    }
                    for each in result.points
                ],
            }
        )
    elif not quiet:
        from merganser import tables

        tables.show_sweep(result, verbose=verbose > 0)


def _sweep_evaluated(
    config: Path, out: Path, as_json: bool, quiet: bool, write: bool, options: dict[str, Any]
) -> None:
    from dataclasses import asdict

    from merganser.results import scores
    from merganser.study.evaluate import evaluate_sweep

    with progress(quiet or as_json) as on_event, scoring(quiet or as_json) as on_progress:
        found = evaluate_sweep(
            config,
            out,
            write=write,
            on_event=on_event,
            on_progress=on_progress,
            on_warning=show_warning,
            **options,
        )
    if as_json:
        print_json(asdict(found))
    elif not quiet:
        from merganser import tables

        tables.show_scores(found)
        if (out / scores.HELD_OUT / scores.JSON_NAME).is_file():
            click.echo("\nThe chosen points on problems that were held out:")
            tables.show_scores(scores.read(out / scores.HELD_OUT))


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@recipe_options
@running_options
@click.option("--budget", type=click.IntRange(1), help="How many candidates, in place of CONFIG's.")
@click.option("--force", is_flag=True, help="Replace folders that are there and something else.")
@click.option("--no-write", is_flag=True, help="Write no merges, only what was found.")
@public_option
@card_option
@tokenizer_option
@report_option
@json_option
def search(config: Path, out: Path, no_write: bool, draw: bool, **options: Any) -> None:
    """Search the best values of CONFIG's parameters.

    Every candidate is blended and scored in memory; what was found, and the best, is written to OUT. A
    search that was cut off goes on where it was.

    \b
    Examples:
      merganser search search.yml OUT
      merganser search search.yml OUT --budget 200
    """
    from merganser.study import search as searches

    as_json, quiet, verbose = options.pop("as_json"), options.pop("quiet"), options.pop("verbose")
    prepare(options)

    def told(standing: Any, wanted: Any) -> None:
        if not quiet and not as_json:
            from merganser import tables

            click.echo(tables.search_line(standing, wanted), err=True)

    silent = quiet or as_json
    with scoring(silent) as on_progress, progress(silent) as on_event:
        result = searches.search(
            config,
            out,
            write=not no_write,
            on_standing=told,
            on_progress=on_progress,
            on_warning=show_warning,
            on_event=on_event,
            **options,
        )
    for each in result.written.points if result.written else ():
        for warning in each.merged.warnings if each.merged else ():
            click.echo(f"merganser: warning: {each.point.name}: {warning}", err=True)
    if as_json:
        from dataclasses import asdict

        print_json(
            {
                "candidates": len(result.trials),
                "seconds": round(result.seconds, 3),
                "results": asdict(result.found),
                "held_out": asdict(result.held_out) if result.held_out else None,
                "folders": [str(each.folder) for each in result.written.points]
                if result.written
                else [],
            }
        )
    elif not quiet:
        from merganser import tables

        tables.show_search(result, verbose=verbose > 0)
    if draw:
        _draw(out, quiet or as_json)


def _draw(folder: Path, quiet: bool) -> None:
    """Draw what was found; it is there already, so what is in the way is only a warning."""
    from merganser.errors import MerganserError
    from merganser.reports import page as reports

    try:
        page, *_ = reports.write(folder)
    except MerganserError as error:
        click.echo(f"merganser: warning: no report: {error}", err=True)
        return
    if not quiet:
        click.echo(f"report: {page}", err=True)


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--base", metavar="C", help="What both come from: compares their changes too.")
@click.option("-j", "--threads", type=click.IntRange(1), help="Threads; by default one a core.")
@click.option(
    "--figure",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Draw it too: a picture of layers and kinds of tensors, .png, .svg or .pdf.",
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
@json_option
def diff(
    first: str,
    second: str,
    base: str | None,
    threads: int | None,
    figure: Path | None,
    rank: bool,
    ulp: str | None,
    as_json: bool,
) -> None:
    """Show what sets the models A and B apart.

    By layers, roles and tensors; with a base, how their changes of it agree. A and B are models, or recipes
    and points of sweeps, which are merged in memory.

    \b
    Examples:
      merganser diff acc accfmt
      merganser diff acc accfmt --base base --figure apart.png
      merganser diff sweep.yml#w=0.7 acc
    """
    from merganser import extras
    from merganser.differences import diff as diffs

    if figure is not None and figure.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise click.UsageError(f"--figure {figure}: the name must end in .png, .svg or .pdf")
    figures = extras.load("merganser.reports.figures", "plot") if figure else None
    found = diffs.diff(first, second, base=base, threads=threads, rank=rank, ulp=ulp)
    if figures and figure:
        figures.save(figures.layers(found.cells(), f"{first} → {second}"), figure)
    if as_json:
        print_json(found.as_dict())
        return
    from merganser import tables

    tables.show_diff(found)


@click.command()
@click.argument("folder", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--x", metavar="SCORE", help="What the front shows across; by default the first score."
)
@click.option("--y", metavar="SCORE", help="What the front shows upwards; by default the second.")
@click.option(
    "--distances",
    is_flag=True,
    help="Compare the experts' weights too, which reads them once; the report shows it from then on.",
)
@click.option("-j", "--threads", type=click.IntRange(1), help="Threads; by default one a core.")
@json_option
def report(
    folder: Path, x: str | None, y: str | None, distances: bool, threads: int | None, as_json: bool
) -> None:
    """Draw what a study found, on one page that opens offline.

    Reads OUT/results.json and the kept completions; writes OUT/report.html, which holds everything, and
    OUT/figures.

    \b
    Examples:
      merganser report OUT
      merganser report OUT --x accuracy --y format --distances
    """
    from merganser.reports import page as reports

    written = reports.write(folder, x=x, y=y, distances=distances, threads=threads)
    files = [str(file) for file in written]
    if as_json:
        print_json({"page": files[0], "figures": files[1:]})
    else:
        click.echo(files[0])
