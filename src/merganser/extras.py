"""Libraries that only some uses need: imported where they are used, missed in one clear line."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from merganser.errors import MerganserError


def load(module: str, extra: str) -> Any:
    """Import a module of one of the optional extras of pyproject.toml, or one of ours that needs it.

    Raises:
        MerganserError: it is not installed; the line names the install command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = (error.name or module).partition(".")[0]
        if package == "merganser":
            raise
        raise _missing(package, extra) from None


def check(package: str, extra: str) -> None:
    """Raise what :func:`load` would raise, without the import.

    Raises:
        MerganserError: the package is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise _missing(package, extra)


def _missing(package: str, extra: str) -> MerganserError:
    return MerganserError(
        f"this needs {package}, which is not installed: pip install 'merganser[{extra}]'"
    )
