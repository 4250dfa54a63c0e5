"""The values that the keys of a sweep run over."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from merganser.recipe import Document, key_name
from merganser.recipe.expressions import text

Path = tuple[str | int, ...]

MAX_POINTS = 1000

MAX_LINES = 500_000
"""Most keys and list entries of all points' recipes together."""

_NAME = re.compile(r"[A-Za-z_]\w*")
_WORDS = frozenset({"and", "or", "not", "if", "else", "in", "is", "true", "false", "none"})
_SCIENTIFIC = re.compile(r"[-+]?\d+(\.\d+)?[eE][-+]?\d+")
_RANGE = frozenset({"from", "to", "step"})


def read_grids(document: Document, block: Any) -> Iterator[dict[str, list[Any]]]:
    """Read a ``sweep:`` block: the axes of each grid, keys with the values that they run over.

    Raises:
        RecipeError: with file, line and key of the first thing that is wrong.
    """
    whole: Path = ("sweep",)
    blocks: list[tuple[Path, Any]] = [(whole, block)] if isinstance(block, dict) else []
    if isinstance(block, list):
        blocks = [((*whole, i), entry) for i, entry in enumerate(block)]
    if not blocks or not all(isinstance(entry, dict) and entry for _, entry in blocks):
        raise document.error(
            "sweep: give keys with their values, such as {w: [0.1, 0.9]}, or a list of such mappings",
            whole,
        )
    total = 0
    for path, entry in blocks:
        grid = {key: axis_values(document, value, (*path, key)) for key, value in entry.items()}
        total += math.prod(len(values) for values in grid.values())
        if total > MAX_POINTS:
            raise document.error(f"{key_name(path)}: more than {MAX_POINTS} points", path)
        if total * len(document.lines) > MAX_LINES:
            raise document.error(
                f"{key_name(path)}: {total} points of a recipe with {len(document.lines)} keys and entries "
                "are too many; make several files of it",
                path,
            )
        yield grid


def axis_values(document: Document, value: Any, path: Path) -> list[Any]:
    """The values that a key runs over: a list, a range, or a single one.

    Raises:
        RecipeError: when one is no value, or the key no name.
    """
    key = str(path[-1])
    if not _NAME.fullmatch(key) or key in _WORDS:
        raise document.error(f"{key_name(path)}: {key!r} cannot be a name in expressions", path)
    if isinstance(value, dict):
        return _range(document, value, path)
    values = value if isinstance(value, list) else [value]
    if not values:
        raise document.error(f"{key_name(path)}: there are no values", path)
    return [_value(document, each, (*path, i)) for i, each in enumerate(values)]


def _range(document: Document, value: Mapping[str, Any], path: Path) -> list[Any]:
    """``{from, to, step}``: both ends included where the steps meet them, in decimal arithmetic."""
    ends = [
        _value(document, value[key], (*path, key)) for key in ("from", "to", "step") if key in value
    ]
    if set(value) != _RANGE or not all(is_number(end) for end in ends):
        raise document.error(
            f"{key_name(path)}: give a list of values, or a range of numbers {{from, to, step}}",
            path,
        )
    first, last, step = (Decimal(text(end)) for end in ends)
    if step == 0:
        raise document.error(
            f"{key_name((*path, 'step'))}: a step of 0 never gets to the end", path
        )
    if (last - first) / step < 0:
        raise document.error(f"{key_name(path)}: the steps lead away from the end", path)
    count = int((last - first) / step) + 1
    if count > MAX_POINTS:
        raise document.error(f"{key_name(path)}: more than {MAX_POINTS} values", path)
    numbers = [first + i * step for i in range(count)]
    whole = all(isinstance(end, int) for end in (ends[0], ends[2]))
    return [int(number) if whole else float(number) for number in numbers]


def _value(document: Document, value: Any, path: Path) -> Any:
    """A number, true or false, a text, a list of those, or a mapping of what varies together."""
    if isinstance(value, dict) and value and not all(map(_NAME.fullmatch, value)):
        raise document.error(f"{key_name(path)}: its keys must be names", path)
    if isinstance(value, dict) and value:
        return {key: _value(document, entry, (*path, key)) for key, entry in value.items()}
    if isinstance(value, list) and value:
        return [_scalar(document, entry, path) for entry in value]
    return _scalar(document, value, path)


def _scalar(document: Document, value: Any, path: Path) -> Any:
    if isinstance(value, str):
        return (
            float(value) if _SCIENTIFIC.fullmatch(value) else value
        )  # YAML 1.1 reads 2e-6 as text
    good = isinstance(value, bool | int | float)
    if not good or (isinstance(value, float) and not math.isfinite(value)):
        raise document.error(
            f"{key_name(path)}: a value is a number, true or false, or a text, not {str(value)[:40]!r}",
            path,
        )
    return value


def is_number(value: Any) -> bool:
    """Whether a value is a number, which true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)
