"""JSON on stdout and warnings on stderr."""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO

import click


def print_json(data: Any) -> None:
    """Print data as JSON on stdout."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=not is_utf8(sys.stdout)))


def is_utf8(stream: TextIO) -> bool:
    """Whether a stream can encode all characters."""
    return (stream.encoding or "").lower().replace("-", "").replace("_", "") == "utf8"


def show_warning(text: str) -> None:
    """Print a warning on stderr."""
    click.echo(f"merganser: warning: {text}", err=True)
