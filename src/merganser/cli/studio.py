"""The command that opens a page: studio."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import click

from merganser.cli.options import methods_option
from merganser.cli.serving import KEY
from merganser.serving import limits


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=".")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=limits.PORT, show_default=True)
@click.option(
    "--api-key",
    "keys",
    multiple=True,
    metavar="KEY",
    help=f"A key that requests must bring; several are possible. {KEY} is one too. One is made where the "
    "host is not this machine alone.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    default=None,
    help="Longest completion; by default what the model's context leaves.",
)
@click.option("--device", default="auto", show_default=True, help="Such as cpu or cuda:1.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="What is computed in; auto is float32 on the CPU.",
)
@click.option("-j", "--threads", type=click.IntRange(1), default=None, help="Threads of the merge.")
@methods_option
def studio(folder: Path, **options: Any) -> None:
    """Open a page that blends models, talks with them and runs studies.

    The page works offline, and reads and writes only below FOLDER (by default the current one). OpenAI's API
    is at the same address.

    \b
    Examples:
      merganser studio
      merganser studio runs --port 9000
    """
    from merganser.studio.studio import studio as run

    gc.enable()
    own = os.environ.get(KEY)
    keys = (*options.pop("keys"), *([own] if own else []))

    def tell(url: str) -> None:
        click.echo(f"the studio is at {url}; Ctrl-C stops", err=True)

    run(folder, keys=keys, on_ready=tell, **options)
