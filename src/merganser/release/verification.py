"""Compare a merged folder, and a merge of it again, with its manifest."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from merganser import methods, weight_formats
from merganser.errors import InputError, RecipeError, reraise_os_errors
from merganser.methods import Method
from merganser.release.manifest import NAME, UNKNOWN, sha256


def is_as_written(manifest: Mapping[str, Any], folder: Path) -> bool:
    """Whether a folder's manifest file has the digest that its log states."""
    stated: str | None = manifest["log"].get("manifest_digest")
    if stated is None:
        return "companions" not in manifest  # older versions wrote neither
    with reraise_os_errors(InputError, "read", folder / NAME):
        data = (folder / NAME).read_bytes()
    return sha256(data.replace(stated.encode(), UNKNOWN.encode())) == stated


def damage(
    manifest: Mapping[str, Any], folder: Path, may_differ: Collection[str] = ()
) -> list[str]:
    """Describe damage to a folder's files, except to the manifest and the bytes of tensors."""
    problems = []
    for name, digest in manifest.get("companions", {}).items():
        if name in may_differ and (folder / name).is_file():
            continue
        problems += _damaged(folder / name, name, digest, None)
    for name, facts in manifest.get("files", {}).items():
        if "header_digest" in facts:
            size = facts["header_size"]
            problems += _damaged(
                folder / name, f"the header of {name}", facts["header_digest"], size
            )
    known = {*manifest.get("companions", {}), *manifest.get("files", {})}
    suffixes = weight_formats.suffixes()  # a program might load such files instead
    weights = (*suffixes, *(f"{suffix}.index.json" for suffix in suffixes))
    with reraise_os_errors(InputError, "read", folder):
        problems += [
            f"{file.name} is not in the manifest"
            for file in sorted(folder.glob("*"))
            if file.name.endswith(weights) and file.name not in known
        ]
    return problems


def _damaged(file: Path, what: str, digest: str, size: int | None) -> list[str]:
    try:
        with file.open("rb") as stream:
            actual = sha256(stream.read(size))
    except OSError as error:
        return [f"{what} cannot be read ({error.strerror})"]
    return [] if actual == digest else [f"{what} is not what was written"]


def difference(manifest: dict[str, Any], digests: dict[str, str]) -> list[str]:
    """Describe how tensors' digests differ from the manifest's; empty if they do not."""
    stated: dict[str, str] = manifest["tensors"]
    problems = [f"tensor {name!r} is missing" for name in stated if name not in digests]
    problems += [
        f"tensor {name!r} is not in the manifest" for name in digests if name not in stated
    ]
    problems += [
        f"tensor {name!r} is not what was merged ({digests[name]}, the manifest says {digest})"
        for name, digest in stated.items()
        if name in digests and digests[name] != digest
    ]
    return problems


def different_inputs(stated: Mapping[str, Any], again: Mapping[str, Any]) -> list[str]:
    """Describe how inputs differ from a manifest's, where both have digests."""
    problems = []
    for before, now in zip(stated["inputs"], again["inputs"], strict=False):
        for kind, key in (("tensor", "tensors"), ("file", "hashes")):
            was, is_now = before.get(key, {}), now.get(key, {})
            changed = [name for name in was if is_now.get(name, was[name]) != was[name]]
            whose = f"of the input {now['reference']}"
            if len(changed) == 1:
                problems.append(f"{kind} {changed[0]!r} {whose} is not what was merged")
            elif changed:
                count = f"{len(changed)} of {len(was)} {kind}s"
                problems.append(f"{count} {whose} are not what was merged, such as {changed[0]!r}")
    return problems


def check_method(manifest: Mapping[str, Any], folder: Path) -> None:
    """Check that the method of a merged folder is registered.

    Raises:
        RecipeError: when it is not built in, and has not been loaded.
    """
    for each in (manifest, *manifest.get("earlier", [])):
        source, known = each.get("method_source"), _method(each)
        if source and (known is None or known.origin is None):
            place = source["package"] or source["file"]
            call = "" if source["package"] else f": load_methods({place!r})"
            raise RecipeError(
                f"{folder}: was merged by the method {each['method']!r} of {place}; "
                f"load that first{call}"
            )


def different_method(manifest: Mapping[str, Any]) -> list[str]:
    """Describe how methods differ from a manifest's; empty if they do not."""
    problems = []
    for each in (manifest, *manifest.get("earlier", [])):
        source, known = each.get("method_source"), _method(each)
        before = source["sha256"] if source else None
        now = known.origin.digest if known and known.origin else None
        if before != now:
            problems.append(
                f"the method {each['method']!r} is not the one that merged: its sha256 is "
                f"{now or 'that of a built-in method'}, the manifest says {before or 'a built-in method'}"
            )
    return problems


def _method(manifest: Mapping[str, Any]) -> Method | None:
    return methods.get(manifest["method"], manifest["arithmetic"])
