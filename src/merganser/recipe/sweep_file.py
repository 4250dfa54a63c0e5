"""The sweep language: one file, many recipes.

A recipe with a ``sweep:`` block is one recipe for each point of the sweep. Every text of the recipe
may contain expressions of the point's values::

    name: accfmt_w{{ w }}
    sweep: {w: {from: 0.1, to: 0.9, step: 0.2}}

A mapping is a grid over its keys; a list of mappings is several grids, one after another. Values that
vary together are one key whose values are mappings: ``{{ pair.first }}``.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml

from merganser import recipe
from merganser.errors import RecipeError
from merganser.recipe import expressions
from merganser.recipe.axes import is_number, read_grids
from merganser.recipe.document import Document, KeyPath, key_name
from merganser.recipe.expressions import Template, text
from merganser.recipe.loading import Config, ParsedRecipe, Strictness
from merganser.recipe.short_names import matching
from merganser.recipe.steps import folder_key, folder_name

Values = Mapping[str, Any]
Entry = TypeVar("Entry")

LITERAL = ("chat_template",)
"""Keys whose text is itself Jinja, and stays unchanged."""

ENTRY_IS = frozenset({"model", "run", "value"})
"""Keys that an entry of a list needs: a model's, a run's, or that of a rule of a parameter. An entry
that loses it is removed."""

BLOCKS = ("sweep", "search", "evaluate")
"""Keys of studies, which the points' recipes do not have."""


@dataclass(frozen=True)
class Point:
    """One merge of a sweep.

    Attributes:
        name: the point's name, unique in the sweep, and the name of its folder.
        values: its values by key; those of mappings by ``key.part``.
        recipe: its recipe, whose errors name the sweep's file and line.
    """

    name: str
    values: Values
    recipe: ParsedRecipe


@dataclass(frozen=True)
class _PointDocument(Document):
    """A point's recipe; its errors include the point's name."""

    point: str = ""

    def error(self, message: str, path: KeyPath = ()) -> RecipeError:
        return super().error(f"point {self.point}: {message}", path)


@dataclass(frozen=True)
class Pattern:
    """A recipe with expressions, which becomes a recipe for given values.

    Attributes:
        document: the file's.
        block: the key of its values: ``sweep`` or ``search``.
        data: the recipe, without the blocks of studies.
        templates: its texts with expressions, by their paths.
        folder: as in :class:`merganser.recipe.ParsedRecipe`.
        strictness: how unknown keys are handled.
    """

    document: Document
    block: str
    data: Mapping[str, Any]
    templates: Mapping[KeyPath, Template]
    folder: Any
    strictness: Strictness

    def check_names(self, keys: Mapping[str, bool]) -> None:
        """Check that expressions use only keys of the block, and that each key that varies is used.

        Args:
            keys: the keys of the block, with whether they have several values.

        Raises:
            RecipeError: for the first violation.
        """
        for path, template in self.templates.items():
            if unknown := sorted(template.names - set(keys)):
                raise self.document.error(
                    f"{key_name(path)}: the {self.block} has no {unknown[0]!r}; it has {', '.join(keys)}",
                    path,
                )
        used = expressions.names_of([t for path, t in self.templates.items() if path != ("name",)])
        for key, varies in keys.items():
            if varies and key not in used:
                path = ("sweep", key) if self.block == "sweep" else ("search", "over", key)
                raise self.document.error(
                    f"{key_name(path)}: nothing in the recipe depends on it; "
                    f"write {{{{ {key} }}}} where it belongs",
                    path,
                )

    def point(self, values: Values, number: int | None = None) -> Point:
        """The recipe for given values.

        Args:
            values: the values of all keys that expressions use.
            number: a suffix of its name, if values alone do not distinguish points.

        Raises:
            RecipeError: with the values or the name, file and line.
        """
        own_values = values_text(values)

        left_out: dict[KeyPath, list[int]] = {}

        def filled(part: Any, path: KeyPath) -> Any:
            if isinstance(part, dict):
                entries = {key: filled(entry, (*path, key)) for key, entry in part.items()}
                empty = {
                    k for k, v in entries.items() if v is None and (*path, k) in self.templates
                }
                if path and isinstance(path[-1], int) and empty.intersection(ENTRY_IS):
                    return None
                return {key: entry for key, entry in entries.items() if key not in empty}
            if isinstance(part, list):
                result = [filled(entry, (*path, i)) for i, entry in enumerate(part)]
                gone = [i for i, item in enumerate(result) if item is None and part[i] is not None]
                left_out.update({path: gone} if gone else {})
                return [item for i, item in enumerate(result) if i not in gone]
            if path not in self.templates:
                return part
            try:
                result = expressions.render(self.templates[path], values)
                return text(result) if path == ("name",) else result
            except ValueError as error:
                raise self.document.error(
                    f"point {own_values}: {key_name(path)}: {error}", path
                ) from None

        filled_recipe: dict[str, Any] = {"name": None} | filled(dict(self.data), ())
        name = filled_recipe["name"]
        if name is None:
            name = default_name(values) if number is None else "candidate"
        name = f"{name}_{number:03d}" if number is not None and isinstance(name, str) else name
        if not isinstance(name, str) or folder_name(name) != name or not 0 < len(name) < 200:
            raise self.document.error(
                f"point {own_values}: name: {name!r} cannot be a folder's name; "
                "use letters, digits and . _ + -",
                ("name",),
            )
        filled_recipe["name"] = name
        written = yaml.safe_dump(filled_recipe, sort_keys=False, allow_unicode=True)
        lines = {path: n for path, n in self.document.lines.items() if path[:1] != (self.block,)}
        lines = _in_point(lines, left_out) if left_out else lines
        repeated = _in_point(self.document.repeated, left_out)
        parsed = recipe.validate(
            _PointDocument(filled_recipe, written, self.document.file, lines, repeated, name),
            self.folder,
            self.strictness,
        )
        return Point(name, flat(values), parsed)


def _in_point(
    places: Mapping[KeyPath, Entry], left_out: Mapping[KeyPath, Sequence[int]]
) -> dict[KeyPath, Entry]:
    """Facts about paths of a file, by the paths in a point's recipe.

    Args:
        places: the facts by path of the file.
        left_out: for lists of the file, the indices of the entries that the point lacks.
    """
    lines = {}
    for path, entry in places.items():
        moved: list[str | int] = []
        for i, part in enumerate(path):
            gone = left_out.get(path[:i], ()) if isinstance(part, int) else ()
            if part in gone:
                break
            moved.append(part - sum(n < part for n in gone) if isinstance(part, int) else part)
        else:
            lines[tuple(moved)] = entry
    return lines


def read_pattern(source: Config, block: str, strictness: Strictness = "normal") -> Pattern:
    """Read and check a file of many recipes.

    Args:
        source: a file, or a mapping.
        block: the key of its values: ``sweep`` or ``search``.
        strictness: as in :func:`merganser.recipe.load`.

    Raises:
        RecipeError: when the file has another form, or an expression is invalid.
    """
    if not isinstance(source, str | os.PathLike | Mapping):
        raise RecipeError(f"a {block} is read from a file or a mapping, not from a loaded recipe")
    documents, folder = recipe.read_documents(source)
    if len(documents) > 1:
        raise documents[1].error(
            f"the file has several documents; a {block} must be alone in its file"
        )
    return pattern_of(documents[0], folder, block, strictness)


def pattern_of(
    document: Document, folder: Any, block: str, strictness: Strictness = "normal"
) -> Pattern:
    """Read a document as a file of many recipes; see :func:`read_pattern`.

    Raises:
        RecipeError: when it is not one, or its expressions cannot be read.
    """
    data = document.data
    if not isinstance(data, dict) or block not in data:
        other = next((key for key in BLOCKS[:2] if isinstance(data, dict) and key in data), None)
        does = f"{other}` is for its {other}: block" if other else "merge` merges it"
        raise document.error(f"there is no {block}: block in this recipe; `merganser {does}")
    document.check_repeated({(key,) for key in data if key not in BLOCKS})
    for key in BLOCKS[:2]:
        if key in data and key != block:
            raise document.error(
                f"{key}: a {block} cannot have this block too; remove one of them", (key,)
            )
    rest = {key: value for key, value in data.items() if key not in BLOCKS}
    templates = dict(_templates(document, rest))
    return Pattern(document, block, rest, templates, folder, strictness)


def load_points(source: Config, strictness: Strictness = "normal") -> list[Point]:
    """The points of a sweep, in the order of the file; the last key varies fastest.

    Args:
        source: a file, or a mapping.
        strictness: as in :func:`merganser.recipe.load`.

    Raises:
        RecipeError: for the first error, with file, line and key, and the point's name.
    """
    pattern = read_pattern(source, "sweep", strictness)
    document: Any = pattern.document
    grids = read_grids(document, document.data["sweep"], pattern.folder)
    for grid in grids:
        pattern.check_names({key: len(values) > 1 for key, values in grid.axes.items()})
    points: dict[str, Point] = {}
    for values in itertools.chain.from_iterable(grid.points(document) for grid in grids):
        point = pattern.point(values)
        other = points.setdefault(folder_key(point.name), point)
        if other is not point:
            raise document.error(
                f"name: the points {values_text(other.values)} and {values_text(point.values)} are both called "
                f"{point.name!r}; give each a different name, such as {point.name}_"
                + "_".join(f"{key}{{{{ {key} }}}}" for key in values),
                ("name",) if "name" in pattern.data else ("sweep",),
            )
    return list(points.values())


def select(points: Sequence[Point], only: Sequence[str], written: str = "only: ") -> list[Point]:
    """The points that satisfy all conditions, each ``w=0.7,0.9`` or a name.

    Args:
        points: the points to choose from.
        only: the conditions.
        written: the text before a condition in messages, such as its flag.

    Raises:
        RecipeError: when a condition names a key, a value or a point that the sweep does not have.
    """
    chosen = list(points)
    for condition in only:
        key, equals, wanted = condition.partition("=")
        if not equals:
            key, wanted = "name", condition
            if not _named(points, condition):
                raise RecipeError(
                    f"{written}{condition}: no point has that name; write values like w=0.7,0.9, or a point's name"
                )
        key = key.strip()
        known = sorted({name for point in points for name in point.values} | {"name"})
        if key not in known:
            raise RecipeError(
                f"{written}{condition}: the sweep has no {key!r}; it has {', '.join(known)}"
            )
        there = {point.name: _chosen_by(point, key) for point in points}
        asked = {_canonical(entry) for entry in wanted.split(",")}
        if key == "name":
            asked = {_full_name(points, entry, written) for entry in wanted.split(",")}
        if missing := sorted(asked - set(there.values())):
            values = ", ".join(dict.fromkeys(there.values()))
            raise RecipeError(
                f"{written}{condition}: no point has {key} = {missing[0]}; there are {values}"
            )
        chosen = [point for point in chosen if there[point.name] in asked]
    if not chosen:
        conditions = " ".join(f"{written}{condition}" for condition in only)
        raise RecipeError(f"{conditions}: no point has all of these values")
    return chosen


def find_point(text: str) -> Point | None:
    """The point that ``SWEEP.yml#w=0.7`` or ``SWEEP.yml#name`` names; None for a text of another form.

    Several conditions are joined by ``&``. A name may be the short one of a table.

    Raises:
        RecipeError: when the sweep has no such point, or several.
    """
    file, mark, fragment = text.rpartition("#")
    if not mark or not file.endswith((".yml", ".yaml")):
        return None
    points = load_points(file)
    named = _named(points, fragment)
    if len(named) != 1 and "=" in fragment:
        named = select(points, fragment.split("&"), f"{file}#")
    if len(named) == 1:
        return named[0]
    told_names = ", ".join(point.name for point in named or points)
    what = "there is no such point; there are" if not named else "matches several points:"
    raise RecipeError(f"{text}: {what} {told_names}")


def _named(points: Sequence[Point], name: str) -> list[Point]:
    """The points of a name, which may be the short one of a table."""
    names = matching([point.name for point in points], name)
    return [point for point in points if point.name in names]


def _full_name(points: Sequence[Point], name: str, written: str) -> str:
    """The full name of the only matching point; the name unchanged if none matches.

    Raises:
        RecipeError: when there are several.
    """
    named = _named(points, name.strip())
    if len(named) > 1:
        several = ", ".join(point.name for point in named)
        raise RecipeError(f"{written}name={name}: matches several points: {several}")
    return named[0].name if named else name.strip()


def _chosen_by(point: Point, key: str) -> str:
    if key == "name":
        return point.name
    return text(point.values[key]) if key in point.values else ""


def _canonical(entry: str) -> str:
    """A value in one form, so that 0.10 and 0.1 are equal."""
    try:
        number = float(entry)
    except ValueError:
        return entry.strip()
    return text(number) if math.isfinite(number) else entry.strip()


# -- the points ----------------------------------------------------------------------------------


def _templates(
    document: Document, part: Any, path: KeyPath = ()
) -> Iterator[tuple[KeyPath, Template]]:
    """A recipe's texts with expressions, by their paths."""
    if path and path[-1] in LITERAL:
        return
    if isinstance(part, dict | list):
        for key, entry in part.items() if isinstance(part, dict) else enumerate(part):
            yield from _templates(document, entry, (*path, key))
    elif isinstance(part, str):
        try:
            template = expressions.parse(part)
        except ValueError as error:
            raise document.error(f"{key_name(path)}: {error}", path) from None
        if template is not None:
            yield path, template


def default_name(values: Values) -> str:
    """A name from a point's values: ``w0.7_method-slerp``."""
    return "_".join(
        f"{key}{'' if is_number(value) and value >= 0 else '-'}{folder_name(_words(value))}"
        for key, value in values.items()
    )


def _words(value: Any) -> str:
    return "-".join(map(_words, value.values())) if isinstance(value, Mapping) else text(value)


def values_text(values: Values) -> str:
    """Values as text: ``w=0.7, method=slerp``."""
    return ", ".join(f"{key}={text(value)}" for key, value in flat(values).items())


def flat(values: Values) -> dict[str, Any]:
    """Values by key; those of mappings by ``key.part``."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= {f"{key}.{part}": entry for part, entry in flat(value).items()}
        else:
            result[key] = value
    return result
