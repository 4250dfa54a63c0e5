"""The keys of a sweep and their values."""

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
"""Most points of a grid before ``where`` selects among them."""

MAX_LINES = 500_000
"""Most keys and list entries of all points' recipes together."""

_NAME = re.compile(r"[A-Za-z_]\w*")
_WORDS = frozenset({"and", "or", "not", "if", "else", "in", "is", "true", "false", "none"})
_SCIENTIFIC = re.compile(r"[-+]?\d+(\.\d+)?[eE][-+]?\d+")
_RANGE = frozenset({"from", "to", "step"})


WHERE = "where"
"""The key of a grid that has conditions, not values."""


@dataclass(frozen=True)
class Grid:
    """The keys of a grid with their values, and conditions that select its points.

    Attributes:
        axes: the keys' values.
        where: conditions that all points satisfy, each with its path.
    """

    axes: Mapping[str, Sequence[Any]]
    where: tuple[tuple[KeyPath, Template], ...] = ()

    def points(self, document: Document) -> Iterator[dict[str, Any]]:
        """The values of each point; the last key varies fastest.

        Raises:
            RecipeError: when a condition cannot be computed, or is not a boolean.
        """
        for entries in itertools.product(*self.axes.values()):
            values = dict(zip(self.axes, entries, strict=True))
            if all(_holds(document, path, template, values) for path, template in self.where):
                yield values


def _holds(
    document: Document, path: KeyPath, template: Template, values: Mapping[str, Any]
) -> bool:
    try:
        value = expressions.render(template, values)
    except ValueError as error:
        raise document.error(f"{key_name(path)}: {error}", path) from None
    if not isinstance(value, bool):
        raise document.error(
            f"{key_name(path)}: must be true or false, not {str(value)[:40]!r}; write a "
            "comparison, such as w.acc >= 0.2",
            path,
        )
    return value


def read_grids(document: Document, block: Any, folder: Path | None = None) -> list[Grid]:
    """The grids of a ``sweep:`` block.

    Args:
        document: the file.
        block: the block's content.
        folder: the file's folder, which is also searched for training runs.

    Raises:
        RecipeError: with file, line and key of the first thing that is wrong.
    """
    block_path: KeyPath = ("sweep",)
    blocks: list[tuple[KeyPath, Any]] = [(block_path, block)] if isinstance(block, dict) else []
    if isinstance(block, list):
        blocks = [((*block_path, i), entry) for i, entry in enumerate(block)]
    if not blocks or not all(isinstance(entry, dict) and entry for _, entry in blocks):
        raise document.error(
            "sweep: give keys with their values, such as {w: [0.1, 0.9]}, or a list of such mappings",
            block_path,
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
                    f"{key_name(here)}: is false for all of the {before:,} points", here
                )
        total += count
        if total > MAX_POINTS:
            raise document.error(
                f"{key_name(path)}: {total:,} points, more than {MAX_POINTS:,}", path
            )
        if total * len(document.lines) > MAX_LINES:
            raise document.error(
                f"{key_name(path)}: {total} points of a recipe with {len(document.lines)} keys and entries "
                "are too many; split it into several files",
                path,
            )
        grids.append(grid)
    return grids


def _conditions(
    document: Document, entry: Mapping[str, Any], axes: Mapping[str, Any], path: KeyPath
) -> tuple[tuple[KeyPath, Template], ...]:
    """The conditions of a grid's ``where``, which is one text or a list of texts."""
    if WHERE not in entry:
        return ()
    here = (*path, WHERE)
    given = entry[WHERE]
    listed = given if isinstance(given, list) else [given]
    if not axes or not listed or not all(isinstance(line, str) for line in listed):
        raise document.error(
            f"{key_name(here)}: give a condition on the other keys, such as w.acc >= 0.2, or a list of them",
            here,
        )
    conditions = []
    for i, line in enumerate(listed):
        place = (*here, i) if given is listed else here
        try:
            template = expressions.parse(line if "{{" in line else f"{{{{ {line} }}}}")
        except ValueError as error:
            raise document.error(f"{key_name(place)}: {error}", place) from None
        assert template is not None
        if unknown := sorted(template.names - set(axes)):
            raise document.error(
                f"{key_name(place)}: the sweep has no {unknown[0]!r}; it has {', '.join(axes)}",
                place,
            )
        conditions.append((place, template))
    return tuple(conditions)


def axis_values(
    document: Document, value: Any, path: KeyPath, folder: Path | None = None
) -> list[Any]:
    """The values of a key, written as a list, a range, a simplex, a run's steps, or one value.

    Raises:
        RecipeError: when a value has a wrong type, or the key is not a name.
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
    return [_value(document, entry, (*path, i)) for i, entry in enumerate(values)]


def _range(document: Document, value: Mapping[str, Any], path: KeyPath) -> list[Any]:
    """The values of ``{from, to, step}`` in decimal arithmetic, with the end if a step meets it."""
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
        raise document.error(f"{key_name((*path, 'step'))}: the step must not be 0", path)
    if (last - first) / step < 0:
        raise document.error(
            f"{key_name(path)}: the step has the wrong sign: it leads away from 'to'", path
        )
    count = int((last - first) / step) + 1
    if count > MAX_POINTS:
        raise document.error(f"{key_name(path)}: more than {MAX_POINTS} values", path)
    numbers = [first + i * step for i in range(count)]
    integers = all(isinstance(end, int) for end in (ends[0], ends[2]))
    return [int(number) if integers else float(number) for number in numbers]


def _value(document: Document, value: Any, path: KeyPath) -> Any:
    """Check a value: a number, a boolean, a text, a list of these, or a mapping of values."""
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
    """Whether a value is a number; booleans are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)
