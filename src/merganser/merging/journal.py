"""The journal of an unfinished merge: its identity and its finished files.

The journal has lines of JSON. The first identifies the merge. Each further line names a file
that is on the disk, with the engine's results for its tensors. A resumed merge takes both from
here, so its report equals that of an uninterrupted merge.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merganser import system
from merganser.engine import TensorOutcome
from merganser.errors import ResourceError
from merganser.merging.recorded_outcomes import are_stored, entry_of, outcome_of
from merganser.planning import Plan
from merganser.version import VERSION


def identity(plan: Plan) -> dict[str, Any]:
    """Return what must be equal to resume a merge: version, inputs, and plan."""
    return {
        "merganser": VERSION,
        "inputs": [
            [
                source.reference.text,
                source.checkpoint.header_digest,
                [[file.name, s.size, s.mtime_ns] for file, s in source.checkpoint.stamps.items()],
            ]
            for source in plan.sources
        ],
        "method": plan.method.origin.digest if plan.method.origin else None,
        "plan": plan.digest,
    }


def difference(stated: Mapping[str, Any], plan: Plan) -> str | None:
    """Return the difference between a journal's merge and a plan, as the end of a sentence; None if equal."""
    wanted = json.loads(json.dumps(identity(plan)))
    if stated.get("merganser") != wanted["merganser"]:
        return f"this is another version of Merganser ({stated.get('merganser')} began it)"
    before, now = stated.get("inputs") or [], wanted["inputs"]
    if [entry[0] for entry in before] == [entry[0] for entry in now]:
        for old, new in zip(before, now, strict=True):
            if old != new:
                return f"the input {new[0]} changed"
    if stated.get("method") != wanted["method"]:
        return f"the code of the method {plan.method.name} changed"
    return None if stated.get("plan") == wanted["plan"] else "the recipe or its options changed"


class Journal:
    """A journal file and its content.

    Attributes:
        stated: the first line; None if it is missing or incomplete.
        finished: the finished files, with the results for their tensors.
    """

    def __init__(self, file: Path) -> None:
        """Read the journal; an incomplete last line is ignored.

        Raises:
            ResourceError: when it exists and cannot be read.
        """
        self.file = file
        self.stated: dict[str, Any] | None = None
        self.finished: dict[str, dict[str, dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._descriptor = -1
        self._pending: dict[str, set[str]] = {}
        self._homes: dict[str, str] = {}
        self._tensors: dict[str, dict[str, Any]] = {}
        self._size = 0
        try:
            data = file.read_bytes() if file.is_file() else b""
        except OSError as error:
            raise ResourceError(f"{file}: cannot be read ({error.strerror})") from None
        for line in data.splitlines(keepends=True):
            entry = _parsed(line)
            if entry is None:
                break
            if self.stated is None:
                self.stated = entry
            else:
                self.finished[entry["file"]] = entry["tensors"]
            self._size += len(line)

    def verify_finished(
        self, plan: Plan, folder: Path, digest_inputs: bool
    ) -> dict[str, TensorOutcome]:
        """Verify the finished files; those that do not match are dropped.

        Args:
            plan: the journal's merge.
            folder: the folder of the files.
            digest_inputs: whether inputs' digests are required too.

        Returns:
            The results for their tensors, by name.
        """
        specs = {job.name: job.spec for job in plan.jobs}
        known: dict[str, TensorOutcome] = {}
        complete = {}
        for shard in plan.shards:
            if shard.file in self.finished:
                tensors = self.finished[shard.file]
                if digest_inputs and not all(outcome["inputs"] for outcome in tensors.values()):
                    continue
                if set(tensors) == set(shard.offsets) and are_stored(
                    folder / shard.file, shard, tensors, specs
                ):
                    complete[shard.file] = tensors
                    known |= {
                        name: outcome_of(name, specs[name], tensors[name]) for name in tensors
                    }
        self.finished = complete
        return known

    def begin(self, plan: Plan) -> None:
        """Rewrite the journal with the finished files, and open it for appending.

        Raises:
            ResourceError: when it cannot be written.
        """
        for shard in plan.shards:
            if shard.file not in self.finished:
                # The entry under a name that no tensor has represents the file, which must be synced too.
                self._pending[shard.file] = {*shard.offsets, "\0"}
                self._homes |= dict.fromkeys(shard.offsets, shard.file)
        self.stated = identity(plan)
        lines = [self.stated, *({"file": f, "tensors": t} for f, t in self.finished.items())]
        fresh = self.file.with_suffix(".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | system.OPEN_FLAGS
        try:
            self._descriptor = os.open(fresh, flags, 0o666)
            for line in lines:
                self._write(line)  # the first finished file syncs it
            fresh.replace(self.file)  # on Windows, too, this replaces an existing file
        except OSError as error:
            raise self._cannot(error) from None

    def note_tensor(self, outcome: TensorOutcome) -> None:
        """Record a finished tensor's outcome."""
        with self._lock:
            self._tensors[outcome.name] = entry_of(outcome)
            self._note(self._homes[outcome.name], outcome.name)

    def note_file(self, name: str) -> None:
        """Record that a file is complete and synced."""
        with self._lock:
            self._note(name, "\0")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def _note(self, file: str, what: str) -> None:
        """Write a file's line once the file and its tensors are finished. The caller holds the
        lock."""
        waiting = self._pending[file]
        waiting.discard(what)
        if waiting or self._descriptor < 0:
            return
        names = [name for name, home in self._homes.items() if home == file]
        tensors = {name: self._tensors.pop(name) for name in names}
        try:
            self._write({"file": file, "tensors": tensors})
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._cannot(error) from None
        self.finished[file] = tensors

    def _write(self, entry: Mapping[str, Any]) -> None:
        line = memoryview(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        while line:
            line = line[os.write(self._descriptor, line) :]

    def _cannot(self, error: OSError) -> ResourceError:
        return ResourceError(f"{self.file}: cannot be written ({error.strerror})")


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return a line's entry; None if the line is incomplete."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def files_of(complete: Sequence[str], plan: Plan) -> int:
    """Return the size in bytes of a plan's finished files."""
    return sum(shard.size for shard in plan.shards if shard.file in complete)
