"""From a model's name to a local folder: the only room that may use the network."""

from __future__ import annotations

import re
from pathlib import Path

from merganser.errors import InputError
from merganser.recipe import exists

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

_SMALL = ["*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt"]

_WANTED = [*_SMALL, "*.safetensors"]

_WITHOUT_SAFETENSORS = [*_WANTED, "pytorch_model*.bin", "adapter_model.bin"]


def is_hub_id(path: str) -> bool:
    """Whether a reference that is no local folder has the form of a Hub id, ``org/name``."""
    return _HUB_ID.fullmatch(path) is not None and not path.startswith(".") and ".." not in path


def resolve(
    path: str, revision: str | None = None, beside: Path | None = None, *, weights: bool = True
) -> Path:
    """Find the local folder of a model: a folder, one beside the recipe, or the Hub's cache.

    What is not in the cache is downloaded, unless ``HF_HUB_OFFLINE`` is set.

    Args:
        path: folder or Hub id.
        revision: branch, tag or commit on the Hub.
        beside: the recipe's folder, tried when the path does not exist from the current one.
        weights: whether the weights are needed, and not only config and tokenizer.

    Raises:
        InputError: when it is nowhere, or the Hub does not answer.
    """
    local = local_folder(path, beside)
    if local is not None:
        return local
    if not is_hub_id(path):
        tried = f" (nor in {beside})" if beside is not None and not Path(path).is_absolute() else ""
        raise InputError(f"{path}: no such folder{tried}")
    return _from_hub(path, revision, weights)


def local_folder(path: str, beside: Path | None = None) -> Path | None:
    """The folder or file of that path, from the current folder or beside the recipe; None if there is none."""
    if exists(path):
        return Path(path).expanduser()
    if beside is not None and exists(str(beside / path)):
        return beside / path
    return None


def _from_hub(repository: str, revision: str | None, weights: bool) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name = f"{repository}@{revision}" if revision else repository

    def fetch(patterns: list[str]) -> Path:
        found = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=patterns,
            local_files_only=constants.HF_HUB_OFFLINE,
        )
        return Path(found)

    try:  # what is in the cache needs no network, and is what was used the last time
        if not weights:
            return fetch(_SMALL)
        folder = fetch(_WANTED)
        return folder if any(folder.glob("*.safetensors")) else fetch(_WITHOUT_SAFETENSORS)
    except LocalEntryNotFoundError:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
        raise InputError(
            f"{name}: no such folder, and not in the Hub's cache either ({why}); "
            f"fetch it with: hf download {repository}"
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{name}: no such folder, and the Hub says: {reason}") from None
