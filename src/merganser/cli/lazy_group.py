"""A group of commands that imports a command only when it runs, with one-line usage errors."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from merganser import suggestions
from merganser.errors import one_line


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """A command whose module is imported when it runs.

    Attributes:
        target: its place, ``package.module:attribute``.
        summary: the first sentence of its help.
    """

    target: str
    summary: str

    def load(self) -> click.Command:
        """Import the command."""
        module, _, attribute = self.target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


class LazyGroup(click.Group):
    """A command group that imports a command only to run it, not for ``--help`` or usage errors.

    Args:
        sections: headings of the help, each with its commands by name.
        options: arguments of ``click.Group``.
    """

    def __init__(
        self, *, sections: Mapping[str, Mapping[str, LazyCommand]], **options: Any
    ) -> None:
        super().__init__(**options)
        self.sections = sections
        self.lazy = {name: lazy for lazies in sections.values() for name, lazy in lazies.items()}

    def list_commands(self, ctx: click.Context | None) -> list[str]:
        """The names of all commands, in the order of help."""
        return list(dict.fromkeys([*self.lazy, *self.commands]))

    def get_command(self, ctx: click.Context | None, cmd_name: str) -> click.Command | None:
        """The command of a name, not yet imported; None if there is none."""
        if cmd_name not in self.commands and cmd_name in self.lazy:
            self.commands[cmd_name] = self.lazy[cmd_name].load()
        return self.commands.get(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Split a call into the command and its arguments.

        Raises:
            UsageError: when there is no such command; the message suggests the nearest name.
        """
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            slip = suggestions.nearest(name, self.list_commands(ctx), cutoff=0.6)
            hint = f"; did you mean {slip!r}?" if slip else ""
            raise click.UsageError(f"there is no command {name!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by sections, each with its first sentence."""
        width = max(map(len, self.lazy))
        room = formatter.width - 6 - width
        for title, lazies in self.sections.items():
            rows = [
                (f"{name:{width}}", click.Command(name, help=lazy.summary).get_short_help_str(room))
                for name, lazy in lazies.items()
            ]
            with formatter.section(title):
                formatter.write_dl(rows)

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Parse the group's own options."""
        with _usage_errors_on_one_line():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Parse a command's arguments and run it."""
        with _usage_errors_on_one_line():
            return super().invoke(ctx)


@contextmanager
def _usage_errors_on_one_line() -> Iterator[None]:
    """Print usage errors on one line: ``merganser: missing argument 'OUT'; see merganser sweep --help``."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        message = " ".join(error.format_message().split()).removesuffix(".")
        if not message[1:2].isupper():
            message = message[:1].lower() + message[1:]
        root = path = "merganser"
        if error.ctx is not None:
            root, path = error.ctx.find_root().command_path, error.ctx.command_path
        if isinstance(error, click.NoSuchOption) and Path(error.option_name).exists():
            message += f"; write ./{error.option_name} if you mean the path"
        ending = "" if message.endswith("?") else f"; see {path} --help"
        click.echo(one_line(f"{root}: {message}{ending}"), err=True)
        raise click.exceptions.Exit(error.exit_code) from None
