"""The formats of weight files: what reads each, and how its files' names end."""

from __future__ import annotations

from typing import NamedTuple


class WeightFormat(NamedTuple):
    """A format of weight files.

    Attributes:
        module: the module of :mod:`merganser.checkpoints` that reads it.
        suffixes: ends of its files' names.
    """

    module: str
    suffixes: tuple[str, ...]


FORMATS = (
    WeightFormat("safetensors", (".safetensors",)),
    WeightFormat("pytorch", (".bin", ".pt", ".pth")),
    WeightFormat("gguf", (".gguf",)),
)
"""All formats; of several that recognise a folder, the first reads it."""


def suffixes() -> tuple[str, ...]:
    """Ends of the names of weight files, of all formats."""
    return tuple(suffix for each in FORMATS for suffix in each.suffixes)
