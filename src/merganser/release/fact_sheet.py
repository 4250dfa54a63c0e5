"""The fact sheet of a model, from its headers, config and manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merganser import hub, notebook, number_format
from merganser.architecture import (
    Architecture,
    infer,
    layer_counts,
    ties_embeddings,
    vocabulary_size,
)
from merganser.checkpoints import Checkpoint, Weights, as_numbers, open_checkpoint
from merganser.checkpoints.adapters import describe, open_adapter
from merganser.checkpoints.computed.adapter import CONFIG as ADAPTER
from merganser.checkpoints.training.run_folders import step_number
from merganser.errors import InputError, RecipeError
from merganser.modules import sections
from merganser.recipe import parse_reference
from merganser.release import manifest
from merganser.release.tokenizer import FILES as TOKENIZER_FILES
from merganser.tokenizer.vocabulary import has_tokenizer


class FactSheet(dict[str, Any]):
    """Facts about a model as plain data, by name. A notebook shows them as a table."""

    def __repr__(self) -> str:
        return (
            f"FactSheet({self['model']!r}, {self['tensors']} tensors, {self['parameters']:,} parameters, "
            f"{number_format.size(self['size'])})"
        )

    def _repr_html_(self) -> str:
        shown = {
            name.replace("_", " "): value
            for name, value in self.items()
            if value not in (None, {}, []) and name not in ("shards", "size")
        }
        files = {"files": len(self["shards"]), "size": number_format.size(self["size"])}
        return notebook.facts({name: _words(value) for name, value in (shown | files).items()})


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return number_format.grouped(value)


def inspect(model: str, weights: Weights = "auto") -> FactSheet:
    """Facts about a model: format, architecture, sizes, dtypes, tokenizer, licence. No weights are read.

    Args:
        model: a folder, a file of weights, a training run or one of its steps, or a Hub id; with
            ``+adapter`` as in recipes.
        weights: ``shards`` or ``huggingface`` for a training step that has both.

    Raises:
        RecipeError: when it is not a valid reference.
        InputError: when it is not a model, or its headers cannot be read.
    """
    try:
        reference = parse_reference(model)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    path = hub.resolve(reference.path, reference.revision)
    try:
        checkpoint = open_checkpoint(path, model, weights=weights)
    except InputError:
        if reference.adapter is None and (path / ADAPTER).is_file():
            return _adapter_sheet(model, path)
        raise
    adapter = None
    if reference.adapter is not None:
        folder = hub.resolve(reference.adapter, reference.adapter_revision)
        checkpoint, adapter = as_numbers(checkpoint, folder), describe(folder)
    config, specs = checkpoint.config, checkpoint.specs
    shape = infer(specs, config)
    dtypes: dict[str, int] = {}
    roles: dict[str, int] = {}
    for name, spec in specs.items():
        dtypes[spec.natural.name] = dtypes.get(spec.natural.name, 0) + spec.numel
        roles[shape.places[name].role] = roles.get(shape.places[name].role, 0) + spec.numel
    tokenizer = [name for name in TOKENIZER_FILES if _companion(checkpoint, name) is not None]
    words = any(place.vocabulary for place in shape.places.values())
    stated = next(iter(layer_counts(config)), None)
    return FactSheet(
        {
            "model": model,
            "format": checkpoint.format,
            "step": step_number(checkpoint.home) if checkpoint.home is not None else None,
            "architecture": config.get("architectures") or config.get("model_type"),
            "parameters": sum(spec.numel for spec in specs.values()),
            "tensors": len(specs),
            "layers": shape.depth or stated,
            "modules": _modules(shape),
            "by_dtype": dtypes,
            "by_role": roles,
            "dtype_in_config": config.get("dtype") or config.get("torch_dtype"),
            "context_length": next(
                (
                    s["max_position_embeddings"]
                    for s in sections(config)
                    if "max_position_embeddings" in s
                ),
                None,
            ),
            "vocabulary": vocabulary_size(config),
            "tied_embeddings": ties_embeddings(config),
            "tokenizer": tokenizer,
            "missing": _missing(
                config, has_tokenizer(checkpoint.path) or not words, stated, shape.depth
            ),
            "notes": list(checkpoint.notes),
            "size": sum(checkpoint.files.values()),
            "shards": dict(checkpoint.files),
            "adapter": adapter,
            "merge": _provenance(path),
        }
    )


def _adapter_sheet(model: str, path: Path) -> FactSheet:
    """Facts about an adapter without its base model."""
    adapter = open_adapter(path)
    specs, files = adapter.weights.specs, adapter.weights.files
    dtypes: dict[str, int] = {}
    for spec in specs.values():
        dtypes[spec.dtype.name] = dtypes.get(spec.dtype.name, 0) + spec.numel
    base = adapter.config.get("base_model_name_or_path")
    targets = adapter.config.get("target_modules")
    return FactSheet(
        {
            "model": model,
            "format": "LoRA adapter",
            "base": base,
            "merge_as": f"{base or 'BASE'}+{model}",
            "rank": adapter.config.get("r", 8),
            "alpha": adapter.config.get("lora_alpha", 8),
            "targets": sorted(targets) if isinstance(targets, list) else targets,
            "parameters": sum(spec.numel for spec in specs.values()),
            "tensors": len(specs),
            "by_dtype": dtypes,
            "size": sum(files.values()),
            "shards": dict(files),
        }
    )


def _companion(checkpoint: Checkpoint, name: str) -> Path | None:
    """A file in a model's folder, if it exists."""
    file = checkpoint.path / name if checkpoint.path is not None else None
    return file if file is not None and file.is_file() else None


def _missing(
    config: Mapping[str, Any], tokenizer: bool, stated: int | None, depth: int
) -> list[str]:
    """What the model lacks."""
    missing = [] if config else ["config.json"]
    if not tokenizer:
        missing.append("tokenizer")
    if stated is not None and depth < stated:
        missing.append(f"{stated - depth} of {stated} layers")
    return missing


def _modules(shape: Architecture) -> dict[str, str]:
    """The modules of a model with several, by their names in recipes."""
    return {
        name: f"{sum(place.module == name for place in shape.places.values())} tensors"
        + "".join(f", {depth} layers ({stack}*)" for stack, depth in module.stacks.items())
        for name, module in shape.modules.items()
        if len(shape.modules) > 1
    }


def _provenance(path: Path) -> dict[str, Any] | None:
    """Method and inputs of a model that Merganser merged; None for others."""
    if not (path / manifest.NAME).is_file():
        return None
    data = manifest.read(path)
    return {
        "method": data["method"],
        "models": " + ".join(entry["name"] for entry in data["inputs"]),
        "merganser": data["merganser"],
        "plan": data["plan"][:16],
    }
