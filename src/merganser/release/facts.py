"""The fact sheet of a model: what its headers, config and manifest say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merganser import hub
from merganser.architecture import infer, layer_counts, sections, ties_embeddings, vocabulary_size
from merganser.checkpoints import open_checkpoint
from merganser.errors import RecipeError
from merganser.recipe import parse_reference
from merganser.release import manifest
from merganser.release.config import TOKENIZER_FILES


def inspect(model: str) -> dict[str, Any]:
    """Facts about a model, without reading weights.

    Args:
        model: a folder, a safetensors file, or a Hub id.

    Raises:
        RecipeError: when it is no reference to a model.
        InputError: when it is no model, or its headers are broken.
    """
    try:
        reference = parse_reference(model)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    if reference.adapter is not None:
        raise RecipeError(f"{model}: adapters are not supported yet")
    path = hub.resolve(reference.path, reference.revision)
    checkpoint = open_checkpoint(path, model)
    config, specs = checkpoint.config, checkpoint.specs
    shape = infer(specs, config)
    dtypes: dict[str, int] = {}
    roles: dict[str, int] = {}
    for name, spec in specs.items():
        dtypes[spec.dtype.name] = dtypes.get(spec.dtype.name, 0) + spec.numel
        roles[shape.places[name].role] = roles.get(shape.places[name].role, 0) + spec.numel
    stated = layer_counts(config)
    return {
        "model": model,
        "architecture": config.get("architectures") or config.get("model_type"),
        "parameters": sum(spec.numel for spec in specs.values()),
        "tensors": len(specs),
        "layers": stated[0] if stated else shape.depth or None,
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
        "tokenizer": [name for name in TOKENIZER_FILES if (path / name).is_file()]
        if path.is_dir()
        else [],
        "size": sum(checkpoint.files.values()),
        "shards": dict(checkpoint.files),
        "merge": _provenance(path),
    }


def _provenance(path: Path) -> dict[str, Any] | None:
    """What the model was merged from, if Merganser did it."""
    if not (path / manifest.NAME).is_file():
        return None
    data = manifest.read(path)
    return {
        "method": data["method"],
        "models": " + ".join(entry["name"] for entry in data["inputs"]),
        "merganser": data["merganser"],
        "plan": data["plan"][:16],
    }
