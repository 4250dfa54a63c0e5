"""The sweep language: one file, many recipes.

A recipe with a ``sweep:`` block is a recipe for every point of it. Wherever the recipe has a text, the
text may hold expressions over the point's values::

    name: accfmt_w{{ w }}
    sweep: {w: {from: 0.1, to: 0.9, step: 0.2}}

A mapping is a grid over its keys; a list of mappings is the grids one after the other. What varies
together is one key whose values are mappings: ``{{ pair.first }}``.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import yaml

from merganser import recipe
from merganser.errors import RecipeError
from merganser.recipe import Config, Document, ParsedRecipe, Strictness, key_name
from merganser.recipe.steps import folder_key, folder_name
from merganser.study import expressions
from merganser.study.expressions import Template, text

Path = tuple[str | int, ...]
Values = Mapping[str, Any]

MAX_POINTS = 1000

MAX_LINES = 500_000
"""Most keys and list entries of all points' recipes together."""

LITERAL = ("chat_template",)
"""Keys whose text is Jinja of their own, and stays as it is."""

BLOCKS = ("sweep", "search", "evaluate")
"""Keys of studies, which are no part of the points' recipes."""

_NAME = re.compile(r"[A-Za-z_]\w*")
_WORDS = frozenset({"and", "or", "not", "if", "else", "in", "is", "true", "false", "none"})
_SCIENTIFIC = re.compile(r"[-+]?\d+(\.\d+)?[eE][-+]?\d+")
_RANGE = frozenset({"from", "to", "step"})


@dataclass(frozen=True)
class Point:
    """One merge of a sweep.

    Attributes:
        name: its own among all points, and its folder's.
        values: what sets it apart, by key; of values that are mappings by ``key.part``.
        recipe: a recipe like any other, whose errors name the sweep's file and line.
    """

    name: str
    values: Values
    recipe: ParsedRecipe


@dataclass(frozen=True)
class _PointDocument(Document):
    """A point's recipe; what is wrong with it is told with its name."""

    point: str = ""

    def error(self, message: str, path: Path = ()) -> RecipeError:
        return super().error(f"point {self.point}: {message}", path)


@dataclass(frozen=True)
class Pattern:
    """A recipe with expressions: one recipe for all values that are put in.

    Attributes:
        document: the file's.
        block: the key that says which values there are: ``sweep`` or ``search``.
        data: the recipe, without the blocks of studies.
        templates: every text of it that holds expressions, by its place.
        folder: as in :class:`merganser.recipe.ParsedRecipe`.
        strictness: what becomes of keys that have no meaning.
    """

    document: Document
    block: str
    data: Mapping[str, Any]
    templates: Mapping[Path, Template]
    folder: Any
    strictness: Strictness

    def check_names(self, keys: Mapping[str, bool]) -> None:
        """What is spoken of must vary, and what varies must be spoken of.

        Args:
            keys: of the block, with whether they vary at all.

        Raises:
            RecipeError: with the first that does not.
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
        """The recipe of some values.

        Args:
            values: of all keys that expressions speak of.
            number: ends its name, where values alone do not tell points apart.

        Raises:
            RecipeError: with the values or the name, file and line.
        """
        own_values = told(values)

        def filled(part: Any, path: Path) -> Any:
            if isinstance(part, dict):
                entries = {key: filled(entry, (*path, key)) for key, entry in part.items()}
                return {
                    key: entry
                    for key, entry in entries.items()
                    if entry is not None or (*path, key) not in self.templates
                }
            if isinstance(part, list):
                return [filled(entry, (*path, i)) for i, entry in enumerate(part)]
            if path not in self.templates:
                return part
            try:
                found = expressions.render(self.templates[path], values)
                return text(found) if path == ("name",) else found
            except ValueError as error:
                raise self.document.error(
                    f"point {own_values}: {key_name(path)}: {error}", path
                ) from None

        own: dict[str, Any] = {"name": None} | filled(dict(self.data), ())
        name = own["name"]
        if name is None:
            name = default_name(values) if number is None else "candidate"
        name = f"{name}_{number:03d}" if number is not None and isinstance(name, str) else name
        if not isinstance(name, str) or folder_name(name) != name or not 0 < len(name) < 200:
            raise self.document.error(
                f"point {own_values}: name: {name!r} cannot be a folder's name; "
                "use letters, digits and . _ + -",
                ("name",),
            )
        own["name"] = name
        written = yaml.safe_dump(own, sort_keys=False, allow_unicode=True)
        lines = {path: n for path, n in self.document.lines.items() if path[:1] != (self.block,)}
        repeated = self.document.repeated
        parsed = recipe.validate(
            _PointDocument(own, written, self.document.file, lines, repeated, name),
            self.folder,
            self.strictness,
        )
        return Point(name, flat(values), parsed)


def is_sweep(source: Config) -> bool:
    """Whether a recipe, or one of a file's, has a ``sweep:`` block.

    Raises:
        RecipeError: when it cannot be read.
    """
    return has_block(source, "sweep")


def has_block(source: Config, block: str) -> bool:
    """Whether a recipe, or one of a file's, has a block of that name.

    Raises:
        RecipeError: when it cannot be read.
    """
    if isinstance(source, str | os.PathLike | Mapping):
        found = [document.data for document in recipe.read_documents(source)[0]]
        return any(isinstance(data, dict) and block in data for data in found)
    return False


def read_pattern(source: Config, block: str, strictness: Strictness = "normal") -> Pattern:
    """Read a file of many recipes.

    Args:
        source: a file, or a mapping.
        block: the key that says which: ``sweep`` or ``search``.
        strictness: as in :func:`merganser.recipe.load`.

    Raises:
        RecipeError: when it is no such file, or its expressions cannot be read.
    """
    if not isinstance(source, str | os.PathLike | Mapping):
        raise RecipeError(
            f"a {block} is read from a file or a mapping; a recipe is one merge already"
        )
    documents, folder = recipe.read_documents(source)
    document = documents[0]
    data = document.data
    if len(documents) > 1:
        raise documents[1].error(f"a {block} is a file of its own, without further recipes")
    if not isinstance(data, dict) or block not in data:
        other = next((key for key in BLOCKS[:2] if isinstance(data, dict) and key in data), None)
        does = f"{other}` is for its {other}: block" if other else "merge` merges it"
        raise document.error(f"there is no {block}: block in this recipe; `merganser {does}")
    document.check_repeated({(key,) for key in data if key not in BLOCKS})
    for key in BLOCKS[:2]:
        if key in data and key != block:
            raise document.error(f"{key}: this is a {block}; give one of both", (key,))
    rest = {key: value for key, value in data.items() if key not in BLOCKS}
    templates = dict(_templates(document, rest))
    return Pattern(document, block, rest, templates, folder, strictness)


def load_points(source: Config, strictness: Strictness = "normal") -> list[Point]:
    """Read a sweep: a recipe for every point, in the order of the file, the last key fastest.

    Args:
        source: a file, or a mapping.
        strictness: as in :func:`merganser.recipe.load`.

    Raises:
        RecipeError: with file, line and key of the first thing that is wrong, and the point's name.
    """
    pattern = read_pattern(source, "sweep", strictness)
    document: Any = pattern.document
    grids = list(_grids(document, document.data["sweep"]))
    for grid in grids:
        pattern.check_names({key: len(values) > 1 for key, values in grid.items()})
    points: dict[str, Point] = {}
    for values in itertools.chain.from_iterable(_combinations(grid) for grid in grids):
        point = pattern.point(values)
        other = points.setdefault(folder_key(point.name), point)
        if other is not point:
            raise document.error(
                f"name: the points {told(other.values)} and {told(point.values)} are both called "
                f"{point.name!r}; a name must tell them apart, such as {point.name}_"
                + "_".join(f"{key}{{{{ {key} }}}}" for key in values),
                ("name",) if "name" in pattern.data else ("sweep",),
            )
    return list(points.values())


def select(points: Sequence[Point], only: Sequence[str], written: str = "only: ") -> list[Point]:
    """The points that some conditions choose, each of the form ``w=0.7,0.9``; all of them must hold.

    Args:
        points: to choose from.
        only: the conditions.
        written: what stands before a condition where it was written, for messages.

    Raises:
        RecipeError: when a condition speaks of what the sweep does not have.
    """
    chosen = list(points)
    for condition in only:
        key, equals, wanted = condition.partition("=")
        if not equals:
            raise RecipeError(f"{written}{condition}: write it like w=0.7,0.9")
        key = key.strip()
        known = sorted({name for point in points for name in point.values} | {"name"})
        if key not in known:
            raise RecipeError(
                f"{written}{condition}: the sweep has no {key!r}; it has {', '.join(known)}"
            )
        there = {point.name: _chosen_by(point, key) for point in points}
        asked = {_canonical(entry) for entry in wanted.split(",")}
        if missing := sorted(asked - set(there.values())):
            values = ", ".join(dict.fromkeys(there.values()))
            raise RecipeError(
                f"{written}{condition}: no point has {key} = {missing[0]}; there are {values}"
            )
        chosen = [point for point in chosen if there[point.name] in asked]
    if not chosen:
        conditions = " ".join(f"{written}{condition}" for condition in only)
        raise RecipeError(f"{conditions}: no point has all of that")
    return chosen


def find_point(text: str) -> Point | None:
    """The point that ``SWEEP.yml#w=0.7`` or ``SWEEP.yml#name`` names; None where a text names no file so.

    Several conditions are joined by ``&``.

    Raises:
        RecipeError: when the sweep has no such point, or several.
    """
    file, mark, fragment = text.rpartition("#")
    if not mark or not file.endswith((".yml", ".yaml")):
        return None
    points = load_points(file)
    named = [point for point in points if point.name == fragment]
    if not named and "=" in fragment:
        named = select(points, fragment.split("&"), f"{file}#")
    if len(named) == 1:
        return named[0]
    told_names = ", ".join(point.name for point in named or points)
    what = "there is no such point; there are" if not named else "that is several points:"
    raise RecipeError(f"{text}: {what} {told_names}")


def _chosen_by(point: Point, key: str) -> str:
    if key == "name":
        return point.name
    return text(point.values[key]) if key in point.values else ""


def _canonical(entry: str) -> str:
    """A number however it is written."""
    try:
        number = float(entry)
    except ValueError:
        return entry.strip()
    return text(number) if math.isfinite(number) else entry.strip()


# -- the block -----------------------------------------------------------------------------------


def _grids(document: Document, block: Any) -> Iterator[dict[str, list[Any]]]:
    """The axes of each grid: keys, and the values that they run over."""
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
    if set(value) != _RANGE or not all(_is_number(end) for end in ends):
        raise document.error(
            f"{key_name(path)}: give a list of values, or a range of numbers {{from, to, step}}",
            path,
        )
    first, last, step = (Decimal(text(end)) for end in ends)
    if step == 0 or (last - first) / step < 0:
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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _combinations(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


# -- the points ----------------------------------------------------------------------------------


def _templates(document: Document, part: Any, path: Path = ()) -> Iterator[tuple[Path, Template]]:
    """Every text of a recipe that holds expressions, by its place."""
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
        f"{key}{'' if _is_number(value) and value >= 0 else '-'}{folder_name(_words(value))}"
        for key, value in values.items()
    )


def _words(value: Any) -> str:
    return "-".join(map(_words, value.values())) if isinstance(value, Mapping) else text(value)


def told(values: Values) -> str:
    """Values as people write them: ``w=0.7, method=slerp``."""
    return ", ".join(f"{key}={text(value)}" for key, value in flat(values).items())


def flat(values: Values) -> dict[str, Any]:
    """Values by key; parts of those that are mappings by ``key.part``."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{part}": entry for part, entry in flat(value).items()}
        else:
            found[key] = value
    return found
