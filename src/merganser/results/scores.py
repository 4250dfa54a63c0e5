"""Results of a study: each model's scores, stored as ``results.json`` and ``results.csv``."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import TypeAdapter, ValidationError

from merganser import notebook, number_format, recipe
from merganser.errors import InputError, ResourceError, reraise_os_errors
from merganser.evaluation.statistics import Direction, Score
from merganser.recipe.references import ModelReference, exists

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Direction", "Entry", "Results", "Role", "Score", "as_csv", "read", "write"]

JSON_NAME = "results.json"
CSV_NAME = "results.csv"
PARTIAL_NAME = "results.partial.json"
"""Name of the file with the results so far of a study that runs, or was stopped."""

FORMAT = 1

HELD_OUT = "held_out"
"""Name of the folder, in a study's folder, with the selected models' results on held-out problems."""

Role = Literal["point", "expert", "base", "mixed", "published", "reference"]
"""A model's role in a study: a merge, a merged model, or the base that those were trained from; or, only
compared with merges, a model trained on mixed rewards, a published one, or any other."""

REFERENCES: frozenset[Role] = frozenset({"mixed", "published", "reference"})
"""Roles of models that merges are only compared with."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of a study.

    Attributes:
        name: unique in the study; for a point, the name of its folder.
        role: the model's role in the study.
        model: a reference to an expert or the base; None for points.
        values: a point's values, by key of the sweep.
        scores: the scores by name: the scorer's, or ``task/scorer`` if there are several tasks.
        weights: the weight of each merged model that the recipe asks for (normalised); empty if
            the method has none.
        effective: the same weights, measured after rounding.
        samples: the file of its completions, relative to the results' folder; None if none are stored.
        folder: the written merge, relative to the results' folder; None if it is not written.
        source: the source of scores measured elsewhere; else None.
    """

    name: str
    role: Role
    model: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Score] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    effective: Mapping[str, float] = field(default_factory=dict)
    samples: str | None = None
    folder: str | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Addition:
    """A model that a greedy search tried to add to its soup.

    Attributes:
        name: name of the candidate, which is the soup with that model.
        soup: name of the soup without it.
        kept: whether the search kept it.
    """

    name: str
    soup: str
    kept: bool


@dataclass(frozen=True, slots=True)
class Results:
    """The results of a study.

    Attributes:
        name: the study's name.
        recipe: the text of the file that described it.
        directions: ``max`` (more is better) or ``min`` for each score, by name.
        settings: the settings of the completions: sampling, seed, presets, number of problems, versions.
        entries: base, experts, references, points, in the order of display.
        chosen: the rule that selected each selected point, by the point's name.
        places: folders that relative model paths start at, in order of search, relative to the
            results' folder.
        additions: the models that a greedy search tried to add to its soup, in its order.
    """

    name: str
    recipe: str
    directions: Mapping[str, Direction]
    settings: Mapping[str, Any]
    entries: tuple[Entry, ...]
    chosen: Mapping[str, str] = field(default_factory=dict)
    places: tuple[str, ...] = ()
    additions: tuple[Addition, ...] = ()

    def __repr__(self) -> str:
        points, chosen = len(self.points), len(self.chosen)
        scores = ", ".join(self.directions) or "no scores"
        return (
            f"Results({self.name!r}, {len(self.entries)} models, {points} of them merges, "
            f"{chosen} chosen; {scores})"
        )

    def _repr_html_(self) -> str:
        values = list(dict.fromkeys(key for entry in self.entries for key in entry.values))
        rows = [
            (
                entry.name,
                "" if entry.role == "point" else entry.role,
                *(entry.values.get(key, "") for key in values),
                *(_shown(entry.scores.get(name)) for name in self.directions),
                self.chosen.get(entry.name, ""),
            )
            for entry in self.entries
        ]
        return notebook.table(("model", "", *values, *self.directions, "chosen"), rows, self.name)

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per model, with the columns of ``results.csv``.

        Raises:
            MerganserError: pandas is not installed.
        """
        from merganser import extras

        pandas = extras.load("pandas", "frames")
        frame: pd.DataFrame = pandas.read_csv(io.StringIO(as_csv(self)))
        return frame

    @property
    def references(self) -> tuple[Entry, ...]:
        """The models that merges are only compared with."""
        return tuple(entry for entry in self.entries if entry.role in REFERENCES)

    @property
    def points(self) -> tuple[Entry, ...]:
        """The merges."""
        return tuple(entry for entry in self.entries if entry.role == "point")


def _shown(score: Score | None) -> str:
    if score is None:
        return number_format.MISSING
    return number_format.with_error(score.mean, score.error, sign=" ± ")


def write(results: Results, folder: Path) -> None:
    """Write ``results.json`` and ``results.csv`` into a folder that exists.

    Raises:
        ResourceError: when they cannot be written.
    """
    for name, content in ((JSON_NAME, _as_json(results)), (CSV_NAME, as_csv(results))):
        with reraise_os_errors(ResourceError, "written", folder / name):
            (folder / name).write_text(content, encoding="utf-8")
    with reraise_os_errors(ResourceError, "removed", folder / PARTIAL_NAME):
        (folder / PARTIAL_NAME).unlink(missing_ok=True)


def write_partial(results: Results, total: int, folder: Path) -> None:
    """Write the results so far of a running study into ``results.partial.json``, in one step.

    :func:`write` removes the file.

    Args:
        results: the results so far.
        total: number of models that the study scores.
        folder: the study's folder, which exists.

    Raises:
        ResourceError: when it cannot be written.
    """
    new = folder / f".{PARTIAL_NAME}.new"
    with reraise_os_errors(ResourceError, "written", folder / PARTIAL_NAME):
        new.write_text(_as_json(results, total=total), encoding="utf-8")
        new.replace(folder / PARTIAL_NAME)


def _as_json(results: Results, **more: Any) -> str:
    record = {"format": FORMAT, **more, **asdict(results)}
    return json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def remove(folder: Path) -> None:
    """Remove results that no longer hold; completions stay.

    Raises:
        ResourceError: when they cannot be removed.
    """
    for name in (JSON_NAME, CSV_NAME):
        with reraise_os_errors(ResourceError, "removed", folder / name):
            (folder / name).unlink(missing_ok=True)


def read(folder: Path) -> Results:
    """Return the results of a study, read from its folder.

    Raises:
        InputError: the file is missing, or has another format; the message names the first wrong key.
    """
    return _read(folder / JSON_NAME, partial=False)[0]


def read_partial(folder: Path) -> tuple[Results, int]:
    """Return the results so far of a study that runs or was stopped, and how many models it scores.

    Raises:
        InputError: as for :func:`read`.
    """
    return _read(folder / PARTIAL_NAME, partial=True)


def _read(path: Path, *, partial: bool) -> tuple[Results, int]:
    """Read a file of results; if they are partial, also how many models the study scores."""
    try:
        content = json.loads(
            path.read_text(encoding="utf-8"),
            parse_constant=_number,
            parse_float=_number,
            parse_int=_number,
        )
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist; evaluate the study first") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not the results of a study ({error})") from None
    document = recipe.Document(content, file=str(path))
    if not isinstance(content, dict) or "format" not in content:
        raise InputError(f"{path}: not the results of a study")
    if content.pop("format") != FORMAT:
        raise InputError(f"{path}: was written by another version of Merganser; evaluate again")
    total = content.pop("total", 0) if partial else 0
    try:
        results = TypeAdapter(Results).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        problem = recipe.invalid(document, error.errors(include_url=False)[0])
        raise InputError(str(problem)) from None
    names = [entry.name for entry in results.entries]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{path}: entries: two are called {twice!r}")
    paths = [text for e in results.entries for text in (e.name, e.folder, e.samples) if text]
    if strange := next((text for text in paths if not text.isprintable()), None):
        raise InputError(f"{path}: entries: {strange!r} is not the name of a file")
    tasks = results.settings.get("tasks", [])
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise InputError(f"{path}: settings.tasks: must be a list of mappings")
    return results, total if isinstance(total, int) else 0


def _number(text: str) -> float:
    """Return a number of a JSON file.

    Raises:
        ValueError: the number is not finite.
    """
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not a number")
    return int(text) if text.removeprefix("-").isdigit() else number


def places(home: Path, beside: Path | None) -> tuple[str, ...]:
    """Return the folders that a study searches for models: the current one, and that of its file.

    Args:
        home: the results' folder.
        beside: the folder of the study's file; None if there is no file.
    """
    folders = [Path.cwd(), *([] if beside is None else [beside])]
    return tuple(dict.fromkeys(os.path.relpath(f.resolve(), home.resolve()) for f in folders))


def reference(results: Results, folder: Path, model: str) -> ModelReference:
    """Return the reference to a model of a study, with paths that do not depend on the current folder.

    Args:
        results: the study's results.
        folder: the study's folder.
        model: the reference of an entry.

    Raises:
        InputError: the text is not a reference.
    """
    homes = [folder / place for place in results.places]

    def located(path: str) -> str:
        return next((str(home / path) for home in homes if exists(str(home / path))), path)

    if (located_path := located(model)) != model:
        return ModelReference(model, located_path)
    try:
        parsed = recipe.parse_reference(model)
    except ValueError as error:
        raise InputError(f"{folder / JSON_NAME}: {error}") from None
    return replace(
        parsed, path=located(parsed.path), adapter=parsed.adapter and located(parsed.adapter)
    )


def as_csv(results: Results) -> str:
    """Return CSV with one line per model: name, role, values, each score's mean, error and interval,
    requested and effective weights, and the rule that selected it."""
    keys = list(dict.fromkeys(key for entry in results.entries for key in entry.values))
    models = list(dict.fromkeys(model for entry in results.entries for model in entry.weights))
    parts = ("mean", "error", "low", "high")
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    columns = [f"{score}_{part}" for score in results.directions for part in parts]
    columns += [f"{model}_{part}" for model in models for part in ("weight", "effective")]
    table.writerow(["name", "role", *keys, *columns, "chosen"])
    for entry in results.entries:
        cells: list[Any] = [entry.name, entry.role, *(entry.values.get(key, "") for key in keys)]
        for score in results.directions:
            value = entry.scores.get(score)
            cells += [getattr(value, part) if value else "" for part in parts]
        for model in models:
            cells += [entry.weights.get(model, ""), entry.effective.get(model, "")]
        table.writerow([*cells, results.chosen.get(entry.name, "")])
    return out.getvalue()
