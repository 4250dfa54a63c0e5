"""Report a running sweep: scores to a tracker, and the results so far to a file and a callback."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from merganser.results import scores
from merganser.results.scores import Entry, Results
from merganser.study import sharing
from merganser.study.participants import SAMPLES, beside_points
from merganser.tracking import Following, Run, Tracker, follow

OnResults = Callable[[Results, int], object]
"""Called with the results of a running study, and with the number of models that it scores."""

LOCK = ".watch.lock"
"""Lock file in the folder of completions: one of the processes that share a study reports scores."""

_LOGGED = ("problems", "samples", "preset", "temperature", "top_p", "max_tokens", "seed")
"""Settings of a task that are logged; without prompts."""


def no_results(_found: Results, _total: int) -> None:
    """Ignore the results so far."""


@dataclass(slots=True)
class Watch:
    """Collects a sweep's scores while it runs, and reports them.

    Attributes:
        frame: the study's results without entries.
        order: names of all models, in the order of the results.
        points: names of all points, in the order of their numbers.
        stated: references whose scores are given in the file.
        following: the logging with a tracker.
        on_results: called after each model.
        total: how many models the study scores.
        home: the folder that gets the results so far; None if another process writes them.
        entries: the entries scored so far, by name.
    """

    frame: Results
    order: Sequence[str]
    points: Sequence[str]
    stated: Sequence[Entry]
    following: Following
    on_results: OnResults
    total: int
    home: Path | None = None
    entries: dict[str, Entry] = field(default_factory=dict)

    def scored(self, entry: Entry) -> None:
        """Report a model's scores."""
        self.entries[entry.name] = entry
        self.following.point(self._number(entry), entry)
        entries = sorted(self.entries.values(), key=lambda each: self.order.index(each.name))
        so_far = replace(self.frame, entries=tuple(beside_points(entries, self.stated)))
        if self.home is not None:
            scores.write_partial(so_far, self.total, self.home)
        self.on_results(so_far, self.total)

    def held_out(self, entries: Sequence[Entry]) -> None:
        """Report scores on held-out problems."""
        for entry in entries:
            self.following.point(self._number(entry), entry, f"{scores.HELD_OUT}/")

    def _number(self, entry: Entry) -> int:
        return self.points.index(entry.name) + 1 if entry.role == "point" else 0


@contextmanager
def watch(
    frame: Results,
    home: Path,
    order: Sequence[str],
    points: Sequence[str],
    stated: Sequence[Entry],
    total: int,
    *,
    tracker: Tracker | None,
    on_results: OnResults,
    on_warning: Callable[[str], None],
) -> Iterator[Watch]:
    """Watch a sweep. If several processes share it, one of them reports the scores, and writes the results
    so far into ``results.partial.json``.

    Args:
        frame: the study's results without entries.
        home: the study's folder, which has the folder of completions.
        order, points, stated, total, on_results: see :class:`Watch`.
        tracker: the tracker; None for none.
        on_warning: called once if the tracker fails.
    """
    with sharing.attempt(home / SAMPLES / LOCK) as is_first:
        listener = on_results if is_first else no_results
        with follow(tracker if is_first else None, on_warning) as following:
            following.start(tracked_run(frame, home))
            place = home if is_first else None
            yield Watch(frame, order, points, stated, following, listener, total, place)
            following.finish([home / scores.CSV_NAME])


def tracked_run(frame: Results, home: Path) -> Run:
    """Return a study as a tracker's run: the same whenever the same file runs in the same folder."""
    identity = json.dumps([frame.recipe, str(home.resolve())])
    return Run(
        frame.name,
        hashlib.sha256(identity.encode()).hexdigest()[:12],
        dict(_flat(frame.settings)),
    )


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key in ("engine", "device", "dtype"):
        if key in settings:
            yield key, settings[key]
    for name, version in settings.get("versions", {}).items():
        yield f"version/{name}", version
    for task in settings.get("tasks", []):
        for key in _LOGGED:
            if task.get(key) is not None:
                yield f"{task['task']}/{key}", task[key]
