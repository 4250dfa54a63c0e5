"""The command that opens a page: studio."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import click

from merganser.cli.options import methods_option
from merganser.cli.serving import all_keys, server_options


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=".")
@server_options
@click.option(
    "--network",
    is_flag=True,
    help="Let the page's buttons search the Hub, download from it, and publish.",
)
@click.option(
    "--hub-cache/--no-hub-cache",
    default=True,
    help="Whether the page may read the models of the Hub's cache.",
)
@methods_option
def studio(folder: Path, **options: Any) -> None:
    """Open a page that blends models, talks with them and runs studies.

    The page works offline. It reads and writes below FOLDER (by default the current one), and reads the models
    of the Hub's cache. OpenAI's API is at the same address. A host that is not this machine alone needs a key:
    without one, one is made.

    \b
    Examples:
      merganser studio
      merganser studio runs --port 9000
      merganser studio runs --network
    """
    from merganser.studio.studio import studio as run

    gc.enable()
    keys = all_keys(options.pop("keys"))

    def tell(url: str) -> None:
        click.echo(f"the studio is at {url}; Ctrl-C stops", err=True)

    run(folder, keys=keys, on_ready=tell, **options)
