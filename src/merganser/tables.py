"""What people see on a terminal: plans, results, fact sheets and progress, as tables and bars."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast

import click
from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from merganser.evaluation.statistics import decimals
from merganser.methods import Method
from merganser.tensors import format_size

if TYPE_CHECKING:
    from merganser.differences.diff import Diff
    from merganser.engine.events import Event
    from merganser.merging.result import MergeResult
    from merganser.publishing.push import Publication, State
    from merganser.recipe.sweep_file import Point
    from merganser.results.scores import Entry, Results, Score
    from merganser.study.progress import Scored, Scoring, Turn, Waiting
    from merganser.study.search import SearchResult
    from merganser.study.search_loop import Standing
    from merganser.study.search_space import Search
    from merganser.study.sweep import SweepResult

LINE_SECONDS = 5.0
"""Off a terminal a line is written this often."""

BAR_WIDTH = 80
"""What the bar of a merge takes without the tensor's name."""


class ProgressBar:
    """Listens to the engine: a bar on a terminal, else a line now and then; always on stderr."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.progress = (
            Progress(
                TextColumn("merging"),
                BarColumn(),
                TaskProgressColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                TextColumn("[dim]{task.fields[tensor]}"),
                console=self.console,
                transient=True,
            )
            if self.console.is_terminal
            else None
        )
        self.task: Any = None
        self.total = 0
        self.began = self.written = time.monotonic()

    def listen(self, event: Event) -> None:
        """Take an event of the engine."""
        from merganser.engine.events import Finished, Merged, Started

        if isinstance(event, Started):
            self.total = event.total_bytes
            self.began = self.written = time.monotonic()
            if self.progress is not None:
                if self.task is not None:  # of the merge before this one
                    self.progress.remove_task(self.task)
                self.progress.start()
                self.task = self.progress.add_task("merge", total=event.total_bytes, tensor="")
        elif isinstance(event, Merged):
            if self.progress is not None:
                room = self.console.width - BAR_WIDTH
                tensor = escape(event.tensor[-room:]) if room > 0 else ""
                self.progress.update(self.task, completed=event.done_bytes, tensor=tensor)
            elif time.monotonic() - self.written > LINE_SECONDS:
                self._line(event.done_bytes)
        elif isinstance(event, Finished):
            self.stop()

    def _line(self, done: int) -> None:
        self.written = time.monotonic()
        rate = done / (self.written - self.began)
        left = (self.total - done) / rate if rate else 0.0
        self.console.print(
            f"merging: {done / max(self.total, 1):.0%}, {format_size(rate)}/s, {left:.0f} s left",
            highlight=False,
        )

    def stop(self) -> None:
        """Take the bar away."""
        if self.progress is not None:
            self.progress.stop()


class ScoringLines:
    """Listens to a study: one line for the model at work, and one for each model's scores; on stderr.

    On a terminal the line of the model at work is rewritten; elsewhere a new one comes now and then.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.status: Any = None
        self.turn: Turn | None = None
        self.began = self.written = time.monotonic()
        self.first = 0

    def listen(self, event: Scoring | Scored | Waiting) -> None:
        """Take an event of a study."""
        from merganser.study.progress import Scored, Waiting

        if isinstance(event, Waiting):
            line = f"{_turn(event.turn)}: waiting for another process, which scores it"
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
            return
        if event.turn != self.turn:
            self.turn = event.turn
            self.began = self.written = time.monotonic()
            self.first = 0 if isinstance(event, Scored) else event.tokens
        if isinstance(event, Scored):
            self.console.print(_scored_line(event), highlight=False, soft_wrap=True)
        elif self.console.is_terminal:
            if self.status is None:
                self.status = self.console.status("")
                self.status.start()
            self.status.update(Text(self._line(event), no_wrap=True, overflow="ellipsis"))
        elif time.monotonic() - self.written > LINE_SECONDS:
            self.written = time.monotonic()
            self.console.print(self._line(event), highlight=False, markup=False, soft_wrap=True)

    def _line(self, event: Scoring) -> str:
        """Which model, how far it is, how fast, and about how long all models take still."""
        parts = [f"{_turn(event.turn)}: {event.done} of {event.total} completions"]
        tokens, seconds = event.tokens - self.first, time.monotonic() - self.began
        if tokens and seconds:
            rate = tokens / seconds
            parts.append(f"{rate:,.0f} tokens/s")
            if event.generated:
                others = event.turn.models - event.turn.number
                missing = event.total - event.done + others * event.total
                left = missing * (event.tokens / event.generated) / rate
                parts.append(f"about {_duration(left)} left")
        return ", ".join(parts)

    def stop(self) -> None:
        """Take the line away."""
        if self.status is not None:
            self.status.stop()


def _turn(turn: Turn) -> str:
    return f"model {turn.number} of {turn.models}, {turn.model}"


def _scored_line(event: Scored) -> str:
    """A model's scores, and how many of its completions are new."""
    scores = ", ".join(f"{name} {_score(score)}" for name, score in event.scores.items())
    reused = event.completions - event.generated
    kept = f", {reused} of them reused" if 0 < reused < event.completions else ""
    kept = ", all of them reused" if reused == event.completions > 0 else kept
    count = f" ({event.completions} completions{kept})" if event.completions else ""
    return escape(f"{_turn(event.turn)}: {scores}{count}")


def show_scores(found: Results) -> None:
    """Print the scores of a study: a line a model, those that were chosen marked and told below."""
    from merganser.results.interpolation import labels

    console = stdout()
    short = labels(found)
    keys = list(dict.fromkeys(key for entry in found.entries for key in entry.values))
    blank = "  " if found.chosen else ""
    names = [("* " if e.name in found.chosen else blank) + short[e.name] for e in found.entries]
    columns = [
        Column(f"{blank}model", names),
        Column("", ["" if e.role == "point" else e.role for e in found.entries]),
        *(
            Column(k, [value_text(e, k) if k in e.values else "" for e in found.entries])
            for k in keys
        ),
    ]
    if any(_is_moved(entry) for entry in found.entries):
        weights = [", ".join(map(_decimal, entry.effective.values())) for entry in found.entries]
        columns.append(Column("effective", weights))
    for name, direction in found.directions.items():
        title = f"{name} {'↑' if direction == 'max' else '↓'}"
        columns.append(Column(title, _scores([e.scores.get(name) for e in found.entries]), True))
    print_columns(console, columns)
    points = {point.name for point in found.points}
    say_shortened(console, {name: each for name, each in short.items() if name in points})
    models = {e.name: short[e.name] for e in found.entries if e.name not in points}
    say_shortened(console, models, "")
    console.print("means ± one standard error, over problems", highlight=False)
    for name, rule in found.chosen.items():
        told = f"* chosen, {escape(rule)}: [bold]{escape(name)}[/]"
        console.print(told, highlight=False, soft_wrap=True)


def _is_moved(entry: Entry) -> bool:
    """Whether rounding made other weights of those that were asked for."""
    pairs = ((entry.weights.get(model), got) for model, got in entry.effective.items())
    return any(asked is None or abs(got - asked) > 0.02 for asked, got in pairs)


def _scores(scores: Sequence[Score | None]) -> list[str]:
    """A column of scores, all with as many decimals as the largest error has in two digits."""
    places = decimals(score.error for score in scores if score is not None)
    return [
        "–"
        if score is None
        else f"{score.mean:.{places}f}" + (f" ±{score.error:.{places}f}" if score.error else "")
        for score in scores
    ]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table that may be too wide.

    Attributes:
        title: its heading.
        cells: one for each row.
        right: whether they stand on the right, as numbers do.
        shared: what stands before the cell where all rows have the same and it is written once, below the
            table; None for a column that stays.
    """

    title: str
    cells: Sequence[str | Text]
    right: bool = False
    shared: str | None = None

    @property
    def width(self) -> int:
        """In characters."""
        return max(map(cell_len, [self.title, *map(str, self.cells)]))

    @property
    def is_constant(self) -> bool:
        """Whether all rows have the same cell, and it may be written once."""
        return self.shared is not None and len(set(map(str, self.cells))) == 1


NAMES_WORK = "; `SWEEP.yml#NAME` and `--only NAME` take both"
"""Where the short name of a point works."""

GAP = 2
"""Blanks between columns."""


def print_columns(console: Console, columns: Sequence[Column], alike: str = "all") -> None:
    """Print a table; where the terminal is too narrow, several below each other, all with the first column.

    The first column takes half of the terminal, or what the others leave: longer names are folded. Columns
    whose rows are all the same become a line below that begins with ``alike``, if there are several rows.
    """
    constant = [column for column in columns if column.is_constant and len(column.cells) > 1]
    first, *others = [column for column in columns if column not in constant]
    most = max(console.width // 2, console.width - sum(GAP + other.width for other in others))
    while True:
        room, count = console.width - min(first.width, most), 0
        while count < len(others) and (room := room - GAP - others[count].width) >= 0:
            count += 1
        count = max(1, count)
        table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
        shown = [first, *others[:count]]
        for column in shown:
            justify: Literal["left", "right"] = "right" if column.right else "left"
            table.add_column(
                escape(column.title),
                justify=justify,
                overflow="fold",
                max_width=most if column is first else None,
            )
        for row in zip(*(column.cells for column in shown), strict=True):
            table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
        console.print(table)
        others = others[count:]
        if not others:
            break
        console.print()
    print_shared(console, constant, alike)


def print_shared(console: Console, columns: Sequence[Column], alike: str) -> None:
    """Print columns whose rows are all the same, on one line."""
    cells = [f"{column.shared}{column.cells[0]}" for column in columns if str(column.cells[0])]
    if cells:
        console.print(escape(f"{alike}: {'; '.join(cells)}"), highlight=False)


def print_points(console: Console, names: Sequence[str], columns: Sequence[Column]) -> None:
    """Print a table of points, by short names where there is no room for their own."""
    from merganser.recipe.short_names import POINTS, shorten

    point = Column("point", names)
    room = console.width - sum(GAP + column.width for column in columns if not column.is_constant)
    if point.width <= room or len(names) == 1:
        print_columns(console, [point, *columns], "all points")
        return
    short = shorten(names, POINTS)
    print_columns(console, [Column("point", short), *columns], "all points")
    say_shortened(console, dict(zip(names, short, strict=True)))


def say_shortened(console: Console, short: Mapping[str, str], where: str = NAMES_WORK) -> None:
    """Say that a table has names shortened, with one of them in full."""
    example = next(((name, each) for name, each in short.items() if name != each), None)
    if example is not None:
        text = f"names are shortened: {example[1]} is {example[0]}{where}"
        console.print(escape(text), highlight=False)


def letter(place: int) -> str:
    """What a model is called where its name takes too much room: A, B … Z, AA, AB …"""
    before, last = divmod(place, len(ascii_uppercase))
    return (letter(before - 1) if before else "") + ascii_uppercase[last]


class Columns:
    """Answers of one or several models as they come, on stdout.

    Several are shown side by side on a terminal, else one after the other under their names.
    """

    def __init__(self, names: Sequence[str], *, silent: bool = False) -> None:
        self.names = names
        self.silent = silent
        self.texts = [""] * len(names)
        self.notes: list[str] = []
        self.current: int | None = None
        self.live: Live | None = None

    def __enter__(self) -> Columns:
        console = Console()
        if len(self.names) > 1 and console.is_terminal and not self.silent:
            self.live = Live(console=console, get_renderable=self._side_by_side)
            self.live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self.live is not None:
            self.live.stop()
        elif self.current is not None:
            sys.stdout.write("\n")
            sys.stdout.flush()
        for note in self.notes:
            click.echo(note, err=True)

    def add(self, index: int, text: str) -> None:
        """Show more of an answer."""
        self.texts[index] += text
        if self.silent or self.live is not None:
            return
        if index != self.current:
            if len(self.names) > 1:
                sys.stdout.write("\n\n" if self.current is not None else "")
                sys.stdout.write(f"== {self.names[index]} ==\n")
            self.current = index
        sys.stdout.write(text)
        sys.stdout.flush()

    def mark(self, index: int, text: str) -> None:
        """Say something about an answer: below it where answers stand side by side, else at the end on stderr."""
        if self.live is not None:
            self.texts[index] += f"\n[{text}]"
        elif not self.silent:
            self.notes.append(f"[{self.names[index]}: {text}]")

    def _side_by_side(self) -> Table:
        grid = Table.grid(expand=True, padding=(0, 1))
        for _ in self.names:
            grid.add_column(ratio=1, overflow="fold")
        grid.add_row(
            *(
                Panel(Text(text), title=escape(name), title_align="left")
                for name, text in zip(self.names, self.texts, strict=True)
            )
        )
        return grid


def show_result(result: MergeResult, *, verbose: bool = False) -> None:
    """Print what a merge made."""
    console = stdout()
    report = result.outcome.report
    if report is not None:
        moved = [
            Text(_decimal(m.effective), style="yellow" if _is_far(m.effective, m.requested) else "")
            for m in report.models
        ]
        names = [model.model for model in report.models]
        letters = list(map(letter, range(len(names))))
        differ = ["–" if m.differ is None else f"{m.differ:.1%}" for m in report.models]
        columns = [
            *([Column("", letters)] if len(names) > 1 else []),
            Column("model", names),
            Column("weight", [_decimal(model.given) for model in report.models], True),
            Column("normalised", [_decimal(model.requested) for model in report.models], True),
            Column("effective", moved, True),
            Column("differs", differ, True),
        ]
        print_columns(console, columns)
        if verbose and report.worst:
            tensors, models, wanted, got = zip(*report.worst, strict=True)
            known = dict(zip(names, letters, strict=True))
            console.print("\nfarthest from what was asked", highlight=False)
            columns = [
                Column("tensor", tensors),
                Column("model", [known[model] for model in models], shared="model "),
                Column("normalised", [*map(_decimal, wanted)], True),
                Column("effective", [*map(_decimal, got)], True),
            ]
            print_columns(console, columns, "all of these")
    size, seconds = result.plan.output_bytes, result.timings["total_s"]
    where = f"[bold]{escape(str(result.folder))}[/]: " if result.folder else ""
    console.print(
        f"{where}{result.plan.parameters:,} parameters, {format_size(size)} in {seconds:.1f} s "
        f"({format_size(size / max(seconds, 1e-9))}/s)",
        highlight=False,
        soft_wrap=True,
    )


def _is_far(got: float | None, asked: float | None) -> bool:
    return _decimal(got) != _decimal(asked) and abs((got or 0) - (asked or 0)) > 0.02


def value_text(point: Point | Entry, key: str) -> str:
    """A point's value of a key of the sweep, as people write it."""
    from merganser.recipe.expressions import text

    value = point.values.get(key)
    if isinstance(value, list):
        return f"[{', '.join(map(text, value))}]"
    return "–" if value is None else text(value)


def show_sweep(result: SweepResult, *, verbose: bool = False) -> None:
    """Print what a sweep made: a line a point; with ``verbose`` each point's own table."""
    console = stdout()
    points, weights = result.points, []
    for each in points:
        if verbose and each.merged is not None:
            show_result(each.merged, verbose=True)
        report = each.merged.outcome.report if each.merged else None
        models = report.models if report else ()
        weights.append(", ".join(_decimal(m.effective) for m in models) or "–")
    keys = list(dict.fromkeys(key for each in points for key in each.point.values))
    columns = [
        *(Column(key, [value_text(each.point, key) for each in points]) for key in keys),
        Column("effective weights", weights),
        Column("", ["is up to date" if each.merged is None else "" for each in points], shared=""),
    ]
    print_points(console, [each.point.name for each in points], columns)
    made = [each for each in result.points if each.merged is not None]
    size = sum(each.plan.output_bytes for each in made)
    passes = "1 pass" if result.passes == 1 else f"{result.passes} passes"
    console.print(
        f"{len(made)} of {len(result.points)} points merged, {format_size(size)} in {passes} and "
        f"{result.seconds:.1f} s",
        highlight=False,
    )


def show_search(result: SearchResult, *, verbose: bool = False) -> None:
    """Print the candidates that a search chose, with their scores; with ``verbose`` all of them."""
    from merganser.results.interpolation import short_names

    console = stdout()
    held = {entry.name: entry for entry in result.held_out.entries} if result.held_out else {}
    found = {entry.name: entry for entry in result.found.entries}
    others = [entry.name for entry in result.found.entries if entry.role != "point"]
    points = [entry.name for entry in result.found.points]
    shown = dict.fromkeys([*others, *result.found.chosen, *(points if verbose else ())])
    keys = list(dict.fromkeys(key for name in shown for key in found[name].values))
    scores = list(dict.fromkeys([*result.search.objectives, *result.search.limits]))
    beside = list(result.held_out.directions) if result.held_out else []
    entries = [found[name] for name in shown]
    again = [held.get(name) for name in shown]
    why = [result.found.chosen.get(e.name, "" if e.role == "point" else e.role) for e in entries]
    short = short_names(result.found)
    columns = [
        Column("model", [short.get(name, name) for name in shown]),
        *(Column(key, [value_text(entry, key) for entry in entries]) for key in keys),
        *(Column(name, _scores([e.scores.get(name) for e in entries]), True) for name in scores),
        *(
            Column(
                f"{name}, held out",
                _scores([e.scores.get(name) if e else None for e in again]),
                True,
            )
            for name in beside
        ),
        Column("", why),
    ]
    print_columns(console, columns)
    say_shortened(console, short, "")
    if not result.found.chosen and result.search.limits:
        limits = ", ".join(result.search.limits)
        console.print(f"no candidate keeps to the constraints on {escape(limits)}")
    console.print(
        f"\n{len(result.trials)} candidates, {len(points)} of them different, in {result.seconds:.1f} s",
        highlight=False,
    )


def _score(score: Score | None) -> str:
    if score is None:
        return "–"
    return f"{score.mean:.4g}" + (f" ±{score.error:.2g}" if score.error else "")


def search_line(standing: Standing, search: Search) -> str:
    """One line about a candidate that was scored: which, its scores, the best so far, the time left."""
    from merganser.recipe.sweep_file import told

    trial = standing.trial
    own = ", ".join(f"{name} {_score(trial.scores.get(name))}" for name in search.objectives)
    own = f"cannot be merged ({trial.invalid})" if trial.invalid else own
    if not standing.best:
        best = "none keeps to the constraints yet"
    elif len(search.objectives) > 1:
        best = f"{len(standing.best)} on the front"
    else:
        first = standing.best[0]
        [score] = search.objectives
        best = f"best {_score(first.scores[score])} ({first.candidate.name})"
    left = f"; about {_duration(standing.seconds_left)} left" if standing.seconds_left else ""
    values = told(trial.candidate.values)
    which = f"candidate {trial.candidate.number} of {standing.budget} ({values})"
    return f"{which}: {own}; {best}{left}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"


MOST_DIFFERENT = 10
"""Tensors that a comparison names."""


def show_diff(found: Diff) -> None:
    """Print how two models differ: by layers, by roles, and the most different tensors."""
    from merganser.differences import diff

    console = stdout()
    ranked = sorted(found.tensors, key=lambda t: -(found.figures([t])["relative"] or 0))
    parts = {
        "layer": found.groups("layer"),
        "role": found.groups("role"),
        "most different": {t.name: [t] for t in ranked[:MOST_DIFFERENT]},
        "all": {"": list(found.tensors)},
    }
    for title, groups in parts.items():
        rows = [found.figures(tensors) for tensors in groups.values()]
        columns = [
            Column(key.replace("_", " "), [_figure(row[key]) for row in rows], True)
            for key in found.figures(found.tensors)
        ]
        print_columns(console, [Column(title, list(groups)), *columns])
        console.print()
    total = sum(t.elements for t in found.tensors)
    counts = {name: n for name, n in diff.histogram(found.tensors).items() if n}
    units = "units in the last place" + (f" of {found.ulp}" if found.ulp else "")
    shares = [f"{count / max(total, 1):.3%}" for count in counts.values()]
    print_columns(console, [Column(units, list(counts)), Column("share", shares, True)])
    console.print()
    _print_legend(console, found)
    for name, reason in found.skipped.items():
        console.print(f"not compared: {name} ({reason})", markup=False, highlight=False)


LEGEND = {
    "changed": "share of the elements that differ",
    "distance": "L2 norm of B - A",
    "relative": "distance over the L2 norm of A",
    "relative_a": "L2 norm of A - base over that of the base",
    "relative_b": "L2 norm of B - base over that of the base",
    "cosine": "of the angle between A - base and B - base",
    "same_sign": "share, of the elements that both changed, that both moved to the same side",
    "interference": "share of both changes' L1 norms that cancels when they are added up",
    "effective_rank": "of B - A, the mean over the matrices",
}
"""What the figures of a comparison are."""


def _print_legend(console: Console, found: Diff) -> None:
    """Print what the columns of a comparison are."""
    rounded = f", both rounded to {found.ulp}" if found.ulp else ""
    wider = "" if found.ulp else ", in the wider of both dtypes"
    facts = {key.replace("_", " "): LEGEND[key] for key in found.figures(found.tensors)}
    facts["changed"] += rounded
    facts["units"] = f"representable numbers from A's to B's{wider}{rounded}"
    table = Table.grid(padding=(0, GAP, 0, 0))
    for name, text in facts.items():
        table.add_row(Text(name, style="bold"), Text(text))
    console.print(table)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def show_publication(
    publication: Publication, state: State | None = None, *, on_stderr: bool = False
) -> None:
    """What a push will publish: every repository's files, licences, and local paths."""
    console = Console(stderr=True) if on_stderr else stdout()
    visibility = "private" if publication.private else "PUBLIC: anyone can read and copy it"
    for package in publication.packages:
        there = state.repositories[package.repository] if state else None
        seen = ("private" if there.private else "PUBLIC") if there else visibility
        known = "" if state is None else ", is there already" if there else ", new"
        branch = f", branch {publication.revision}" if publication.revision else ""
        console.print(f"[bold]{escape(package.repository)}[/] ({seen}{known}{escape(branch)})")
        table = Table(box=None, header_style="dim")
        table.add_column("file", overflow="fold")
        table.add_column("size", justify="right")
        for name, size in package.sizes.items():
            changed = " (names in place of paths)" if isinstance(package.files[name], bytes) else ""
            table.add_row(escape(name + changed), format_size(size))
        table.add_row("[dim]together", format_size(sum(package.sizes.values())))
        console.print(table)
        for name in state.stale(package) if state else ():
            console.print(f"  [yellow]is taken away there:[/] {escape(name)}")
        licences = ", ".join(
            f"{name}: {license_ or 'none stated'}" for name, license_ in package.licenses.items()
        )
        console.print(f"  licences of the parents: {escape(licences)}")
        for found in package.disclosed:
            console.print(
                f"  [yellow]local path[/] in {escape(found.file)}: {escape(found.path)}",
                soft_wrap=True,
            )
    if publication.collection:
        console.print(f"collection: {escape(publication.collection)}")
    if state is not None:
        console.print(f"as {escape(state.account)}")


MANY = 8
"""More shards than these are counted, not listed."""


def show_facts(sheet: dict[str, Any]) -> None:
    """Print a model's fact sheet."""
    console = stdout()
    table = Table.grid(padding=(0, 2))
    for name, value in sheet.items():
        if value is None or value == {} or value == []:
            continue
        if name == "shards" and len(value) > MANY:
            value = f"{len(value)} files, {min(value)} to {max(value)}"
        elif isinstance(value, dict):
            value = ", ".join(f"{key} {_large(entry)}" for key, entry in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        elif name == "size":
            value = format_size(value)
        table.add_row(f"[bold]{name.replace('_', ' ')}", escape(_large(value)))
    console.print(table)


def _large(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def show_methods(methods: Sequence[Method], *, full: bool = False) -> None:
    """Print merge methods: a line each, or everything about one."""
    import inspect

    console = stdout()
    if not full:
        _list_methods(console, methods)
        return
    for method in methods:
        console.print(
            f"[bold]{method.name}[/] ({escape(method.title)}): {_count(method)}, base {method.base}"
        )
        for paragraph in (inspect.getdoc(method.function) or "").split("\n\n"):
            text = Text(without_backticks(" ".join(paragraph.split())) + "\n")
            console.print(text, width=min(console.width, PROSE), highlight=False)
        console.print(f"Costs: {method.cost}.", highlight=False)
        if method.origin is not None:
            source = method.origin.package or method.origin.source
            console.print(f"From {escape(source)}, sha256 {method.origin.digest}.", highlight=False)
        console.print()
        own = method.parameters
        columns = [
            Column("parameter", [p.name for p in own]),
            Column("type", [p.kind for p in own]),
            Column(
                "default", ["must be given" if p.required else str(p.default).lower() for p in own]
            ),
            Column("usual values", [p.range.usual_text if p.range else "" for p in own]),
            Column("valid values", [p.range.valid_text if p.range else "" for p in own]),
        ]
        print_columns(console, columns)


PROSE = 100
"""Characters of a line of prose, on wide terminals too."""

WIDE = 120
"""From this width on a list of methods has a line for each."""


def without_backticks(text: str) -> str:
    """Names in a docstring without the double backticks around them."""
    return re.sub(r"``(.+?)``", r"\1", text)


def _list_methods(console: Console, methods: Sequence[Method]) -> None:
    """A line for each; on a narrow terminal what one takes below what it does."""
    rows = [
        (
            method.base,
            _count(method),
            ", ".join(p.name + ("*" if p.required else "") for p in method.parameters),
            without_backticks(method.summary),
        )
        for method in methods
    ]
    names = Column("method", [method.name for method in methods])
    if console.width >= WIDE:
        titles = ("base", "takes", "parameters", "what it does")
        cells = zip(*rows, strict=True)
        print_columns(console, [names, *map(Column, titles, cells)])
    else:
        texts = [
            f"{summary}\nbase {base}, {count}" + (f"; {parameters}" if parameters else "")
            for base, count, parameters, summary in rows
        ]
        table = Table.grid(padding=(0, GAP, 0, 0))
        table.add_column(min_width=names.width)
        table.add_column(overflow="fold")
        for name, text in zip(names.cells, texts, strict=True):
            table.add_row(Text(str(name)), Text(text))
        console.print(table)
    console.print("[dim]* must be given. More: merganser methods NAME[/]")


def _count(method: Method) -> str:
    """How many models a method takes."""
    least, most = method.models
    count = str(least) if least == most else f"{least}+" if most is None else f"{least}–{most}"
    return f"{count} model{'' if count == '1' else 's'}"


class _Unpadded:
    """A stream that takes no blanks at the ends of lines, with which tables fill their last column."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write lines."""
        return self.stream.write(re.sub(r" +(?=\n)", "", text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


UNBROKEN = 10_000
"""Characters of a line off a terminal, where nothing is folded unless COLUMNS asks for it."""


def stdout() -> Console:
    """What results are printed with."""
    if sys.stdout.isatty():
        return Console()
    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdecimal() and int(columns) else UNBROKEN
    return Console(file=cast("TextIO", _Unpadded(sys.stdout)), width=width)
