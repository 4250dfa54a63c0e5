"""The command line: parse, call one function, print. stdout is the result, stderr the progress.

Commands lie in rooms by what they are about; ``options`` has what they share.
"""

from __future__ import annotations

import gc
import sys
from typing import Any

import click

from merganser import __version__
from merganser.cli import catalogue, merges, studies
from merganser.errors import MerganserError


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


for command in (
    merges.merge,
    merges.plan,
    merges.verify,
    merges.convert,
    studies.sweep,
    studies.diff,
    catalogue.inspect,
    catalogue.list_methods,
    catalogue.schema,
):
    main.add_command(command)
