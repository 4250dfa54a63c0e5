"""The values that the keys of a sweep run over."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from merganser.recipe import expressions, run_steps, simplex
from merganser.recipe.document import Document, KeyPath, key_name
from merganser.recipe.expressions import Template, text
from merganser.recipe.simplex import MAX_POINTS

MAX_COMBINATIONS = 100_000
"""Points of a grid before its filter chooses among them."""

MAX_LINES = 500_000
"""Most keys and list entries of all points' recipes together."""

_NAME = re.compile(r"[A-Za-z_]\w*")
_WORDS = frozenset({"and", "or", "not", "if", "else", "in", "is", "true", "false", "none"})
_SCIENTIFIC = re.compile(r"[-+]?\d+(\.\d+)?[eE][-+]?\d+")
_RANGE = frozenset({"from", "to", "step"})


WHERE = "where"
"""The key of a grid that is no axis but says which of its points there are."""


@dataclass(frozen=True)
class Grid:
    """The keys of a grid with their values, and conditions that select its points.

    Attributes:
        axes: the keys' values.
        where: conditions that all points fulfil, each with its place.
    """

    axes: Mapping[str, Sequence[Any]]
    where: tuple[tuple[KeyPath, Template], ...] = ()

    def points(self, document: Document) -> Iterator[dict[str, Any]]:
        """Return the values of each point; the last key varies fastest.

        Raises:
            RecipeError: when a condition has no value, or is neither true nor false.
        """
        for entries in itertools.product(*self.axes.values()):
            values = dict(zip(self.axes, entries, strict=True))
            if all(_holds(document, path, template, values) for path, template in self.where):
                yield values


def _holds(
    document: Document, path: KeyPath, template: Template, values: Mapping[str, Any]
) -> bool:
    try:
        found = expressions.render(template, values)
    except ValueError as error:
        raise document.error(f"{key_name(path)}: {error}", path) from None
    if not isinstance(found, bool):
        raise document.error(
            f"{key_name(path)}: is neither true nor false but {str(found)[:40]!r}; write a "
            "comparison, such as w.acc >= 0.2",
            path,
        )
    return found


def read_grids(document: Document, block: Any, folder: Path | None = None) -> list[Grid]:
    """Return the grids of a ``sweep:`` block.

    Args:
        document: the file's.
        block: the block's content.
        folder: the file's folder, which is also searched for training runs.

    Raises:
        RecipeError: with file, line and key of the first thing that is wrong.
    """
    whole: KeyPath = ("sweep",)
    blocks: list[tuple[KeyPath, Any]] = [(whole, block)] if isinstance(block, dict) else []
    if isinstance(block, list):
        blocks = [((*whole, i), entry) for i, entry in enumerate(block)]
    if not blocks or not all(isinstance(entry, dict) and entry for _, entry in blocks):
        raise document.error(
            "sweep: give keys with their values, such as {w: [0.1, 0.9]}, or a list of such mappings",
            whole,
        )
    total = 0
    grids = []
    for path, entry in blocks:
        axes = {
            key: axis_values(document, value, (*path, key), folder)
            for key, value in entry.items()
            if key != WHERE
        }
        grid = Grid(axes, _conditions(document, entry, axes, path))
        count = math.prod(len(values) for values in axes.values())
        if grid.where and count <= MAX_COMBINATIONS:
            before, count = count, sum(1 for _ in grid.points(document))
            if not count:
                here = (*path, WHERE)
                raise document.error(
                    f"{key_name(here)}: holds for none of the {before:,} points", here
                )
        total += count
        if total > MAX_POINTS:
            raise document.error(
                f"{key_name(path)}: {total:,} points, more than {MAX_POINTS:,}", path
            )
        if total * len(document.lines) > MAX_LINES:
            raise document.error(
                f"{key_name(path)}: {total} points of a recipe with {len(document.lines)} keys and entries "
                "are too many; make several files of it",
                path,
            )
        grids.append(grid)
    return grids


def _conditions(
    document: Document, entry: Mapping[str, Any], axes: Mapping[str, Any], path: KeyPath
) -> tuple[tuple[KeyPath, Template], ...]:
    """Return the conditions of a grid's ``where``: one text, or a list of them."""
    if WHERE not in entry:
        return ()
    here = (*path, WHERE)
    given = entry[WHERE]
    listed = given if isinstance(given, list) else [given]
    if not axes or not listed or not all(isinstance(each, str) for each in listed):
        raise document.error(
            f"{key_name(here)}: give a condition on the other keys, such as w.acc >= 0.2, or a list of them",
            here,
        )
    found = []
    for i, each in enumerate(listed):
        own = (*here, i) if given is listed else here
        try:
            template = expressions.parse(each if "{{" in each else f"{{{{ {each} }}}}")
        except ValueError as error:
            raise document.error(f"{key_name(own)}: {error}", own) from None
        assert template is not None
        if unknown := sorted(template.names - set(axes)):
            raise document.error(
                f"{key_name(own)}: the sweep has no {unknown[0]!r}; it has {', '.join(axes)}", own
            )
        found.append((own, template))
    return tuple(found)


def axis_values(
    document: Document, value: Any, path: KeyPath, folder: Path | None = None
) -> list[Any]:
    """The values that a key runs over: a list, a range, a simplex, a run's steps, or a single one.

    Raises:
        RecipeError: when one is no value, or the key no name.
    """
    key = str(path[-1])
    if not _NAME.fullmatch(key) or key in _WORDS:
        raise document.error(f"{key_name(path)}: {key!r} cannot be a name in expressions", path)
    if simplex.is_simplex(value):
        return list(simplex.read_points(document, value, path))
    if isinstance(value, dict) and "run" in value:
        return list(run_steps.read_numbers(document, value, path, folder))
    if isinstance(value, dict):
        return _range(document, value, path)
    values = value if isinstance(value, list) else [value]
    if not values:
        raise document.error(f"{key_name(path)}: there are no values", path)
    return [_value(document, each, (*path, i)) for i, each in enumerate(values)]


def _range(document: Document, value: Mapping[str, Any], path: KeyPath) -> list[Any]:
    """``{from, to, step}``: both ends included where the steps meet them, in decimal arithmetic."""
    ends = [
        _value(document, value[key], (*path, key)) for key in ("from", "to", "step") if key in value
    ]
    if set(value) != _RANGE or not all(is_number(end) for end in ends):
        raise document.error(
            f"{key_name(path)}: give a list of values, or a range of numbers {{from, to, step}}, or weights "
            "{simplex: [acc, fmt], step: 0.1}, or steps {run: runs/acc, every: 6}",
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


def _value(document: Document, value: Any, path: KeyPath) -> Any:
    """A number, true or false, a text, a list of those, or a mapping of what varies together."""
    if isinstance(value, dict) and value and not all(map(_NAME.fullmatch, value)):
        raise document.error(f"{key_name(path)}: its keys must be names", path)
    if isinstance(value, dict) and value:
        return {key: _value(document, entry, (*path, key)) for key, entry in value.items()}
    if isinstance(value, list) and value:
        return [_scalar(document, entry, path) for entry in value]
    return _scalar(document, value, path)


def _scalar(document: Document, value: Any, path: KeyPath) -> Any:
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
