"""The history of a search, appended line by line, so that an interrupted search resumes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from merganser import system
from merganser.errors import InputError, OutputExistsError, ResourceError

NAME = "history.jsonl"
FORMAT = 1

INPUTS = "inputs"
"""Key of a history's settings: the content digest of each merged model, by name."""


class History:
    """A file of JSON lines: the search's settings, then one line for each candidate, in order.

    Every line is on the disk before the next candidate begins. An incomplete last line is dropped.
    Only one process can open the file at a time.

    Args:
        folder: contains :data:`NAME`; created if missing.
        settings: everything that determines the candidates and their scores, as plain data; a file with
            other settings is refused.
        read_only: only read an existing file; other processes may have it open.

    Attributes:
        lines: the candidates' lines, as plain data.

    Raises:
        OutputExistsError: the file belongs to a search with other settings, or another process has it open.
        InputError: the file is not a history.
        ResourceError: the file cannot be written.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], *, read_only: bool = False
    ) -> None:
        self.path = folder / NAME
        head = {"format": FORMAT, "digest": digest(settings), "settings": settings}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mode = "rb" if read_only else "a+b"
            self._file = open(self.path, mode)  # noqa: PTH123, SIM115 (closed by close)
        except OSError as error:
            raise ResourceError(f"{self.path}: cannot be written ({error.strerror})") from None
        try:
            try:
                if not read_only:
                    system.lock(self._file.fileno())
            except BlockingIOError:
                raise OutputExistsError(f"{folder}: another search is running there") from None
            except OSError as error:
                if error.errno not in system.NO_LOCKS:  # no locks: cannot detect others
                    raise
            self._file.seek(0)
            complete, _, torn = self._file.read().rpartition(b"\n")
            if torn and not read_only:
                self._file.truncate(len(complete) + 1 if complete else 0)
            entries = _read(self.path, complete)
            if entries:
                self._compare(entries[0], head)
            else:
                self._write(head)
        except BaseException:
            self.close()
            raise
        self.lines = entries[1:]

    def append(self, line: Mapping[str, Any]) -> None:
        """Append a candidate's line, and sync it to the disk."""
        self._write(line)
        self.lines.append(dict(line))

    def close(self) -> None:
        """Close the file, so that other processes can open it."""
        with suppress(OSError):  # the failed write has already raised an error
            self._file.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        text = json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            self._file.write(text.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise ResourceError(f"{self.path}: cannot be written ({error.strerror})") from None

    def _compare(self, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        if there.get("format") != FORMAT or not isinstance(there.get("settings"), dict):
            raise InputError(f"{self.path}: is not a search history of this version of Merganser")
        if there.get("digest") != wanted["digest"]:
            changed = differing(there["settings"], json.loads(json.dumps(wanted["settings"])))
            what = "belongs to another search, which differs in "
            what += ", ".join(changed[:3]) or "settings"
            if changed and all(key.startswith(f"{INPUTS}.") for key in changed):
                model = changed[0].removeprefix(f"{INPUTS}.")
                what = f"the scores in it are of other weights: the model {model} changed"
            raise OutputExistsError(f"{self.path}: {what}; choose another OUT, or remove it")


def digest(settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 of settings as JSON."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def differing(one: Any, other: Any, name: str = "") -> list[str]:
    """Return the names of the keys in which two plain data differ, such as ``search.seed``."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = dict.fromkeys([*one, *other])
        parts = [
            differing(one.get(k), other.get(k), f"{name}.{k}" if name else str(k)) for k in keys
        ]
        return [key for part in parts for key in part]
    return [] if one == other else [name]


def _read(path: Path, text: bytes) -> list[dict[str, Any]]:
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict):
            raise InputError(f"{path}:{number}: is not a line of a search history")
        entries.append(entry)
    return entries
