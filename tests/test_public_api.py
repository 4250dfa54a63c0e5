"""The public Python API: its names, its messages, and what it shows in a notebook."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

import merganser
from merganser.cli import main
from merganser.cli.wording import in_flags

SOURCE = Path(merganser.__file__).parent

# -- messages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "message", "expected"),
    [
        ("merge", "give force=True", "give --force"),
        ("merge", "tensor_names='union' merges", "--tensor-union (-u) merges"),
        ("merge", "x; seed=3 and more", "x; --seed 3 and more"),
        ("verify", "first: load_methods('my.py')", "first: --methods my.py"),
        ("verify", "give force=True", "give force=True"),
        ("merge", "data/force=True/x", "data/force=True/x"),
        ("merge", "say replace=True", "say replace=True"),
    ],
)
def test_the_command_line_names_its_own_flags(command: str, message: str, expected: str) -> None:
    assert in_flags(message, main.commands[command]) == expected


def test_messages_of_the_library_name_no_flags() -> None:
    """The command line puts its flags in: see ``cli/wording.py``."""
    flags = {
        flag
        for command in main.commands.values()
        for option in command.params
        if isinstance(option, click.Option)
        for flag in option.opts
        if flag.startswith("--")
    }
    assert "--force" in flags
    named = re.compile("|".join(rf"(?<![\w`-]){flag}(?![\w-])" for flag in flags))
    found = [
        f"{file.relative_to(SOURCE)}:{number}: {line.strip()}"
        for file in sorted(SOURCE.rglob("*.py"))
        if "cli" not in file.parts and file.name != "card.py"
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if named.search(line) and not line.lstrip().startswith("#")
    ]
    assert found == []
