"""Commands about many merges: sweep, search, report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from merganser.cli.options import (
    OutputPath,
    card_option,
    code_option,
    engine_choice,
    json_option,
    prepare,
    public_option,
    recipe_options,
    report_option,
    running_options,
    tokenizer_option,
    track_option,
)
from merganser.cli.output import print_json, show_warning
from merganser.cli.progress import merge_progress, scoring_progress

if TYPE_CHECKING:
    from merganser.results.scores import Results
    from merganser.study.search import SearchResult


Command = TypeVar("Command", bound=Callable[..., Any])


def workers_options(command: Command) -> Command:
    """Add the options that share the scoring among workers."""
    for option in reversed(
        [
            click.option(
                "--workers",
                metavar="WHERE",
                help="Share the scoring: local:N starts N processes, local:auto one a GPU; ray, ray:N and "
                "ray://HOST:PORT start them on a Ray cluster; join is for any number of processes on machines "
                "that share OUT.",
            ),
            click.option(
                "--stall",
                type=click.FloatRange(0),
                metavar="MINUTES",
                help="With --workers: give a model to another worker after this time without a token, a judged "
                "sample or a merged tile; by default 30, 0 for never.",
            ),
        ]
    ):
        command = option(command)
    return command


def _has_workers(options: dict[str, Any]) -> bool:
    """Replace the options of workers by arguments of ``…_with_workers``, if there are workers."""
    workers, stall = options.pop("workers"), options.pop("stall")
    if workers is None:
        if stall is not None:
            raise click.UsageError("--stall is for --workers")
        return False
    from merganser.workers.working import leave

    options |= {"workers": workers, "on_hang": leave}
    options |= {} if stall is None else {"stall": stall * 60}
    return True


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("out", type=OutputPath())
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
@workers_options
@engine_choice
@code_option
@track_option
@report_option
@json_option
def sweep(config: Path, out: Path, **options: Any) -> None:
    """Merge all points of the sweep CONFIG in one pass.

    Each point becomes the folder OUT/NAME; existing ones are reused. With an evaluate: block the base, the
    experts and the points are scored in memory first, and only the points that evaluate.keep chooses are
    written.

    \b
    Examples:
      merganser sweep sweep.yml OUT
      merganser sweep sweep.yml OUT --only w=0.7,0.9
      merganser sweep study.yml OUT --no-write      # scores only
      merganser sweep study.yml OUT --workers local:auto
    """
    from merganser.recipe import has_block
    from merganser.study import sweep as sweeps

    as_json, quiet, verbose = options.pop("as_json"), options.pop("quiet"), options.pop("verbose")
    no_write, draw = options.pop("no_write"), options.pop("draw")
    prepare(options)
    if has_block(config, "evaluate"):
        _sweep_evaluated(config, out, as_json, quiet, not no_write, draw, options)
        if draw:
            _draw(out, quiet or as_json)
        return
    if no_write:
        raise click.UsageError(f"--no-write is for evaluation, and {config} has no evaluate: block")
    if options.pop("workers"):
        raise click.UsageError(f"--workers is for evaluation, and {config} has no evaluate: block")
    if options.pop("stall") is not None:
        raise click.UsageError("--stall is for --workers")
    engine = [options.pop("engine"), options.pop("engine_options")]
    if any(engine):
        raise click.UsageError(f"--engine is for evaluation, and {config} has no evaluate: block")
    if options.pop("allow_code"):
        raise click.UsageError(
            f"--allow-code is for evaluation, and {config} has no evaluate: block"
        )
    if options.pop("track"):
        raise click.UsageError(f"--track is for evaluation, and {config} has no evaluate: block")

    def tell(points: int, passes: int) -> None:
        from merganser.number_format import counted

        if points and not quiet and not as_json:
            times = "one pass" if passes == 1 else f"{passes} passes"
            click.echo(f"{counted(points, 'point')}, in {times} over the inputs", err=True)

    with merge_progress(quiet or as_json) as on_event:
        result = sweeps.sweep(config, out, on_begin=tell, on_event=on_event, **options)
    for written in result.points:
        for warning in written.merged.warnings if written.merged else ():
            show_warning(f"{written.point.name}: {warning}")
    if as_json:
        print_json(
            {
                "passes": result.passes,
                "seconds": round(result.seconds, 3),
                "points": [
                    {
                        "name": written.point.name,
                        "values": written.point.values,
                        "out": str(written.folder),
                        "kept": written.merged is None,
                        "plan": written.plan.digest,
                        "manifest": written.merged.manifest if written.merged else None,
                    }
                    for written in result.points
                ],
            }
        )
    elif not quiet:
        from merganser.cli.sweep_table import show_sweep

        show_sweep(result, verbose=verbose > 0)


def _sweep_evaluated(
    config: Path,
    out: Path,
    as_json: bool,
    quiet: bool,
    write: bool,
    draw: bool,
    options: dict[str, Any],
) -> None:
    from dataclasses import asdict

    from merganser.results import scores
    from merganser.study.evaluate import evaluate_sweep

    run: Callable[..., Results] = evaluate_sweep
    if _has_workers(options):
        from merganser.workers.driving import sweep_with_workers

        run = sweep_with_workers

    with (
        _running_report(out, draw, quiet or as_json) as update,
        merge_progress(quiet or as_json) as on_event,
        scoring_progress(quiet or as_json) as on_progress,
    ):
        results = run(
            config,
            out,
            write=write,
            on_event=on_event,
            on_progress=on_progress,
            on_results=lambda found, total: update(lambda: found, total),
            on_warning=show_warning,
            **options,
        )
    if as_json:
        print_json(asdict(results))
    elif not quiet:
        from merganser.cli.score_table import show_scores

        show_scores(results)
        if (out / scores.HELD_OUT / scores.JSON_NAME).is_file():
            click.echo("\nThe chosen points on problems that were held out:")
            show_scores(scores.read(out / scores.HELD_OUT))


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("out", type=OutputPath())
@recipe_options
@running_options
@click.option("--budget", type=click.IntRange(1), help="How many candidates, in place of CONFIG's.")
@click.option("--force", is_flag=True, help="Replace folders that are there and something else.")
@click.option("--no-write", is_flag=True, help="Write the results, but no merges.")
@public_option
@card_option
@tokenizer_option
@workers_options
@engine_choice
@code_option
@track_option
@report_option
@json_option
def search(config: Path, out: Path, no_write: bool, draw: bool, **options: Any) -> None:
    """Search the best values of CONFIG's parameters.

    Every candidate is merged and scored in memory; OUT gets the results and the best merges. Repeat an
    interrupted search to continue it.

    \b
    Examples:
      merganser search search.yml OUT
      merganser search search.yml OUT --budget 200
      merganser search search.yml OUT --workers local:auto
    """
    from merganser.reports import live
    from merganser.study import search as searches

    as_json, quiet, verbose = options.pop("as_json"), options.pop("quiet"), options.pop("verbose")
    prepare(options)
    silent = quiet or as_json
    run: Callable[..., SearchResult] = searches.search
    if _has_workers(options):
        from merganser.workers.searching import search_with_workers

        run = search_with_workers

    def show_standing(standing: Any, wanted: Any) -> None:
        if not silent:
            from merganser.cli.progress_bars import search_line

            click.echo(search_line(standing, wanted), err=True)
        update(lambda: live.read_history(out), wanted.budget)

    with (
        _running_report(out, draw, silent) as update,
        scoring_progress(silent) as on_progress,
        merge_progress(silent) as on_event,
    ):
        result = run(
            config,
            out,
            write=not no_write,
            on_standing=show_standing,
            on_progress=on_progress,
            on_warning=show_warning,
            on_event=on_event,
            **options,
        )
    for written in result.written.points if result.written else ():
        for warning in written.merged.warnings if written.merged else ():
            show_warning(f"{written.point.name}: {warning}")
    if as_json:
        from dataclasses import asdict

        print_json(
            {
                "candidates": len(result.trials),
                "seconds": round(result.seconds, 3),
                "results": asdict(result.found),
                "held_out": asdict(result.held_out) if result.held_out else None,
                "folders": [str(written.folder) for written in result.written.points]
                if result.written
                else [],
            }
        )
    elif not quiet:
        from merganser.cli.search_table import show_additions, show_search

        show_search(result, verbose=verbose > 0)
        if result.found.additions:
            show_additions(result.found, out)
    if draw:
        _draw(out, quiet or as_json)


@contextmanager
def _running_report(folder: Path, draw: bool, quiet: bool) -> Iterator[Callable[..., None]]:
    """Give a function that writes the report of a study while it runs, and says once where it is."""
    if not draw:
        yield lambda _results, _total: None
        return
    from merganser.reports.live import LivePage

    shown = quiet
    with LivePage(folder) as page:

        def update(results: Callable[[], Results], total: int) -> None:
            nonlocal shown
            path = page.update(results, total)
            if path is not None and not shown:
                click.echo(f"watch it: {path}", err=True)
                shown = True

        yield update


def _draw(folder: Path, quiet: bool) -> None:
    """Write the report of a finished search; if that fails, only warn, since its results are written."""
    from merganser.errors import MerganserError
    from merganser.reports import page as reports

    try:
        page, *_ = reports.write(folder)
    except MerganserError as error:
        show_warning(f"no report: {error}")
        return
    if not quiet:
        click.echo(f"report: {page}", err=True)


@click.command()
@click.argument("folder", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--x", metavar="SCORE", help="Score on the front's horizontal axis; by default the first."
)
@click.option(
    "--y", metavar="SCORE", help="Score on the front's vertical axis; by default the second."
)
@click.option(
    "--distances",
    is_flag=True,
    help="Compare the experts' weights too, which reads them once; the report shows it from then on.",
)
@click.option("-j", "--threads", type=click.IntRange(1), help="Threads; by default one a core.")
@click.option(
    "--paper",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write LaTeX tables, PDF figures, BibTeX and a paragraph on methods into DIR, in place of the page.",
)
@json_option
def report(
    folder: Path,
    x: str | None,
    y: str | None,
    distances: bool,
    threads: int | None,
    paper: Path | None,
    as_json: bool,
) -> None:
    """Draw the results of a study on one page that opens offline.

    Reads OUT/results.json and the completions; writes OUT/report.html, which needs no other file, and
    OUT/figures. For a sweep or a search that still runs it writes the page with what is scored so far.

    \b
    Examples:
      merganser report OUT
      merganser report OUT --x accuracy --y format --distances
      merganser report OUT --paper paper
    """
    if paper is not None:
        from merganser.reports import paper as papers

        files = [str(file) for file in papers.write(folder, paper, x=x, y=y)]
        if as_json:
            print_json({"files": files})
        else:
            click.echo("\n".join(files))
        return
    from merganser.errors import MerganserError
    from merganser.reports import live
    from merganser.reports import page as reports

    if live.is_running(folder):
        so_far, total = live.read_running(folder)
        page = live.write(so_far, folder, total=total)
        if page is None:
            raise MerganserError(f"{folder}: no model is scored yet")
        written = [page]
    else:
        written = reports.write(folder, x=x, y=y, distances=distances, threads=threads)
    files = [str(file) for file in written]
    if as_json:
        print_json({"page": files[0], "figures": files[1:]})
    else:
        click.echo(files[0])
