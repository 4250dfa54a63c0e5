"""Write plans as JSON, for inspection and for running elsewhere;
:mod:`merganser.planning.plan_loading` reads them.

The file holds decisions: names, methods, parameters, files. It omits what follows from them
(output headers, methods' coefficients) and what the inputs' headers state.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from merganser import recipe
from merganser.checkpoints.locator_json import Table
from merganser.checkpoints.locators import Mover
from merganser.planning.plan_data import DISK_MARGIN, Plan, Source
from merganser.recipe import ParsedRecipe
from merganser.tokenizer.vocabulary import fingerprint

FORMAT = 1
"""Version of the format; reading another version is an error."""


def describe(plan: Plan) -> dict[str, Any]:
    """The plan as plain data for JSON; :func:`merganser.load_plan` reads it."""
    root = _root(plan)
    table = Table(lambda path: _below(path, root))
    entries = [_described_source(input_, root, table) for input_ in plan.all_sources]
    names = [source.reference.text for source in plan.sources]
    models = [
        {"base": i == plan.base, "donor": i == plan.donor} | entry
        for i, entry in enumerate(entries[: len(names)])
    ]
    return {
        "merganser_plan": FORMAT,
        "method": plan.method_name,
        "code": plan.code and asdict(plan.code),
        "arithmetic": plan.arithmetic,
        "rounding": plan.rounding,
        "seed": plan.seed,
        "dtype": plan.dtype.name,
        "weights": plan.weights,
        "tensor_names": plan.tensor_names,
        "digest": plan.digest,
        "parameters": plan.parameters,
        "input_bytes": plan.input_bytes,
        "output_bytes": plan.output_bytes,
        "disk_bytes": plan.output_bytes + DISK_MARGIN,
        "tied": plan.tied,
        "tie_word_embeddings": plan.tie_word_embeddings,
        "vocabulary": plan.vocabulary,
        "root": str(root),
        "recipe": _described_recipe(plan.recipe, root),
        "models": models,
        "locators": table.entries,
        "tokenizer": _described_tokenizer(plan),
        "tokenizer_edit": _described_edit(plan, entries, root),
        "chat_template": plan.chat_template,
        "layers": {
            module: [
                [{"model": names[source], "layer": layer} for source, layer in sources]
                for sources in layers
            ]
            for module, layers in plan.layers.items()
        },
        "shards": [
            {"file": s.file, "size": s.size, "tensors": len(s.offsets)} for s in plan.shards
        ],
        "tensors": [
            {
                "name": job.name,
                "role": job.role,
                "layer": job.layer,
                "dtype": job.spec.dtype.name,
                "shape": list(job.spec.shape),
                "method": job.method,
                "numbers": dict(job.numbers),
                "based": job.based,
                "computed_in": job.work.name,
                "cast": job.cast and job.cast.name,
                "inputs": [{"model": names[r.source], "tensor": r.name} for r in job.reads],
            }
            for job in plan.jobs
        ],
        "warnings": list(plan.warnings),
    }


def _root(plan: Plan) -> Path:
    """The deepest folder that contains all inputs."""
    paths: list[Path] = []

    def note(path: Path) -> Path:
        paths.append(path)
        return path

    mover = Mover(note)
    for source in plan.all_sources:
        mover(source.checkpoint.locator)
        paths += [*source.checkpoint.stamps, *filter(None, [source.adapter])]
    computed = {source.checkpoint.path for source in plan.all_sources if _is_made(source)}
    if plan.tokenizer is not None and plan.tokenizer.output.start.folder not in computed:
        paths.append(plan.tokenizer.output.start.folder)
    parents = [str(path.absolute().parent) for path in paths]
    return Path(os.path.commonpath(parents)) if parents else Path("/")


def _is_made(source: Source) -> bool:
    """Whether a source's tokenizer folder is temporary (GGUF)."""
    model = source.checkpoint
    home, path = model.home, model.path
    return model.format.startswith("GGUF") and path not in (home, home and home.parent)


def _below(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path.absolute(), root)).as_posix()


def _described_source(source: Source, root: Path, table: Table) -> dict[str, Any]:
    model = source.checkpoint
    return {
        "reference": source.reference.text,
        "tensors": len(model.specs),
        "layers": {m.name: m.depth for m in source.architecture.modules.values()},
        "header_digest": model.header_digest,
        "names": asdict(source.reference),
        "published": source.published,
        "adapter": source.adapter and _below(source.adapter, root),
        "published_adapter": source.published_adapter,
        "locator": None if model.locator is None else table.place(model.locator),
        "files": {_below(file, root): list(stamp) for file, stamp in model.stamps.items()},
    }


def _described_recipe(parsed: ParsedRecipe, root: Path) -> dict[str, Any]:
    folder = parsed.folder and parsed.folder.absolute()
    return {
        "text": parsed.document.text,
        "data": None if parsed.document.text is not None else dict(parsed.data),
        "file": parsed.document.file,
        "folder": folder and (_below(folder, root) if folder.is_relative_to(root) else str(folder)),
        "strictness": parsed.strictness,
        "results": {name: str(path.absolute()) for name, path in parsed.results.items()},
        "references": [
            asdict(reference) for _, reference in recipe.model_references(parsed.recipe)
        ],
    }


def _described_tokenizer(plan: Plan) -> dict[str, Any] | None:
    if plan.tokenizer is None:
        return None
    output = plan.tokenizer.output
    return {
        "from": output.start.label,
        "tokens": len(output.tokens),
        "rows": plan.vocabulary,
        "added": {token.content: token.id for token in output.new},
        "left_out": sorted(output.dropped),
    }


def _described_edit(
    plan: Plan, entries: Sequence[dict[str, Any]], root: Path
) -> dict[str, Any] | None:
    """The instructions that turn a model's tokenizer files into the output's."""
    if plan.tokenizer is None:
        return None
    output = plan.tokenizer.output
    folder = output.start.folder
    owners = [i for i, s in enumerate(plan.all_sources) if s.checkpoint.path == folder]
    return {
        "flags": [list(token.flags) for token in output.new],
        "conflicts": list(output.conflicts),
        "model": owners[0] if owners else None,
        "folder": None if owners else _below(folder, root),
        "files": fingerprint(folder),
        "moved": [[key, old, new] for (key, old), new in plan.tokenizer.moved.items()],
        "donors": entries[len(plan.sources) :],
    }
