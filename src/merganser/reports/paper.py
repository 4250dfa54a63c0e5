"""Files for a paper about a study: LaTeX tables, figures, BibTeX and a paragraph on methods."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from merganser import extras, methods, number_format
from merganser.errors import MerganserError, ResourceError
from merganser.methods import Method
from merganser.reports import bibliography, latex
from merganser.results import paired, problem_scores
from merganser.results import scores as results
from merganser.results.comparison import Comparison
from merganser.results.interpolation import labels, lines
from merganser.results.scores import Entry, Results, Score

COLUMN = (4.6, 3.6)
"""Width and height of a figure in inches; a column scales it to about three quarters."""


@dataclass(frozen=True, slots=True)
class _Study:
    """A study's results, with further data for the tables."""

    results: Results
    short: Mapping[str, str]
    leaders: Mapping[str, frozenset[str]]
    rates: frozenset[str]
    better: frozenset[tuple[str, str]]
    """Pairs of a score and a merge that is significantly better in it than the best merged model."""
    samples: Mapping[str, int]
    held_out: bool


def write(
    folder: str | Path, out: str | Path, *, x: str | None = None, y: str | None = None
) -> list[Path]:
    """Write a study's tables, figures, BibTeX and a paragraph on methods into a folder.

    ``main.tex`` is a complete document; ``scores.tex``, ``methods.tex`` and the figures can be included in
    another one, after ``preamble.tex``. ``scores.md`` and ``scores.csv`` have the same numbers;
    ``samples.parquet`` has every sample, if pandas and pyarrow are installed. Equal results give equal
    bytes.

    Args:
        folder: the folder of an evaluated study.
        out: the folder to write to; created if missing.
        x, y: the two scores of the front; by default the first two.

    Returns:
        Paths of the files that were written.

    Raises:
        MerganserError: when matplotlib or moocore is not installed.
        InputError: when there are no results, or they cannot be read.
        RecipeError: when there is no such score.
        ResourceError: when a file cannot be written.
    """
    from merganser.reports.page import choose_plane

    figures = extras.load("merganser.reports.figures", "plot")
    extras.load("moocore", "plot")
    home, place = Path(folder), Path(out)
    study = _read(home)
    x, y = choose_plane(study.results, x, y)
    files: dict[str, str] = {"preamble.tex": latex.PREAMBLE}
    pictures: dict[str, tuple[Any, str]] = {}
    if x and y:
        caption = (
            f"{latex.escape(y)} against {latex.escape(x)}; merges with their weights, the straight line "
            "between the merged models dashed. Hollow: another model is at least as good in both and better "
            "in one. Bars are 95\\,\\% intervals, by bootstrap over problems."
        )
        pictures["front"] = figures.front(study.results, x, y, size=COLUMN), caption
    if lines(study.results):
        for number, score in enumerate(study.results.directions, 1):
            caption = (
                f"{latex.escape(score)} against the weight; dashed: the straight line between the ends. "
                "Bands are 95\\,\\% intervals, by bootstrap over problems."
            )
            pictures[f"weight-{number}"] = figures.curves(study.results, [score]), caption
    body = ["\\input{scores}\n"]
    files["scores.tex"] = _table(study)
    if (home / results.HELD_OUT / results.JSON_NAME).is_file():
        held_out = _read(home / results.HELD_OUT, held_out=True)
        files["held_out.tex"] = _table(held_out)
        files["held_out.md"] = _markdown(held_out)
        body.insert(0, "\\input{held_out}\n")
    body += [
        latex.figure(f"{name}.pdf", caption, f"fig:{name}")
        for name, (_, caption) in pictures.items()
    ]
    keys, files["references.bib"] = bibliography.write(_sources(study))
    files["methods.tex"] = _methods(study, keys)
    files["main.tex"] = latex.MAIN.replace("BODY", "\n".join(body))
    files["scores.md"] = _markdown(study)
    files["scores.csv"] = results.as_csv(study.results)
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (place / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"{place}: cannot be written ({error.strerror})") from None
    for name, (figure, _) in pictures.items():
        figures.save(figure, place / f"{name}.pdf")
    written = [*files, *(f"{name}.pdf" for name in pictures), *_write_samples(home, place)]
    return [place / name for name in written]


def _write_samples(home: Path, place: Path) -> list[str]:
    """Write all samples as parquet, if pandas and pyarrow are installed."""
    from merganser.results import frames

    try:
        extras.check("pandas", "frames")
        extras.check("pyarrow", "frames")
    except MerganserError:
        return []
    frames.samples(home).to_parquet(place / "samples.parquet", index=False)
    return ["samples.parquet"]


def _read(home: Path, *, held_out: bool = False) -> _Study:
    study_results = results.read(home)
    tables = problem_scores.load(study_results, home)
    rates = {
        name
        for name in study_results.directions
        if all(0 <= e.scores[name].mean <= 1 for e in study_results.entries if name in e.scores)
        and (name not in tables or tables[name].is_rate)
    }
    better = set()
    for score, expert in _best_experts(study_results).items():
        if study_results.points:
            rows = paired.compare(home, against=[expert], scores=[score]).rows
            better |= {(score, row.model) for row in rows if _counts(row)}
    counts = {
        t.task: int(t.counts.max()) for t in tables.values() if (t.counts == t.counts.max()).all()
    }
    return _Study(
        study_results,
        labels(study_results),
        paired.leaders(home),
        frozenset(rates),
        frozenset(better),
        counts,
        held_out,
    )


def _counts(row: Comparison) -> bool:
    return row.verdict == "better" and not row.held_out


def _best_experts(study_results: Results) -> dict[str, str]:
    """Return the name of the expert with the best mean, by score."""
    best = {}
    for score, direction in study_results.directions.items():
        experts = [e for e in study_results.entries if e.role == "expert" and score in e.scores]
        sign = 1 if direction == "max" else -1
        values = {e.name: sign * e.scores[score].mean for e in experts}
        if values:
            best[score] = max(values, key=values.__getitem__)
    return best


# -- tables --------------------------------------------------------------------------------------


def _places(study: _Study, score: str) -> int:
    """Return a column's decimals: enough for two digits of the largest error, but at most one for percent."""
    factor = 100 if score in study.rates else 1
    errors = [e.scores[score].error * factor for e in study.results.entries if score in e.scores]
    return min(1 if factor == 100 else 3, number_format.decimals(errors))


def _numbers(study: _Study, score: str, value: Score) -> tuple[str, str]:
    factor, places = (100 if score in study.rates else 1), _places(study, score)
    error = f"{value.error * factor:.{places}f}" if value.error else ""
    return f"{value.mean * factor:.{places}f}", error


def _groups(study_results: Results) -> list[list[Entry]]:
    """Return the rows of a table in two groups: the models to compare with, and the merges."""
    scored = [entry for entry in study_results.entries if entry.scores]
    groups = [[e for e in scored if e.role != "point"], [e for e in scored if e.role == "point"]]
    return [group for group in groups if group]


def _name(study: _Study, entry: Entry) -> str:
    role = "" if entry.role in ("point", "expert") else f" ({entry.role})"
    return study.short[entry.name] + ("" if entry.role == study.short[entry.name] else role)


def _table(study: _Study) -> str:
    """Return the table of scores as LaTeX, for booktabs and siunitx."""
    study_results = study.results
    names = list(study_results.directions)
    columns = ""
    for name in names:
        texts = [
            _numbers(study, name, e.scores[name])[0]
            for e in study_results.entries
            if name in e.scores
        ]
        digits = max((len(t.partition(".")[0].lstrip("-")) for t in texts), default=1)
        sign = "-" if any(t.startswith("-") for t in texts) else ""
        columns += f" S[table-format={sign}{digits}.{_places(study, name)}]@{{\\,}}l"
    tasks = [name.rpartition("/")[0] for name in names]
    head = []
    if any(tasks):
        cells, rules, column = [], [], 2
        for task in dict.fromkeys(tasks):
            width = 2 * tasks.count(task)
            cells.append(f"\\multicolumn{{{width}}}{{c}}{{{latex.escape(task)}}}")
            rules.append(f"\\cmidrule(lr){{{column}-{column + width - 1}}}")
            column += width
        head = [f" & {' & '.join(cells)} \\\\", "".join(rules)]
    arrows = {"max": "\\uparrow", "min": "\\downarrow"}
    titles = []
    for name in names:
        text = latex.escape(name.rpartition("/")[2]) + (" (\\%)" if name in study.rates else "")
        titles.append(
            f"\\multicolumn{{2}}{{c}}{{{text} ${arrows[study_results.directions[name]]}$}}"
        )
    rows = []
    for group in _groups(study_results):
        rows.append("\\midrule")
        rows += [
            " & ".join([latex.escape(_name(study, e)), *(_cells(study, e, name) for name in names)])
            + " \\\\"
            for e in group
        ]
    label = "held-out" if study.held_out else "scores"
    return "\n".join(
        [
            "\\begin{table*}[t]",
            "\\centering",
            f"\\caption{{{_caption(study)}}}",
            f"\\label{{tab:{label}}}",
            f"\\begin{{tabular}}{{l{columns}}}",
            "\\toprule",
            *head,
            f"Model & {' & '.join(titles)} \\\\",
            *rows,
            "\\bottomrule",
            "\\end{tabular}",
            "\\end{table*}",
            "",
        ]
    )


def _cells(study: _Study, entry: Entry, score: str) -> str:
    """Return a score's two cells: the mean, and the error with a dagger if the difference is significant."""
    if score not in entry.scores:
        return "{--} & "
    mean, error = _numbers(study, score, entry.scores[score])
    bold = "\\bfseries " if entry.name in study.leaders.get(score, ()) else ""
    dagger = "$^\\dagger$" if (score, entry.name) in study.better else ""
    small = f"{{\\scriptsize$\\pm${error}}}" if error else ""
    return f"{bold}{mean} & {small}{dagger}"


def _settings(study: _Study) -> str:
    """Return a phrase with the problems, samples and decoding of each task."""
    parts = []
    for task in study.results.settings.get("tasks", []):
        name = str(task.get("task", ""))
        count = task.get("samples", 1)
        sampled = (
            f"temperature {task.get('temperature'):g}" if task.get("temperature") else "greedy"
        )
        if task.get("temperature") and task.get("top_p", 1.0) != 1.0:
            sampled += f", top-p {task['top_p']:g}"
        parts.append(
            f"{latex.escape(name)}: $n={task.get('problems')}$ problems, $k={count}$ "
            f"sample{'s' if count != 1 else ''} each ({sampled}, at most {task.get('max_tokens')} tokens)"
        )
    return "; ".join(parts)


def _caption(study: _Study) -> str:
    points = len(study.results.points)
    settings = _settings(study)
    about = (
        "on held-out problems, which no merge was chosen by"
        if study.held_out
        else "on the problems that merges were chosen by"
        if study.results.chosen
        else "of all models"
    )
    typed = [e for e in study.results.entries if e.source]
    sources = "; ".join(
        f"{latex.escape(study.short[e.name])}: {latex.escape(e.source or '')}" for e in typed
    )
    return (
        f"Scores {about}. {settings + '. ' if settings else ''}$\\pm$ is one standard error over problems. "
        "Bold: the best, and all that are not significantly worse (sign-flip permutation of problems, max-T "
        "over all models, 5\\,\\%). $\\dagger$: significantly better than the best merged model "
        f"(max-T over {points} merge{'s' if points != 1 else ''}, $p<0.05$)."
        + (f" Scores from elsewhere: {sources}." if sources else "")
    )


def _markdown(study: _Study) -> str:
    """Return the table of scores as Markdown."""
    study_results = study.results
    names = list(study_results.directions)
    arrows = {"max": "↑", "min": "↓"}
    heads = [
        f"{name}{' (%)' if name in study.rates else ''} {arrows[study_results.directions[name]]}"
        for name in names
    ]
    rows = [f"| model | {' | '.join(heads)} |", f"|---|{'---:|' * len(names)}"]
    for group in _groups(study_results):
        for entry in group:
            cells = [_name(study, entry).replace("|", "\\|")]
            for name in names:
                if name not in entry.scores:
                    cells.append(number_format.MISSING)
                    continue
                mean, error = _numbers(study, name, entry.scores[name])
                bold = "**" if entry.name in study.leaders.get(name, ()) else ""
                dagger = "†" if (name, entry.name) in study.better else ""
                cells.append(f"{bold}{mean}{bold}{f' ± {error}' if error else ''}{dagger}")
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


# -- methods and sources -------------------------------------------------------------------------


def used_methods(study_results: Results) -> list[Method]:
    """Return the merge methods that a study's recipe or its points' values name."""
    try:
        data = yaml.safe_load(study_results.recipe)
    except yaml.YAMLError:
        data = None
    asked = [data.get("merge_method")] if isinstance(data, dict) else []
    asked += [value for point in study_results.points for value in point.values.values()]
    known = [methods.get(name) for name in dict.fromkeys(map(str, asked))]
    return [method for method in known if method is not None]


def _sources(study: _Study) -> list[tuple[str, str]]:
    """Return the sources to cite, with titles for those that the bibliography does not know."""
    study_results = study.results
    sources = [("2306.04488", ""), ("2411.00640", ""), ("max-t", ""), ("holm", "")]
    for method in used_methods(study_results):
        if method.paper is not None:
            sources.append((method.paper, method.title))
    if any("_pass@" in name for name in study_results.directions):
        sources.append(("2107.03374", ""))
    if any("_maj@" in name for name in study_results.directions):
        sources.append(("2203.11171", ""))
    tasks = [str(task.get("task", "")) for task in study_results.settings.get("tasks", [])]
    sources += [
        (source, "")
        for pattern, source in bibliography.DATA_SETS.items()
        if any(re.search(pattern, task, re.IGNORECASE) for task in tasks)
    ]
    if any(task.get("preset") == "open-rs" for task in study_results.settings.get("tasks", [])):
        sources.append(("2503.16219", ""))
    versions = study_results.settings.get("versions", {})
    sources += [(source, "") for tool, source in bibliography.TOOLS.items() if tool in versions]
    sources += [
        (match[1], entry.name)
        for entry in study_results.entries
        if entry.source and (match := re.fullmatch(r"arXiv:(\d{4}\.\d{4,5})", entry.source))
    ]
    return list(dict.fromkeys(sources))


def _origins(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return sentences on data sets of the Hub, reward models and judges."""

    def code(text: object) -> str:
        return f"\\texttt{{{latex.escape(str(text))}}}"

    sentences = []
    found = [re.match(r"hub://([\w.-]+/[\w.-]+).*@(\w{7})", str(t.get("source"))) for t in tasks]
    sets = dict.fromkeys(f"{code(m[1])} (commit {code(m[2])})" for m in found if m)
    if sets:
        sentences.append(f"The problems are those of {', '.join(sets)} on the Hugging Face Hub.")
    for name, scorer in {
        n: s for task in tasks for n, s in task.get("scorers", {}).items()
    }.items():
        identity = scorer.get("identity", {})
        if scorer.get("scorer") == "judge":
            sentences.append(
                f"{code(name)} is the judgement of the language model {code(identity.get('model'))}, asked "
                f"with the prompt of digest {code(identity.get('prompt_digest'))} in the results."
            )
        elif scorer.get("scorer") == "reward":
            sentences.append(
                f"{code(name)} is the output of the reward model {code(identity.get('model'))} "
                f"(revision {code(str(identity.get('revision'))[:14])})."
            )
    return sentences


def _methods(study: _Study, keys: Mapping[str, str]) -> str:
    """Return the paragraph on methods, as LaTeX."""
    study_results = study.results

    def cite(*sources: str) -> str:
        known = [keys[source] for source in sources if source in keys]
        return f"~\\cite{{{','.join(known)}}}" if known else ""

    roles = [entry.role for entry in study_results.entries]
    by = ", ".join(
        f"\\texttt{{{latex.escape(method.name)}}}{cite(str(method.paper))}"
        for method in used_methods(study_results)
    )
    versions = study_results.settings.get("versions", {})
    tools = ", ".join(
        f"{latex.escape(tool)} {latex.escape(str(version))}{cite(bibliography.TOOLS.get(tool, ''))}"
        for tool, version in versions.items()
    )
    experts, points = roles.count("expert"), roles.count("point")
    sentences = [
        f"We merge {experts} fine-tuned model{'s' if experts != 1 else ''}"
        + (" of one base model" if "base" in roles else "")
        + f" at {points} setting{'s' if points != 1 else ''}"
        + (f" by {by}" if by else "")
        + f", as rewarded soups do{cite('2306.04488')}.",
    ]
    if study_results.references:
        count = len(study_results.references)
        shown = ", ".join(
            f"{latex.escape(study.short[e.name])} ({e.role})" for e in study_results.references
        )
        sentences.append(f"We compare with {count} reference{'s' if count != 1 else ''}: {shown}.")
    if settings := _settings(study):
        dtype = str(study_results.settings.get("dtype", ""))
        where = f", computed in {latex.escape(dtype)}" if dtype and dtype != "auto" else ""
        seeds = {task.get("seed") for task in study_results.settings.get("tasks", [])}
        seed = f", seed {seeds.pop()}" if len(seeds) == 1 else ""
        sentences.append(f"All models answer the same problems ({settings}{where}{seed}).")
        sentences += _origins(study_results.settings.get("tasks", []))
    sentences += [
        "A score is the mean over problems of each problem's mean over its samples; errors are standard "
        f"errors over problems, intervals 95\\,\\%{cite('2411.00640')}.",
        "Differences are paired over problems and tested by sign-flip permutation of problems, two-sided "
        "(exact for verdicts of 0 and 1, with mid-$p$; 10\\,000 draws otherwise), adjusted for all models "
        f"that are compared with one reference by max-T{cite('max-t')}, and for comparison by Holm's "
        f"rule{cite('holm')}.",
    ]
    if study.results.chosen and not study.held_out:
        rules = "; ".join(dict.fromkeys(study_results.chosen.values()))
        sentences.append(f"Merges were chosen by: {latex.escape(rules)}.")
    if tools:
        sentences.append(f"Versions: {tools}.")
    return "\n".join(sentences) + "\n"
