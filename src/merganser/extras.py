"""Optional dependencies, imported on first use; if one is missing, a one-line error names the extra to install."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from merganser.errors import MerganserError


def load(module: str, extra: str) -> Any:
    """Import a module of an optional extra, or one of Merganser's modules that needs the extra.

    Raises:
        MerganserError: when the extra is not installed; the message names the install command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = (error.name or module).partition(".")[0]
        if package == "merganser":
            raise
        raise _missing(package, extra) from None


def check(package: str, extra: str) -> None:
    """Check that a package is installed, without importing it.

    Raises:
        MerganserError: as :func:`load`.
    """
    if importlib.util.find_spec(package) is None:
        raise _missing(package, extra)


def _missing(package: str, extra: str) -> MerganserError:
    return MerganserError(
        f"this needs {package}, which is not installed: pip install 'merganser[{extra}]'"
    )
