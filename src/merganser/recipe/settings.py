"""Settings of parameters: scalars, gradients over the layers, and filters by tensor name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

Scalar = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Rule:
    """A value for some tensors.

    Attributes:
        value: a scalar, or a tuple of scalars: a gradient over the layers.
        filter: applies to tensors whose names contain this text; None or ``*`` for all.
    """

    value: Scalar | tuple[Scalar, ...]
    filter: str | None = None

    def matches(self, tensor: str) -> bool:
        """Whether the rule applies to a tensor, by its name."""
        return self.filter is None or self.filter == "*" or self.filter in tensor


@dataclass(frozen=True, slots=True)
class Setting:
    """The setting of one parameter: its rules, of which the first that matches a tensor applies."""

    rules: tuple[Rule, ...]

    def at(self, tensor: str, position: float) -> Scalar | tuple[Scalar, ...] | None:
        """The value for a tensor at a relative depth; None if no rule matches.

        Args:
            tensor: the tensor's name, with its module's prefix.
            position: 0.0 for the first layer and outside the layers, 1.0 for the last layer.

        Returns:
            A scalar. A gradient of numbers is interpolated; one of bool or str is a step function.
        """
        for rule in self.rules:
            if rule.matches(tensor):
                return _along(rule.value, position)
        return None


def _along(value: Scalar | tuple[Scalar, ...], position: float) -> Scalar | None:
    if not isinstance(value, tuple):
        return value
    if not value:
        return None
    place = position * (len(value) - 1)
    below = math.floor(place + 1e-9)  # 1 / 49 * 49 is less than 1
    if any(isinstance(anchor, bool | str) for anchor in value):
        return value[below]
    low, high = float(value[below]), float(value[min(below + 1, len(value) - 1)])
    fraction = max(0.0, place - below)
    return (1 - fraction) * low + fraction * high if fraction else value[below]


def parse_setting(value: object) -> Setting:
    """Parse a setting: a scalar, a list of scalars, ``{filter, value}``, or a list of these mappings.

    Raises:
        ValueError: when it is none of these.
    """
    if isinstance(value, Setting):
        return value
    if isinstance(value, Mapping):
        return Setting((_rule(value),))
    if isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
        if not all(isinstance(entry, Mapping) for entry in value):
            raise ValueError("a list of settings mixes plain values with {filter, value} entries")
        return Setting(tuple(_rule(entry) for entry in value))
    return Setting((Rule(_value(value)),))


def _rule(entry: Mapping[str, object]) -> Rule:
    unknown = set(entry) - {"filter", "value"}
    if unknown:
        raise ValueError(
            f"unknown key {sorted(map(str, unknown))[0]!r}; an entry has filter and value"
        )
    if "value" not in entry:
        raise ValueError("an entry with a filter needs a value")
    chosen = entry.get("filter")
    if chosen is not None and not isinstance(chosen, str):
        raise ValueError(f"a filter is a part of a tensor's name, not {chosen!r}")
    return Rule(_value(entry["value"]), chosen)


def _value(value: object) -> Scalar | tuple[Scalar, ...]:
    if isinstance(value, list | tuple):
        return tuple(_scalar(entry) for entry in value)
    return _scalar(value)


def _scalar(value: object) -> Scalar:
    if isinstance(value, str):  # YAML 1.1 reads 1e-5 as text
        try:
            value = float(value)
        except ValueError:
            return str(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if abs(value) > 2**63:
            raise ValueError("a number is too large")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is not a finite number")
        return value
    raise ValueError(f"expected a number, true, false or a text, not {value!r}")
