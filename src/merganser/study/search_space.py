"""The ``search:`` block: the values that a search may try, and its objectives.

Ranges are written as in sweeps, without a step::

    search:
      over:
        w: {from: 0, to: 1}
        density: {from: 0.05, to: 1, log: true}
        depth: {from: 0, to: 1, length: 5}
        method: [linear, slerp]
      objectives: {accuracy: max, tokens: min}

Every range becomes axes of a space, one per number; optimisers see only the space, not the recipes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Literal, get_args

from merganser import suggestions
from merganser.errors import RecipeError
from merganser.recipe import Config, Document, Strictness, key_name
from merganser.recipe.axes import axis_values
from merganser.recipe.document import KeyPath
from merganser.recipe.expressions import text
from merganser.recipe.sweep_file import Pattern, pattern_of, read_pattern
from merganser.results.scores import Direction
from merganser.study.greedy_models import KEY, with_models
from merganser.study.search_axes import Axis, Simplex, Soup, read_simplex

Method = Literal["cma-es", "tpe", "nsga-ii", "random", "front", "greedy"]
Position = tuple[float, ...]
"""A candidate's position: for every axis a number from 0 to 1, or an integer from 0 to its count - 1."""

DIGITS = 4
"""Digits of a number below the width of its range (0.7315 in 0 to 1); significant digits if ``log``."""

MAX_LENGTH = 100
MAX_BUDGET = 100_000
DEFAULT_BUDGET = 40

_KEYS = frozenset(
    {"over", "objectives", "constraints", "method", "budget", "population", "seed", "held_out"}
) | {"keep", "from", "again", "equal"}
_RANGE = frozenset({"from", "to", "step", "int", "log", "length"})


@dataclass(frozen=True, slots=True)
class Range:
    """A range of numbers between two ends, both included.

    Attributes:
        low, high: the ends.
        step: the distance between values; None for a continuous range, rounded to DIGITS.
        whole: whether values are integers.
        log: whether the scale is logarithmic.
        length: number of entries if a value is a list; None if it is a single number.
    """

    low: Decimal
    high: Decimal
    step: Decimal | None = None
    whole: bool = False
    log: bool = False
    length: int | None = None

    @property
    def axes(self) -> tuple[Axis, ...]:
        """One axis per number."""
        count = None if self.step is None else int((self.high - self.low) / self.step) + 1
        return (Axis(count),) * (self.length or 1)

    def value(self, position: Sequence[float]) -> Any:
        """Return the number, or list of numbers, at a position."""
        numbers = [self._number(coordinate) for coordinate in position]
        return numbers if self.length is not None else numbers[0]

    def _number(self, position: float) -> float | int:
        if self.step is not None:
            number = self.low + int(position) * self.step
        else:
            if self.log:
                ratio = math.log(self.high / self.low)
                exact = self.low * Decimal(math.exp(position * ratio))
                digit = exact.adjusted() - DIGITS + 1
            else:
                exact = self.low + Decimal(position) * (self.high - self.low)
                digit = (self.high - self.low).adjusted() - DIGITS
            grain = Decimal(1).scaleb(0 if self.whole else digit)
            number = min(max(exact.quantize(grain, ROUND_HALF_EVEN), self.low), self.high)
        return int(number) if self.whole else float(number)

    def __str__(self) -> str:
        ends = f"{text(float(self.low))} to {text(float(self.high))}"
        step = f" in steps of {text(float(self.step))}" if self.step is not None else ""
        how = f"{' (log)' if self.log else ''}{', whole' if self.whole else ''}"
        return ends + step + how + (f", {self.length} numbers" if self.length else "")


@dataclass(frozen=True, slots=True)
class Choices:
    """Values without an order: texts, numbers, or mappings of values that change together."""

    values: tuple[Any, ...]

    @property
    def axes(self) -> tuple[Axis, ...]:
        """One axis, or none if there is only one choice."""
        return (Axis(len(self.values), ordered=False),) if len(self.values) > 1 else ()

    def value(self, position: Sequence[float]) -> Any:
        """Return the value at a position."""
        return self.values[int(position[0]) if position else 0]

    def __str__(self) -> str:
        return ", ".join(
            ", ".join(f"{k}={text(v)}" for k, v in choice.items())
            if isinstance(choice, Mapping)
            else text(choice)
            for choice in self.values
        )


Parameter = Range | Choices | Simplex | Soup
"""The range or choices of one key of a search."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A constraint on a score: a minimum or a maximum."""

    least: float | None
    most: float | None

    def missed(self, score: float) -> float:
        """Return how far a score violates the limit; 0 if it satisfies it."""
        below = 0.0 if self.least is None else self.least - score
        above = 0.0 if self.most is None else score - self.most
        return max(0.0, below, above)


@dataclass(frozen=True)
class Search:
    """The space, objectives and method of a search.

    Attributes:
        pattern: the recipe that takes the values.
        over: ranges and choices, by key.
        objectives: ``max`` or ``min`` for each score to optimise, by name.
        limits: constraints on scores.
        method: the optimiser's name.
        budget: number of candidates.
        population: candidates per generation; None for the method's default.
        seed: the optimiser's seed.
        held_out: a share of the problems, or names of tasks, that only the selected candidates are
            scored on; None for none.
        keep: how many of the best to write; None for the full front.
        equal: whether a greedy soup keeps a model that leaves the score unchanged.
    """

    pattern: Pattern
    over: Mapping[str, Parameter]
    objectives: Mapping[str, Direction]
    limits: Mapping[str, Limit]
    method: Method
    budget: int
    population: int | None
    seed: int
    held_out: float | tuple[str, ...] | None
    keep: int | None
    equal: bool = False

    @property
    def axes(self) -> tuple[Axis, ...]:
        """All axes of the space."""
        return tuple(axis for choice in self.over.values() for axis in choice.axes)

    def values(self, position: Position) -> dict[str, Any]:
        """Return the values at a position."""
        values = {}
        for key, choice in self.over.items():
            count = len(choice.axes)
            values[key] = choice.value(position[:count])
            position = position[count:]
        return values

    def error(self, message: str, *path: str) -> RecipeError:
        """Return an error with the file and line of a key of the block."""
        return self.pattern.document.error(message, ("search", *path))


def load_search(source: Config, strictness: Strictness = "normal") -> Search:
    """Read a recipe with a ``search:`` block.

    Args:
        source: a file, or a mapping.
        strictness: as in :func:`merganser.recipe.load`.

    Raises:
        RecipeError: with file, line and key of the first thing that is wrong.
    """
    pattern = read_pattern(source, "search", strictness)
    document: Any = pattern.document
    block = document.data["search"]
    _mapping(document, block, ("search",), _KEYS, "{over: {w: {from: 0, to: 1}}, objectives: …}")
    greedy = block.get("method") == "greedy"
    for key in ("from" if greedy else "over", "objectives"):
        if key not in block:
            raise document.error(f"search: the key {key!r} is missing", ("search",))
    for key in ("over", "population") if greedy else ("from", "again", "equal"):
        if key in block:
            problem = "a greedy search has from" if greedy else "is for method: greedy"
            raise document.error(f"search.{key}: {problem}", ("search", key))
    if greedy:
        document, names = with_models(document, pattern.folder)
        pattern = pattern_of(document, pattern.folder, "search", strictness)
        over: dict[str, Parameter] = {KEY: Soup(names, _flag(document, block, "again"))}
    else:
        over = dict(_over(document, block["over"]))
    pattern.check_names({key: bool(choice.axes) for key, choice in over.items()})
    axes = [axis for choice in over.values() for axis in choice.axes]
    if not axes:
        raise document.error(
            "search.over: there are no parameters to search over", ("search", "over")
        )
    objectives = _objectives(document, block["objectives"])
    several = len(objectives) > 1
    return Search(
        pattern,
        over,
        objectives,
        _limits(document, block.get("constraints", {})),
        _method(document, block.get("method"), axes, several),
        _whole(document, block, "budget", _budget(over), 1, MAX_BUDGET),
        _whole(document, block, "population", None, 2, 1000),
        _whole(document, block, "seed", 0, 0, 2**32 - 1),
        _held_out(document, block.get("held_out")),
        _keep(document, block, several),
        _flag(document, block, "equal"),
    )


def _budget(over: Mapping[str, Parameter]) -> int:
    """Return the default budget; for a soup without repetition, the candidates of one round."""
    soup = over.get(KEY)
    if isinstance(soup, Soup) and not soup.again:
        return 2 * len(soup.names) - 1
    return DEFAULT_BUDGET


def _flag(document: Document, block: Mapping[str, Any], key: str) -> bool:
    value = block.get(key, False)
    if not isinstance(value, bool):
        raise document.error(f"search.{key}: must be true or false", ("search", key))
    return value


def _keep(document: Document, block: Mapping[str, Any], several: bool) -> int | None:
    if several and block.get("keep", "front") == "front":
        return None
    return int(_whole(document, block, "keep", 1, 0, 1000, ", or front" if several else ""))


def _mapping(
    document: Document, given: Any, path: KeyPath, known: frozenset[str], like: str
) -> None:
    if not isinstance(given, dict) or not given:
        raise document.error(f"{key_name(path)}: give a mapping such as {like}", path)
    for key in given:
        if key not in known:
            guess = suggestions.nearest(key, known)
            hint = f"did you mean {guess!r}?" if guess else f"there are {', '.join(sorted(known))}"
            raise document.error(f"{key_name((*path, key))}: unknown key; {hint}", (*path, key))


def _over(document: Document, block: Any) -> Iterator[tuple[str, Parameter]]:
    path: KeyPath = ("search", "over")
    if not isinstance(block, dict) or not block:
        raise document.error(
            "search.over: give keys with their ranges, such as {w: {from: 0, to: 1}}", path
        )
    for key, value in block.items():
        here = (*path, key)
        if isinstance(value, dict) and not {"from", "to"}.isdisjoint(value):
            axis_values(document, [0], here)  # checks the key's name
            yield key, _range(document, value, here)
        elif isinstance(value, dict) and "simplex" in value:
            axis_values(document, [0], here)  # checks the key's name
            yield key, read_simplex(document, value, here)
        elif isinstance(value, dict):
            raise document.error(
                f"{key_name(here)}: give a range {{from, to}}, or a list of choices, or weights "
                "{simplex: [acc, fmt, len]}",
                here,
            )
        else:
            yield key, Choices(tuple(axis_values(document, value, here)))


def _range(document: Document, given: Mapping[str, Any], path: KeyPath) -> Range:
    name = key_name(path)
    _mapping(document, given, path, _RANGE, "{from: 0, to: 1}")
    ends: dict[str, Decimal] = {}
    for key in ("from", "to", "step"):
        if key == "step" and key not in given:
            continue
        number = _number(given.get(key))
        if number is None:
            raise document.error(f"{name}: {key!r} must be a number", (*path, key))
        ends[key] = Decimal(text(number))
    low, high, step = ends["from"], ends["to"], ends.get("step")
    for flag in ("int", "log"):
        if not isinstance(given.get(flag, False), bool):
            raise document.error(f"{name}: {flag!r} must be true or false", (*path, flag))
    integers, log = given.get("int", False), given.get("log", False)
    length = given.get("length")
    if low >= high:
        raise document.error(f"{name}: 'to' must be more than 'from'", path)
    if step is not None and not 0 < step <= high - low:
        raise document.error(f"{name}: 'step' must lead from one end towards the other", path)
    if log and (low <= 0 or step is not None):
        what = "takes no 'step'" if low > 0 else "begins above 0"
        raise document.error(f"{name}: a range with 'log' {what}", path)
    if integers and any(end != int(end) for end in ends.values()):
        raise document.error(f"{name}: a range with 'int' has whole ends and steps", path)
    good = type(length) is int and 1 <= length <= MAX_LENGTH
    if length is not None and not good:
        raise document.error(f"{name}: 'length' must be a whole number up to {MAX_LENGTH}", path)
    if integers and not log and step is None:
        step = Decimal(1)
    return Range(low, high, step, integers, log, length)


def _number(value: Any) -> float | int | None:
    if isinstance(value, str):  # YAML 1.1 reads 2e-6 as text
        try:
            value = float(value)
        except ValueError:
            return None
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None


def _objectives(document: Document, given: Any) -> dict[str, Direction]:
    path: KeyPath = ("search", "objectives")
    given = {given: "max"} if isinstance(given, str) and given else given
    if not isinstance(given, dict) or not given:
        raise document.error(
            "search.objectives: give scores with max or min, such as {accuracy: max, tokens: min}",
            path,
        )
    for name, direction in given.items():
        if direction not in get_args(Direction):
            raise document.error(f"search.objectives.{name}: must be max or min", (*path, name))
    return given


def _limits(document: Document, given: Any) -> dict[str, Limit]:
    path: KeyPath = ("search", "constraints")
    like = "{tokens: {most: 800}}"
    if not isinstance(given, dict):
        raise document.error(f"search.constraints: give scores with limits, such as {like}", path)
    for name, limit in given.items():
        here = (*path, name)
        _mapping(document, limit, here, frozenset({"least", "most"}), "{most: 800} or {least: 0.5}")
        for key, value in limit.items():
            if _number(value) is None:
                raise document.error(f"{key_name((*here, key))}: must be a number", (*here, key))
    return {
        name: Limit(_number(limit.get("least")), _number(limit.get("most")))
        for name, limit in given.items()
    }


def _method(document: Document, given: Any, axes: Sequence[Axis], several: bool) -> Method:
    path: KeyPath = ("search", "method")
    numbers = all(axis.ordered for axis in axes)
    if given is None:
        return "cma-es" if numbers and len(axes) > 1 and not several else "tpe"
    if given not in get_args(Method):
        raise document.error(f"search.method: must be one of {', '.join(get_args(Method))}", path)
    problem = {
        "greedy": "takes one objective; name one, and limit the others by constraints"
        if several
        else "",
        "cma-es": "searches for one objective; tpe and nsga-ii take several"
        if several
        else ""
        if numbers
        else "searches over numbers; tpe takes choices too",
        "front": "fills the gaps of a front, and needs two objectives or more"
        if not several
        else ""
        if numbers and len(axes) == 1
        else "walks along one number; tpe and nsga-ii take several",
    }.get(given)
    if problem:
        raise document.error(f"search.method: {given} {problem}", path)
    method: Method = given
    return method


def _whole(
    document: Document,
    block: Mapping[str, Any],
    key: str,
    default: Any,
    least: int,
    most: int,
    other: str = "",
) -> Any:
    value = block.get(key, default)
    if value is not None and not (type(value) is int and least <= value <= most):
        raise document.error(
            f"search.{key}: must be a whole number from {least} to {most}{other}", ("search", key)
        )
    if value is None and key in block:
        raise document.error(f"search.{key}: there is no value", ("search", key))
    return value


def _held_out(document: Document, given: Any) -> float | tuple[str, ...] | None:
    names = [given] if isinstance(given, str) else given
    if given is None:
        return None
    if isinstance(names, list) and names and all(isinstance(entry, str) for entry in names):
        return tuple(names)
    share = _number(given)
    if share is None or not 0 < share < 1:
        raise document.error(
            "search.held_out: must be a share of the problems between 0 and 1, or a list of tasks",
            ("search", "held_out"),
        )
    return float(share)
