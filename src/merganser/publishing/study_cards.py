"""Cards of a study's points, with their scores, the experts' scores, and the rule that chose them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from merganser import extras, number_format, recipe
from merganser.errors import (
    InputError,
    MerganserError,
    RecipeError,
    ResourceError,
    reraise_os_errors,
)
from merganser.hub import publishing
from merganser.release import card, files, manifest
from merganser.release.card import Scores, inline
from merganser.results import scores as studies
from merganser.results.scores import Entry, Results, Score

PICTURE = "front.png"

EVAL_RESULTS = Path(".eval_results", "merganser.yaml")

_DRAWN = ("temperature", "top_p", "max_tokens", "seed")

_BENCHMARK = re.compile(r"(?P<dataset>[\w.-]+/[\w.-]+):(?P<task>[\w.-]+)")


@dataclass(frozen=True, slots=True)
class StudyEntry:
    """A folder's entry in a study.

    Attributes:
        results: the study's results.
        entry: the folder's entry.
        held_out: whether the scores are of problems that the search did not use.
    """

    results: Results
    entry: Entry
    held_out: bool = False


def find(folder: Path) -> StudyEntry | None:
    """Return the entry of a folder in the study that contains it; None if it has no scores there.

    In a search, scores on held-out problems come before the scores that chose it.

    Raises:
        InputError: when the study's results cannot be read.
    """
    resolved = folder.resolve()
    around = resolved.parents[:2]
    for home in (place for parent in around for place in (parent / studies.HELD_OUT, parent)):
        if (home / studies.JSON_NAME).is_file():
            results = studies.read(home)
            for entry in results.points:
                if entry.scores and (home / (entry.folder or entry.name)).resolve() == resolved:
                    return StudyEntry(results, entry, home.name == studies.HELD_OUT)
    return None


def rewrite_all(home: Path, results: Results) -> None:
    """Rewrite the cards of all written points of a study, with their scores.

    Raises:
        MerganserError: as :func:`rewrite` does.
    """
    for entry in results.points:
        if entry.folder is not None:
            rewrite(home / entry.folder)


def rewrite(
    folder: str | Path, place: StudyEntry | None = None, benchmarks: Mapping[str, str] | None = None
) -> None:
    """Rewrite the card of a merged folder, with its scores in the study that contains it.

    This also writes the front's picture with this point marked, if the study has two scores and
    matplotlib is installed, and ``.eval_results/merganser.yaml``, if benchmarks are given.

    Args:
        folder: a merged folder.
        place: its entry in a study; None to search the folders above it.
        benchmarks: the data set on the Hub and its task, as ``org/name:task``, by the name of the
            score that was measured on it.

    Raises:
        InputError: when no merge of this version wrote the folder.
        RecipeError: when a benchmark has another form, or there is no such score.
    """
    home = Path(folder)
    facts = manifest.read(home)
    if "conversion" not in facts:
        raise InputError(f"{home}: was written by an earlier version; merge again")
    place = place or find(home)
    named = _benchmarks(benchmarks or {}, place)
    if place is not None:
        _draw(place, home / PICTURE)
    if named and place is not None:
        entries = [
            {
                "dataset_id": dataset,
                "task_id": task,
                "value": place.entry.scores[name].mean,
                "notes": _notes(name, place.entry.scores[name]),
            }
            for name, (dataset, task) in named.items()
        ]
        data = yaml.safe_dump(
            publishing.benchmark_results(entries), sort_keys=False, allow_unicode=True
        )
        files.write_text(home / EVAL_RESULTS, data)
    files.write_text(home / card.NAME, text(home, facts, place=place))
    manifest.restate(home, card.NAME)


def text(
    folder: Path,
    facts: Mapping[str, Any],
    recipe_text: str | None = None,
    place: StudyEntry | None = None,
) -> str:
    """Return the text of a folder's card.

    Args:
        folder: the folder, with config, recipe, and picture if there is one.
        facts: its manifest.
        recipe_text: a text to show instead of the folder's recipe.
        place: its entry in a study, or None.
    """
    document = recipe.read_documents(folder / manifest.RECIPE)[0][-1]
    name = document.data.get("name") if isinstance(document.data, dict) else None
    title = name if isinstance(name, str) else folder.resolve().name
    shown = recipe_text if recipe_text is not None else document.text or ""
    scores = _scores(folder, title, place) if place is not None else None
    return card.card(facts, shown, folder, title, scores)


def _scores(folder: Path, title: str, place: StudyEntry) -> Scores:
    entry = place.entry
    metadata = {"model-index": publishing.model_index(title, list(_metrics(place.results, entry)))}
    picture = ""
    if (folder / PICTURE).is_file():
        picture = f"\n![The front of the study, with this model marked]({PICTURE})\n"
    return Scores(_section(place) + picture, metadata)


def _metrics(results: Results, entry: Entry) -> Iterator[dict[str, Any]]:
    """The scores as keyword arguments of ``EvalResult``."""
    for name, score in entry.scores.items():
        task, _, scorer = name.rpartition("/")
        problems = f"problems of {results.name}" + (f", {task}" if task else "")
        yield {
            "task_type": "text-generation",
            "dataset_type": "/".join(filter(None, (results.name, task))),
            "dataset_name": problems,
            "metric_type": scorer,
            "metric_name": name,
            "metric_value": score.mean,
            "metric_args": {
                "standard_error": score.error,
                "interval_95": [score.low, score.high],
                "problems": score.problems,
            },
        }


def _section(place: StudyEntry) -> str:
    results, entry = place.results, place.entry
    names = [name for name in results.directions if name in entry.scores]
    arrows = {"max": "↑", "min": "↓"}
    heads = [f"{inline(name)} {arrows[results.directions[name]]}" for name in names]
    lines = [
        "## Scores\n",
        f"| model | {' | '.join(heads)} |",
        f"|---|{'---:|' * len(names)}",
    ]
    shown = [row for row in results.entries if row.role != "point" and row.scores]
    places = {
        name: number_format.decimals(
            e.scores[name].error for e in (*shown, entry) if name in e.scores
        )
        for name in names
    }
    for row in [*shown, entry]:
        is_this = row is entry
        label = (
            "**this model**" if is_this else f"`{inline(row.name).replace('`', '')}` ({row.role})"
        )
        cells = [_cell(row.scores.get(name), places[name], bold=is_this) for name in names]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    counts = dict.fromkeys(entry.scores[name].problems for name in names)
    many = ", ".join(str(count) for count in counts)
    lines.append(
        f"\nMean ± standard error over {many} problems, with the 95 % interval by bootstrap over "
        "problems (Wilson's where all score 0, or all 1); ↑ more is better, ↓ less is better. "
        "Not rounded in this page's metadata."
    )
    lines += _settings(results.settings)
    rule = results.chosen.get(entry.name)
    if place.held_out:
        lines.append("The problems were held out: the model was chosen by its scores on others.")
    elif rule not in (None, "all"):
        lines.append("The model was chosen by these very scores, so part of them may be luck.")
    values = ", ".join(f"{key} = {value}" for key, value in entry.values.items())
    count = len(results.points)
    one = "A merge" if place.held_out or count == 1 else f"One of {count} merges"
    of = f"{one} of the study `{inline(results.name).replace('`', '')}`"
    lines.append(f"\n{of}{f', with {inline(values)}' if values else ''}.")
    if rule:
        lines.append(f"Chosen as: {inline(rule)}.")
    return "\n".join(lines) + "\n"


def _cell(score: Score | None, places: int, *, bold: bool) -> str:
    if score is None:
        return number_format.MISSING
    mean, error, low, high = (
        number_format.decimal(value, places)
        for value in (score.mean, score.error, score.low, score.high)
    )
    return f"{f'**{mean}**' if bold else mean} ± {error} ({low} to {high})"


def _notes(name: str, score: Score) -> str:
    error, low, high = map(number_format.significant, (score.error, score.low, score.high))
    return (
        f"{name}: standard error {error}, 95 % interval {low} to {high}, {score.problems} problems"
    )


def _settings(settings: Mapping[str, Any]) -> list[str]:
    """One sentence per task on how completions were sampled, without prompts and file names."""
    tasks = settings.get("tasks", [])
    engine = str(settings.get("engine", "")).partition(" http")[0]  # a server's address stays here
    lines = [f"Run by: {inline(engine)}."] if engine else []
    for task in tasks:
        sampling = [f"{task['samples']} a problem"] if task.get("samples", 1) != 1 else []
        sampling += [f"{key.replace('_', '-')} {task[key]}" for key in _DRAWN if key in task]
        sampling += [f"preset {task['preset']}"] if task.get("preset") else []
        name = f" of `{task['task']}`" if len(tasks) > 1 and "task" in task else ""
        lines.append(f"Completions{name}: {inline(', '.join(sampling))}.")
    return lines


def _benchmarks(given: Mapping[str, str], place: StudyEntry | None) -> dict[str, tuple[str, str]]:
    benchmarks = {}
    for name, value in given.items():
        matched = _BENCHMARK.fullmatch(value)
        if matched is None:
            raise RecipeError(f"benchmark {value!r}: write it as org/name:task")
        if place is None or name not in place.entry.scores:
            known = ", ".join(place.entry.scores) if place else "none"
            raise RecipeError(f"benchmark of {name!r}: there is no such score; there are: {known}")
        benchmarks[name] = matched["dataset"], matched["task"]
    return benchmarks


def _draw(place: StudyEntry, file: Path) -> None:
    """Draw the front of the first two scores with this point marked, if matplotlib is installed."""
    names = [name for name in place.results.directions if name in place.entry.scores][:2]
    with reraise_os_errors(ResourceError, "removed", file):
        file.unlink(missing_ok=True)
    if len(names) < 2:
        return
    try:
        figures = extras.load("merganser.reports.figures", "plot")
    except MerganserError:
        return  # the card has no picture then
    figures.save(figures.front(place.results, *names, marked=place.entry.name), file)
