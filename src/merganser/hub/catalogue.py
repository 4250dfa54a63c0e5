"""List models: those in the Hub's cache, and those that a search of the Hub returns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from merganser.errors import InputError, MerganserError
from merganser.hub.models import is_hub_id

MOST_RESULTS = 30
"""Models that a search returns at most, the most downloaded first."""

_PREFIX = "models--"


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model on the Hub or in its cache.

    Attributes:
        name: ``org/name``.
        cached: whether the cache has all that a merge needs of it.
        adapter: whether it is an adapter; None if unknown.
        size: bytes of the cached files; None if it is not cached.
        parameters: number of parameters; None if unknown.
        downloads: downloads of the last month; None if unknown.
        gated: whether its authors ask for consent before a download.
    """

    name: str
    cached: bool
    adapter: bool | None = None
    size: int | None = None
    parameters: int | None = None
    downloads: int | None = None
    gated: bool = False


def cache_folder() -> Path:
    """Return the folder of the Hub's cache, which need not exist."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached_folder(repository: str, revision: str | None = None) -> Path | None:
    """Return the folder of a repository's files in the Hub's cache; None if it is not there.

    Args:
        repository: ``org/name``.
        revision: branch, tag or commit; None for the main branch.
    """
    if not is_hub_id(repository):
        return None
    home = cache_folder() / (_PREFIX + repository.replace("/", "--"))
    wanted = revision or "main"
    if not all(part.strip(".") for part in wanted.split("/")):
        return None
    commit = wanted
    with suppress(OSError, UnicodeDecodeError):
        commit = (home / "refs" / wanted).read_text(encoding="utf-8").strip()
    folder = home / "snapshots" / commit
    return folder if "/" not in commit and folder.is_dir() else None


def cached_models() -> list[HubModel]:
    """Return the models and adapters in the Hub's cache that are complete, sorted by name."""
    return sorted(_cached(), key=lambda model: model.name.lower())


def _cached() -> Iterator[HubModel]:
    try:
        homes = sorted(cache_folder().glob(f"{_PREFIX}*"))
    except OSError:
        return
    for home in homes:
        name = home.name.removeprefix(_PREFIX).replace("--", "/")
        folder = cached_folder(name)
        if folder is None:
            continue
        with suppress(OSError, ValueError):
            adapter = (folder / "adapter_config.json").is_file()
            if _is_complete(folder, "adapter_model" if adapter else ""):
                size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
                yield HubModel(name, True, adapter, size)


def _is_complete(folder: Path, stem: str) -> bool:
    """Whether a folder has a config and weights, with all files that an index names."""
    if not stem and not (folder / "config.json").is_file():
        return any(folder.glob("*.gguf"))
    indices = [file for file in folder.glob("*.index.json") if file.is_file()]
    shards = {
        str(shard)
        for index in indices
        for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    }
    if shards:
        return all((folder / shard).is_file() for shard in shards)
    return any(
        file.is_file()
        for pattern in (f"{stem}*.safetensors", f"{stem}*.bin", "*.gguf")
        for file in folder.glob(pattern)
    )


def search_models(text: str) -> list[HubModel]:
    """Search the Hub for models whose names contain a text.

    Args:
        text: the text.

    Returns:
        At most :data:`MOST_RESULTS` models, the most downloaded first.

    Raises:
        InputError: the text is empty.
        MerganserError: the Hub cannot be reached, or ``HF_HUB_OFFLINE`` is set.
    """
    from huggingface_hub import HfApi, constants

    if not text.strip():
        raise InputError("give a part of the model's name to search the Hub for")
    if constants.HF_HUB_OFFLINE:
        raise MerganserError("the Hub is not searched: HF_HUB_OFFLINE is set")
    cached = {model.name for model in _cached()}
    try:
        listed = list(
            HfApi(library_name="merganser").list_models(
                search=text.strip(),
                sort="downloads",
                limit=MOST_RESULTS,
                expand=["downloads", "gated", "safetensors", "library_name"],
            )
        )
    except Exception as error:
        if not (isinstance(error, OSError | RuntimeError) or "http" in type(error).__module__):
            raise
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise MerganserError(
            f"{constants.ENDPOINT} cannot be reached, or gave no answer ({reason})"
        ) from None
    return [
        HubModel(
            model.id,
            model.id in cached,
            {"peft": True, None: None}.get(model.library_name, False),
            parameters=model.safetensors.total if model.safetensors else None,
            downloads=model.downloads,
            gated=bool(model.gated),
        )
        for model in listed
    ]


def list_models(text: str | None = None) -> list[HubModel]:
    """List models that can be merged: those in the Hub's cache, or those that a search of the Hub returns.

    Args:
        text: a part of the names to search the Hub for; None to list the cache, without a network.

    Raises:
        MerganserError: the Hub cannot be reached, or ``HF_HUB_OFFLINE`` is set.
    """
    return cached_models() if text is None else search_models(text)
