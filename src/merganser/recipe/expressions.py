"""Expressions in recipes, such as ``{{ 1 - w }}``: Jinja's grammar, evaluated here, exactly and bounded.

Jinja only parses. Its syntax tree is evaluated by a function that knows arithmetic, comparisons,
conditionals, lists and a few filters, and nothing else: no calls, no loops, no attributes of objects;
nothing is compiled or executed. Arithmetic is decimal, so that ``1 - 0.9`` is 0.1; on lists it works
entry by entry.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal, DecimalException
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.parser import Parser

MAX_TEXT = 4096
"""Most characters of a text with expressions, and of its result."""

MAX_EXPRESSIONS = 64
"""Maximum number of parts in such a text."""

LARGEST = 2**63

_DECIMAL = Context(prec=28, Emax=999, Emin=-999, rounding=ROUND_HALF_EVEN)
_GRAMMAR = Environment(keep_trailing_newline=True)  # only to parse

_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "lteq": operator.le,
    "gt": operator.gt,
    "gteq": operator.ge,
    "in": lambda value, place: _contains(place, value),
    "notin": lambda value, place: not _contains(place, value),
}


@dataclass(frozen=True)
class Template:
    """A text with expressions in it.

    Attributes:
        parts: texts and syntax trees in turn.
        names: the names that the expressions use.
    """

    parts: tuple[str | nodes.Expr, ...]
    names: frozenset[str]


def parse(text: str) -> Template | None:
    """Parse a text that may contain expressions; None if it contains none.

    Raises:
        ValueError: when it is too long, is not valid Jinja, or uses more of Jinja than expressions.
    """
    if "{{" not in text:
        return None
    if len(text) > MAX_TEXT:
        raise ValueError(f"a text with expressions has at most {MAX_TEXT} characters")
    try:
        tree = Parser(_GRAMMAR, text).parse()
    except TemplateSyntaxError as error:
        raise ValueError(f"cannot be read: {error.message}") from None
    except RecursionError:
        raise ValueError("an expression is too deep") from None
    parts: list[str | nodes.Expr] = []
    for node in tree.body:
        if not isinstance(node, nodes.Output):
            raise ValueError("only expressions, {{ … }}, can be used here, not statements, {% … %}")
        parts += [
            part.data if isinstance(part, nodes.TemplateData) else part for part in node.nodes
        ]
    if len(parts) > MAX_EXPRESSIONS:
        raise ValueError(f"a text holds at most {MAX_EXPRESSIONS} expressions")
    return Template(tuple(parts), frozenset(node.name for node in tree.find_all(nodes.Name)))


def render(template: Template, values: Mapping[str, Any]) -> Any:
    """The value of a text for a point's values.

    A text of a single expression gives the expression's value: a number, true or false, a list. Anything
    else gives text.

    Raises:
        ValueError: when a name is unknown, or the expression has no value.
    """
    known = {name: _exact(value) for name, value in values.items()}
    try:
        if len(template.parts) == 1 and not isinstance(template.parts[0], str):
            return _plain(_evaluate(template.parts[0], known))
        texts = [p if isinstance(p, str) else text(_evaluate(p, known)) for p in template.parts]
    except RecursionError:
        raise ValueError("an expression is too deep") from None
    except DecimalException as error:
        raise ValueError(f"has no value ({type(error).__name__})") from None
    return _bounded("".join(texts))


def text(value: Any) -> str:
    """A value as text: 0.9, 2e-6, 4; booleans as in YAML.

    Raises:
        ValueError: for a value that has no text, such as None.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return "-".join(text(entry) for entry in value)
    if not isinstance(value, int | float | Decimal):
        raise ValueError(f"{'none' if value is None else 'a mapping'} cannot become text")
    number = Decimal(value) if isinstance(value, int) else Decimal(repr(float(value))).normalize()
    if number == 0:
        return "0"
    if isinstance(value, int) or -4 <= number.adjusted() < 16:
        return f"{number:f}"
    mantissa, _, exponent = f"{number:E}".partition("E")
    return f"{mantissa}e{int(exponent)}"


def _exact(value: Any) -> Any:
    """A float as the shortest decimal number that it stands for."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a number is too large")
        return Decimal(repr(value))
    if isinstance(value, Mapping):
        return {key: _exact(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_exact(entry) for entry in value]
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        raise ValueError(f"is several values; name one of them, such as .{next(iter(value))}")
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return float(value) if isinstance(value, Decimal) else value


def _evaluate(node: nodes.Node, values: Mapping[str, Any]) -> Any:
    match node:
        case nodes.Const():
            return _exact(node.value)
        case nodes.TemplateData():
            return node.data
        case nodes.List() | nodes.Tuple():
            return [_entry(_evaluate(item, values)) for item in node.items]
        case nodes.Name():
            return _member(values, node.name, "the sweep")
        case nodes.Getattr():
            return _member(_evaluate(node.node, values), node.attr, "this value")
        case nodes.Getitem(arg=nodes.Const(value=part)):
            return _member(_evaluate(node.node, values), part, "this value")
        case nodes.Neg() | nodes.Pos():
            sign = -1 if isinstance(node, nodes.Neg) else 1
            return _arithmetic("*", sign, _evaluate(node.node, values))
        case nodes.And():
            return _evaluate(node.left, values) and _evaluate(node.right, values)
        case nodes.Or():
            return _evaluate(node.left, values) or _evaluate(node.right, values)
        case nodes.BinExpr():
            left, right = _evaluate(node.left, values), _evaluate(node.right, values)
            return _arithmetic(node.operator, left, right)
        case nodes.Not():
            return not _evaluate(node.node, values)
        case nodes.Concat():
            return _bounded("".join(text(_evaluate(item, values)) for item in node.nodes))
        case nodes.Compare():
            return _compared(node, values)
        case nodes.CondExpr():
            if _evaluate(node.test, values):
                return _evaluate(node.expr1, values)
            return None if node.expr2 is None else _evaluate(node.expr2, values)
        case nodes.Filter(node=nodes.Expr(), kwargs=[], dyn_args=None, dyn_kwargs=None):
            return _filtered(node, values)
    raise ValueError(f"Jinja's {type(node).__name__.lower()} is not supported here")


def _member(values: Any, name: Any, where: str) -> Any:
    if isinstance(values, list) and isinstance(name, int) and -len(values) <= name < len(values):
        return values[name]
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} has no part {name!r}")
    if name not in values:
        raise ValueError(f"{where} has no {name!r}; it has {', '.join(map(str, values))}")
    return values[name]


def _entry(value: Any) -> Any:
    if value is None or isinstance(value, list | Mapping):
        raise ValueError("an entry of a list is a number, true or false, or a text")
    return value


def _contains(place: Any, value: Any) -> bool:
    """Whether a list contains a value, or a text contains a text."""
    if isinstance(place, list):
        return value in place
    if isinstance(place, str) and isinstance(value, str):
        return value in place
    raise ValueError("'in' looks for a value in a list, or for a text in a text")


def _compared(node: nodes.Compare, values: Mapping[str, Any]) -> bool:
    left = _evaluate(node.expr, values)
    for operand in node.ops:
        compare = _COMPARISONS.get(operand.op)
        if compare is None:
            raise ValueError(f"Jinja's {operand.op!r} is not supported here")
        right = _evaluate(operand.expr, values)
        try:
            if not compare(left, right):
                return False
        except TypeError:
            raise ValueError(f"{text(left)} and {text(right)} cannot be compared") from None
        left = right
    return True


def _number(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise ValueError(f"{str(value)[:40]!r} is not a number")
    return Decimal(value)


def _arithmetic(sign: str, left: Any, right: Any) -> Any:
    """Decimal arithmetic. Integers give an integer if the result is one. Lists are computed entry by
    entry, with a number or with a list of the same length."""
    if isinstance(left, list) and isinstance(right, list) and len(left) != len(right):
        raise ValueError(f"lists of {len(left)} and {len(right)} entries do not go together")
    if isinstance(left, list) or isinstance(right, list):
        count = len(left if isinstance(left, list) else right)
        pairs = zip(
            *(x if isinstance(x, list) else [x] * count for x in (left, right)), strict=True
        )
        return [_arithmetic(sign, a, b) for a, b in pairs]
    a, b = _number(left), _number(right)
    if sign in ("/", "//", "%") and b == 0:
        raise ValueError("a division by zero")
    match sign:
        case "+":
            result = _DECIMAL.add(a, b)
        case "-":
            result = _DECIMAL.subtract(a, b)
        case "*":
            result = _DECIMAL.multiply(a, b)
        case "/":
            result = _DECIMAL.divide(a, b)
        case "**":
            result = _DECIMAL.power(a, b)
        case "//" | "%":
            quotient = _DECIMAL.divide(a, b).to_integral_value(ROUND_FLOOR)
            result = (
                quotient if sign == "//" else _DECIMAL.subtract(a, _DECIMAL.multiply(quotient, b))
            )
        case _:
            raise ValueError(f"Jinja's {sign!r} is not supported here")
    if abs(result) >= LARGEST:
        raise ValueError("a number is too large")
    whole_numbers = isinstance(left, int) and isinstance(right, int) and sign != "/"
    return int(result) if whole_numbers and result == result.to_integral_value() else result


def _filtered(node: nodes.Filter, values: Mapping[str, Any]) -> Any:
    assert node.node is not None
    given = [_evaluate(argument, values) for argument in node.args]
    return _filter(node.name, _evaluate(node.node, values), given)


def _filter(name: str, value: Any, given: Sequence[Any]) -> Any:
    if isinstance(value, list) and name in ("abs", "int", "round"):
        return [_filter(name, entry, given) for entry in value]
    match name, given:
        case "abs", []:
            return abs(_number(value)) if isinstance(value, Decimal) else abs(int(_number(value)))
        case "int", []:
            return int(_number(value))
        case "round", []:
            return _number(value).to_integral_value(ROUND_HALF_EVEN)
        case "round", [int(digits)] if 0 <= digits <= 20:
            return _DECIMAL.quantize(_number(value), Decimal(1).scaleb(-digits))
        case "lower", []:
            return text(value).lower()
        case "upper", []:
            return text(value).upper()
        case "replace", [str(old), str(new)] if old and isinstance(value, str):
            if len(value) + value.count(old) * len(new) > MAX_TEXT:
                raise ValueError(f"gives more than {MAX_TEXT} characters")
            return value.replace(old, new)
    raise ValueError(
        f"the filter {name!r} is not known with such arguments; there are abs, int, "
        "round(digits), lower, upper and replace(old, new)"
    )


def _bounded(result: str) -> str:
    if len(result) > MAX_TEXT:
        raise ValueError(f"gives more than {MAX_TEXT} characters")
    return result


def names_of(parts: Sequence[Template]) -> frozenset[str]:
    """The names that several texts use."""
    return frozenset(name for part in parts for name in part.names)
