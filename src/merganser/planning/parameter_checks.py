"""Check a recipe's parameters: each value, and the values of one tensor together."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from merganser.methods import Method, Parameter
from merganser.recipe import (
    Document,
    ModelReference,
    ParsedRecipe,
    Recipe,
    Scalar,
    Setting,
    key_name,
)
from merganser.recipe.document import KeyPath

Warn = Callable[[KeyPath, str], None]
Block = tuple[KeyPath, Mapping[str, Setting], ModelReference | None]
"""A recipe's parameters: their place, the parameters, and the model if they belong to one."""

ROUNDING = 1e-9
"""Distance from the usual range that counts as a rounding error, without a warning."""


def check_settings(
    parsed: ParsedRecipe,
    method: Method,
    blocks: Iterable[Block],
    warn: Warn,
) -> None:
    """Check every value that a recipe gives to a parameter, whether or not a tensor uses it.

    Args:
        parsed: the recipe.
        method: its method.
        blocks: the recipe's blocks of parameters.
        warn: receives warnings about unusual values.

    Raises:
        RecipeError: for a value of a wrong type or outside its range.
    """
    _check_places(parsed, method)
    for path, settings, model in blocks:
        for name, setting in settings.items():
            parameter = method.parameter(name)
            if parameter is None or (model and not parameter.per_model):
                continue
            _check_setting(parsed, parameter, (*path, name), setting, warn)
            if parameter.per_model and model is None:
                _check_lengths(parsed.recipe, (*path, name), setting, warn)


def _check_places(parsed: ParsedRecipe, method: Method) -> None:
    """Raise for a method's parameter in the wrong place: next to ``model:``, or at the top
    level."""
    for path in parsed.ignored if parsed.strictness != "lenient" else ():
        name = str(path[-1])
        if method.parameter(name) is not None:
            home = key_name((*path[:-1], "parameters", name))
            raise parsed.error(
                f"{key_name(path)}: {name} is a parameter of {method.name}; write it as {home}",
                path,
            )


def _check_setting(
    parsed: ParsedRecipe, parameter: Parameter, path: KeyPath, setting: Setting, warn: Warn
) -> None:
    unusual: dict[KeyPath, float] = {}
    for here, value in _values(parsed.document, path, setting):
        try:
            number = parameter.convert(value)
        except ValueError as error:
            raise parsed.error(f"{key_name(here)}: {error}", here) from None
        limits = parameter.range
        if limits is None or parameter.normalized_by is not None or isinstance(number, bool | str):
            continue
        assert isinstance(number, int | float)
        if not limits.usual(number):
            unusual[here] = number
    for here, number in list(unusual.items())[:1]:
        assert parameter.range is not None
        warn(here, f"{number:g} is unusual for {parameter.name}: {_usually(parameter)}")


def _usually(parameter: Parameter) -> str:
    assert parameter.range is not None
    return f"it is usually {parameter.range.usual_text}"


def _values(
    document: Document, path: KeyPath, setting: Setting
) -> Iterator[tuple[KeyPath, Scalar]]:
    """The (place, value) pairs of a setting; gradients and rules have several."""
    for i, rule in enumerate(setting.rules):
        gradient = isinstance(rule.value, tuple)
        for j, value in enumerate(rule.value if isinstance(rule.value, tuple) else (rule.value,)):
            inner: KeyPath = (j,) if gradient else ()
            places = ((*path, i, "value", *inner), (*path, "value", *inner), (*path, *inner))
            yield next((place for place in places if place in document.lines), path), value


def _check_lengths(recipe: Recipe, path: KeyPath, setting: Setting, warn: Warn) -> None:
    """Warn about a gradient that looks like a list with one value per model."""
    counts = set(_model_counts(recipe, path))
    for rule in setting.rules:
        value = rule.value
        if isinstance(value, tuple) and len(value) in counts and len(set(value)) > 1:
            warn(
                path,
                f"{len(value)} values are a gradient over the layers, the same one for every model, "
                f"not one value for each of {len(value)} models; for that, set {path[-1]} under each "
                "model's own parameters",
            )
            return


def _model_counts(recipe: Recipe, path: KeyPath) -> Iterator[int]:
    """The numbers of models to which a setting may apply, with and without a listed base."""
    base = recipe.base_model.text if recipe.base_model is not None else None
    forms: list[tuple[KeyPath, Any, Any]] = [((), recipe.models, recipe.slices)]
    for name, module in (recipe.modules or {}).items():
        forms.append((("modules", name), module.models, module.slices))
    for place, models, slices in forms:
        lists = [((*place, "models"), models or [])]
        lists += [((*place, "slices", i), piece.sources) for i, piece in enumerate(slices or [])]
        for where, entries in lists:
            holder = path[:-2]  # the mapping that has the parameter block
            if holder == where[: len(holder)]:
                yield from (n for n in (len(entries), _without(entries, base)) if n > 1)


def _without(entries: Sequence[Any], base: str | None) -> int:
    return sum(entry.model.text != base for entry in entries)


class Oddities:
    """Collects unusual values over all tensors, to warn once per kind.

    Args:
        method: the method.
    """

    def __init__(self, method: Method) -> None:
        self.method = method
        self.judged = 0
        self.groups: dict[Hashable, tuple[KeyPath, str, list[str]]] = {}

    def judge(
        self,
        tensor: str,
        numbers: Mapping[str, Any],
        paths: Mapping[str, Sequence[KeyPath | None]],
    ) -> None:
        """Check the values for one tensor, and collect what is unusual.

        Args:
            tensor: its name.
            numbers: the values by the method's arguments.
            paths: the place in the recipe of each model's value; None for a default.
        """
        self.judged += 1
        for parameter in self.method.parameters:
            if parameter.normalized_by is not None and parameter.range is not None:
                self._judge_shares(tensor, parameter, numbers, paths[parameter.argument])
        given = next((path for places in paths.values() for path in places if path is not None), ())
        for caution in self.method.cautions:
            if (text := caution(**numbers)) is not None:
                self._add(caution, given, text, tensor)

    def _judge_shares(
        self,
        tensor: str,
        parameter: Parameter,
        numbers: Mapping[str, Any],
        paths: Sequence[KeyPath | None],
    ) -> None:
        """Check a parameter's values, or their shares of the sum where the method normalises them."""
        assert parameter.range is not None
        by, values = parameter.normalized_by, numbers[parameter.argument]
        total = math.fsum(values)
        divided = total != 0 and (by is True or bool(numbers.get(str(by))))
        for value, path in zip(values, paths, strict=True):
            share = value / total if divided else value
            near = min(max(share, parameter.range.low), parameter.range.high)
            if path is not None and abs(share - near) > ROUNDING:
                of = f", divided by the sum {total:g} of all," if divided else ""
                text = f"{value:g}{of} is unusual for {parameter.name}: {_usually(parameter)}"
                self._add(parameter.name, path, text, tensor)
                return

    def _add(self, kind: Hashable, path: KeyPath, text: str, tensor: str) -> None:
        self.groups.setdefault(kind, (path, text, []))[2].append(tensor)

    def report(self, warn: Warn) -> None:
        """Warn once per kind, and name the tensors unless it concerns all of them."""
        for path, text, tensors in self.groups.values():
            more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
            these = f" (tensor {tensors[0]}{more})" if len(tensors) < self.judged else ""
            warn(path, f"{text}{these}")
