"""The command line: parse, call one function, print. stdout is the result, stderr the progress.

Commands lie in rooms by what they are about; ``options`` has what they share.
"""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from merganser.cli import catalogue, comparisons, evaluations, merges, publishing, studies, talking
from merganser.cli.options import is_utf8
from merganser.cli.wording import in_flags
from merganser.errors import MerganserError, ResourceError, one_line
from merganser.openmp import wait_passively
from merganser.version import VERSION

COMMANDS: Mapping[str, Sequence[click.Command]] = {
    "Merge": (merges.plan, merges.merge, merges.verify, merges.convert),
    "Study": (
        studies.sweep,
        studies.search,
        evaluations.evaluate,
        comparisons.compare,
        comparisons.power,
        studies.report,
        studies.diff,
    ),
    "Try": (talking.generate, talking.chat),
    "Publish": (publishing.card, publishing.push),
    "Look up": (catalogue.inspect, catalogue.list_methods, catalogue.schema),
}
"""All commands, as help lists them."""

INTERRUPTED = 130
"""The exit code after Ctrl-C or SIGTERM."""


class _Group(click.Group):
    """Turns errors into one line on stderr and their exit code."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """By what they are for, each with its first sentence."""
        width = max(len(name) for name in self.commands)
        for title, commands in COMMANDS.items():
            with formatter.section(title):
                room = formatter.width - 6 - width
                formatter.write_dl(
                    [(f"{c.name:{width}}", c.get_short_help_str(room)) for c in commands]
                )

    def invoke(self, ctx: click.Context) -> Any:
        wait_passively()
        _replace_what_cannot_be_encoded()
        gc.disable()  # importing what a merge needs makes no garbage, and is a fifth faster without
        try:
            with _stopped_by_sigterm():
                return super().invoke(ctx)
        except MerganserError as error:
            _tell(str(error), error)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt as error:
            _tell(
                "interrupted",
                error,
                "no output is half-written, and what is finished is used by the next run",
            )
            _leave_if_at_work()
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            sys.stderr.close()
            ctx.exit(1)
        except OSError as error:
            parts = error.filename, error.strerror or str(error) or type(error).__name__
            _tell(one_line(": ".join(str(part) for part in parts if part)), error)
            ctx.exit(ResourceError.exit_code)
        except MemoryError as error:
            _tell("there is not enough memory; give --memory, or fewer --threads", error)
            ctx.exit(ResourceError.exit_code)
        finally:
            gc.enable()


def _replace_what_cannot_be_encoded() -> None:
    """Print a question mark for what stdout's encoding lacks, in place of a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper) and not is_utf8(sys.stdout):
        sys.stdout.reconfigure(errors="replace")


def _tell(message: str, error: BaseException, otherwise: str = "") -> None:
    """One line: what happened, and what is kept."""
    notes = getattr(error, "__notes__", None) or ([otherwise] if otherwise else [])
    line = "; ".join((f"merganser: {message}", *notes))
    context = click.get_current_context(silent=True)
    command = main.commands.get((context and context.invoked_subcommand) or "")
    click.echo(in_flags(line, command) if command else line, err=True)


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM is heard as Ctrl-C is."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave_if_at_work() -> None:
    """End the process at once where a thread is in the middle of a long tile."""
    if any(thread.name.startswith("merge-") for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)


def _be_verbose(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    context.meta["verbose"] = wanted


def _print_version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    click.echo(f"merganser, version {VERSION}")
    if context.meta["verbose"]:
        from merganser.kernels import library

        click.echo(f"kernels: {library.description()}")
    context.exit()


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_be_verbose,
    help="With --version: say which kernels run, too.",
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Merge language-model checkpoints at the speed of the disk.

    The recipes are MergeKit's YAML files.

    \b
    Start with:
      merganser plan recipe.yml
      merganser merge recipe.yml OUT
    """


for _commands in COMMANDS.values():
    for _command in _commands:
        main.add_command(_command)
