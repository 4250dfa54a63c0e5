"""Models on the Hugging Face Hub: download and publish. Only this module uses the network."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from merganser import suggestions
from merganser.errors import InputError, MerganserError, RecipeError
from merganser.recipe import exists

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

_COMMIT = re.compile(r"[0-9a-f]{40}")

_SHA256 = re.compile(r"[0-9a-f]{64}")

_SMALL = [
    *("*.json", "*.jinja", "*.model", "*.py", "merges.txt", "vocab.txt", "README.md"),
    "mergekit_config.yml",
]
"""Everything except weights: configs, tokenizers, code (copied, never run), the card with its licence,
and the recipe of a merge."""

_WANTED = [*_SMALL, "*.safetensors"]

_WITHOUT_SAFETENSORS = [*_WANTED, "pytorch_model*.bin", "adapter_model.bin"]

_OF_MODULES = "*/pytorch_model.bin"
"""Weights of sentence-transformers modules, which often have no safetensors file."""

_PRECISE = ("F32", "BF16", "F16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0")
"""GGUF's types as they occur in file names, the most precise first."""

_PART = re.compile(r"-\d{5}-of-\d{5}$")


def is_hub_id(path: str) -> bool:
    """Whether a path that does not exist locally has the form of a Hub id, ``org/name``."""
    return _HUB_ID.fullmatch(path) is not None and not path.startswith(".") and ".." not in path


def resolve(
    path: str, revision: str | None = None, beside: Path | None = None, *, weights: bool = True
) -> Path:
    """Return the local folder of a model, downloading it from the Hub if needed.

    For a repository that has only GGUF files, return the file that is most precise by its name.
    Nothing is downloaded while ``HF_HUB_OFFLINE`` is set.

    Args:
        path: folder or Hub id.
        revision: branch, tag or commit on the Hub.
        beside: the recipe's folder; relative paths are tried from the current folder, then from it.
        weights: whether to download weights, or only config and tokenizer.

    Raises:
        InputError: when the model does not exist, or the Hub does not answer.
    """
    local = local_folder(path, beside)
    if local is not None:
        return local
    if not is_hub_id(path):
        tried = f" (nor in {beside})" if beside is not None and not Path(path).is_absolute() else ""
        raise InputError(f"{path}: no such folder{tried}{_hint(path, beside)}")
    return _from_hub(path, revision, beside, weights)


def _hint(path: str, beside: Path | None) -> str:
    """Suggest an existing path that differs from ``path`` by a slip in one name; else an empty text."""
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
    """Return the path as it exists from the current folder, or from the recipe's; None if it does not."""
    if exists(path):
        return Path(path).expanduser()
    if beside is not None and exists(str(beside / path)):
        return beside / path
    return None


def commit(path: Path | None) -> str | None:
    """Return the commit of a folder or file in the Hub's cache, read off its path; None elsewhere."""
    parts = path.parts if path is not None else ()
    for models, snapshots, name in zip(parts, parts[1:], parts[2:], strict=False):
        if models.startswith("models--") and snapshots == "snapshots":
            return name if _COMMIT.fullmatch(name) else None
    return None


def sha256(file: Path) -> str | None:
    """Return the SHA-256 of a large file in the Hub's cache, read off its blob's name; None elsewhere."""
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
            with suppress(Exception):  # without a network, the cached files are the choice
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
            f"{name}: no such folder{_hint(repository, beside)}, and the Hub says: {reason}"
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


# -- publishing ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository on the Hub.

    Attributes:
        private: whether only its owners see it.
        files: paths of its files.
    """

    private: bool
    files: frozenset[str]


def check_name(repository: str) -> None:
    """Check that a text is a valid repository name, ``org/name``, without asking the Hub.

    Raises:
        RecipeError: when it is not.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repository)
        good = repository.count("/") == 1
    except HFValidationError as error:
        raise RecipeError(f"{repository}: {_first_sentence(error)}") from None
    if not good:
        raise RecipeError(f"{repository}: a repository's name has the form org/name")


def account() -> str:
    """Return the name of the account that the token belongs to.

    Raises:
        MerganserError: when there is no valid token, or the Hub does not answer.
    """
    with _explained("whoami"):
        return str(_api().whoami()["name"])


def look(repository: str, revision: str | None = None) -> Repository | None:
    """Return a repository's files; None if this account sees no such repository.

    Raises:
        MerganserError: when the Hub does not answer.
    """
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    with _explained(repository):
        try:
            info = _api().model_info(repository)
        except RepositoryNotFoundError as error:
            if error.response.status_code == 401:
                raise
            return None
        files = info.siblings
        if revision is not None:
            try:
                files = _api().model_info(repository, revision=revision).siblings
            except RevisionNotFoundError:
                files = []
    return Repository(bool(info.private), frozenset(file.rfilename for file in files or ()))


def send(
    repository: str,
    files: Mapping[str, Path | bytes],
    *,
    private: bool,
    message: str,
    revision: str | None = None,
    remove: Sequence[str] = (),
    progress: bool = False,
) -> str:
    """Commit files to a repository: all of them, or none.

    Files that the Hub already has are not sent again, so an interrupted push continues when it is
    repeated.

    Args:
        repository: its name; created if it does not exist.
        files: contents or local files by their paths in the repository.
        private: whether a new repository is private; an existing one keeps its visibility.
        message: the commit message.
        revision: the branch; created if it does not exist.
        remove: paths to delete.
        progress: whether huggingface_hub draws progress bars on stderr.

    Returns:
        The URL of the commit.

    Raises:
        MerganserError: in one line, with what to do.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    with _explained(repository), _bars(progress):
        api = _api()
        api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        additions = [
            CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
            for path, content in files.items()
        ]
        deletions = [CommitOperationDelete(path) for path in remove]
        done = api.create_commit(
            repository, [*additions, *deletions], commit_message=message, revision=revision
        )
    return str(done.commit_url)


def collect(title: str, namespace: str, repositories: Sequence[str], *, private: bool) -> str:
    """Add repositories to the collection with this title, which is created if it does not exist.

    Returns:
        The URL of the collection.

    Raises:
        MerganserError: in one line, with what to do.
    """
    with _explained(f"the collection {title!r}"):
        api = _api()
        same = [c for c in api.list_collections(owner=namespace) if c.title == title]
        collection = same[0] if same else None
        if collection is None:
            collection = api.create_collection(
                title, namespace=namespace, private=private, exists_ok=True
            )
        for name in repositories:
            api.add_collection_item(collection.slug, name, "model", exists_ok=True)
    return str(collection.url)


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    library: Any = importlib.import_module("huggingface_hub.utils")
    hidden = library.are_progress_bars_disabled()
    if not shown:
        library.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            library.enable_progress_bars()


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="merganser")


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Re-raise errors of huggingface_hub as one line that says what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    again = "run the same command again: nothing is sent twice"
    try:
        yield
    except MerganserError:
        raise
    except LocalTokenNotFoundError:
        raise MerganserError(
            "there is no token for the Hub; make one that may write at "
            f"{constants.ENDPOINT}/settings/tokens, then: hf auth login (or set HF_TOKEN)"
        ) from None
    except OfflineModeIsEnabled:
        raise MerganserError(f"{what}: HF_HUB_OFFLINE is set; unset it to push") from None
    except Exception as error:
        cause = _http_error(error)
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            todo = {
                401: "the Hub does not know this token; log in with: hf auth login",
                403: "this account or its token may not write there; use a token with write access "
                "to it, or another name",
                404: "the Hub has no such place for this account; check the name and the token",
                409: "the Hub says that it changed meanwhile; run the same command again",
                429: "the Hub asks to wait; try again later",
            }.get(status, again)
            answer = _first_sentence(cause.server_message or cause)
            raise MerganserError(f"{what}: {todo} ({status}: {answer})") from None
        if isinstance(error, ValueError):
            raise MerganserError(f"{what}: {_first_sentence(error)}") from None
        if isinstance(error, Warning) or not (
            isinstance(error, RuntimeError | OSError) or "http" in type(error).__module__
        ):
            raise
        raise MerganserError(
            f"{what}: {constants.ENDPOINT} cannot be reached, or broke off "
            f"({_first_sentence(cause)}); {again}"
        ) from None


def _http_error(error: BaseException) -> BaseException:
    """Return the HTTP error that a RuntimeError wraps; else the error itself."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_sentence(error: object) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


# -- scores --------------------------------------------------------------------------------------


def model_index(name: str, results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return scores in the form of a model card's metadata.

    Args:
        name: the model's name.
        results: keywords of ``huggingface_hub.EvalResult``, one mapping per score.
    """
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    index: list[dict[str, Any]] = eval_results_to_model_index(
        name, [EvalResult(**result) for result in results]
    )
    return index


def benchmark_results(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return scores on the Hub's data sets in the form of a model's ``.eval_results`` files.

    Args:
        results: keywords of ``huggingface_hub.EvalResultEntry``, one mapping per score.

    Raises:
        MerganserError: when the library is too old for that.
    """
    try:
        from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    except ImportError:
        raise MerganserError(
            ".eval_results needs a newer library: pip install -U huggingface_hub"
        ) from None
    entries: list[dict[str, Any]] = eval_result_entries_to_yaml(
        [EvalResultEntry(**result) for result in results]
    )
    return entries
