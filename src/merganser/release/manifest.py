"""``merge_manifest.json``: what went in, what came out, and how to tell that it still is what it was."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merganser.errors import InputError
from merganser.planning import Plan

if TYPE_CHECKING:
    from merganser.engine import Outcome

NAME = "merge_manifest.json"

REQUIRED = (
    "merganser",
    "plan",
    "method",
    "arithmetic",
    "rounding",
    "seed",
    "inputs",
    "tensors",
    "log",
)

SCHEME = "mg1"
"""The digest of tensors: see ``docs/output.md``."""


def build(plan: Plan, outcome: Outcome, version: str) -> dict[str, Any]:
    """The manifest as plain data. Only ``log`` depends on when and where the merge ran."""
    reported = outcome.report.warnings if outcome.report else ()
    return {
        "format": 1,
        "merganser": version,
        "plan": plan.digest,
        "method": plan.method.name,
        "arithmetic": plan.arithmetic,
        "rounding": plan.rounding,
        "seed": plan.seed,
        "weights": plan.weights,
        "tensor_names": plan.tensor_names,
        "dtype": plan.dtype.name,
        "parameters": plan.parameters,
        "inputs": [
            {
                "reference": source.reference.text,
                "name": source.reference.name,
                "base": index == plan.base,
                "header_digest": f"sha256:{source.checkpoint.header_digest}",
                "files": dict(source.checkpoint.files),
            }
            for index, source in enumerate(plan.sources)
        ],
        "effective_weights": outcome.report.as_dict() if outcome.report else None,
        "warnings": [*(_without_folder(w, plan) for w in plan.warnings), *reported],
        "files": {
            shard.file: {"size": shard.size, "tensors": len(shard.offsets)} for shard in plan.shards
        },
        "output_digest": _output_digest(outcome),
        "tensors": {t.name: f"{SCHEME}:{t.digest}" for t in outcome.tensors},
        "log": {
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(outcome.seconds, 2),
            "python": platform.python_version(),
            "machine": platform.machine(),
            "recipe_folder": str(plan.recipe.folder) if plan.recipe.folder else None,
            "results": {name: str(folder) for name, folder in plan.recipe.results.items()},
            "inputs": inputs_state(plan),
        },
    }


def inputs_state(plan: Plan) -> str:
    """Changes when a file of an input does, as far as sizes and times tell."""
    facts = []
    for path in plan.homes:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        status = [(file.name, file.stat()) for file in files if file.is_file()]
        facts.append([(name, s.st_size, s.st_mtime_ns) for name, s in status])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _output_digest(outcome: Outcome) -> str:
    """One digest of all output tensors, whatever their order and files."""
    lines = "".join(sorted(f"{t.name} {SCHEME}:{t.digest}\n" for t in outcome.tensors))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def _without_folder(warning: str, plan: Plan) -> str:
    """A warning with the recipe's name in place of its path, which is another elsewhere."""
    file = plan.recipe.document.file
    return warning.replace(f"{file}:", f"{Path(file).name}:", 1) if file else warning


def made_public(manifest: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The manifest with other names for models, by their references, and no local folder in it."""
    text = json.dumps(manifest | {"log": manifest["log"] | {"recipe_folder": None, "results": {}}})
    for reference in sorted(names, key=len, reverse=True):
        text = text.replace(json.dumps(reference)[1:-1], json.dumps(names[reference])[1:-1])
    public: dict[str, Any] = json.loads(text)
    return public


def write(manifest: dict[str, Any], folder: Path) -> None:
    """Write the manifest into an output folder."""
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (folder / NAME).write_text(text, encoding="utf-8")


def read(folder: Path) -> dict[str, Any]:
    """Read a folder's manifest.

    Raises:
        InputError: when there is none, or it is no manifest.
    """
    file = folder / NAME
    if not file.is_file():
        raise InputError(
            f"{folder}: has no {NAME}; only folders that Merganser wrote can be verified"
        )
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["format"] != 1 or not isinstance(data["tensors"], dict):
            raise ValueError("another format")
        if missing := [key for key in REQUIRED if key not in data]:
            raise ValueError(f"lacks {missing[0]}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: is no manifest that this version knows ({error})") from None
    return dict(data)


def difference(manifest: dict[str, Any], found: dict[str, str]) -> list[str]:
    """Sentences on how tensors' digests differ from the manifest's; empty where they do not."""
    wanted: dict[str, str] = manifest["tensors"]
    problems = [f"tensor {name!r} is missing" for name in wanted if name not in found]
    problems += [f"tensor {name!r} is not in the manifest" for name in found if name not in wanted]
    problems += [
        f"tensor {name!r} is not what was merged ({found[name]}, the manifest says {digest})"
        for name, digest in wanted.items()
        if name in found and found[name] != digest
    ]
    return problems


def tensor_digests(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Digests of all tensors of runs, as a manifest writes them."""
    return {t.name: f"{SCHEME}:{t.digest}" for outcome in outcomes for t in outcome.tensors}
