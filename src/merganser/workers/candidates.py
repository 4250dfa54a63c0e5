"""The candidates of a search that await scores: the process that leads the search writes them to a file,
and workers read it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from merganser.errors import InputError, ResourceError, reraise_os_errors
from merganser.planning import make_plan
from merganser.results.scores import Entry
from merganser.study.exploration import Candidate
from merganser.study.participants import StudyModel
from merganser.study.progress import Turn
from merganser.study.search_preparing import PreparedSearch
from merganser.workers.claims import Claim, Claims, write_json
from merganser.workers.study_file import FOLDER

NAME = "candidates.json"

LEADER = ".leader"
"""Name of the unit for leading the search."""

PLACE = ".worker."
"""Beginning of the names of units of which each worker claims one, so that workers can be counted."""


def unit(study: str, candidate: Mapping[str, Any]) -> dict[str, str]:
    """Return what a candidate's scores depend on, for its worker's record.

    Args:
        study: the digest of the study's file.
        candidate: the candidate's line in the file.
    """
    return {"search": study, "position": json.dumps(candidate["position"])}


def line_of(candidate: Candidate) -> dict[str, Any]:
    """Return a candidate as plain data for the file."""
    return {
        "number": candidate.number,
        "name": candidate.name,
        "position": list(candidate.position),
    }


def write(home: Path, candidates: Sequence[Candidate], budget: int, *, ended: bool = False) -> None:
    """Write the file.

    Args:
        home: the search's folder.
        candidates: the candidates to score.
        budget: how many candidates the search has in all.
        ended: whether there will be no more.

    Raises:
        ResourceError: it cannot be written.
    """
    file = home / FOLDER / NAME
    record = {"open": list(map(line_of, candidates)), "budget": budget, "ended": ended}
    with reraise_os_errors(ResourceError, "written", file):
        write_json(file, record)


def remove(home: Path) -> None:
    """Remove the file."""
    (home / FOLDER / NAME).unlink(missing_ok=True)


@dataclass
class OpenCandidates:
    """A worker's view of the candidates that await scores.

    Attributes:
        prepared: the search, planned on this machine.
        study: the digest of the study's file.
    """

    prepared: PreparedSearch
    study: str
    _models: dict[str, StudyModel] = field(default_factory=dict)
    _units: dict[str, dict[str, str]] = field(default_factory=dict)

    def turns(self) -> list[tuple[StudyModel, Turn]]:
        """Return the candidates, as models with their position among all.

        Raises:
            InputError: this machine plans other candidates than the leader.
            MerganserError: a candidate cannot be planned.
        """
        record = self._read()
        budget = record.get("budget", 0)
        turns = []
        for line in record.get("open", ()):
            name = line["name"]
            if name not in self._models:
                self._models[name] = self._plan(line)
                self._units[name] = unit(self.study, line)
            turns.append((self._models[name], Turn(name, line["number"], budget)))
        open_now = {model.entry.name for model, _ in turns}
        self._models = {name: each for name, each in self._models.items() if name in open_now}
        return turns

    def unit(self, name: str) -> dict[str, str]:
        """Return what the scores of a candidate depend on."""
        return self._units[name]

    @property
    def have_ended(self) -> bool:
        """Whether there will be no more candidates."""
        return bool(self._read().get("ended", False))

    def may_grow(self, claims: Claims) -> bool:
        """Whether there may be more candidates: the search has not ended, and its leader is alive."""
        return not self.have_ended and claims.is_alive(LEADER)

    def _read(self) -> dict[str, Any]:
        try:
            text = (self.prepared.home / FOLDER / NAME).read_text(encoding="utf-8")
            return dict(json.loads(text))
        except FileNotFoundError:
            return {}

    def _plan(self, line: Mapping[str, Any]) -> StudyModel:
        wanted = self.prepared.wanted
        point = wanted.pattern.point(wanted.values(tuple(line["position"])), line["number"])
        if point.name != line["name"]:
            raise InputError(
                f"{wanted.pattern.document.file}: gives the candidate {point.name} here, and "
                f"{line['name']} where the search is led"
            )
        entry = Entry(point.name, "point", values=point.values)
        return StudyModel(entry, make_plan(point.recipe, self.prepared.planning), point)


def take_place(claims: Claims) -> Claim:
    """Claim a place, by which this worker is counted."""
    places = (claims.take(f"{PLACE}{number}") for number in count(1))
    return next(place for place in places if place is not None)


def places(claims: Claims) -> list[str]:
    """Return the names of the places of all living workers."""
    files = claims.folder.glob(f"{PLACE}*.claim")
    names = {file.name.rsplit(".", 2)[0] for file in files}
    return sorted(name for name in names if claims.is_alive(name))
