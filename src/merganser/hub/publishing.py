"""Publishing on the Hub: repositories, commits, collections, and scores in their metadata."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merganser.errors import MerganserError, RecipeError


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository on the Hub.

    Attributes:
        private: whether the repository is private.
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

    Files that the Hub already has are not uploaded again, so a repeated push continues an interrupted one.

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
            "there is no token for the Hub; create one with write access at "
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
            f"{what}: {constants.ENDPOINT} cannot be reached, or ended the connection "
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
    """Return scores as the ``model-index`` of a model card's metadata.

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
