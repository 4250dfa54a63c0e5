"""JSON on stdout and warnings on stderr."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import click

from merganser.errors import one_line


def print_json(data: Any) -> None:
    """Print data as JSON on stdout."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=not is_utf8(sys.stdout)))


def is_utf8(stream: TextIO) -> bool:
    """Whether a stream can encode all characters."""
    return (stream.encoding or "").lower().replace("-", "").replace("_", "") == "utf8"


def shown_path(path: Path) -> str:
    """A path from the current folder if it lies below it; control characters are escaped."""
    with suppress(ValueError, OSError):
        path = path.relative_to(Path.cwd())
    return one_line(str(path))


def show_warning(text: str) -> None:
    """Print a warning on stderr."""
    click.echo(f"merganser: warning: {text}", err=True)
