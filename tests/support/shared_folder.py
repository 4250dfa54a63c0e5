"""The folder that all workers of a test run share."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "MERGANSER_TESTS_SHARED"
"""The environment variable that names it."""


def shared_folder() -> Path:
    """The folder; tests that need it wait for each other with a lock."""
    return Path(os.environ[VARIABLE])
