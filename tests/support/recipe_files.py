"""Recipes on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

RecipeFile = Callable[..., Path]
"""Writes the text of a recipe into the test's folder: see the fixture ``recipe_file``."""
