"""The command line: parse, call one function, print. stdout is the result, stderr the progress.

SECTIONS names the file of each command; its tables are in a second file of this package.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from merganser.cli.flag_names import in_flags
from merganser.cli.lazy_group import LazyCommand, LazyGroup
from merganser.cli.output import is_utf8
from merganser.errors import MerganserError, ResourceError, one_line
from merganser.openmp import load_numpy_alone, wait_passively
from merganser.version import VERSION


def _command(target: str, summary: str) -> LazyCommand:
    return LazyCommand(f"merganser.cli.{target}", summary)


SECTIONS: Mapping[str, Mapping[str, LazyCommand]] = {
    "Merge": {
        "plan": _command(
            "merging:plan", "Show what merging CONFIG would do, without reading weights."
        ),
        "merge": _command(
            "merging:merge", "Merge the models of the recipe CONFIG into the folder OUT."
        ),
        "verify": _command("merging:verify", "Check a merged FOLDER against its manifest."),
        "reproduce": _command(
            "reproducing:reproduce",
            "Make a published merge again, and compare every tensor.",
        ),
        "convert": _command(
            "merging:convert", "Write the model SOURCE as a Hugging Face folder OUT."
        ),
    },
    "Study": {
        "sweep": _command("study:sweep", "Merge all points of the sweep CONFIG in one pass."),
        "worker": _command(
            "working:worker",
            "Score models of a study, or write parts of a merge, with others.",
        ),
        "search": _command("study:search", "Search the best values of CONFIG's parameters."),
        "eval": _command("evaluation:evaluate", "Score MODEL on the tasks of the file TASKS."),
        "compare": _command(
            "comparisons:compare", "Test which models of STUDY are better than which."
        ),
        "power": _command(
            "comparisons:power", "Say how many problems or samples it takes to see a difference."
        ),
        "report": _command(
            "study:report", "Draw the results of a study on one page that opens offline."
        ),
        "diff": _command("differences:diff", "Show how the models A and B differ."),
    },
    "Try": {
        "generate": _command("chat:generate", "Let MODEL answer PROMPT (- reads it from stdin)."),
        "chat": _command("chat:chat", "Talk with MODEL."),
        "serve": _command(
            "serving:serve", "Serve MODELs to OpenAI's clients, all from one set of weights."
        ),
        "studio": _command(
            "studio:studio",
            "Open a page that blends models, talks with them and runs studies.",
        ),
    },
    "Publish": {
        "card": _command("publishing:card", "Rewrite the card of a merged FOLDER."),
        "push": _command(
            "publishing:push", "Publish a merged folder, or a study's choice, on the Hub."
        ),
    },
    "Look up": {
        "inspect": _command(
            "lookup:inspect", "Show the fact sheet of MODEL: a folder, a file or a Hub id."
        ),
        "models": _command(
            "lookup:models", "List the models in the Hub's cache, or search the Hub for TEXT."
        ),
        "methods": _command(
            "lookup:list_methods", "List the merge methods, or describe the method NAME."
        ),
        "schema": _command(
            "lookup:schema", "Print the JSON Schema of recipes and studies, for editors."
        ),
    },
}
"""All commands in the order of ``--help``: file, function and first sentence of each."""

INTERRUPTED = 130
"""The exit code after Ctrl-C or SIGTERM."""


class _Program(LazyGroup):
    """Reports an error as one line on stderr, and exits with its code."""

    def invoke(self, ctx: click.Context) -> Any:
        wait_passively()
        load_numpy_alone()
        _replace_what_cannot_be_encoded()
        gc.disable()  # importing what a merge needs makes no garbage, and is a fifth faster without
        atexit.register(gc.freeze)  # the end of the process frees memory without collecting garbage
        try:
            with _stopped_by_sigterm():
                return super().invoke(ctx)
        except MerganserError as error:
            if error.details:
                click.echo(error.details, err=True)
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
    """Let stdout and stderr print ``?`` for characters that their encoding lacks."""
    if isinstance(sys.stdout, io.TextIOWrapper) and not is_utf8(sys.stdout):
        sys.stdout.reconfigure(errors="replace")


def _tell(message: str, error: BaseException, otherwise: str = "") -> None:
    """Print one line: what happened, and what stays on disk."""
    notes = getattr(error, "__notes__", None) or ([otherwise] if otherwise else [])
    line = "; ".join((f"merganser: {message}", *notes))
    context = click.get_current_context(silent=True)
    command = main.get_command(context, (context and context.invoked_subcommand) or "")
    click.echo(in_flags(line, command) if command else line, err=True)


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Handle SIGTERM as Ctrl-C."""

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
    """End the process at once if a thread is in the middle of a long tile, or of a model's step."""
    if any(thread.name.startswith(("merge-", "serving-")) for thread in threading.enumerate()):
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


@click.group(
    "merganser",
    cls=_Program,
    sections=SECTIONS,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_be_verbose,
    help="With --version: also print which kernels run.",
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
