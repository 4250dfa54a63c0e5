"""Read the recipe that a page writes, and turn it into a plan and into the page's controls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from merganser import engine, methods, planning, recipe
from merganser.errors import InputError, MerganserError, RecipeError
from merganser.planning import Plan
from merganser.recipe.document import KeyPath, parse_document
from merganser.recipe.references import parse_reference
from merganser.studio.library import Library

FILE = "recipe"
"""The name of the page's recipe in messages."""

_CONTROLLED = ("merge_method", "base_model", "models", "parameters", "dtype")


@dataclass(frozen=True)
class Problem:
    """An error in a recipe.

    Attributes:
        message: the message, in one line.
        line: the recipe's line, from 1; None if the error concerns no line.
    """

    message: str
    line: int | None


def read_plan(text: str, library: Library) -> Plan:
    """Return the plan of a recipe whose models are all the library's.

    Raises:
        MerganserError: the recipe is wrong, or a model is missing, broken, or elsewhere.
    """
    document = parse_document(text, FILE)
    for path, folder in _runs(document.data, ()):
        with document.addressed(path):
            library.inside(folder)
    parsed = recipe.validate(document, library.root, "normal")
    for path, reference in recipe.model_references(parsed.recipe):
        with document.addressed(path):
            library.located(reference)
    plan = planning.make_plan(parsed.with_references(library.located))
    check_places(plan, library)
    return plan


def read_model(text: str, library: Library) -> Plan:
    """Return the plan that reproduces one of the library's models unchanged.

    Raises:
        MerganserError: the model is missing, broken, or elsewhere.
    """
    try:
        located = library.located(parse_reference(text))
    except ValueError as error:
        raise InputError(str(error)) from None
    whole = recipe.load({"merge_method": "passthrough", "models": [{"model": text}]})
    plan = planning.make_plan(whole.with_references(lambda _: located))
    check_places(plan, library)
    return plan


def check_places(plan: Plan, library: Library) -> None:
    """Check that all files of a plan are the library's.

    Raises:
        InputError: a file is elsewhere.
    """
    for source in plan.all_sources:
        for file in source.checkpoint.stamps:
            library.readable(file, source.reference.text)


def problem_of(error: MerganserError) -> Problem:
    """Return an error as a message without the line, and the line."""
    message = str(error)
    line = getattr(error, "line", None)
    if line is None and message.startswith(f"{FILE}:"):
        number, _, rest = message.removeprefix(f"{FILE}:").partition(": ")
        if number.isdigit():
            return Problem(rest, int(number))
    prefix = FILE if line is None else f"{FILE}:{line}"
    return Problem(message.removeprefix(f"{prefix}: "), line)


def controls_of(text: str) -> dict[str, Any] | None:
    """Return the state of a page's controls for a recipe; None if they cannot express all of it.

    Raises:
        RecipeError: the text is not YAML.
    """
    data = parse_document(text, FILE).data
    if not isinstance(data, dict) or not isinstance(data.get("merge_method"), str):
        return None
    models = data.get("models")
    shared = data.get("parameters") or {}
    if not isinstance(models, list) or not _are_plain(shared):
        return None
    listed = []
    for entry in models:
        if not isinstance(entry, dict) or not isinstance(entry.get("model"), str):
            return None
        own = entry.get("parameters") or {}
        if set(entry) - {"model", "parameters"} or not _are_plain(own):
            return None
        listed.append({"model": entry["model"], "parameters": own})
    base = data.get("base_model")
    if base is not None and not isinstance(base, str):
        return None
    if methods.get(data["merge_method"]) is None:
        return None
    return {
        "method": data["merge_method"],
        "base": base,
        "models": listed,
        "parameters": shared,
        "dtype": data.get("dtype"),
        "rest": {key: value for key, value in data.items() if key not in _CONTROLLED},
    }


def facts_of(plan: Plan) -> dict[str, Any]:
    """Return a plan's properties that a page shows, as plain data."""
    return {
        "digest": plan.digest,
        "tensors": len(plan.jobs),
        "parameters": plan.parameters,
        "dtype": plan.dtype.name,
        "input_bytes": plan.input_bytes,
        "output_bytes": plan.output_bytes,
        "memory": engine.memory_needed(plan),
        "files": len(plan.shards),
        "method": plan.method_name,
        "layers": {module: len(layers) for module, layers in plan.layers.items()},
        "vocabulary": plan.vocabulary,
        "models": [
            {
                "reference": source.reference.text,
                "name": source.reference.name,
                "tensors": len(source.checkpoint.specs),
                "format": source.checkpoint.format,
                "base": index == plan.base,
            }
            for index, source in enumerate(plan.sources)
        ],
        "warnings": [warning.removeprefix(f"{FILE}: ") for warning in plan.warnings],
    }


def _runs(data: object, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Yield the key and the folder of each ``run:``, which is read before the recipe is checked.

    Raises:
        RecipeError: a folder is not a text.
    """
    if isinstance(data, Mapping):
        for key, value in data.items():
            if key == "run":
                if not isinstance(value, str):
                    raise RecipeError(f"run: is a folder, not {str(value)[:60]!r}", file=FILE)
                yield (*path, key), value
            yield from _runs(value, (*path, str(key)))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from _runs(value, (*path, index))


def _are_plain(parameters: object) -> bool:
    """Whether all values are scalars or gradients of numbers."""
    if not isinstance(parameters, dict):
        return False
    return all(
        isinstance(value, bool | int | float | str)
        or (
            isinstance(value, list)
            and len(value) > 1
            and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
        )
        for value in parameters.values()
    )
