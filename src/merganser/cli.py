"""The command line: parse, call one function, print. stdout is the result, stderr the progress."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from merganser import __version__
from merganser.errors import MerganserError, RecipeError

if TYPE_CHECKING:
    from merganser.checkpoints import Weights
    from merganser.engine.events import Listener

Command = TypeVar("Command", bound=Callable[..., Any])

MEANINGLESS = {
    "cuda": "the CPU merges at the speed of the disk",
    "low-cpu-memory": "memory is a few tiles anyway",
    "read-to-gpu": "the CPU merges at the speed of the disk",
    "multi-gpu": "the CPU merges at the speed of the disk",
    "gpu-rich": "the CPU merges at the speed of the disk",
    "lazy-unpickle": "all reading is lazy, and nothing in a pickle is ever run",
    "async-write": "writing never waits",
    "clone-tensors": "no tensors share memory",
    "allow-crimes": "models of any architecture merge if their tensors fit",
    "trust-remote-code": "nothing that comes with a model is ever run",
}
"""Flags of mergekit-yaml that are taken and have no meaning here, each with the reason."""

SAFE = "safetensors is always written"
"""Why ``--no-safe-serialization`` has no meaning."""

MEANINGLESS_VALUES = {
    "device": "the CPU merges at the speed of the disk",
    "write-threads": "writing never waits",
    "lora-merge-cache": "adapters are applied as tiles are read, and nothing is kept",
    "lora-merge-dtype": "adapters are applied in float32",
    "transformers-cache": "set HF_HOME or HF_HUB_CACHE instead",
}
"""The same for options with a value."""


class _Group(click.Group):
    """Turns errors into one line on stderr and their exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        gc.disable()  # importing what a merge needs makes no garbage, and is a fifth faster without
        try:
            return super().invoke(ctx)
        except MerganserError as error:
            click.echo(f"merganser: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("merganser: interrupted; nothing is left behind", err=True)
            ctx.exit(130)
        except BrokenPipeError:
            sys.stderr.close()
            ctx.exit(1)
        finally:
            gc.enable()


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="merganser")
def main() -> None:
    """Merge language-model checkpoints at the speed of the disk.

    The recipes are MergeKit's YAML files. Start with: merganser plan RECIPE
    """


_weights = click.option(
    "--weights",
    type=click.Choice(["auto", "shards", "huggingface"]),
    default=None,
    help="Of training steps that have both: their shards, or their Hugging Face weights.",
)


_shard_size = click.option(
    "--shard-size",
    "--out-shard-size",
    default="5GB",
    show_default=True,
    metavar="SIZE",
    help="Greatest size of an output file: 5GB, 5GiB, 500MB, 5B (billion bytes).",
)

_public = click.option(
    "--public",
    is_flag=True,
    help="Write names instead of local paths into card, recipe and manifest.",
)

_write_card = click.option(
    "--card/--no-card",
    "--write-model-card/--no-write-model-card",
    "write_card",
    default=True,
    help="Whether to write README.md.",
)

_copy_tokenizer = click.option(
    "--copy-tokenizer/--no-copy-tokenizer", default=True, help="Whether to copy the tokenizer."
)


def _rounding_options(command: Command) -> Command:
    """Options that decide how numbers become those of the result."""
    command = click.option(
        "--seed",
        "--random-seed",
        type=click.IntRange(0),
        default=None,
        help="Seed of stochastic rounding.",
    )(command)
    return click.option(
        "--rounding",
        type=click.Choice(["nearest", "stochastic"]),
        default=None,
        help="How the result is rounded; stochastic keeps small differences, on average.",
    )(command)


def _recipe_options(command: Command) -> Command:
    """Options that decide what a merge is."""
    options = [
        click.option(
            "--arithmetic",
            type=click.Choice(["exact", "mergekit", "mergekit-0.1.4"]),
            default=None,
            help="How numbers are computed: exactly (the default), or as a MergeKit release did.",
        ),
        _rounding_options,
        _weights,
        _shard_size,
        click.option(
            "--truncate-embeddings/--no-truncate-embeddings",
            "--unsafe-truncate-embeddings/--no-unsafe-truncate-embeddings",
            "truncate_embeddings",
            default=False,
            help="Cut vocabularies of different sizes to the shortest one; tokens beyond it are lost.",
        ),
        click.option(
            "-i",
            "--tensor-intersection",
            "tensor_names",
            flag_value="intersection",
            help="Leave out tensors that some models lack.",
        ),
        click.option(
            "-u",
            "--tensor-union",
            "tensor_names",
            flag_value="union",
            help="Merge tensors that some models lack from those that have them.",
        ),
        click.option(
            "--lenient",
            "strictness",
            flag_value="lenient",
            help="Ignore keys that have no meaning, evident slips too, as MergeKit does.",
        ),
        click.option(
            "--strict",
            "strictness",
            flag_value="strict",
            help="Make every warning of the recipe an error.",
        ),
        click.option(
            "--methods",
            "method_files",
            multiple=True,
            metavar="FILE",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Python file with merge methods of your own; it is run.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _running_options(command: Command) -> Command:
    """Options that change how a merge runs, never what it gives."""
    options = [
        click.option(
            "-j",
            "--threads",
            "--num-threads",
            type=click.IntRange(1),
            default=None,
            help="Threads; by default as many as pay off.",
        ),
        click.option(
            "--memory",
            default=None,
            metavar="SIZE",
            help="Memory that the merge may take, such as 500MB.",
        ),
        click.option(
            "-q/ ",
            "--quiet/--no-quiet",
            default=False,
            help="No progress, no summary; only warnings and errors.",
        ),
        click.option("-v", "--verbose", count=True, help="Tell more."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _mergekit_flags(command: Command) -> Command:
    for name in MEANINGLESS_VALUES:
        command = click.option(f"--{name}", name.replace("-", "_"), default=None, hidden=True)(
            command
        )
    for name in MEANINGLESS:
        command = click.option(
            f"--{name}/--no-{name}", name.replace("-", "_"), default=False, hidden=True
        )(command)
    return click.option("--safe-serialization/--no-safe-serialization", default=True, hidden=True)(
        command
    )


_as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object instead of text."
)


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path), required=False)
@_recipe_options
@_running_options
@click.option("--force", is_flag=True, help="Replace OUT if it is there already.")
@click.option(
    "--sink",
    type=click.Choice(["folder", "null", "digest"]),
    default="folder",
    show_default=True,
    help="Where the merge goes: OUT, nowhere, or into digests of its tensors.",
)
@_public
@_write_card
@_copy_tokenizer
@click.option(
    "-I",
    "--intermediate-dir",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the results go that other recipes of the file build on; by default OUT.intermediate.",
)
@click.option(
    "--lazy/--no-lazy",
    "lazy",
    default=True,
    help="Whether to keep intermediate results that are up to date.",
)
@_mergekit_flags
@_as_json
def merge(config: Path, out: Path | None, **options: Any) -> None:
    """Merge the models of the recipe CONFIG into the folder OUT.

    CONFIG may hold several recipes, divided by ---, that build on each other by their names.
    """
    from merganser import chain, merging

    for name, reason in (MEANINGLESS | MEANINGLESS_VALUES).items():
        if options.pop(name.replace("-", "_")):
            click.echo(f"merganser: --{name} has no meaning here: {reason}", err=True)
    if not options.pop("safe_serialization"):
        click.echo("merganser: --no-safe-serialization has no meaning here: " + SAFE, err=True)
    as_json, quiet, verbose = options.pop("as_json"), options.pop("quiet"), options.pop("verbose")
    sink = options.pop("sink")
    if (out is None) == (sink == "folder"):
        raise click.UsageError(
            "give the output folder OUT" if out is None else f"--sink {sink} takes no OUT"
        )
    _common(options)
    where = {"intermediate_dir": options.pop("intermediate_dir"), "redo": not options.pop("lazy")}
    with _progress(quiet or as_json) as on_event:
        if out is not None:
            steps = chain.merge_all(config, out, on_event=on_event, **where, **options)
        else:
            from merganser.sinks import DigestSink, NullSink

            for name in ("force", "public", "write_card", "copy_tokenizer"):
                options.pop(name)
            chosen = DigestSink() if sink == "digest" else NullSink()
            result = merging.run_dry(config, chosen, on_event=on_event, **options)
            steps = []
    results = [step.merged for step in steps if step.merged] if out is not None else [result]
    for result in results:
        for warning in result.warnings:
            click.echo(f"merganser: warning: {warning}", err=True)
    if as_json:
        data = [
            {
                "out": str(result.folder) if result.folder else None,
                "timings": result.timings,
                **result.manifest,
            }
            for result in results
        ]
        if len(steps) > 1:
            kept = [str(step.folder) for step in steps if step.merged is None]
            _print_json({"up_to_date": kept, "merges": data})
        else:
            _print_json(data[0])
    elif sink == "digest":
        for name, digest in results[0].manifest["tensors"].items():
            click.echo(f"{digest}  {name}")
    elif not quiet:
        from merganser import tables

        for step in steps:
            if step.merged is None:
                click.echo(f"{step.folder}: is up to date")
            else:
                tables.show_result(step.merged, verbose=verbose > 0)
        if out is None:
            tables.show_result(results[0], verbose=verbose > 0)


@main.command()
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default=None,
    help="Of the result; by default what SOURCE is stored in, bfloat16 if that is quantised.",
)
@click.option(
    "--base", metavar="MODEL", default=None, help="A model that lends config and tokenizer."
)
@_rounding_options
@_weights
@_shard_size
@_running_options
@click.option("--force", is_flag=True, help="Replace OUT if it is there already.")
@_public
@_write_card
@_as_json
def convert(source: str, out: Path, **options: Any) -> None:
    """Write the model SOURCE as a Hugging Face folder OUT.

    SOURCE is a folder, a file, a training run or a step of one, a Hub id, MODEL+ADAPTER: all that
    can be merged.
    """
    from merganser import merging
    from merganser.tokenizer import has_tokenizer

    as_json, quiet, verbose = options.pop("as_json"), options.pop("quiet"), options.pop("verbose")
    _parse_memory(options)
    with _progress(quiet or as_json) as on_event:
        result = merging.convert(source, out, on_event=on_event, **options)
    for warning in result.warnings:
        click.echo(f"merganser: warning: {warning}", err=True)
    lacking = [] if (out / "config.json").is_file() else ["config.json"]
    lacking += [] if has_tokenizer(out) else ["tokenizer"]
    if lacking and options["base"] is None:
        what = " and ".join(lacking)
        click.echo(f"merganser: warning: {out}: lacks {what}; --base MODEL lends them", err=True)
    if as_json:
        _print_json({"out": str(out), "timings": result.timings, **result.manifest})
    elif not quiet:
        from merganser import tables

        tables.show_result(result, verbose=verbose > 0)


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
@_recipe_options
@click.option("-v", "--verbose", is_flag=True, help="A line for every tensor.")
@_as_json
def plan(config: Path, as_json: bool, verbose: bool, **options: Any) -> None:
    """Show what merging CONFIG would do, or every point of a sweep, without reading weights."""
    from merganser import chain, planning
    from merganser.study.language import is_sweep

    _common(options)
    if is_sweep(config):
        _plan_sweep(config, as_json, verbose, options)
        return
    plans = chain.plan_all(config, **options)
    if as_json:
        found = [
            {
                "name": step.name,
                "needs": step.needs,
                **(planning.describe(decided) if decided else {}),
            }
            for step, decided in plans
        ]
        only = plans[0][1] if len(plans) == 1 else None
        _print_json(planning.describe(only) if only else {"documents": found})
        return
    from merganser import tables

    for step, decided in plans:
        if len(plans) > 1:
            tables.show_step(step)
        if decided is not None:
            tables.show_plan(decided, verbose=verbose)
        else:
            click.echo("can be planned when the tokenizers that it builds on are made")
    for _, decided in plans:
        for warning in decided.warnings if decided else ():
            click.echo(f"merganser: warning: {warning}", err=True)


def _plan_sweep(config: Path, as_json: bool, verbose: bool, options: dict[str, Any]) -> None:
    from merganser import planning, tables
    from merganser.study import sweep as sweeps

    planned = sweeps.plan_points(config, **options)
    total = sweeps.input_bytes([decided for _, decided in planned])
    if as_json:
        points = [
            {"name": point.name, "values": point.values, **planning.describe(decided)}
            for point, decided in planned
        ]
        _print_json({"input_bytes": total, "points": points})
        return
    for point, decided in planned if verbose else ():
        tables.show_point(point)
        tables.show_plan(decided, verbose=True)
    tables.show_points(planned, total)
    for warning in dict.fromkeys(w for _, decided in planned for w in decided.warnings):
        click.echo(f"merganser: warning: {warning}", err=True)


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path), required=False)
@_recipe_options
@_running_options
@click.option(
    "--only",
    multiple=True,
    metavar="KEY=VALUES",
    help="Only points of these values, such as w=0.7,0.9; given several times, all must hold.",
)
@click.option("--force", is_flag=True, help="Replace points that are there and are something else.")
@_public
@_write_card
@_copy_tokenizer
@click.option("--no-write", is_flag=True, hidden=True)
@_as_json
def sweep(config: Path, out: Path | None, **options: Any) -> None:
    """Merge all points of the sweep CONFIG in one pass, each into a folder of its name in OUT.

    Points that are there already are kept.
    """
    from merganser.study import sweep as sweeps

    if options.pop("no_write"):
        raise click.UsageError("--no-write is for evaluation, which is not there yet")
    if out is None:
        raise click.UsageError("give the folder OUT for the points' folders")
    as_json, quiet, verbose = options.pop("as_json"), options.pop("quiet"), options.pop("verbose")
    _common(options)
    with _progress(quiet or as_json) as on_event:
        result = sweeps.sweep(config, out, on_event=on_event, **options)
    for each in result.points:
        for warning in each.merged.warnings if each.merged else ():
            click.echo(f"merganser: warning: {each.point.name}: {warning}", err=True)
    if as_json:
        _print_json(
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


@main.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--base", metavar="C", help="What both come from: compares their changes too.")
@click.option("-j", "--threads", type=click.IntRange(1), help="Threads; by default one a core.")
@_as_json
def diff(first: str, second: str, base: str | None, threads: int | None, as_json: bool) -> None:
    """Show what sets the models A and B apart, by layers, roles and tensors."""
    from merganser.study import diff as diffs

    found = diffs.diff(first, second, base=base, threads=threads)
    if as_json:
        _print_json(found.as_dict())
        return
    from merganser import tables

    tables.show_diff(found)


@main.command()
@click.argument("model")
@_weights
@_as_json
def inspect(model: str, weights: Weights | None, as_json: bool) -> None:
    """Show the fact sheet of MODEL: a folder, a file or a Hub id."""
    from merganser.release import facts

    sheet = facts.inspect(model, weights or "auto")
    if as_json:
        _print_json(sheet)
        return
    from merganser import tables

    tables.show_facts(sheet)


@main.command("methods")
@click.argument("name", required=False)
@click.option(
    "--methods",
    "method_files",
    multiple=True,
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Python file with merge methods of your own.",
)
@_as_json
def list_methods(name: str | None, method_files: tuple[Path, ...], as_json: bool) -> None:
    """List the merge methods, or tell all about the one called NAME."""
    from merganser import methods

    for file in method_files:
        methods.load_file(file)
    known = [methods.get(each) for each in ([name] if name else methods.names())]
    found = [method for method in known if method is not None]
    if not found:
        raise RecipeError(f"there is no method {name!r}; known are {', '.join(methods.names())}")
    if as_json:
        _print_json([methods.describe(method) for method in found])
        return
    from merganser import tables

    tables.show_methods(found, full=name is not None)


@main.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from merganser.recipe import json_schema

    _print_json(json_schema())


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--recompute", is_flag=True, help="Merge again from the inputs, and compare that too."
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing if all is well.")
@_as_json
def verify(folder: Path, recompute: bool, quiet: bool, as_json: bool) -> None:
    """Check a merged FOLDER against its manifest."""
    from merganser import merging

    with _progress(quiet or as_json) as on_event:
        problems = merging.verify(folder, recompute=recompute, on_event=on_event)
    if as_json:
        _print_json({"folder": str(folder), "recomputed": recompute, "problems": problems})
    for problem in problems:
        click.echo(f"merganser: {folder}: {problem}", err=True)
    if problems:
        raise click.exceptions.Exit(3)
    if not quiet and not as_json:
        click.echo(
            f"{folder}: every tensor is what was merged"
            + (", and what its inputs give" if recompute else "")
        )


def _common(options: dict[str, Any]) -> None:
    """Give options that several commands share the form that functions take."""
    from merganser import methods

    for file in options.pop("method_files"):
        methods.load_file(file)
    options["strictness"] = options["strictness"] or "normal"
    options["tensor_names"] = options["tensor_names"] or "same"
    _parse_memory(options)


def _parse_memory(options: dict[str, Any]) -> None:
    """Read ``--memory`` as a number of bytes."""
    from merganser.tensors import parse_size

    if options.get("memory") is not None:
        try:
            options["memory"] = max(1, parse_size(options["memory"]))
        except ValueError as error:
            raise RecipeError(f"--memory: {error}") from None


def _print_json(data: Any) -> None:
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


class _progress:
    """A bar on a terminal, a line every few seconds elsewhere, nothing if quiet."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.bar: Any = None

    def __enter__(self) -> Listener:
        from merganser.engine.events import ignore

        if self.quiet:
            return ignore
        from merganser import tables

        self.bar = tables.ProgressBar()
        return self.bar.listen  # type: ignore[no-any-return]

    def __exit__(self, *_error: object) -> None:
        if self.bar is not None:
            self.bar.stop()
