"""Data sets on the Hub: their parquet files, downloaded into the Hub's cache."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from merganser import suggestions
from merganser.errors import InputError
from merganser.hub import models

CONVERTED = "refs/convert/parquet"
"""The branch with the Hub's conversion of a data set, in files ``CONFIG/SPLIT/0000.parquet``."""

_SHARD = re.compile(r"-\d{5}-of-\d{5}(-[0-9a-f]{8,})?$")


@dataclass(frozen=True, slots=True)
class HubFiles:
    """The parquet files of one split of a data set.

    Attributes:
        files: paths of the local files, in the order of their rows.
        config: the configuration's name.
        split: the split's name.
        commit: the commit of the data set that contains the files.
    """

    files: tuple[Path, ...]
    config: str
    split: str
    commit: str


def find_parquet(
    repository: str,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
) -> HubFiles:
    """Return the parquet files of one split, downloading them if needed.

    Without a revision, the files are those of the Hub's parquet conversion; if there is none, of the main
    branch. Files in the Hub's cache are not downloaded again. If ``HF_HUB_OFFLINE`` is set or the Hub
    cannot be reached, only the cache is searched.

    Args:
        repository: ``org/name``.
        config: the configuration; None if there is only one, or for the one called ``default``.
        split: the split; None if there is only one.
        revision: branch, tag or commit.

    Raises:
        InputError: when the data set, configuration or split does not exist; the message lists those
            that exist.
    """
    name = f"hub://{repository}" + (f"@{revision}" if revision else "")
    reached = False
    for branch in [revision] if revision else [CONVERTED, "main"]:
        listed = _listed(repository, branch, name)
        reached = reached or listed is not None
        cached = _cached(repository, branch) if listed is None else ()
        tables = _tables(listed or cached)
        if not tables:
            continue
        where = "" if listed else " in the Hub's cache"
        config = _chosen("config", config, [c for c, _ in tables], name, where)
        splits = [split for c, split in tables if c == config]
        split = _chosen("split", split, splits, f"{name}, config {config}", where)
        return _fetch(repository, branch, tables[config, split], config, split, name, not listed)
    if reached:
        raise InputError(f"{name}: has no parquet files, and the Hub has not converted it")
    raise InputError(
        f"{name}: not in the Hub's cache ({_why_not()}); fetch it once with a network, by the same command"
    )


def _why_not() -> str:
    from huggingface_hub import constants

    return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"


def _listed(repository: str, branch: str, name: str) -> list[str] | None:
    """The Hub's list of the files of a branch, empty if there is no such branch; None without an answer."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        info = HfApi(library_name="merganser").dataset_info(repository, revision=branch)
    except RevisionNotFoundError:
        if branch in (CONVERTED, "main"):
            return []
        raise InputError(f"{name}: the data set has no revision {branch!r}") from None
    except RepositoryNotFoundError:
        if _cached(repository, branch):
            return None
        raise InputError(
            f"{name}: the Hub has no such data set for this account; check the name, and log in with "
            "hf auth login if it is private or gated"
        ) from None
    except HFValidationError as error:
        raise InputError(f"{name}: {_first_line(error)}") from None
    except Exception as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            raise InputError(f"{name}: the Hub says: {_first_line(error)}") from None
        if isinstance(error, OSError) or "http" in type(error).__module__:
            return None
        raise
    return [file.rfilename for file in info.siblings or ()]


def _cached(repository: str, branch: str) -> list[str]:
    """Parquet files of a branch in the Hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                repository,
                repo_type="dataset",
                revision=branch,
                allow_patterns=[],
                local_files_only=True,
            )
        )
    except LocalEntryNotFoundError:
        return []
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.parquet"))


def _tables(files: Sequence[str]) -> Mapping[tuple[str, str], list[str]]:
    """Group parquet files by configuration and split, according to their paths.

    The Hub's conversion writes ``CONFIG/SPLIT/0000.parquet``. Authors write ``data/SPLIT-…``,
    ``SPLIT-…`` or ``CONFIG/SPLIT-…``, where ``…`` is ``00000-of-00001`` or nothing.
    """
    tables: dict[tuple[str, str], list[str]] = {}
    for file in sorted(files):
        path = PurePosixPath(file)
        if path.suffix != ".parquet":
            continue
        folders = path.parts[:-1]
        if path.stem.isdigit() and len(folders) >= 2:
            table = ("/".join(folders[:-1]), folders[-1])
        else:
            config = "/".join(folder for folder in folders if folder != "data")
            table = (config or "default", _SHARD.sub("", path.stem))
        tables.setdefault(table, []).append(file)
    return tables


def _chosen(kind: str, wanted: str | None, names: Sequence[str], name: str, where: str) -> str:
    """The wanted configuration or split, or the only or default one."""
    there = list(dict.fromkeys(names))
    if wanted is None and (len(there) == 1 or (kind == "config" and "default" in there)):
        return there[0] if len(there) == 1 else "default"
    if wanted in there:
        return str(wanted)
    if wanted is None:
        raise InputError(f"{name}: has several {kind}s{where}; choose one of {', '.join(there)}")
    slip = suggestions.nearest(wanted, there)
    hint = f"; did you mean {slip!r}?" if slip else ""
    raise InputError(
        f"{name}: there is no {kind} {wanted!r}{where}; there are {', '.join(there)}{hint}"
    )


def _fetch(
    repository: str,
    branch: str,
    files: Sequence[str],
    config: str,
    split: str,
    name: str,
    offline: bool,
) -> HubFiles:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                repository,
                repo_type="dataset",
                revision=branch,
                allow_patterns=sorted(set(map(_pattern, files))),
                local_files_only=offline,
            )
        )
    except LocalEntryNotFoundError:
        raise InputError(
            f"{name}: the Hub's cache has only a part of split {split} ({_why_not()}); fetch it once "
            "with a network, by the same command"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: cannot be downloaded ({_first_line(error)})") from None
    paths = tuple(folder / file for file in files)
    return HubFiles(paths, config, split, models.commit(folder) or folder.name)


def _pattern(file: str) -> str:
    """The glob pattern of all files of a split, with which a missing file is detected."""
    path = PurePosixPath(file)
    stem = "*" if path.stem.isdigit() else _SHARD.sub("-[0-9]*-of-*", glob.escape(path.stem))
    return str(PurePosixPath(glob.escape(str(path.parent))) / f"{stem}.parquet")


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
