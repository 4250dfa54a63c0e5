"""The file that describes a study to its workers, and by which they check that they see the same study."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from merganser import methods
from merganser.errors import InputError, MerganserError, ResourceError, reraise_os_errors
from merganser.evaluation import running
from merganser.planning import PlanOptions
from merganser.results.scores import JSON_NAME
from merganser.study import sharing
from merganser.study.live_model import Live
from merganser.study.participants import StudyModel
from merganser.study.preparing import PreparedStudy, prepare
from merganser.study.scoring import describe
from merganser.study.search_preparing import PreparedSearch, prepare_search
from merganser.workers.claims import write_json

FOLDER = sharing.CLAIMS

NAME = "study.json"
FORMAT = 2

Units = Mapping[str, Mapping[str, str]]
"""By the name of each model to score: digests, by kind, of everything that its completions depend on."""


@dataclass(frozen=True, slots=True)
class StudyFile:
    """The description of a study for its workers.

    Attributes:
        kind: whether the file is a sweep's or a search's.
        config: the study's YAML file, relative to the study's folder.
        cwd: the working directory of the command, which some relative paths start at.
        only: conditions on the points.
        engine, engine_options, allow_code: as for :func:`merganser.evaluate_sweep`.
        planning: options of planning.
        methods: Python files with merge methods that workers load, relative to the study's folder.
        units: the models to score, with digests.
        stall: seconds without progress after which a worker gives its model up; 0 for no limit.
    """

    kind: Literal["sweep", "search"]
    config: str
    cwd: str
    only: tuple[str, ...]
    engine: str | None
    engine_options: Mapping[str, Any]
    allow_code: bool
    planning: Mapping[str, Any]
    methods: tuple[str, ...]
    units: Units
    stall: float

    @property
    def digest(self) -> str:
        """Digest of all attributes that scores depend on."""
        fields = {k: value for k, value in asdict(self).items() if k not in ("cwd", "stall")}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    def write(self, home: Path) -> None:
        """Write the file into the study's folder.

        Raises:
            ResourceError: it cannot be written.
        """
        file = home / FOLDER / NAME
        with reraise_os_errors(ResourceError, "written", file):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {"format": FORMAT, "digest": self.digest, **asdict(self)})

    def prepare(self, home: Path) -> PreparedStudy | PreparedSearch:
        """Plan the study on this machine.

        Raises:
            InputError: a file is missing on this machine.
            MerganserError: one of its subclasses, by cause, with the machine's name.
        """
        host = platform.node()
        config = home / self.config
        if not config.is_file():
            raise InputError(f"{host} does not see {os.path.normpath(config)}, the study's file")
        # If only the first machine has the folder, paths start at the current folder.
        with suppress(OSError):
            os.chdir(self.cwd)
        with _on_this_machine(host):
            for file in self.methods:
                methods.load_file(os.path.normpath(home / file))
            where = (os.path.normpath(config), home, PlanOptions(**self.planning))
            engine: Any = self.engine
            options = self.engine_options or None
            if self.kind == "search":
                return prepare_search(
                    *where, engine=engine, engine_options=options, allow_code=self.allow_code
                )
            return prepare(
                *where,
                only=self.only,
                engine=engine,
                engine_options=options,
                allow_code=self.allow_code,
            )

    def check_same(self, units: Units) -> None:
        """Check that this machine would score the same models.

        Raises:
            InputError: inputs or versions differ; the message names them.
        """
        differing: dict[str, None] = {}
        for name in {**self.units, **units}:
            there, here = self.units.get(name), units.get(name)
            if there is None or here is None:
                differing[f"the model {name} is not in both"] = None
                continue
            for kind in {**there, **here}:
                if there.get(kind) != here.get(kind):
                    differing[_difference(kind, there.get(kind), here.get(kind))] = None
        if differing:
            raise InputError(
                f"inputs or versions differ on this machine ({platform.node()}): "
                + "; ".join(list(differing)[:4])
                + (f"; and {len(differing) - 4} more" if len(differing) > 4 else "")
            )


def _difference(kind: str, there: str | None, here: str | None) -> str:
    texts = [text for text in (there, here) if text is not None and "sha256:" not in text]
    return f"{kind} ({here or 'none'} here, {there or 'none'} there)" if texts else kind


@contextmanager
def _on_this_machine(host: str) -> Any:
    try:
        yield
    except MerganserError as error:
        raise type(error)(f"on {host}: {error}") from error


def read(home: Path) -> StudyFile:
    """Read a study's file.

    Raises:
        InputError: the file is missing, or of another version.
    """
    file = home / FOLDER / NAME
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        assert record.pop("format") == FORMAT
        del record["digest"]
        for key in ("only", "methods"):
            record[key] = tuple(record[key])
        return StudyFile(**record)
    except FileNotFoundError:
        if not home.is_dir():
            raise InputError(f"{home}: no such folder") from None
        raise InputError(
            f"{home}: no work with workers was begun there; begin it by merganser sweep, search, merge or "
            "convert, with `--workers join`"
        ) from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError):
        raise InputError(f"{file}: was written by another version of Merganser") from None


def is_finished(home: Path) -> bool:
    """Whether a folder has the results of a study, and no study with workers goes on there."""
    return (home / JSON_NAME).exists() and not (home / FOLDER / NAME).exists()


def is_current(home: Path, study: StudyFile) -> bool:
    """Whether the study's file in a folder still describes this study."""
    try:
        record = json.loads((home / FOLDER / NAME).read_text(encoding="utf-8"))
        return bool(record.get("digest") == study.digest)
    except (OSError, ValueError, AttributeError):
        return False


def units_of(study: PreparedStudy | PreparedSearch, live: Live) -> Units:
    """Return the models to score, with digests of everything that their completions depend on.

    Of a search also the merges at the middle of its ranges, which depend on the same inputs as candidates.

    Raises:
        InputError: an input cannot be read.
    """
    versions = {
        f"the version of {name}": version
        for name, version in describe(study.seen, live, study.block.lm_eval)["versions"].items()
    }
    common = {"the problems or the sampling": _short(running.digest_of(study.seen))}
    for file in methods.loaded_files():
        common[f"the methods of {file.name}"] = _short(file.read_text(encoding="utf-8"))
    if study.block.lm_eval:
        tasks = [task.model_dump(mode="json") for task in study.block.lm_eval]
        common["the tasks of lm_eval"] = _short(json.dumps(tasks, sort_keys=True))
    plain = ("the dtype", "the device", "the engine")
    return {
        model.entry.name: {
            **{
                kind: text if kind in plain else _short(text)
                for kind, text in live.key(model.plan, model.entry.name).items()
            },
            **common,
            **versions,
        }
        for model in models_of(study)
    }


def models_of(study: PreparedStudy | PreparedSearch) -> list[StudyModel]:
    """Return the models to score; of a search base, experts, and the merges at the middle of its ranges."""
    if isinstance(study, PreparedSearch):
        return [*study.others, *study.samples]
    return study.models


def _short(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}"
