"""A study's report: figures as files, and one self-contained page that opens offline."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from merganser import extras, number_format, suggestions
from merganser.errors import RecipeError, ResourceError, reraise_os_errors
from merganser.reports import comparisons, sections
from merganser.reports import distances as distance
from merganser.reports.pictures import FIGURES, Pictures
from merganser.results import completions, front
from merganser.results import scores as results
from merganser.results.interpolation import Line, gap, labels, lines
from merganser.results.scores import Results
from merganser.version import VERSION

NAME = "report.html"

MOST_PLANES = 6
"""Maximum number of further pairs of scores with a figure."""

SECTIONS = (
    ("held-out", "Held out", ("held_out",)),
    ("history", "Search", ("history",)),
    ("simplex", "Three weights", ("simplex",)),
    ("front", "Front", ("front",)),
    ("scores", "Scores", ()),
    ("comparisons", "Differences", ("comparisons", "dominance")),
    ("steps", "Steps", ("steps",)),
    ("curves", "Weight", ("curves",)),
    ("planes", "More planes", ("planes",)),
    ("weights", "Effective weights", ("weights",)),
    ("apart", "Experts", ("apart",)),
    ("completions", "Completions", ("samples",)),
    ("recipe", "Recipe", ()),
    ("settings", "Settings", ("settings",)),
)
"""The page's sections: anchor, title, and keys of the content; empty sections are omitted."""

_PAGE = Path(__file__).parent / "template"


@dataclass(frozen=True, slots=True)
class Running:
    """The state of a running study, for its page.

    Attributes:
        scored: number of models with scores.
        total: number of models that the study scores; None if unknown.
        every: seconds after which a browser reloads the page; None once the study has stopped.
        written: time of writing, as text.
    """

    scored: int
    total: int | None
    every: int | None
    written: str


def write(
    folder: str | Path,
    *,
    x: str | None = None,
    y: str | None = None,
    distances: bool = False,
    threads: int | None = None,
) -> list[Path]:
    """Write ``report.html`` and ``figures/`` from a folder's ``results.json`` and samples.

    Args:
        folder: the folder of an evaluated study.
        x: the score on the front's horizontal axis; by default the first.
        y: the score on its vertical axis; by default the second.
        distances: compare the experts' weights too, see
            :func:`merganser.reports.distances.measure`.
        threads: number of threads for the distances; None for one per core.

    Returns:
        Paths of the files that were written, the page first.

    Raises:
        MerganserError: when matplotlib or moocore is not installed.
        InputError: when there are no results, or they cannot be read.
        RecipeError: when there is no such score.
        ResourceError: when a file cannot be written.
    """
    folder = Path(folder)
    extras.load("matplotlib", "plot")
    extras.load("moocore", "plot")
    if distances:
        distance.measure(folder, threads=threads)
    study = results.read(folder)
    x, y = choose_plane(study, x, y)
    samples, measured = completions.load(study, folder), distance.load(folder)
    with reraise_os_errors(ResourceError, "written", folder / FIGURES):
        (folder / FIGURES).mkdir(exist_ok=True)
    picture = Pictures(study, folder)
    content = _content(study, x, y, samples, measured, picture)
    content["held_out"] = _held_out(folder)
    content["comparisons"] = comparisons.tables(folder, labels(study))
    content["additions"] = comparisons.additions(study, folder, labels(study))
    return [_write(content, folder), *picture.files]


def write_running(study: Results, folder: Path, running: Running) -> Path:
    """Write the page of a running study: the results so far, without files of figures, completions and
    tests of differences.

    Args:
        study: the results so far.
        folder: the study's folder.
        running: the study's state.

    Returns:
        The page.

    Raises:
        MerganserError: matplotlib or moocore is not installed.
        ResourceError: the page cannot be written.
    """
    extras.load("matplotlib", "plot")
    extras.load("moocore", "plot")
    x, y = choose_plane(study, None, None)
    content = _content(study, x, y, {}, [], Pictures(study, None))
    return _write(content | {"running": running}, folder)


def _write(content: dict[str, Any], folder: Path) -> Path:
    """Replace the page atomically, so that a browser never loads an incomplete one."""
    content["sections"] = [
        (anchor, title)
        for anchor, title, keys in SECTIONS
        if not keys or any(content[key] for key in keys)
    ]
    page, partial = folder / NAME, folder / f".{NAME}.partial"
    with reraise_os_errors(ResourceError, "written", page):
        partial.write_text(_render(content), encoding="utf-8", errors="replace")
        partial.replace(page)
    return page


def choose_plane(study: Results, x: str | None, y: str | None) -> tuple[str | None, str | None]:
    """Return the two scores of a front: the requested ones, else the first two.

    Raises:
        RecipeError: when there is no such score.
    """
    names = list(study.directions)
    for name in (x, y):
        if name is not None and name not in names:
            raise RecipeError(f"there is no score {name!r}; {suggestions.suggest(name, names)}")
    x = x or next((name for name in names if name != y), None)
    return x, y or next((name for name in names if name != x), None)


# -- the page's content --------------------------------------------------------------------------


def _content(
    study: Results,
    x: str | None,
    y: str | None,
    samples: completions.Kept,
    measured: Sequence[Mapping[str, Any]],
    picture: Pictures,
) -> dict[str, Any]:
    figures = extras.load("merganser.reports.figures", "plot")
    known = lines(study)
    interval = "Bars are 95 % intervals, by bootstrap over problems."
    content: dict[str, Any] = {"results": study, "front": None, "planes": [], "curves": None}
    content |= {"running": None, "held_out": None, "comparisons": [], "additions": None}
    content["in_plane"] = []
    if x and y:
        hollow = "Hollow: another model is at least as good in both scores, and better in one."
        plane = {name: study.directions[name] for name in (x, y)}
        if len(study.directions) > 2:
            content["in_plane"] = [e.name for e in front.non_dominated(study.entries, plane)]
        content["front"] = picture(
            "front",
            figures.front(study, x, y),
            f"{y} against {x}",
            f"{y} against {x}, with each merge’s weight. {hollow} {interval}",
        )
        pairs = [p for p in itertools.combinations(study.directions, 2) if set(p) != {x, y}]
        content["planes"] = [
            picture(
                f"front-{n}",
                figures.front(study, *pair),
                f"{pair[1]} against {pair[0]}",
                f"{pair[1]} against {pair[0]}. {hollow} {interval}",
            )
            for n, pair in enumerate(pairs[:MOST_PLANES], 2)
        ]
        if len(known) > 1:
            content["planes"].append(
                picture(
                    "front-lines",
                    figures.panels(study, x, y),
                    f"{y} against {x}, line by line",
                    f"{y} against {x}, line by line; the other lines’ merges in grey.",
                )
            )
    if known and study.directions:
        content["curves"] = picture(
            "curves",
            figures.curves(study),
            "Scores against weight",
            "Scores against weight; dashed: the straight line between the ends, with the largest gap to it "
            "(+ is better). Bands are 95 % intervals.",
        )
    figure = figures.effective(study)
    content["effective"] = figure and picture(
        "effective-weights",
        figure,
        "Effective weights",
        "The weight that rounding left of the one that was asked for, by least squares.",
    )
    content["apart"] = [
        {
            "whole": experts["whole"],
            "figure": picture(
                f"distance-{n}" if n else "distance",
                figures.layers(experts["cells"]),
                experts["title"],
                f"{experts['title']}: by layers and kinds of tensors.",
            ),
        }
        for n, experts in enumerate(measured)
    ]
    content["history"] = sections.history(study, picture)
    content["simplex"] = sections.simplex(study, picture)
    content["steps"] = sections.steps(study, picture)
    content["third"] = sections.third_score(study, x, y, picture)
    content |= _front_facts(study, known, samples)
    content |= _tables(study, known)
    content |= _completions(study, samples)
    return content


def _held_out(folder: Path) -> dict[str, Any] | None:
    """Return the results on held-out problems, as data for the page; None if there are none."""
    if not (folder / results.HELD_OUT / results.JSON_NAME).is_file():
        return None
    study = results.read(folder / results.HELD_OUT)
    return {
        "results": study,
        "short": labels(study),
        "problems": max((s.problems for e in study.entries for s in e.scores.values()), default=0),
        "places": {
            name: number_format.decimals(
                e.scores[name].error for e in study.entries if name in e.scores
            )
            for name in study.directions
        },
    }


def _front_facts(
    study: Results, known: Sequence[Line], samples: completions.Kept
) -> dict[str, Any]:
    """Return the front in all scores, its hypervolume, and the uncertainty of both."""
    entries, directions = study.entries, study.directions
    scored = front.scored(entries, directions) if directions else []
    if not scored:
        return {"best": [], "knee": None, "volumes": [], "frame": "", "on_front": {}} | {
            "contributions": {},
            "certainty": "",
            "dominance": None,
        }
    volume = front.hypervolume(scored, directions)
    others = [e for e in scored if e.role in ("base", "expert")]
    alone = front.hypervolume(others, directions, frame=scored).value if others else None
    volumes: list[dict[str, Any]] = [{"label": "", "value": volume.value, "alone": alone}]
    for other in study.references:
        if other in scored:
            value = front.hypervolume([other], directions, frame=scored).value
            volumes.append({"label": f"{other.name} alone", "value": value, "alone": None})
    if len(known) > 1:
        for line in known:
            members = [e for _, e in line.points] + list(line.ends or ())
            ends = front.hypervolume(line.ends or (), directions, frame=scored).value
            value = front.hypervolume(members, directions, frame=scored).value
            volumes.append({"label": line.label, "value": value, "alone": ends})
    sure = front.certainty(scored, directions, completions.per_problem(samples))
    knee = front.knee(scored, directions)
    how = (
        "of the problems, the same for all models"
        if sure.paired
        else "of the scores by their errors"
    )
    corners = "; ".join(
        f"{name} from {worst} (0) to {best} (1), reference {reference}"
        for name in directions
        for worst, best, reference in [
            map(
                number_format.typeset,
                (volume.worst[name], volume.best[name], volume.reference[name]),
            )
        ]
    )
    return {
        "best": [e.name for e in front.non_dominated(scored, directions)],
        "knee": knee and knee.name,
        "volumes": volumes,
        "frame": (
            f"Hypervolume over {', '.join(directions)}: each score scaled to the worst and best of all models, "
            f"measured from a reference {volume.margin:.0%} of the range beyond the worst ({corners}). At most "
            f"{number_format.typeset((1 + volume.margin) ** len(directions))}."
        ),
        "on_front": sure.on_front,
        "dominance": comparisons.dominance(study, sure, labels(study)),
        "contributions": volume.contributions if len(directions) > 1 else {},
        "certainty": f"“On the front”: in how many of {front.DRAWS} resamples {how}, no model is better.",
    }


def _tables(study: Results, known: Sequence[Line]) -> dict[str, Any]:
    gaps = [
        {"label": line.label, "score": name, "gap": distance}
        for line in known
        for name, direction in study.directions.items()
        if (distance := gap(line, name, direction)) is not None
    ]
    roles = [entry.role for entry in study.entries]
    counted = {
        "merge": roles.count("point"),
        "expert": roles.count("expert"),
        "base": roles.count("base"),
        "reference": len(study.references),
    }
    parts = [
        f"{n} {name}{'s' if n > 1 and name != 'base' else ''}" for name, n in counted.items() if n
    ]
    problems = max((s.problems for e in study.entries for s in e.scores.values()), default=0)
    scores = f"scored by {', '.join(study.directions)}" if study.directions else "not scored yet"
    return {
        "summary": f"{', '.join(parts)}; {scores}"
        + (f" on {problems} problems." if problems else "."),
        "short": labels(study),
        "keys": _keys(study),
        "places": {
            name: number_format.decimals(
                e.scores[name].error for e in study.entries if name in e.scores
            )
            for name in study.directions
        },
        "gaps": gaps,
        "several": len(known) > 1,
        "weights": [point for point in study.points if point.weights],
        "merged": list(dict.fromkeys(model for point in study.points for model in point.weights)),
        "chosen": list(study.chosen.items()),
        "settings": [
            (
                name,
                value
                if isinstance(value, str)
                else json.dumps(value, indent=2, ensure_ascii=False),
            )
            for name, value in study.settings.items()
            if value not in ([], {}, None)
        ],
        "version": VERSION,
    }


def _keys(study: Results) -> list[str]:
    """Return the sweep's keys that have several values."""
    keys = list(dict.fromkeys(key for point in study.points for key in point.values))
    varied = [
        key
        for key in keys
        if len({number_format.ten_digits(p.values.get(key)) for p in study.points}) > 1
    ]
    return varied or keys


def _completions(study: Results, samples: completions.Kept) -> dict[str, Any]:
    short = labels(study)
    shown = completions.for_page(samples)
    for problem in shown:
        for each in problem["completions"]:
            each["short"] = short[each["name"]]
    total = len({(s.task, s.problem) for each in samples.values() for s in each})
    note = "The first completion of each model."
    if total > len(shown):
        note += f" {len(shown)} of {total} problems: those on which the models differ most."
    files = ", ".join(e.samples for e in study.entries if e.samples)
    return {"samples": shown, "samples_note": note, "sample_files": files}


# -- the page ------------------------------------------------------------------------------------


def _render(content: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(_PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "digits": number_format.typeset,
        "fixed": number_format.typeset_decimal,
        "signed": number_format.typeset_difference,
        "plain": number_format.ten_digits,
    }
    script = (_PAGE / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html").render(
        **content,
        script=Markup(script),
        script_digest=digest,
        style=Markup((_PAGE / "report.css").read_text(encoding="utf-8")),
    )
