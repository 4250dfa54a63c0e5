"""The commands of the command line."""

from __future__ import annotations

import click

from merganser.cli import main


def commands() -> dict[str, click.Command]:
    """All commands by their names, imported."""
    return {name: load(name) for name in main.list_commands(None)}


def load(name: str) -> click.Command:
    """One command, imported."""
    command = main.get_command(None, name)
    assert command is not None
    return command
