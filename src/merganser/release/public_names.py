"""Public names of models, which replace local paths in recipes and manifests."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from merganser import hub
from merganser.planning import Plan
from merganser.recipe import ModelReference, ParsedRecipe, model_references


def names(plans: Sequence[Plan]) -> dict[str, str]:
    """Return a public name for every model in the recipes, by reference.

    It is the model's Hub id, the name of another recipe's result, or a short name that is unique.
    """
    public = {name: name for plan in plans for name in plan.recipe.results}
    references: dict[str, tuple[ModelReference, bool]] = {}
    for plan in plans:
        for source in plan.sources:
            published = source.published and (source.adapter is None or source.published_adapter)
            references.setdefault(source.reference.text, (source.reference, published))
        for _, reference in model_references(plan.recipe.recipe):  # a tokenizer's, a token's
            references.setdefault(reference.text, (reference, _is_published(reference, plan)))
    for text, (reference, published) in references.items():
        parts = [
            p
            for p in Path(reference.path).parts
            if p not in ("/", ".", "..", "actor", "huggingface")
        ]
        longer = ["-".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        numbered = [f"{reference.name}-{n}" for n in range(2, len(references) + 2)]
        longer = [] if reference.adapter else longer
        choices = [text] if published else [reference.name, *longer, *numbered]
        free = (c for c in choices if c not in public.values())
        public.setdefault(text, next(free, choices[-1]))
    return public


def _is_published(reference: ModelReference, plan: Plan) -> bool:
    """Whether a model and its adapter are on the Hub, not in local folders."""
    paths = filter(None, (reference.path, reference.adapter))
    return all(hub.local_folder(path, plan.recipe.folder) is None for path in paths)


def public_names(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Public names of the models of a manifest, by reference."""
    inputs = {entry["reference"]: entry["name"] for entry in manifest["inputs"]}
    return {**inputs, **manifest.get("names", {})}


def made_public(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest with public names for references, and without local folders.

    References are replaced in the values of known keys, and in warnings if they contain a slash. Other
    text is unchanged, even if it contains a short path.
    """
    named = public_names(manifest)
    report = manifest.get("effective_weights")
    nonfinite = manifest.get("nonfinite")
    public = {
        **manifest,
        "inputs": _inputs_made_public(manifest),
        "earlier": [
            {**each, "inputs": _inputs_made_public(each)} for each in manifest.get("earlier", [])
        ],
        "names": {name: name for name in named.values()},
        "warnings": _renamed_in(manifest.get("warnings", []), named),
        "log": {**manifest["log"], "recipe_folder": None, "results": {}},
    }
    if report:
        public["effective_weights"] = report | {
            key: [
                {**each, "model": named.get(each["model"], each["model"])}
                for each in report.get(key, [])
            ]
            for key in ("models", "worst_tensors")
        }
        public["effective_weights"]["warnings"] = _renamed_in(report.get("warnings", []), named)
    if nonfinite:
        inputs = {named.get(name, name): counts for name, counts in nonfinite["inputs"].items()}
        public["nonfinite"] = {**nonfinite, "inputs": inputs}
    return public


def _inputs_made_public(merge: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{**entry, "reference": entry["name"]} for entry in merge["inputs"]]


def _renamed_in(texts: Sequence[str], named: Mapping[str, str]) -> list[str]:
    """Replace paths in sentences with names; a reference without a slash may be an ordinary word."""
    longest = sorted((path for path in named if "/" in path), key=len, reverse=True)
    if not longest:
        return list(texts)
    words = (
        re.escape(each) if Path(each).is_absolute() else rf"(?<![\w./-]){re.escape(each)}(?![\w-])"
        for each in longest
    )
    word = re.compile("|".join(words))
    return [word.sub(lambda match: named[match[0]], text) for text in texts]


def recipe_text(plan: Plan, public: Mapping[str, str] | None = None) -> str:
    """Return the recipe's text; with ``public``, the recipe rewritten with public names for models."""
    document = plan.recipe.document
    if public is not None:
        return recipe_made_public(plan.recipe, public)
    if document.text is not None:
        return document.text
    return yaml.safe_dump(document.data, sort_keys=False, allow_unicode=True)


def recipe_made_public(parsed: ParsedRecipe, named: Mapping[str, str]) -> str:
    """Return the text of a recipe in which names replace the models' references."""
    data: Any = copy.deepcopy(dict(parsed.data))
    for path, reference in model_references(parsed.recipe):
        place = data
        for key in path[:-1]:
            place = place[key]
        name = named.get(reference.text, reference.text)
        if name != reference.text:
            place[path[-1]] = _reference(name, place[path[-1]])
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def _reference(name: str, written: Any) -> Any:
    """Return a name as a reference in the form of the original: a text, or a mapping."""
    if not isinstance(written, dict):
        return name
    model, _, adapter = name.partition("+")
    parts = {"model": model, "lora": adapter}
    return {key: parts.get(key, value) for key, value in written.items() if value}
