"""The command that scores a model: eval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from merganser.cli.options import code_option, engine_choice, json_option, methods_option
from merganser.cli.output import print_json, show_warning
from merganser.cli.progress import scoring_progress


@click.command("eval")
@click.argument("words", nargs=-1, metavar="[MODEL] TASKS")
@click.option(
    "--from",
    "given",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="SAMPLES",
    help="Judge the completions in this file again, in place of running a model.",
)
@click.option(
    "--samples",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keep completions in FILE, and take from it those that are there already.",
)
@click.option(
    "--endpoint",
    metavar="URL",
    help="Ask the model that a server calls MODEL, such as http://127.0.0.1:8000/v1; "
    "OPENAI_API_KEY is sent if it is set. Short for --engine endpoint --engine-option url=URL.",
)
@engine_choice
@click.option("--concurrency", type=click.IntRange(1), default=16, help="Requests at once.")
@click.option(
    "--device", default=None, help="Device of the model, such as cpu or cuda; default: the file's."
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default=None,
    help="What the model computes in; by default float32 on the CPU, its own dtype on a GPU.",
)
@click.option("--batch-size", type=click.IntRange(1), default=None, help="Completions at once.")
@click.option("-j", "--threads", type=click.IntRange(1), default=None, help="Threads of the merge.")
@methods_option
@code_option
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@json_option
def evaluate(words: tuple[str, ...], as_json: bool, quiet: bool, **options: Any) -> None:
    """Score MODEL on the tasks of the file TASKS.

    MODEL is anything that can be merged (a folder, a Hub id, a training run or a step of one,
    MODEL+ADAPTER), a recipe, or a point of a sweep: SWEEP.yml#w=0.7, SWEEP.yml#NAME. Merges are scored in
    memory and not written.

    \b
    Examples:
      merganser eval runs/acc tasks.yml --samples acc.jsonl
      merganser eval sweep.yml#w=0.7 tasks.yml
      merganser eval my-model tasks.yml --endpoint http://127.0.0.1:8000/v1
    """
    from dataclasses import asdict

    from merganser.study import evaluate_model as evaluating

    given = options.pop("given")
    if len(words) != (1 if given else 2):
        raise click.UsageError(
            "with --from give only TASKS"
            if given
            else "give a model and a file of tasks: MODEL TASKS"
        )
    with scoring_progress(quiet or as_json) as on_progress:
        if given:
            scored = evaluating.judge_again(given, words[0], allow_code=options["allow_code"])
        else:
            scored = evaluating.evaluate(
                *words,
                on_progress=on_progress,
                on_warning=show_warning,
                **options,
            )
    if as_json:
        print_json(asdict(scored))
        return
    from merganser.cli.score_table import show_scores

    show_scores(scored)
