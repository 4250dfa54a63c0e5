"""The files that a study reads, and whether another machine sees them too."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merganser import hub, methods
from merganser.evaluation.tasks import Task
from merganser.planning import Plan
from merganser.release import contents
from merganser.study.preparing import PreparedStudy
from merganser.study.search_preparing import PreparedSearch
from merganser.workers import study_file
from merganser.workers.study_file import FOLDER, StudyFile

SMALL = 1 << 20
"""Size in bytes up to which files are compared by digests; larger ones by their size."""


@dataclass(frozen=True, slots=True)
class Input:
    """A file of a study.

    Attributes:
        path: its absolute path, which is the same on all machines.
        size: its size in bytes.
        digest: SHA-256 of its content; empty for a file over :data:`SMALL`.
        cached: its path in the Hub's cache, which each machine has for itself; empty for other files.
        repository: the Hub's name of its repository; empty for other files.
    """

    path: str
    size: int
    digest: str
    cached: str = ""
    repository: str = ""


def inputs_of(study: StudyFile, prepared: PreparedStudy | PreparedSearch) -> list[Input]:
    """Return the files that a worker reads: the study's, its problems, scorers, methods and models.

    Args:
        study: the study's file, which the study's folder holds already.
        prepared: the study.
    """
    home = prepared.home
    own = [home / FOLDER / study_file.NAME, home / study.config]
    own += [home / file for file in study.methods]
    own += _of_tasks(prepared.seen)
    files = dict.fromkeys(Path(os.path.normpath(file)) for file in own)
    for model in study_file.models_of(prepared):
        files |= dict.fromkeys(file.absolute() for file in contents.files_of(model.plan))
    return [_input(file) for file in files if file.is_file()]


def inputs_of_merge(file: Path, plan: Plan) -> list[Input]:
    """Return the files that a worker of a merge reads.

    Args:
        file: the merge's file in the shared folder.
        plan: the plan.
    """
    files = [file, *methods.loaded_files(), *(f.absolute() for f in contents.files_of(plan))]
    return [_input(each) for each in dict.fromkeys(files) if each.is_file()]


def _of_tasks(tasks: Iterable[Task]) -> Iterator[Path]:
    """Files of problems and of scorers; problems of the Hub and scorers of packages have none."""
    for task in tasks:
        if task.source is None:
            file, _, line = task.problems[0].address.rpartition(":")
            if line.isdecimal():
                yield Path(file).absolute()
        for metric in task.metrics:
            file = metric.scorer.reference.rpartition(":")[0]
            if file.endswith(".py"):
                yield ((metric.scorer.beside or Path()) / file).absolute()


def _input(file: Path) -> Input:
    size = file.stat().st_size
    digest = hashlib.sha256(file.read_bytes()).hexdigest() if size <= SMALL else ""
    if hub.commit(file) is None:
        return Input(str(file), size, digest)
    start = next(
        n for n, part in enumerate(file.parts) if part.startswith(("models--", "datasets--"))
    )
    name = "/".join(file.parts[start].split("--")[1:])
    return Input(str(file), size, digest, str(Path(*file.parts[start:])), name)


def make_look() -> Callable[[Sequence[dict[str, Any]]], dict[str, list[str]]]:
    """Return the function that another machine runs to look for files.

    It imports nothing but Python's library, and is sent there as it is, so that it says what is missing
    even if that is Merganser.
    """

    def look(inputs: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
        """Return the files that are not seen, those that differ, and repositories to download."""
        import hashlib
        import importlib.util
        import os
        from pathlib import Path

        hub_home = os.environ.get("HF_HOME") or os.path.join(  # noqa: PTH118
            os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
        )
        cache = os.environ.get("HF_HUB_CACHE") or os.path.join(hub_home, "hub")  # noqa: PTH118
        found: dict[str, list[str]] = {"unseen": [], "other": [], "download": [], "lacking": []}
        if importlib.util.find_spec("merganser") is None:
            found["lacking"].append("merganser")
        for each in inputs:
            file = Path(each["path"])
            if each["cached"] and not file.is_file():
                file = Path(cache).expanduser() / each["cached"]
            try:
                size = file.stat().st_size
                same = size == each["size"] and (
                    not each["digest"]
                    or hashlib.sha256(file.read_bytes()).hexdigest() == each["digest"]
                )
            except OSError:
                offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
                if not each["cached"]:
                    found["unseen"].append(each["path"])
                elif each["repository"] not in found["download"]:
                    found["unseen" if offline else "download"].append(each["repository"])
                continue
            if not same:
                found["other"].append(each["path"])
        return found

    return look
