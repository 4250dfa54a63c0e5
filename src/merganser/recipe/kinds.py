"""What the keys of a recipe may hold: kinds of values, which read, check and describe them.

A kind has ``read``, which takes a value from a document and appends what is wrong with it to a list of faults, and
``schema``, which describes it in JSON Schema. A :class:`Part` is a mapping with known keys: a frozen dataclass whose
fields are declared with :func:`key`.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

from merganser.recipe.document import KeyPath

Schema = dict[str, Any]
P = TypeVar("P", bound="Part")


class Fault(NamedTuple):
    """What is wrong with a value.

    Attributes:
        loc: the keys and indices that lead to it.
        type: ``missing``, ``extra_forbidden``, ``list_type`` or ``value``.
        msg: in words.
        input: the value.
    """

    loc: KeyPath
    type: str
    msg: str
    input: Any


class Kind(Protocol):
    """What a key may hold."""

    def read(self, value: Any, path: KeyPath, faults: list[Fault]) -> Any:
        """The value as the program has it; anything at all if there are faults."""

    def schema(self, defs: Schema) -> Schema:
        """As JSON Schema; parts are added to ``defs``."""


class Anything:
    """A value of any kind."""

    def read(self, value: Any, path: KeyPath, faults: list[Fault]) -> Any:
        return value

    def schema(self, defs: Schema) -> Schema:
        return {}


class Text:
    """A text."""

    def read(self, value: Any, path: KeyPath, faults: list[Fault]) -> Any:
        if not isinstance(value, str):
            faults.append(Fault(path, "value", "Input should be a valid string", value))
        return value

    def schema(self, defs: Schema) -> Schema:
        return {"type": "string"}


class Flag:
    """True or false, or a word for it."""

    words: ClassVar[Mapping[str, bool]] = dict.fromkeys(
        ("1", "on", "t", "true", "y", "yes"), True
    ) | dict.fromkeys(("0", "off", "f", "false", "n", "no"), False)

    def read(self, value: Any, path: KeyPath, faults: list[Fault]) -> Any:
        if isinstance(value, bool):
            return value
        if isinstance(value, int | float) and value in (0, 1):
            return bool(value)
        if isinstance(value, str) and value.lower() in self.words:
            return self.words[value.lower()]
        message = "Input should be a valid boolean"
        number = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, str) or (number and abs(value) < 2**63):
            message += ", unable to interpret input"
        faults.append(Fault(path, "value", message, value))
        return None

    def schema(self, defs: Schema) -> Schema:
        return {"type": "boolean"}


_BOUNDS: Mapping[str, tuple[str, Callable[[int, int], bool]]] = {
    "minimum": ("greater than or equal to", operator.ge),
    "exclusiveMinimum": ("greater than", operator.gt),
    "maximum": ("less than or equal to", operator.le),
    "exclusiveMaximum": ("less than", operator.lt),
}


class Whole:
    """A whole number within bounds, which are named as in JSON Schema."""

    def __init__(self, **bounds: int) -> None:
        self.bounds = bounds

    def read(self, value: Any, path: KeyPath, faults: list[Fault]) -> Any:
        number, message = _whole(value)
        for name, bound in self.bounds.items():
            words, holds = _BOUNDS[name]
            if number is not None and not message and not holds(number, bound):
                message = f"Input should be {words} {bound}"
        if message:
            faults.append(Fault(path, "value", message, value))
        return number

    def schema(self, defs: Schema) -> Schema:
        return {"type": "integer", **self.bounds}


def _whole(value: Any) -> tuple[int | None, str]:
    """The whole number that a value is or says, or what is wrong with it."""
    if isinstance(value, int):
        return int(value), ""
    if isinstance(value, float):
        if not math.isfinite(value):
            return None, "Input should be a finite number"
        if value.is_integer():
            return int(value), ""
        return None, "Input should be a valid integer, got a number with a fractional part"
    if not isinstance(value, str):
        return None, "Input should be a valid integer"
    said = re.fullmatch(r"\s*([+-]?\d+(?:_\d+)*)(?:\.0*)?\s*", value)
    if said is None:
        return None, "Input should be a valid integer, unable to parse string as an integer"
    if len(value) > 4300:
        return None, "Unable to parse input string as an integer, exceeded maximum size"
    return int(said[1]), ""


class OneOf:
    """One of a few texts."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def read(self, value: Any, path: KeyPath, faults: list[Fault]) -> Any:
        if not isinstance(value, str) or value not in self.names:
            *others, last = map(repr, self.names)
            told = f"{', '.join(others)} or {last}" if others else last
            faults.append(Fault(path, "value", f"Input should be {told}", value))
        return value

    def schema(self, defs: Schema) -> Schema:
        return {"enum": list(self.names), "type": "string"}


class Parsed:
    """What a function makes of a value, or raises ValueError for."""

    def __init__(self, parse: Callable[[Any], Any], described: Schema) -> None:
        self.parse = parse
        self.described = described

    def read(self, value: Any, path: KeyPath, faults: list[Fault]) -> Any:
        try:
            return self.parse(value)
        except ValueError as error:
            faults.append(Fault(path, "value", str(error), value))
            return None

    def schema(self, defs: Schema) -> Schema:
        return dict(self.described)


class Optional:
    """Nothing, or a value of a kind."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def read(self, value: Any, path: KeyPath, faults: list[Fault]) -> Any:
        return None if value is None else self.kind.read(value, path, faults)

    def schema(self, defs: Schema) -> Schema:
        return {"anyOf": [self.kind.schema(defs), {"type": "null"}]}


class Either:
    """A value of the first of two kinds that accepts it; errors are the first kind's."""

    def __init__(self, first: Kind, second: Kind) -> None:
        self.first = first
        self.second = second

    def read(self, value: Any, path: KeyPath, faults: list[Fault]) -> Any:
        found: list[Fault] = []
        for kind in (self.first, self.second):
            before = len(found)
            result = kind.read(value, path, found)
            if len(found) == before:
                return result
        faults += found
        return None

    def schema(self, defs: Schema) -> Schema:
        return {"anyOf": [self.first.schema(defs), self.second.schema(defs)]}


class ByKind:
    """A mapping whose key ``kind`` names the part; other values are of another kind."""

    def __init__(self, parts: Mapping[str, type[Part]], other: Kind) -> None:
        self.parts = parts
        self.other = other

    def read(self, value: Any, path: KeyPath, faults: list[Fault]) -> Any:
        kind = value.get("kind") if isinstance(value, Mapping) else None
        if kind is None:
            return self.other.read(value, path, faults)
        part = self.parts.get(str(kind), next(iter(self.parts.values())))
        return Nested(part).read(value, path, faults)

    def schema(self, defs: Schema) -> Schema:
        kinds = [*map(Nested, self.parts.values()), self.other]
        return {"anyOf": [kind.schema(defs) for kind in kinds]}


class ListOf:
    """A list that is not empty."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def read(self, value: Any, path: KeyPath, faults: list[Fault]) -> Any:
        if not isinstance(value, list | tuple):
            faults.append(Fault(path, "list_type", "Input should be a valid list", value))
            return None
        if not value:
            message = "List should have at least 1 item after validation, not 0"
            faults.append(Fault(path, "value", message, value))
        return [self.kind.read(entry, (*path, i), faults) for i, entry in enumerate(value)]

    def schema(self, defs: Schema) -> Schema:
        return {"items": self.kind.schema(defs), "minItems": 1, "type": "array"}


class Pair:
    """Two values of a kind."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def read(self, value: Any, path: KeyPath, faults: list[Fault]) -> Any:
        if not isinstance(value, list | tuple):
            faults.append(Fault(path, "value", "Input should be a valid tuple", value))
            return None
        if len(value) > 2:
            message = f"Tuple should have at most 2 items after validation, not {len(value)}"
            faults.append(Fault(path, "value", message, value))
            return None
        read = [self.kind.read(entry, (*path, i), faults) for i, entry in enumerate(value)]
        for i in range(len(value), 2):
            faults.append(Fault((*path, i), "missing", "Field required", value))
        return tuple(read)

    def schema(self, defs: Schema) -> Schema:
        kind = self.kind.schema(defs)
        return {"maxItems": 2, "minItems": 2, "prefixItems": [kind, kind], "type": "array"}


class MapOf:
    """A mapping from names to values of a kind, with at least so many entries."""

    def __init__(self, kind: Kind, least: int = 0) -> None:
        self.kind = kind
        self.least = least

    def read(self, value: Any, path: KeyPath, faults: list[Fault]) -> Any:
        if not isinstance(value, Mapping):
            faults.append(Fault(path, "value", "Input should be a valid dictionary", value))
            return None
        if len(value) < self.least:
            message = f"Dictionary should have at least {self.least} item after validation, not 0"
            faults.append(Fault(path, "value", message, value))
        for name in value:
            Text().read(name, (*path, str(name)), faults)
        return {k: self.kind.read(entry, (*path, k), faults) for k, entry in value.items()}

    def schema(self, defs: Schema) -> Schema:
        least = {"minProperties": self.least} if self.least else {}
        return {"additionalProperties": self.kind.schema(defs), **least, "type": "object"}


def key(kind: Kind, default: Any = MISSING, factory: Any = MISSING) -> Any:
    """Declares a field of a part; without a default it must be given."""
    told = {"kind": kind}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=told)
    return field(default=default, metadata=told)


@dataclass(frozen=True)
class Part:
    """A mapping of known keys. ``__post_init__`` raises ValueError if their values do not go together."""

    @classmethod
    def of(cls: type[P], data: Any) -> tuple[P | None, list[Fault]]:
        """Read a mapping; nothing, and what is wrong with it, if it is none of this kind."""
        faults: list[Fault] = []
        part = Nested(cls).read(data, (), faults)
        return (None if faults else part), faults

    def given(self) -> dict[str, Any]:
        """The values that differ from the defaults."""
        values = {each.name: (getattr(self, each.name), _default(each)) for each in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}

    @classmethod
    def json_schema(cls) -> Schema:
        """As JSON Schema, with all parts in ``$defs``."""
        defs: Schema = {}
        Nested(cls).schema(defs)
        own: Schema = defs.pop(cls.__name__)
        return {"$defs": defs, **own}


def _default(declared: Field[Any]) -> Any:
    return declared.default if declared.default_factory is MISSING else declared.default_factory()


class Nested:
    """A part of a recipe."""

    def __init__(self, part: type[Part]) -> None:
        self.part = part

    def read(self, value: Any, path: KeyPath, faults: list[Fault]) -> Any:
        if isinstance(value, self.part):
            return value
        if not isinstance(value, Mapping):
            message = f"Input should be a valid dictionary or instance of {self.part.__name__}"
            faults.append(Fault(path, "value", message, value))
            return None
        before, given = len(faults), {}
        declared = {f.name: f for f in fields(self.part)}
        for name, each in declared.items():
            if name in value:
                given[name] = each.metadata["kind"].read(value[name], (*path, name), faults)
            elif _default(each) is MISSING:
                faults.append(Fault((*path, name), "missing", "Field required", value))
        for name in value:
            if not isinstance(name, str):
                faults.append(Fault((*path, str(name)), "value", "Keys should be strings", name))
            elif name not in declared:
                message = "Extra inputs are not permitted"
                faults.append(Fault((*path, name), "extra_forbidden", message, value[name]))
        if len(faults) > before:
            return None
        try:
            return self.part(**given)
        except ValueError as error:
            faults.append(Fault(path, "value", str(error), value))
            return None

    def schema(self, defs: Schema) -> Schema:
        name = self.part.__name__
        if name not in defs:
            defs[name] = {}  # for recursive parts
            properties = {}
            for each in fields(self.part):
                described = each.metadata["kind"].schema(defs)
                if each.default is not MISSING:
                    described["default"] = each.default
                properties[each.name] = described
            defs[name] = {
                "additionalProperties": False,
                "description": (self.part.__doc__ or "").partition("\n")[0],
                "properties": properties,
                "required": [each.name for each in fields(self.part) if _default(each) is MISSING],
                "type": "object",
            }
        return {"$ref": f"#/$defs/{name}"}


def names(part: type[Part]) -> Sequence[str]:
    """The keys that a part knows."""
    return [each.name for each in fields(part)]
