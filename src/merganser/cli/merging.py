"""Commands about one merge: plan, merge, verify, convert."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from merganser.cli.mergekit_flags import explain_mergekit_flags, mergekit_flags
from merganser.cli.options import (
    OutputPath,
    card_option,
    json_option,
    merge_workers_option,
    methods_option,
    parse_memory,
    prepare,
    public_option,
    recipe_options,
    resume_option,
    rounding_options,
    running_options,
    shard_size_option,
    tokenizer_option,
    weights_option,
)
from merganser.cli.output import print_json, show_warning, shown_path
from merganser.cli.progress import merge_progress

if TYPE_CHECKING:
    from merganser.merging.result import MergeResult
    from merganser.planning import Plan, PlanOptions


@click.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.argument("out", type=OutputPath(), required=False)
@recipe_options
@click.option(
    "--plan",
    "plan_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Run this plan, which `merganser plan --json` wrote, in place of a CONFIG.",
)
@click.option(
    "--root",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Where the inputs of the plan are now, in place of the root that it names.",
)
@running_options
@click.option("--force", is_flag=True, help="Replace OUT if it is there already.")
@resume_option
@click.option(
    "--sink",
    type=click.Choice(["folder", "null", "digest"]),
    default="folder",
    show_default=True,
    help="Where the merge goes: OUT, nowhere, or into digests of its tensors.",
)
@public_option
@card_option
@tokenizer_option
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
@merge_workers_option
@mergekit_flags
@json_option
def merge(config: Path | None, out: Path | None, **options: Any) -> None:
    """Merge the models of the recipe CONFIG into the folder OUT.

    CONFIG may hold several recipes, separated by ---, that use each other's results by name.

    \b
    Examples:
      merganser merge recipe.yml OUT
      merganser merge recipe.yml OUT --rounding stochastic --seed 1
      merganser merge recipe.yml OUT --arithmetic mergekit
      merganser merge --plan plan.json OUT
      merganser merge recipe.yml OUT --workers join
    """
    from merganser.merging import multistage
    from merganser.merging.dry_run import run_dry

    explain_mergekit_flags(options)
    as_json, quiet, verbose = options.pop("as_json"), options.pop("quiet"), options.pop("verbose")
    sink, workers = options.pop("sink"), options.pop("workers")
    plan_file, root = options.pop("plan_file"), options.pop("root")
    if plan_file is not None:
        if out is not None:
            raise click.UsageError(f"--plan runs in place of CONFIG; leave out {config}")
        config, out = plan_file, config
    elif root is not None:
        raise click.UsageError("--root says where the inputs of a --plan are; give --plan too")
    if config is None:
        raise click.MissingParameter(param_hint="'CONFIG'", param_type="argument")
    if (out is None) == (sink == "folder"):
        raise click.UsageError(
            "give the output folder OUT" if out is None else f"--sink {sink} takes no OUT"
        )
    if workers is not None and out is None:
        raise click.UsageError(f"--workers shares out the files of OUT; --sink {sink} has none")
    prepare(options)
    where = {"intermediate_dir": options.pop("intermediate_dir"), "redo": not options.pop("lazy")}
    if workers is not None and out is not None:
        from merganser.cli.shared_merging import merge_shared

        planned = config if plan_file is None else _load_plan(config, root, options)
        merge_shared(planned, out, workers, as_json, quiet, verbose, **where, **options)
        return
    with merge_progress(quiet or as_json) as on_event:
        if out is not None:
            if plan_file is None:
                steps = multistage.merge_all(config, out, on_event=on_event, **where, **options)
            else:
                steps = []
                result = _merge_planned(config, out, root, options | {"on_event": on_event})
        else:
            from merganser.sinks import DigestSink, NullSink

            for name in (
                "force",
                "resume",
                "on_nonfinite",
                "public",
                "write_card",
                "copy_tokenizer",
            ):
                options.pop(name)
            chosen = DigestSink() if sink == "digest" else NullSink()
            planned = config if plan_file is None else _load_plan(config, root, options)
            result = run_dry(planned, chosen, on_event=on_event, **options)
            steps = []
    results = [step.merged for step in steps if step.merged] if steps else [result]
    for result in results:
        for warning in result.warnings:
            show_warning(warning)
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
            reused = [str(step.folder) for step in steps if step.merged is None]
            print_json({"up_to_date": reused, "merges": data})
        else:
            print_json(data[0])
    elif sink == "digest":
        for name, digest in results[0].manifest["tensors"].items():
            click.echo(f"{digest}  {name}")
    elif not quiet:
        from merganser.cli.merge_table import show_result

        for step in steps:
            if step.merged is None:
                click.echo(f"{shown_path(step.folder)}: is up to date")
            else:
                show_result(step.merged, verbose=verbose > 0)
        if not steps:
            show_result(results[0], verbose=verbose > 0)


def _merge_planned(
    file: Path, out: Path, root: Path | None, options: dict[str, Any]
) -> MergeResult:
    """Run the plan in a file into the folder OUT."""
    from merganser.merging.merge import merge

    plan = _load_plan(file, root, options)
    return merge(plan, out, **options)


def _load_plan(file: Path, root: Path | None, options: dict[str, Any]) -> Plan:
    """Read a plan, and remove the options of planning from ``options``: a plan fixes them all."""
    from merganser.planning import PlanOptions
    from merganser.planning.plan_loading import load_plan

    for name, default in asdict(PlanOptions()).items():
        if options.pop(name, default) != default:
            raise click.UsageError(f"--plan fixes {name} already; leave out its option")
    return load_plan(file, root=root)


@click.command()
@click.argument("source")
@click.argument("out", type=OutputPath())
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default=None,
    help="Of the result; by default what SOURCE is stored in, bfloat16 if that is quantised.",
)
@click.option(
    "--base", metavar="MODEL", default=None, help="A model that lends config and tokenizer."
)
@rounding_options
@weights_option
@shard_size_option
@running_options
@click.option("--force", is_flag=True, help="Replace OUT if it is there already.")
@resume_option
@public_option
@card_option
@merge_workers_option
@json_option
def convert(source: str, out: Path, **options: Any) -> None:
    """Write the model SOURCE as a Hugging Face folder OUT.

    SOURCE is anything that can be merged: a folder, a file, a training run or a step of one, a Hub
    id, MODEL+ADAPTER.

    \b
    Examples:
      merganser convert runs/acc/global_step_54 OUT --dtype bfloat16
      merganser convert base+runs/lora OUT
      merganser convert model.gguf OUT
    """
    from merganser.merging.convert import conversion
    from merganser.merging.convert import convert as convert_model

    as_json, quiet, verbose = options.pop("as_json"), options.pop("quiet"), options.pop("verbose")
    workers, base = options.pop("workers"), options.pop("base")
    parse_memory(options)
    if workers is not None:
        from merganser.cli.shared_merging import merge_shared

        planned, lent = conversion(source, base, options.pop("dtype"), options["weights"])
        shared = merge_shared(
            planned, out, workers, as_json, quiet, verbose, checkpoints=lent, **options
        )
        for result in shared.results:
            _warn_of_companions(result, out, base)
        return
    with merge_progress(quiet or as_json) as on_event:
        result = convert_model(source, out, base=base, on_event=on_event, **options)
    for warning in result.warnings:
        show_warning(warning)
    _warn_of_companions(result, out, base)
    if as_json:
        print_json({"out": str(out), "timings": result.timings, **result.manifest})
    elif not quiet:
        from merganser.cli.merge_table import show_result

        show_result(result, verbose=verbose > 0)


def _warn_of_companions(result: MergeResult, out: Path, base: str | None) -> None:
    """Warn of a conversion without config or tokenizer."""
    from merganser.planning.vocabulary_tensors import vocabulary_tensors
    from merganser.tokenizer.vocabulary import has_tokenizer

    lacking = [] if (out / "config.json").is_file() else ["config.json"]
    words = vocabulary_tensors(result.plan.sources[result.plan.donor])
    lacking += ["tokenizer"] if words and not has_tokenizer(out) else []
    if lacking and base is None:
        what = " and ".join(lacking)
        show_warning(f"{out}: lacks {what}; --base MODEL lends them")


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@recipe_options
@tokenizer_option
@click.option("-v", "--verbose", is_flag=True, help="A line for every tensor.")
@json_option
def plan(config: Path, copy_tokenizer: bool, as_json: bool, verbose: bool, **options: Any) -> None:
    """Show what merging CONFIG would do, without reading weights.

    For a sweep it shows every point; for a search the ranges, and the candidate in their middle.

    \b
    Examples:
      merganser plan recipe.yml
      merganser plan recipe.yml -v          # every tensor
      merganser plan sweep.yml
    """
    from merganser import planning
    from merganser.merging.chain_plans import plan_all
    from merganser.recipe import has_block, is_sweep
    from merganser.release.copies import check_copies

    prepare(options)
    chosen = planning.PlanOptions(**options)
    if is_sweep(config):
        _plan_sweep(config, copy_tokenizer, as_json, verbose, chosen)
        return
    if has_block(config, "search"):
        _plan_search(config, copy_tokenizer, as_json, verbose, chosen)
        return
    plans = plan_all(config, chosen)
    check_copies((plan for _, plan in plans if plan), copy_tokenizer)
    if as_json:
        documents = [
            {
                "name": step.name,
                "needs": step.needs,
                **(planning.describe(plan) if plan else {}),
            }
            for step, plan in plans
        ]
        only = plans[0][1] if len(plans) == 1 else None
        print_json(planning.describe(only) if only else {"documents": documents})
        return
    from merganser.cli.plan_table import show_plan, show_step

    for step, plan in plans:
        if len(plans) > 1:
            show_step(step)
        if plan is not None:
            show_plan(plan, verbose=verbose)
        else:
            click.echo("can be planned once the merges that write its tokenizers are done")
    for _, plan in plans:
        for warning in plan.warnings if plan else ():
            show_warning(warning)


def _plan_sweep(
    config: Path, copy_tokenizer: bool, as_json: bool, verbose: bool, options: PlanOptions
) -> None:
    from merganser import planning
    from merganser.cli.plan_table import show_plan, show_point, show_points
    from merganser.recipe import has_block
    from merganser.release.copies import check_copies
    from merganser.study import sweep as sweeps
    from merganser.study.evaluate_block import check_block

    planned = sweeps.plan_points(config, options=options)
    if has_block(config, "evaluate"):
        check_block(config, options.strictness)
    check_copies((plan for _, plan in planned), copy_tokenizer)
    total = sweeps.input_bytes([plan for _, plan in planned])
    passes = sweeps.count_passes([plan for _, plan in planned])
    if as_json:
        points = [
            {"name": point.name, "values": point.values, **planning.describe(plan)}
            for point, plan in planned
        ]
        print_json({"input_bytes": total, "passes": passes, "points": points})
        return
    for point, plan in planned if verbose else ():
        show_point(point)
        show_plan(plan, verbose=True)
    show_points(planned, total, passes)
    for warning in dict.fromkeys(w for _, plan in planned for w in plan.warnings):
        show_warning(warning)


def _plan_search(
    config: Path, copy_tokenizer: bool, as_json: bool, verbose: bool, options: PlanOptions
) -> None:
    from merganser import planning
    from merganser.release.copies import check_copies
    from merganser.study import search_loop
    from merganser.study.search_space import load_search

    search = load_search(config, options.strictness)
    planned = search_loop.plan_samples(search, options)
    check_copies((plan for _, plan in planned), copy_tokenizer)
    if as_json:
        samples = [{"values": point.values, **planning.describe(plan)} for point, plan in planned]
        print_json({**search_loop.describe(search), "budget": search.budget, "samples": samples})
        return
    from merganser.cli.plan_table import show_search_plan

    show_search_plan(search, planned, verbose=verbose)
    for warning in dict.fromkeys(w for _, plan in planned for w in plan.warnings):
        show_warning(warning)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--recompute", is_flag=True, help="Merge again from the inputs, and compare that too."
)
@click.option(
    "--against",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="As --recompute, but relative paths of inputs are searched in DIR.",
)
@methods_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing if all is well.")
@json_option
def verify(folder: Path, recompute: bool, against: Path | None, quiet: bool, as_json: bool) -> None:
    """Check a merged FOLDER against its manifest.

    \b
    Examples:
      merganser verify OUT
      merganser verify OUT --recompute
    """
    from merganser.merging.verify import verify as verify_folder

    with merge_progress(quiet or as_json) as on_event:
        problems = verify_folder(folder, recompute=recompute, against=against, on_event=on_event)
    recompute = recompute or against is not None
    if as_json:
        print_json({"folder": str(folder), "recomputed": recompute, "problems": problems})
    for problem in problems:
        click.echo(f"merganser: {folder}: {problem}", err=True)
    if problems:
        raise click.exceptions.Exit(3)
    if not quiet and not as_json:
        click.echo(
            f"{folder}: every file and tensor is what was merged"
            + (", and what its inputs give" if recompute else "")
        )
