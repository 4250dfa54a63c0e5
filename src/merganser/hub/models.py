"""Locate models in local folders or the Hub's cache, or download them from the Hub."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from merganser import suggestions
from merganser.errors import InputError
from merganser.recipe import exists

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

_COMMIT = re.compile(r"[0-9a-f]{40}")

_SHA256 = re.compile(r"[0-9a-f]{64}")

_SMALL = [
    *("*.json", "*.jinja", "*.model", "*.py", "merges.txt", "vocab.txt", "README.md"),
    "mergekit_config.yml",
]
"""Patterns of a model's files without weights: configs, tokenizers, code (copied, never run), the card with
its licence, and the recipe of a merge."""

_WANTED = [*_SMALL, "*.safetensors"]

_WITHOUT_SAFETENSORS = [*_WANTED, "pytorch_model*.bin", "adapter_model.bin"]

_OF_MODULES = "*/pytorch_model.bin"
"""Weights of sentence-transformers modules, which often have no safetensors file."""

_PRECISE = ("F32", "BF16", "F16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0")
"""GGUF's types as file names contain them, the most precise first."""

_PART = re.compile(r"-\d{5}-of-\d{5}$")


def is_hub_id(path: str) -> bool:
    """Whether a path that does not exist locally has the form of a Hub id, ``org/name``."""
    return _HUB_ID.fullmatch(path) is not None and not path.startswith(".") and ".." not in path


def check_no_url(path: str) -> None:
    """Check that a path is none of an object store, such as ``s3://bucket/model``.

    Raises:
        InputError: it is; weights are read by ranges from files, not through fsspec.
    """
    scheme, sign, _ = path.partition("://")
    if sign and scheme.isalnum():
        raise InputError(
            f"{path}: object stores are not read; mount the bucket as a folder (Mountpoint for S3, gcsfuse, "
            "rclone mount), or copy the files to one"
        )


def resolve(
    path: str, revision: str | None = None, beside: Path | None = None, *, weights: bool = True
) -> Path:
    """Return the local folder of a model, downloading it from the Hub if needed.

    For a repository with GGUF files only, return the file whose name states the most precise type.
    With ``HF_HUB_OFFLINE`` set, nothing is downloaded.

    Args:
        path: folder or Hub id.
        revision: branch, tag or commit on the Hub.
        beside: the recipe's folder; a relative path is resolved in the current folder, then in this one.
        weights: whether to download weights, or only config and tokenizer.

    Raises:
        InputError: when the model does not exist, or the Hub does not answer.
    """
    local = local_folder(path, beside)
    if local is not None:
        return local
    check_no_url(path)
    if not is_hub_id(path):
        tried = f" (nor in {beside})" if beside is not None and not Path(path).is_absolute() else ""
        raise InputError(f"{path}: no such folder{tried}{_hint(path, beside)}")
    return _from_hub(path, revision, beside, weights)


def _hint(path: str, beside: Path | None) -> str:
    """Suggest an existing path whose spelling differs from ``path`` in one name; else an empty text."""
    for home in (Path(), *([] if beside is None else [beside])):
        parts = () if path.startswith("~") else Path(path).parts
        for n, part in enumerate(parts):
            folder = home.joinpath(*parts[:n])
            if exists(str(folder / part)):
                continue
            if name := suggestions.nearest_in(folder, part):
                corrected = Path(*parts[:n], name, *parts[n + 1 :])
                if not exists(str(home / corrected)):
                    corrected = Path(*parts[:n], name)
                return f" (did you mean {corrected}?)"
            break
    return ""


def local_folder(path: str, beside: Path | None = None) -> Path | None:
    """Return the existing path in the current folder, or in the recipe's; None if neither exists."""
    if exists(path):
        return Path(path).expanduser()
    if beside is not None and exists(str(beside / path)):
        return beside / path
    return None


def commit(path: Path | None) -> str | None:
    """Return the commit in the path of a folder or file in the Hub's cache; None for other paths."""
    parts = path.parts if path is not None else ()
    for models, snapshots, name in zip(parts, parts[1:], parts[2:], strict=False):
        if models.startswith(("models--", "datasets--")) and snapshots == "snapshots":
            return name if _COMMIT.fullmatch(name) else None
    return None


def sha256(file: Path) -> str | None:
    """Return the SHA-256 of a large file in the Hub's cache, from its blob's name; None for other files."""
    try:
        blob = file.readlink()
    except (OSError, ValueError):
        return None
    return blob.name if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name) else None


def _from_hub(repository: str, revision: str | None, beside: Path | None, weights: bool) -> Path:
    from huggingface_hub import constants, list_repo_files, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name = f"{repository}@{revision}" if revision else repository

    def fetch(patterns: list[str]) -> Path:
        folder = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=patterns,
            local_files_only=constants.HF_HUB_OFFLINE,
        )
        return Path(folder)

    try:
        if not weights:
            return fetch(_SMALL)
        folder = fetch(_WANTED)
        modules = [_OF_MODULES] if (folder / "modules.json").is_file() else []
        if any(folder.glob("*.safetensors")):
            return fetch([*_WANTED, *modules]) if modules else folder
        folder = fetch([*_WITHOUT_SAFETENSORS, *modules])
        if any(folder.glob("*.bin")):
            return folder
        files = [file.relative_to(folder).as_posix() for file in folder.rglob("*.gguf")]
        if not constants.HF_HUB_OFFLINE:
            with suppress(Exception):  # without a network, choose from the cached files
                files = list_repo_files(repository, revision=revision)
        parts = chosen_gguf(files, name)
        return fetch([*_SMALL, *parts]) / parts[0] if parts else folder
    except LocalEntryNotFoundError:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
        raise InputError(
            f"{name}: no such folder{_hint(repository, beside)}, and not in the Hub's cache either "
            f"({why}); fetch it with: hf download {repository}"
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{name}: no such folder{_hint(repository, beside)}, nor is it on the Hub ({reason})"
        ) from None


def chosen_gguf(files: Iterable[str], name: str) -> list[str]:
    """Choose the GGUF model of a repository: the only one, or the most precise by its name.

    The order is F32, BF16, F16, Q8_0, Q6_K and so on.

    Args:
        files: paths of all files in the repository.
        name: the repository's name in messages.

    Returns:
        The model's files in order; empty if the repository has no GGUF model.

    Raises:
        InputError: when several models are equally precise by their names.
    """
    models: dict[str, list[str]] = {}
    for file in sorted(files):
        path = PurePosixPath(file)
        helper = path.name.startswith("mmproj") or "imatrix" in path.name
        if path.suffix == ".gguf" and not helper:
            models.setdefault(_PART.sub("", str(path.with_suffix(""))), []).append(file)
    ranks = {model: _rank(model) for model in models}
    best = [model for model in models if ranks[model] == min(ranks.values())]
    if len(best) > 1:
        examples = ", ".join(models[model][0] for model in best[:3])
        more = " …" if len(best) > 3 else ""
        raise InputError(
            f"{name}: has several GGUF models ({examples}{more}); fetch one with: hf download "
            f"{name.partition('@')[0]} {models[best[0]][0]}, and name the downloaded file"
        )
    return models[best[0]] if best else []


def _rank(model: str) -> int:
    """Rank a model by the type in its name, 0 the most precise; unknown types come last."""
    words = re.split(r"[^0-9A-Z_]", PurePosixPath(model).name.upper())
    known = (rank for rank, kind in enumerate(_PRECISE) for w in words if w == kind)
    mixed = (rank for rank, kind in enumerate(_PRECISE) for w in words if w[:-2] == kind)
    return min((*known, *mixed), default=len(_PRECISE))
