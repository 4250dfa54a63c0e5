"""The file that describes a merge to its workers, and by which they check that they see the same inputs."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from merganser import hub, methods
from merganser.errors import InputError, RecipeError
from merganser.merging.options import WriteOptions
from merganser.planning import Plan, describe
from merganser.planning.plan_loading import load_plan
from merganser.planning.units import Unit
from merganser.version import VERSION
from merganser.workers.claims import write_json

NAME = "merge.json"
FORMAT = 1

Stated = tuple[int, int, str | None]
"""A file's size, its time in nanoseconds, and its SHA-256 if the Hub's cache knows it."""


@dataclass(frozen=True, slots=True)
class MergeJob:
    """The description of a merge for its workers.

    Attributes:
        plan: the plan, as :func:`merganser.planning.describe` returns it.
        units: the parts of the output files.
        files: the weight files of the inputs.
        methods: files of the user's merge methods, as absolute paths.
        digest_inputs: whether to compute digests of the inputs.
        memory: memory limit of each process in bytes; None for no limit.
        host: the machine of the process that began the merge.
    """

    plan: Mapping[str, Any]
    units: tuple[Unit, ...]
    files: Mapping[str, Stated]
    methods: tuple[str, ...]
    digest_inputs: bool
    memory: int | None
    host: str

    @classmethod
    def of(cls, plan: Plan, units: Sequence[Unit], options: WriteOptions) -> MergeJob:
        """Describe a merge.

        Raises:
            RecipeError: other processes cannot read one of its inputs.
        """
        described = describe(plan)
        for entry in described["locators"]:
            if entry["kind"] == "given":
                raise RecipeError(
                    f"{entry['name']}: is a checkpoint in memory, which other processes do not see; "
                    "merge without workers"
                )
        stamps = {
            file: s for source in plan.sources for file, s in source.checkpoint.stamps.items()
        }
        return cls(
            described,
            tuple(units),
            {str(f.absolute()): (s.size, s.mtime_ns, hub.sha256(f)) for f, s in stamps.items()},
            tuple(str(file) for file in methods.loaded_files()),
            options.digest_inputs,
            options.memory,
            platform.node(),
        )

    @property
    def digest(self) -> str:
        """Digest of what the units' bytes and results depend on."""
        units = [asdict(unit) for unit in self.units]
        facts = [VERSION, self.plan["digest"], units, self.digest_inputs]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write the file into the shared folder.

        Raises:
            OSError: it cannot be written.
        """
        record = {
            "format": FORMAT,
            "merganser": VERSION,
            "digest": self.digest,
            "plan": dict(self.plan),
            "units": [asdict(unit) for unit in self.units],
            "files": {file: list(stated) for file, stated in self.files.items()},
            "methods": list(self.methods),
            "digest_inputs": self.digest_inputs,
            "memory": self.memory,
            "host": self.host,
        }
        write_json(folder / NAME, record)

    def check_inputs(self) -> None:
        """Check that this machine sees the inputs that the merge was planned with.

        Times do not count for files of the Hub's cache with the same SHA-256.

        Raises:
            InputError: it does not; the message names the file.
        """
        host = platform.node()
        for file, (size, mtime_ns, sha256) in self.files.items():
            try:
                status = os.stat(file)  # noqa: PTH116  # some 100 files of a text
            except OSError as error:
                reason = "" if isinstance(error, FileNotFoundError) else f" ({error.strerror})"
                raise InputError(
                    f"{host} does not see {file}{reason}, which {self.host} merges; every worker needs the "
                    "inputs under the same path"
                ) from None
            known = hub.sha256(Path(file))
            same = known == sha256 if sha256 and known else status.st_mtime_ns == mtime_ns
            if status.st_size != size or not same or (known is None) != (sha256 is None):
                raise InputError(
                    f"{host} sees another {file} than {self.host}: size, time or the Hub's digest differ"
                )

    def load(self) -> Plan:
        """Load the plan on this machine.

        Raises:
            InputError: this machine sees other inputs; the message names the file.
            MerganserError: one of its subclasses, by cause.
        """
        self.check_inputs()
        for file in self.methods:
            methods.load_file(file)
        return load_plan(self.plan, root=self.plan["root"])


def read(folder: Path) -> MergeJob | None:
    """Read the file in a shared folder; None if there is none.

    Raises:
        InputError: another version wrote it.
    """
    file = folder / NAME
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record.pop("format") != FORMAT or record.pop("merganser") != VERSION:
            raise ValueError
        del record["digest"]
        record["units"] = tuple(Unit(**unit) for unit in record["units"])
        record["files"] = {name: tuple(stated) for name, stated in record["files"].items()}
        record["methods"] = tuple(record["methods"])
        return MergeJob(**record)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{file}: was written by another version of Merganser") from None


class Currency:
    """Tells whether a shared folder's file still describes a merge, by its identity, then its content."""

    def __init__(self, folder: Path, job: MergeJob) -> None:
        self._file = folder / NAME
        self._digest = job.digest
        self._seen: tuple[int, int, int] | None = None

    def holds(self) -> bool:
        """Whether the merge is still wanted; reads the file only when it was replaced."""
        try:
            with self._file.open("rb") as stream:
                status = os.fstat(stream.fileno())
                seen = status.st_ino, status.st_size, status.st_mtime_ns
                if seen != self._seen:
                    if json.load(stream).get("digest") != self._digest:
                        return False
                    self._seen = seen
        except (OSError, ValueError, AttributeError):
            return False
        return True
