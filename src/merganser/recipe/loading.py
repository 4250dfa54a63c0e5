"""Load recipes: YAML files, mappings or typed recipes, with file and line in every error."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from merganser import suggestions
from merganser.errors import RecipeError
from merganser.recipe import run_models
from merganser.recipe.document import Document, key_name, parse_document, parse_documents
from merganser.recipe.kinds import Part, names
from merganser.recipe.references import ModelReference
from merganser.recipe.schema import Recipe, valid_keys
from merganser.recipe.settings import Setting

Strictness = Literal["lenient", "normal", "strict"]

FOREIGN: Mapping[str, str] = {
    "experts": "mergekit-moe, which builds a mixture of experts from dense models",
    "genome": "mergekit-evolve; here `merganser search` looks for the best weights",
    "layer_slices": "bakllama; MergeKit's slices say the same in a recipe",
}
"""Keys of configurations of MergeKit's other programs, with the names of these programs."""

MAX_UNKNOWN = 100
"""Most unknown keys of a recipe."""


@dataclass(frozen=True)
class ParsedRecipe:
    """A recipe with its text and its warnings.

    Attributes:
        recipe: the typed recipe.
        document: its text and lines, for the address in later errors.
        data: the recipe as plain data, without unknown keys.
        folder: the recipe's folder; models that do not exist from the current folder are searched
            here. None for a recipe built in Python.
        warnings: what MergeKit would ignore silently.
        strictness: how to treat further unknown keys.
        results: folders of other documents' results by their names in this recipe.
        ignored: paths of unknown keys.
    """

    recipe: Recipe
    document: Document
    data: Mapping[str, Any]
    folder: Path | None
    warnings: tuple[str, ...]
    strictness: Strictness
    results: Mapping[str, Path] = field(default_factory=dict)
    ignored: tuple[tuple[str | int, ...], ...] = ()

    def bound(self, results: Mapping[str, Path]) -> ParsedRecipe:
        """Return the recipe with the folders of other documents' results for their names.

        Only the paths of references change. Their texts stay, and with them everything that is written to
        the output.
        """

        def located(reference: ModelReference) -> ModelReference:
            folder = results.get(reference.path) if reference.revision is None else None
            return reference if folder is None else replace(reference, path=str(folder))

        return replace(self.with_references(located), results=results)

    def pinned(self, commits: Mapping[str, Mapping[str, str]]) -> ParsedRecipe:
        """Return the recipe with the commits of models on the Hub.

        Args:
            commits: commits by repository, by the reference's text.
        """

        def at_commit(reference: ModelReference) -> ModelReference:
            revisions = commits.get(reference.text, {})
            return replace(
                reference,
                revision=revisions.get(reference.path, reference.revision),
                adapter_revision=revisions.get(reference.adapter or "", reference.adapter_revision),
            )

        return self.with_references(at_commit)

    def with_references(self, change: Callable[[ModelReference], ModelReference]) -> ParsedRecipe:
        """This recipe with other references to models, in the order of :func:`model_references`."""
        return replace(self, recipe=_mapped(self.recipe, change))

    def error(self, message: str, path: tuple[str | int, ...] = ()) -> RecipeError:
        """An error with the recipe's file and line."""
        return self.document.error(message, path)

    def oddity(
        self, key: str, path: tuple[str | int, ...], known: Iterable[str], where: str
    ) -> str:
        """Return the warning for a key that MergeKit would ignore.

        Raises:
            RecipeError: when the key is a likely slip for a known one, or in strict mode.
        """
        return judge_unknown(self.document, self.strictness, key, path, known, where)


Config = str | os.PathLike[str] | Mapping[str, Any] | Recipe | ParsedRecipe
"""Types that a recipe can be loaded from."""


def load(
    source: Config,
    strictness: Strictness = "normal",
) -> ParsedRecipe:
    """Read and check a recipe: a file, a mapping or a typed recipe; a parsed recipe is returned unchanged.

    Raises:
        RecipeError: with file, line and key of the first mistake.
    """
    if isinstance(source, ParsedRecipe):
        return source
    if isinstance(source, Recipe):
        data = _written(source)
        return ParsedRecipe(source, Document(data), data, None, (), strictness)
    if isinstance(source, Mapping):
        return validate(Document(_plain(source)), None, strictness)
    file = Path(source)
    return validate(parse_document(_text(file), str(file)), file.resolve().parent, strictness)


def load_all(
    source: Config,
    strictness: Strictness = "normal",
) -> list[ParsedRecipe]:
    """Read all recipes of a file, which ``---`` separates; a mapping or a typed recipe is one recipe.

    Raises:
        RecipeError: for the first error, with file, line and key.
    """
    if isinstance(source, ParsedRecipe | Recipe | Mapping):
        return [load(source, strictness)]
    documents, folder = read_documents(source)
    return [validate(document, folder, strictness) for document in documents]


def read_documents(
    source: str | os.PathLike[str] | Mapping[str, Any],
) -> tuple[list[Document], Path | None]:
    """Read a file's documents, or take a mapping as one, without checking that they are recipes.

    Returns:
        The documents, and the file's folder.

    Raises:
        RecipeError: when there is no such file, or it is not YAML.
    """
    if isinstance(source, Mapping):
        return [Document(_plain(source))], None
    file = Path(source)
    return parse_documents(_text(file), str(file)), file.resolve().parent


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
        contents = [document.data for document in read_documents(source)[0]]
        return any(isinstance(data, dict) and block in data for data in contents)
    return False


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"no such recipe: {file}") from None
    except IsADirectoryError:
        recipes = sorted(file.glob("*.yml"))
        slip = f"; did you mean {recipes[0]}?" if len(recipes) == 1 else ""
        raise RecipeError(f"{file}: is a folder, and a recipe is a YAML file{slip}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {file}: {error}") from None


def model_references(
    part: object, path: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], ModelReference]]:
    """Yield every reference to a model in a recipe, or in a part of one, with its path."""
    if isinstance(part, ModelReference):
        yield path, part
    elif isinstance(part, Part):
        for name in names(type(part)):
            yield from model_references(getattr(part, name), (*path, name))
    elif isinstance(part, Mapping | list):
        for key, entry in part.items() if isinstance(part, Mapping) else enumerate(part):
            yield from model_references(entry, (*path, key))


def _mapped(part: Any, change: Callable[[ModelReference], ModelReference]) -> Any:
    """Return a recipe, or a part of one, with changed references."""
    if isinstance(part, ModelReference):
        return change(part)
    if isinstance(part, Part):
        fields = {name: _mapped(getattr(part, name), change) for name in names(type(part))}
        return replace(part, **fields)
    if isinstance(part, dict):
        return {key: _mapped(entry, change) for key, entry in part.items()}
    if isinstance(part, list):
        return [_mapped(entry, change) for entry in part]
    return part


def _written(part: Any) -> Any:
    """A recipe, or a part of one, as plain data, without values that are defaults."""
    if isinstance(part, ModelReference):
        return part.text
    if isinstance(part, Setting):
        rules = [{"filter": rule.filter, "value": _written(rule.value)} for rule in part.rules]
        return rules if rules[1:] or rules[0]["filter"] is not None else rules[0]["value"]
    if isinstance(part, Part):
        given = part.given()
        return {name: _written(value) for name, value in given.items()}
    if isinstance(part, dict):
        return {key: _written(entry) for key, entry in part.items()}
    return [_written(entry) for entry in part] if isinstance(part, list | tuple) else part


def json_schema() -> dict[str, Any]:
    """Return the recipe language as JSON Schema, for editors."""
    schema = Recipe.json_schema()
    defs = schema["$defs"]
    parameters = defs["ModelInput"]["properties"]["parameters"]
    defs["RunInput"] = run_models.SCHEMA | {
        "properties": run_models.SCHEMA["properties"] | {"parameters": parameters}
    }
    either = {"anyOf": [{"$ref": "#/$defs/ModelInput"}, {"$ref": "#/$defs/RunInput"}]}
    for owner in (schema, defs["Module"]):
        listed, _ = owner["properties"]["models"]["anyOf"]
        listed["items"] = either
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def judge_unknown(
    document: Document,
    strictness: Strictness,
    key: str,
    path: tuple[str | int, ...],
    known: Iterable[str],
    where: str,
) -> str:
    """See :meth:`ParsedRecipe.oddity`."""
    known = list(known)
    name = key_name(path)
    slip = suggestions.nearest(key, known)
    if slip is not None and strictness != "lenient":
        raise document.error(f"{name}: unknown key; did you mean {slip!r}?", path)
    message = f"{name}: {where} has no key {key!r}; it is ignored, as MergeKit does"
    if path in document.repeated:
        lines = sorted(set(document.repeated[path]))
        message += f" (given in lines {', '.join(map(str, lines[:5]))}{' …' * (len(lines) > 5)})"
    if strictness == "strict":
        known_text = ", ".join(sorted(known)) or "none"
        raise document.error(f"{name}: {where} has no key {key!r}; it has {known_text}", path)
    address = document.address(path)
    return f"{address}: {message}" if address else message


def validate(document: Document, folder: Path | None, strictness: Strictness) -> ParsedRecipe:
    """Read a document as a recipe.

    Raises:
        RecipeError: for the first error, with file, line and key.
    """
    if not isinstance(document.data, dict):
        raise document.error("a recipe is a mapping of keys, such as merge_method and models")
    if "sweep" in document.data:
        raise document.error(
            "sweep: this file is a sweep, many merges; run it with `merganser sweep`", ("sweep",)
        )
    if "search" in document.data:
        raise document.error(
            "search: this file is a search; run it with `merganser search`", ("search",)
        )
    if "merge_method" not in document.data:
        for key, program in FOREIGN.items():
            if key in document.data:
                raise document.error(
                    f"{key}: this is not a recipe but a configuration of {program}", (key,)
                )
    document, warnings = run_models.expand(document, folder)
    data: Any = document.data
    ignored: dict[tuple[str | int, ...], None] = {}
    while True:
        recipe, faults = Recipe.of(data)
        if recipe is not None:
            break
        unknown = [
            _document_path(document.data, fault.loc)
            for fault in faults
            if fault.type == "extra_forbidden"
        ]
        if len(unknown) > MAX_UNKNOWN:
            raise document.error(f"{len(unknown)} unknown keys; this is not a recipe")
        ignored |= dict.fromkeys(unknown)
        document.check_repeated(ignored)
        if not unknown:
            raise invalid(document, faults[0]._asdict())
        for path in dict.fromkeys(unknown):
            key = str(path[-1])
            where = f"{key_name(path[:-1])} of a recipe" if len(path) > 1 else "a recipe"
            warnings.append(
                judge_unknown(document, strictness, key, path, valid_keys(path[:-1]), where)
            )
            data = _without(data, path)
    document.check_repeated(ignored)
    for index, piece in enumerate(recipe.slices or []):
        if piece.residual_weight is not None:
            path = ("slices", index, "residual_weight")
            warnings.append(
                f"{document.address(path)}: {key_name(path)} has no effect, neither here nor in MergeKit"
            )
    if strictness == "strict" and warnings:
        raise RecipeError(warnings[0])
    return ParsedRecipe(
        recipe, document, data, folder, tuple(warnings), strictness, ignored=tuple(ignored)
    )


def invalid(document: Document, entry: Any, inside: tuple[str | int, ...] = ()) -> RecipeError:
    """The error for an invalid value, with file, line and key.

    Args:
        document: the document.
        entry: a :class:`merganser.recipe.kinds.Fault` as a mapping, or one of pydantic's
            ``ValidationError.errors()``.
        inside: the path of the part that was validated.
    """
    path = _document_path(document.data, (*inside, *entry["loc"]))
    message = str(entry["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if (entry["type"], path[-1:]) == ("list_type", ("models",)):
        message = "must be a list, with a line `- model: NAME` for each model"
    elif path[-2:-1] in (("models",), ("sources",)) and isinstance(entry.get("input"), str):
        message = f"write `- model: {entry['input']}` in place of `- {entry['input']}`"
    elif entry["type"] == "missing":
        message = f"the key {entry['loc'][-1]!r} is missing"
    elif entry["type"] != "extra_forbidden" and not isinstance(entry.get("input"), dict | list):
        message = f"{message[0].lower()}{message[1:]}"
        given = repr(entry.get("input"))
        if given not in message and not message.startswith(f"{entry.get('input')} "):
            message += f", found {given[:80]}"
    name = key_name(path)
    return document.error(f"{name}: {message}" if name else message, path)


def _document_path(data: Any, location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """pydantic's location without the names of union branches, which are not in the document."""
    path: list[str | int] = []
    for part in location:
        inside = (
            range(len(data)) if isinstance(data, list) else data if isinstance(data, dict) else ()
        )
        if part in inside:
            data = data[part]
            path.append(part)
    return tuple(path)


def _without(data: Any, path: tuple[str | int, ...]) -> Any:
    """A copy of nested data that lacks what ``path`` points to."""
    head, rest = path[0], path[1:]
    if isinstance(data, list):
        return [
            _without(entry, rest) if index == head else entry for index, entry in enumerate(data)
        ]
    if not rest:
        return {key: entry for key, entry in data.items() if key != head}
    return {key: _without(entry, rest) if key == head else entry for key, entry in data.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
