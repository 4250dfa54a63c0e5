"""Options that several commands share, and their conversion to arguments of functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from merganser.errors import RecipeError

Command = TypeVar("Command", bound=Callable[..., Any])


class OutputPath(click.Path):
    """The path of an output folder."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path, which must not be empty: that would be the current folder."""
        if not str(value):
            self.fail("the name is empty", param, ctx)
        return Path(str(super().convert(value, param, ctx)))


def _load_methods(
    _context: click.Context, _option: click.Parameter, files: tuple[Path, ...]
) -> None:
    from merganser import methods

    for file in files:
        methods.load_file(file)


methods_option = click.option(
    "--methods",
    multiple=True,
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_load_methods,
    expose_value=False,
    help="Python file with your merge methods; it is executed.",
)

weights_option = click.option(
    "--weights",
    type=click.Choice(["auto", "shards", "huggingface"]),
    default=None,
    help="Of training steps that have both: their shards, or their Hugging Face weights.",
)


shard_size_option = click.option(
    "--shard-size",
    "--out-shard-size",
    default="5GB",
    show_default=True,
    metavar="SIZE",
    help="Greatest size of an output file: 5GB, 5GiB, 500MB, 5B (billion bytes).",
)

public_option = click.option(
    "--public",
    is_flag=True,
    help="Write names instead of local paths into card, recipe and manifest.",
)

card_option = click.option(
    "--card/--no-card",
    "--write-model-card/--no-write-model-card",
    "write_card",
    default=True,
    help="Whether to write README.md.",
)

tokenizer_option = click.option(
    "--copy-tokenizer/--no-copy-tokenizer", default=True, help="Whether to copy the tokenizer."
)


report_option = click.option(
    "--report/--no-report",
    "draw",
    default=True,
    help="Whether to write OUT/report.html and OUT/figures from the results.",
)


track_option = click.option(
    "--track",
    type=click.Choice(["trackio", "wandb", "mlflow", "none"]),
    default=None,
    help="Log the scores of an evaluate: block with a tracker, in place of evaluate.track.",
)


def rounding_options(command: Command) -> Command:
    """Add the options that decide dtype, rounding and arithmetic of the result."""
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


def recipe_options(command: Command) -> Command:
    """Add the options that decide what is merged and how."""
    options = [
        click.option(
            "--arithmetic",
            type=click.Choice(["exact", "mergekit", "mergekit-0.1.4"]),
            default=None,
            help="How numbers are computed: exactly (the default), or as a MergeKit release did.",
        ),
        rounding_options,
        weights_option,
        shard_size_option,
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
        methods_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


def running_options(command: Command) -> Command:
    """Add the options that change how a merge runs, but never its result."""
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
            "--digest-inputs/--no-digest-inputs",
            default=True,
            show_default=True,
            help="Write digests of the inputs' contents into the manifest.",
        ),
        click.option(
            "--on-nonfinite",
            type=click.Choice(["warn", "error"]),
            default="warn",
            show_default=True,
            help="What to do about values that are infinite or not a number.",
        ),
        click.option(
            "-q/ ",
            "--quiet/--no-quiet",
            default=False,
            help="No progress, no summary; only warnings and errors.",
        ),
        click.option("-v", "--verbose", count=True, help="Print more."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


resume_option = click.option(
    "--resume",
    is_flag=True,
    help="Go on with the unfinished merge in OUT.partial, from its finished files.",
)

merge_workers_option = click.option(
    "--workers",
    metavar="WHERE",
    help="Share the output files among processes: local:N starts N, local:auto one for four cores, ray, ray:N and "
    "ray://HOST:PORT on a Ray cluster; join is for any number of processes on machines that share OUT.",
)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object instead of text."
)


def device_options(command: Command) -> Command:
    """Add the options for where and in which dtype a model computes."""
    command = click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        show_default=True,
        help="Compute dtype; auto is float32 on the CPU.",
    )(command)
    return click.option(
        "--device", default="auto", show_default=True, help="Such as cpu or cuda:1."
    )(command)


def _parse_engine_options(
    _context: click.Context, _option: click.Parameter, given: tuple[str, ...]
) -> dict[str, Any] | None:
    import yaml

    parsed: dict[str, Any] = {}
    for text in given:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise click.BadParameter(f"{text!r}: write it as KEY=VALUE, such as max_model_len=4096")
        try:
            parsed[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise click.BadParameter(f"{text!r}: its value is not valid YAML") from None
    return parsed or None


engine_options = click.option(
    "--engine-option",
    "engine_options",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_parse_engine_options,
    help="An option of the engine, such as max_model_len=4096 of vllm, url=… of endpoint.",
)


def engine_choice(command: Command) -> Command:
    """Add the options that choose the engine that runs models."""
    command = engine_options(command)
    return click.option(
        "--engine",
        type=click.Choice(["transformers", "vllm", "endpoint"]),
        default=None,
        help="What runs the models, in place of evaluate.engine; transformers if nothing says.",
    )(command)


code_option = click.option(
    "--allow-code",
    is_flag=True,
    help="Let the scorer code run programs that models write, as evaluate.allow_code does.",
)


def prepare(options: dict[str, Any]) -> None:
    """Convert shared options to arguments of functions."""
    options["strictness"] = options["strictness"] or "normal"
    options["tensor_names"] = options["tensor_names"] or "same"
    parse_memory(options)


def parse_memory(options: dict[str, Any]) -> None:
    """Convert ``--memory`` to bytes."""
    from merganser.tensors import parse_size

    if options.get("memory") is not None:
        try:
            options["memory"] = max(1, parse_size(options["memory"]))
        except ValueError as error:
            raise RecipeError(f"--memory: {error}") from None
