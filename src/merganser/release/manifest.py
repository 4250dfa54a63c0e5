"""``merge_manifest.json``: inputs, settings and digests of a merge, to verify its folder later."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merganser.checkpoints import read_json
from merganser.errors import InputError, ResourceError, reraise_os_errors
from merganser.methods import Combination
from merganser.planning import Plan, Source
from merganser.release import files
from merganser.release.contents import SCHEME, digest_of_parts, hashes, state
from merganser.release.public_names import names

if TYPE_CHECKING:
    from merganser.engine import Outcome

NAME = "merge_manifest.json"

RECIPE = "mergekit_config.yml"
"""Name of the recipe's file in the output folder."""

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

UNKNOWN = "sha256:" + 64 * "0"
"""Placeholder of the manifest's own digest while it is computed."""


Ancestor = tuple[Plan, Mapping[str, Any]]
"""An earlier merge of a recipe file: its plan and its manifest."""


def build(
    plan: Plan, outcome: Outcome, version: str, ancestors: Sequence[Ancestor] = ()
) -> dict[str, Any]:
    """Return the manifest as plain data; only ``log`` depends on the time and place of the merge.

    Args:
        plan: the plan of the merge.
        outcome: the engine's digests, counts and effective weights.
        version: the version of Merganser.
        ancestors: the earlier merges of the same recipe file whose results are inputs.
    """
    reported = outcome.report.warnings if outcome.report else ()
    short = names([*(each for each, _ in ancestors), plan])
    read, nonfinite = _input_digests(plan, outcome), _nonfinite(plan, outcome)
    known = {i: parts for i, s in enumerate(plan.sources) if (parts := hashes(s) or read.get(i))}
    digests = {index: digest_of_parts(parts) for index, parts in known.items()}
    return {
        "format": 1,
        "merganser": version,
        **_settings(plan),
        "dtype": plan.dtype.name,
        "parameters": plan.parameters,
        "conversion": _conversion(plan),
        "layers": {module: len(layers) for module, layers in plan.layers.items()},
        "inputs": [
            {
                **_identity(source, short[source.reference.text]),
                "base": index == plan.base,
                "digest": digests.get(index),
                **({"hashes": hashes(source)} if source.hashes else {}),
                **({"tensors": read[index]} if index in read else {}),
            }
            for index, source in enumerate(plan.sources)
        ],
        "earlier": [_earlier(each, stated, short) for each, stated in ancestors],
        "names": short,
        "effective_weights": outcome.report.as_dict() if outcome.report else None,
        "warnings": [
            *(_without_folder(w, plan) for w in plan.warnings),
            *_nonfinite_warnings(nonfinite),
            *reported,
        ],
        "nonfinite": nonfinite,
        "files": {
            shard.file: {
                "size": shard.size,
                "tensors": len(shard.offsets),
                "header_size": len(shard.header),
                "header_digest": sha256(shard.header),
            }
            for shard in plan.shards
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
            "contents": state(plan, digests) if len(digests) == len(plan.sources) else None,
        },
    }


def method_source(plan: Plan) -> dict[str, Any] | None:
    """The source file of a method, without its folder; None for a built-in method."""
    method = plan.method
    if method.origin is None:
        return None
    return {
        "file": method.origin.name,
        "sha256": method.origin.digest,
        "package": method.origin.package,
        "title": method.title,
        "paper": method.paper,
    }


def _settings(plan: Plan) -> dict[str, Any]:
    """The digest of a plan, and the settings that options can override."""
    return {
        "plan": plan.digest,
        "method": plan.method.name,
        "method_source": method_source(plan),
        "arithmetic": plan.arithmetic,
        "rounding": plan.rounding,
        "seed": plan.seed,
        "weights": plan.weights,
        "tensor_names": plan.tensor_names,
    }


def _identity(source: Source, name: str) -> dict[str, Any]:
    """An input's name, place, format, licence and header digest."""
    return {
        "reference": source.reference.text,
        "name": name,
        "hub": _on_the_hub(source),
        "commits": source.commits,
        "adapter": source.adapter is not None,
        "format": source.checkpoint.format,
        "license": _license(source.checkpoint.path),
        **({"adapter_license": _license(source.adapter)} if source.adapter is not None else {}),
        "header_digest": f"sha256:{source.checkpoint.header_digest}",
        "files": dict(source.checkpoint.files),
    }


def _earlier(plan: Plan, stated: Mapping[str, Any], short: Mapping[str, str]) -> dict[str, Any]:
    """The manifest's entry for an earlier merge."""
    return {
        "name": plan.recipe.recipe.name,
        **_settings(plan),
        "inputs": [
            {
                **_identity(source, short[source.reference.text]),
                "digest": known.get("digest"),
            }
            for source, known in zip(plan.sources, stated["inputs"], strict=True)
        ],
    }


def sha256(data: bytes) -> str:
    """The digest of a file's bytes, in a manifest's form."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _input_digests(plan: Plan, outcome: Outcome) -> dict[int, dict[str, str]]:
    """Digests of the read tensors by source index and name.

    A source is omitted if the digest of any of its tensors is unknown.
    """
    digests: dict[int, dict[str, str]] = {}
    unknown: set[int] = set()
    for job, tensor in zip(plan.jobs, outcome.tensors, strict=True):
        if len(tensor.inputs) != len(job.reads):
            return {}
        for read, digest in zip(job.reads, tensor.inputs, strict=True):
            if digest is None:
                unknown.add(read.source)
            else:
                digests.setdefault(read.source, {})[read.name] = f"{SCHEME}:{digest}"
    return {source: tensors for source, tensors in digests.items() if source not in unknown}


def _nonfinite(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    """Count infinities and NaNs by tensor, in the inputs and in the output."""
    inputs: dict[str, dict[str, int]] = {}
    output: dict[str, int] = {}
    for job, tensor in zip(plan.jobs, outcome.tensors, strict=True):
        *counts, in_output = tensor.nonfinite or (0,)
        for read, count in zip(job.reads, counts, strict=False):
            if count:
                reference = plan.sources[read.source].reference.text
                inputs.setdefault(reference, {})[read.name] = count
        if in_output:
            output[job.name] = in_output
    return {"inputs": inputs, "output": output}


def _nonfinite_warnings(nonfinite: Mapping[str, Any]) -> list[str]:
    """A warning for each model with infinities or NaNs."""
    of = [*nonfinite["inputs"].items(), ("the result", nonfinite["output"])]
    return [
        f"{model} has values that are infinite or not a number: {tell_counts(counts)}"
        for model, counts in of
        if counts
    ]


def tell_counts(counts: Mapping[str, int]) -> str:
    """Format counts of values by tensor: ``2 in a, 1 in b``."""
    shown = [f"{count} in {name}" for name, count in list(counts.items())[:3]]
    return ", ".join(shown) + (f" and {len(counts) - 3} tensors more" if len(counts) > 3 else "")


def _on_the_hub(source: Source) -> list[str]:
    """The Hub ids of a source's model and adapter, of those that are on the Hub."""
    reference = source.reference
    parts = (source.published, reference.path), (source.published_adapter, reference.adapter)
    return [name for published, name in parts if published and name is not None]


def licenses(manifest: Mapping[str, Any]) -> dict[str, str | None]:
    """The licence of every model and adapter that was merged, by name; None if its card has none."""
    licenses: dict[str, str | None] = {}
    for entry in manifest["inputs"]:
        name, license_of_entry = entry["name"], entry.get("license")
        if entry.get("adapter"):
            licenses[f"{name} (model)"] = license_of_entry
            licenses[f"{name} (adapter)"] = entry.get("adapter_license")
        else:
            licenses[name] = license_of_entry
    return licenses


def _license(model: Path | None) -> str | None:
    """The licence in a model's card, or None."""
    if model is None:
        return None
    readme = model / "README.md"
    with reraise_os_errors(InputError, "read", readme):
        if not readme.is_file():
            return None
        with readme.open("rb") as stream:  # untrusted YAML may be a bomb; one line suffices
            text = stream.read(2**16).decode("utf-8", "replace").replace("\r\n", "\n")
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    stated = front and re.search(r"^license: *([\"']?)([\w.+-]{1,40})\1 *(#.*)?$", front[1], re.M)
    return stated[2] if stated else None


def _conversion(plan: Plan) -> str | None:
    """The kind of a conversion of one model: ``copied`` or ``computed``; None for a merge."""
    converted = (
        len(plan.sources) == 1
        and plan.method.name == "passthrough"
        and not plan.layers
        and all(job.method == "copy" or job.combination == Combination((1.0,)) for job in plan.jobs)
    )
    if not converted:
        return None
    return "copied" if all(job.method == "copy" for job in plan.jobs) else "computed"


def inputs_state(plan: Plan) -> str:
    """A digest of the names, sizes and times of all files of the inputs."""
    facts = [_state(path) for path in plan.homes]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _state(path: Path) -> list[tuple[str, int, int]]:
    """The name, size and time of each file of a folder, or of one file."""
    with reraise_os_errors(InputError, "read", path):
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        status = [(file.name, file.stat()) for file in files if file.is_file()]
    return [(name, s.st_size, s.st_mtime_ns) for name, s in status]


def _output_digest(outcome: Outcome) -> str:
    """One digest of all output tensors, which does not depend on their order or files."""
    return digest_of_parts(tensor_digests([outcome]))


def _without_folder(warning: str, plan: Plan) -> str:
    """A warning with the name of the recipe file instead of its path."""
    file = plan.recipe.document.file
    return warning.replace(f"{file}:", f"{Path(file).name}:", 1) if file else warning


def write(manifest: dict[str, Any], folder: Path) -> None:
    """Write the manifest to an output folder, with digests of the other files and of itself.

    All other files must already be in the folder.

    Raises:
        ResourceError: when a file cannot be read, or the manifest cannot be written.
    """
    weights = {NAME, *manifest["files"]}
    with reraise_os_errors(ResourceError, "read", folder):
        manifest["companions"] = {
            name: sha256(file.read_bytes())
            for file in sorted(folder.rglob("*"))
            if file.is_file() and (name := file.relative_to(folder).as_posix()) not in weights
        }
    _write(manifest, folder)


def _write(manifest: dict[str, Any], folder: Path) -> None:
    text = as_text(manifest)
    manifest["log"] = json.loads(text)["log"]
    files.write_text(folder / NAME, text)


def as_text(manifest: Mapping[str, Any]) -> str:
    """The JSON text of a manifest, with its own digest in ``log``."""
    log = {**manifest["log"], "manifest_digest": UNKNOWN}
    text = json.dumps({**manifest, "log": log}, indent=1, ensure_ascii=False) + "\n"
    return text.replace(UNKNOWN, sha256(text.encode()))


def restated(manifest: Mapping[str, Any], changed: Mapping[str, bytes]) -> dict[str, Any]:
    """Return a manifest with updated digests of changed files, given by name with their new contents."""
    known = manifest.get("companions", {})
    fresh = {name: sha256(data) for name, data in changed.items() if name in known}
    return {**manifest, "companions": known | fresh} if known else dict(manifest)


def restate(folder: Path, name: str) -> None:
    """Update the digest of a changed file in a folder's manifest.

    Args:
        folder: a folder; nothing happens if it has no manifest.
        name: the file's name.
    """
    if not (folder / NAME).is_file():
        return
    _write(restated(read(folder), {name: (folder / name).read_bytes()}), folder)


def read(folder: Path) -> dict[str, Any]:
    """Read a folder's manifest.

    Raises:
        InputError: when there is none, or it is not a manifest.
    """
    file = folder / NAME
    try:
        with reraise_os_errors(InputError, "read", file):
            if not folder.is_dir():
                what = "is a file, not a merged folder" if folder.exists() else "no such folder"
                raise InputError(f"{folder}: {what}")
            if not file.is_file():
                raise InputError(f"{folder}: has no {NAME}: {_why_none(folder)}")
        data = read_json(file)
        if data.get("format") != 1:
            raise ValueError("another format")
        if missing := [key for key in REQUIRED if key not in data]:
            raise ValueError(f"lacks {missing[0]}")
        mappings, texts = (
            (data["tensors"], data["log"]),
            (data["merganser"], data["plan"], data["method"]),
        )
        entries = data["inputs"] if isinstance(data["inputs"], list) else [None]
        if not all(isinstance(each, dict) for each in (*mappings, *entries)):
            raise ValueError("another format")
        if not all(isinstance(each, str) for each in (*texts, *data["tensors"].values())):
            raise ValueError("another format")
    except ValueError as error:
        raise InputError(
            f"{file}: is not a manifest that this version of Merganser can read ({error})"
        ) from None
    return data


def _why_none(folder: Path) -> str:
    """Explain why a folder has no manifest, and what to do."""
    merges = sorted(file.parent.name for file in folder.glob(f"*/{NAME}"))
    if merges:
        return f"it contains merged folders; name one of them, such as {folder / merges[0]}"
    return "Merganser did not write this folder; merge and convert write one"


def tensor_digests(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Digests of all output tensors of runs by name, in a manifest's form."""
    return {t.name: f"{SCHEME}:{t.digest}" for outcome in outcomes for t in outcome.tensors}
