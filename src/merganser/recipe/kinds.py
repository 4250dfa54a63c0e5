"""Types of values in a recipe: each reads and checks a value, and describes itself in JSON Schema.

A kind has two methods: ``read`` converts a value of a document and appends its errors to a list of
faults, ``schema`` returns JSON Schema. A :class:`Part` is a mapping with known keys: a frozen dataclass
whose fields are declared with :func:`key`.
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
    """An error in a value.

    Attributes:
        loc: the keys and indices that lead to the value.
        type: ``missing``, ``extra_forbidden``, ``list_type`` or ``value``.
        msg: the message.
        input: the value.
    """

    loc: KeyPath
    type: str
    msg: str
    input: Any


class Kind(Protocol):
    """A type of values in a recipe."""

    def read(self, value: Any, path: KeyPath, faults: list[Fault]) -> Any:
        """The converted value. Errors are appended to ``faults``; then the result has no meaning."""

    def schema(self, defs: Schema) -> Schema:
        """The type as JSON Schema. Schemas of parts are added to ``defs``."""


class Anything:
    """Any value, unchanged."""

    def read(self, value: Any, path: KeyPath, faults: list[Fault]) -> Any:
        return value

    def schema(self, defs: Schema) -> Schema:
        return {}


class Text:
    """A string."""

    def read(self, value: Any, path: KeyPath, faults: list[Fault]) -> Any:
        if not isinstance(value, str):
            faults.append(Fault(path, "value", "Input should be a valid string", value))
        return value

    def schema(self, defs: Schema) -> Schema:
        return {"type": "string"}


class Flag:
    """A boolean: true, false, 0, 1, or a word such as ``yes`` or ``off``."""

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


class Integer:
    """An integer within bounds, which have the names of JSON Schema, such as ``minimum``."""

    def __init__(self, **bounds: int) -> None:
        self.bounds = bounds

    def read(self, value: Any, path: KeyPath, faults: list[Fault]) -> Any:
        number, message = _integer(value)
        for name, bound in self.bounds.items():
            words, holds = _BOUNDS[name]
            if number is not None and not message and not holds(number, bound):
                message = f"Input should be {words} {bound}"
        if message:
            faults.append(Fault(path, "value", message, value))
        return number

    def schema(self, defs: Schema) -> Schema:
        return {"type": "integer", **self.bounds}


def _integer(value: Any) -> tuple[int | None, str]:
    """The integer that a number or a string means, and an empty text; or None and a message."""
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
    match = re.fullmatch(r"\s*([+-]?\d+(?:_\d+)*)(?:\.0*)?\s*", value)
    if match is None:
        return None, "Input should be a valid integer, unable to parse string as an integer"
    if len(value) > 4300:
        return None, "Unable to parse input string as an integer, exceeded maximum size"
    return int(match[1]), ""


class OneOf:
    """One of a list of strings."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def read(self, value: Any, path: KeyPath, faults: list[Fault]) -> Any:
        if not isinstance(value, str) or value not in self.names:
            *others, last = map(repr, self.names)
            choices = f"{', '.join(others)} or {last}" if others else last
            faults.append(Fault(path, "value", f"Input should be {choices}", value))
        return value

    def schema(self, defs: Schema) -> Schema:
        return {"enum": list(self.names), "type": "string"}


class Parsed:
    """The result of a function of the value; a ValueError of it becomes a fault."""

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
    """None, or a value of a kind."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def read(self, value: Any, path: KeyPath, faults: list[Fault]) -> Any:
        return None if value is None else self.kind.read(value, path, faults)

    def schema(self, defs: Schema) -> Schema:
        return {"anyOf": [self.kind.schema(defs), {"type": "null"}]}


class Either:
    """A value of the first of two kinds that accepts it. If none does, the faults are those of both."""

    def __init__(self, first: Kind, second: Kind) -> None:
        self.first = first
        self.second = second

    def read(self, value: Any, path: KeyPath, faults: list[Fault]) -> Any:
        first_faults: list[Fault] = []
        for kind in (self.first, self.second):
            before = len(first_faults)
            result = kind.read(value, path, first_faults)
            if len(first_faults) == before:
                return result
        faults += first_faults
        return None

    def schema(self, defs: Schema) -> Schema:
        return {"anyOf": [self.first.schema(defs), self.second.schema(defs)]}


class ByKind:
    """A mapping whose key ``kind`` names its part, or a value of another kind."""

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
    """A list of values of one kind, with at least one entry."""

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
    """A list of two values of one kind, read as a tuple."""

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
    """A mapping from strings to values of one kind, with at least ``least`` entries."""

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
    """Declare a field of a part; without a default the key is required."""
    metadata = {"kind": kind}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Part:
    """A mapping with known keys. ``__post_init__`` may raise ValueError for values that contradict."""

    @classmethod
    def of(cls: type[P], data: Any) -> tuple[P | None, list[Fault]]:
        """Read a mapping: the part and no faults, or None and the faults."""
        faults: list[Fault] = []
        part = Nested(cls).read(data, (), faults)
        return (None if faults else part), faults

    def given(self) -> dict[str, Any]:
        """The values that differ from the defaults."""
        values = {
            declared.name: (getattr(self, declared.name), _default(declared))
            for declared in fields(self)
        }
        return {name: value for name, (value, default) in values.items() if value != default}

    @classmethod
    def json_schema(cls) -> Schema:
        """The part as JSON Schema, with the parts that it contains in ``$defs``."""
        defs: Schema = {}
        Nested(cls).schema(defs)
        schema: Schema = defs.pop(cls.__name__)
        return {"$defs": defs, **schema}


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
        for name, declaration in declared.items():
            if name in value:
                given[name] = declaration.metadata["kind"].read(value[name], (*path, name), faults)
            elif _default(declaration) is MISSING:
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
            for declared in fields(self.part):
                described = declared.metadata["kind"].schema(defs)
                if declared.default is not MISSING:
                    described["default"] = declared.default
                properties[declared.name] = described
            defs[name] = {
                "additionalProperties": False,
                "description": (self.part.__doc__ or "").partition("\n")[0],
                "properties": properties,
                "required": [
                    declared.name for declared in fields(self.part) if _default(declared) is MISSING
                ],
                "type": "object",
            }
        return {"$ref": f"#/$defs/{name}"}


def names(part: type[Part]) -> Sequence[str]:
    """The keys of a part."""
    return [declared.name for declared in fields(part)]
