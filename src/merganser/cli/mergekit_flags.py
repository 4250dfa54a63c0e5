"""Flags of mergekit-yaml that have no effect here: they are accepted, and one line says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

MEANINGLESS = {
    "cuda": "the CPU merges at the speed of the disk",
    "low-cpu-memory": "memory is a few tiles anyway",
    "read-to-gpu": "the CPU merges at the speed of the disk",
    "multi-gpu": "the CPU merges at the speed of the disk",
    "gpu-rich": "the CPU merges at the speed of the disk",
    "lazy-unpickle": "all reading is lazy, and nothing in a pickle is ever run",
    "async-write": "writing never waits",
    "clone-tensors": "no tensors share memory",
    "allow-crimes": "models of any architecture merge if their tensors fit",
    "trust-remote-code": "code of a model is never run",
}
"""Flags of mergekit-yaml that are accepted without effect, each with the reason."""

SAFE = "safetensors is always written"
"""Why ``--no-safe-serialization`` has no effect."""

MEANINGLESS_VALUES = {
    "device": "the CPU merges at the speed of the disk",
    "write-threads": "writing never waits",
    "lora-merge-cache": "adapters are applied while tiles are read, and nothing is stored",
    "lora-merge-dtype": "adapters are applied in float32",
    "transformers-cache": "set HF_HOME or HF_HUB_CACHE instead",
}
"""The same for options that take a value."""


def mergekit_flags(command: Command) -> Command:
    """Add the flags of mergekit-yaml that are accepted without effect."""
    for name in MEANINGLESS_VALUES:
        command = click.option(f"--{name}", name.replace("-", "_"), default=None, hidden=True)(
            command
        )
    for name in MEANINGLESS:
        command = click.option(
            f"--{name}/--no-{name}", name.replace("-", "_"), default=False, hidden=True
        )(command)
    return click.option("--safe-serialization/--no-safe-serialization", default=True, hidden=True)(
        command
    )


def explain_mergekit_flags(options: dict[str, Any]) -> None:
    """Remove these flags from a command's options, and print one line for each that was given."""
    for name, reason in (MEANINGLESS | MEANINGLESS_VALUES).items():
        if options.pop(name.replace("-", "_")):
            _explain(name, reason)
    if not options.pop("safe_serialization"):
        _explain("no-safe-serialization", SAFE)


def _explain(name: str, reason: str) -> None:
    click.echo(f"merganser: --{name} has no meaning here: {reason}", err=True)
