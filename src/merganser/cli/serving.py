"""The command that answers over HTTP: serve."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from merganser.cli.options import device_options, engine_options, methods_option
from merganser.cli.output import show_warning
from merganser.serving import limits

KEY = "MERGANSER_API_KEY"
"""Environment variable with a key, for who does not want it in the list of processes."""


Command = TypeVar("Command", bound=Callable[..., Any])


def server_options(command: Command) -> Command:
    """Add the options that all servers have."""
    for option in reversed(
        [
            click.option(
                "--host", default="127.0.0.1", show_default=True, help="Address to listen on."
            ),
            click.option(
                "--port", type=click.IntRange(0, 65535), default=limits.PORT, show_default=True
            ),
            click.option(
                "--api-key",
                "keys",
                multiple=True,
                metavar="KEY",
                help=f"A key that requests must bring; several are possible. {KEY} is one too.",
            ),
            click.option(
                "--max-tokens",
                type=click.IntRange(1),
                default=None,
                help="Longest completion; by default what the model's context leaves.",
            ),
            device_options,
            click.option(
                "-j",
                "--threads",
                type=click.IntRange(1),
                default=None,
                help="Threads of the merge.",
            ),
        ]
    ):
        command = option(command)
    return command


def all_keys(given: Sequence[str]) -> tuple[str, ...]:
    """The keys of the command line, and the one of the environment."""
    own = os.environ.get(KEY)
    return (*given, *([own] if own else []))


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@server_options
@click.option(
    "--allow-origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="Let scripts of pages from ORIGIN ask, such as http://localhost:3000.",
)
@click.option("--grid-only", is_flag=True, help="Serve no points between those of a sweep's grid.")
@click.option(
    "--turn",
    type=click.FloatRange(0),
    default=limits.TURN,
    show_default=True,
    help="Seconds in which requests join a model's turn although other models wait.",
)
@click.option(
    "--longest-turn",
    type=click.FloatRange(0),
    default=limits.LONGEST_TURN,
    show_default=True,
    help="Seconds after which requests that still run are held until their model's next turn.",
)
@click.option(
    "--max-waiting",
    type=click.IntRange(1),
    default=limits.MOST_WAITING,
    show_default=True,
    help="Requests that may wait; beyond, the answer is 429.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=limits.MOST_ROWS,
    show_default=True,
    help="Completions at once.",
)
@click.option(
    "--drain",
    "drain_seconds",
    type=click.IntRange(0),
    default=limits.DRAIN_SECONDS,
    show_default=True,
    help="Seconds that running requests have when the server is stopped.",
)
@click.option(
    "--engine",
    type=click.Choice(["transformers", "vllm"]),
    default="transformers",
    show_default=True,
    help="What generates: transformers in this process, or vLLM's own server.",
)
@engine_options
@click.option(
    "--replicas",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of vLLM servers, each with GPUs (or a share of the cores) of its own.",
)
@methods_option
def serve(models: tuple[str, ...], **options: Any) -> None:
    """Serve MODELs to OpenAI's clients, all from one set of weights.

    MODEL is a folder, a Hub id, a training run, MODEL+ADAPTER, a recipe.yml, a sweep.yml, or the folder of
    an evaluated study. A sweep or a study has a model for each of its points, its base and its experts,
    and STUDY#w=0.73 for each point between them.

    \b
    Examples:
      merganser serve sweep.yml
      merganser serve OUT runs/acc --port 9000
      merganser serve sweep.yml --engine vllm --replicas 4
    """
    from merganser.serving.serve import serve as run

    gc.enable()

    def tell(url: str, count: int) -> None:
        plural = "" if count == 1 else "s"
        click.echo(f"serving {count} model{plural} at {url}; Ctrl-C stops", err=True)

    def warn(text: str) -> None:
        show_warning(text.replace("give keys", "give --api-key"))

    def note(text: str) -> None:
        click.echo(text, err=True)

    keys = all_keys(options.pop("keys"))
    run(models, keys=keys, on_ready=tell, on_warning=warn, on_note=note, **options)
