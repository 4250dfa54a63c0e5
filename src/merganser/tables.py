"""What people see on a terminal: plans, results, fact sheets and progress, as tables and bars."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

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
from merganser.modules import DEFAULT, Module
from merganser.planning import DISK_MARGIN, Plan, TensorJob, default_threads, memory_needed
from merganser.tensors import format_size

if TYPE_CHECKING:
    from merganser.engine.events import Event
    from merganser.merge_result import MergeResult
    from merganser.recipe.steps import Step
    from merganser.study.diff import Diff
    from merganser.study.exploration import Standing
    from merganser.study.language import Point
    from merganser.study.progress import Scored, Scoring, Turn, Waiting
    from merganser.study.publishing import Publication, State
    from merganser.study.results import Entry, Results, Score
    from merganser.study.search import SearchResult
    from merganser.study.space import Search
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
    from merganser.study.lines import labels

    console = _console()
    short = labels(found)
    keys = list(dict.fromkeys(key for entry in found.entries for key in entry.values))
    blank = "  " if found.chosen else ""
    names = [("* " if e.name in found.chosen else blank) + short[e.name] for e in found.entries]
    columns = [
        _Column(f"{blank}model", names),
        _Column("", ["" if e.role == "point" else e.role for e in found.entries]),
        *(_Column(k, [_value(e, k) if k in e.values else "" for e in found.entries]) for k in keys),
    ]
    if any(_is_moved(entry) for entry in found.entries):
        weights = [", ".join(map(_decimal, entry.effective.values())) for entry in found.entries]
        columns.append(_Column("effective", weights))
    for name, direction in found.directions.items():
        title = f"{name} {'↑' if direction == 'max' else '↓'}"
        columns.append(_Column(title, _scores([e.scores.get(name) for e in found.entries]), True))
    _print_columns(console, columns)
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
class _Column:
    """A column of a table that may be too wide."""

    title: str
    cells: Sequence[str]
    right: bool = False

    @property
    def width(self) -> int:
        """In characters."""
        return max(map(cell_len, [self.title, *self.cells]))


GAP = 2
"""Blanks between columns."""


def _print_columns(console: Console, columns: Sequence[_Column]) -> None:
    """Print a table; where the terminal is too narrow, several below each other, all with the first column.

    The first column takes half of the terminal at the most: longer names are folded.
    """
    first, *others = columns
    most = console.width // 2
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
            table.add_row(*map(escape, row))
        console.print(table)
        others = others[count:]
        if not others:
            return
        console.print()


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


def _table(columns: Sequence[str], right: Sequence[str] = (), title: str | None = None) -> Table:
    """A table whose names are folded where there is no room, never cut; numbers stand on the right, whole."""
    table = Table(title=title and escape(title), title_justify="left", box=None, pad_edge=False)
    for column in columns:
        if column in right:
            table.add_column(escape(column), justify="right", no_wrap=True)
        else:
            table.add_column(escape(column), overflow="fold")
    return table


def show_step(step: Step) -> None:
    """Print which of several merges is told of next."""
    role = "output" if step.final else "intermediate result"
    console = _console()
    console.print(f"\n── [bold]{escape(step.name)}[/], {role}" if step.name else f"\n── {role}")
    console.print()


def show_plan(plan: Plan, *, verbose: bool = False) -> None:
    """Print a plan for people."""
    console = _console()
    models = _table(
        ("", "model", "layers", "tensors", "dtypes", "size"),
        right=("layers", "tensors", "size"),
        title=f"{plan.method.title} merge",
    )
    for i, source in enumerate(plan.sources):
        specs = source.checkpoint.specs
        dtypes = ", ".join(dict.fromkeys(spec.dtype.name for spec in specs.values()))
        role = (
            "base"
            if i == plan.base
            else "config"
            if i == plan.donor and len(plan.sources) > 1
            else ""
        )
        models.add_row(
            role,
            escape(source.reference.text),
            _depths(source.architecture.modules.values()),
            str(len(specs)),
            dtypes,
            format_size(sum(spec.nbytes for spec in specs.values())),
        )
    console.print(models)
    console.print()
    console.print(_jobs_table(plan, verbose))
    console.print()
    for module, layers in plan.layers.items():
        console.print(_layers_table(plan, module, layers))
        console.print()
    how = f"{plan.arithmetic} arithmetic, rounding to {plan.rounding}" + (
        f" (seed {plan.seed})" if plan.rounding == "stochastic" else ""
    )
    if plan.rounding == "stochastic":
        how = f"{plan.arithmetic} arithmetic, stochastic rounding (seed {plan.seed})"
    files = (
        plan.shards[0].file
        if len(plan.shards) == 1
        else f"{len(plan.shards)} files, {plan.shards[0].file} …"
    )
    facts = Table.grid(padding=(0, 2))
    tokenizer = []
    if plan.tokenizer is not None:
        output = plan.tokenizer.output
        changes = f", {len(output.new)} added" if output.new else ""
        changes += f", {len(output.dropped)} left out" if output.dropped else ""
        text = f"{output.start.label}'s{changes}; {len(output.tokens):,} tokens, {plan.vocabulary:,} rows"
        tokenizer = [("tokenizer", text)]
    threads = default_threads([plan])
    for name, value in (
        ("output", f"{plan.parameters:,} parameters, {plan.dtype}, {how}"),
        *tokenizer,
        ("files", f"{files}, {format_size(plan.output_bytes)}"),
        ("reads", f"{format_size(plan.input_bytes)}, each byte once"),
        (
            "needs",
            f"{format_size(plan.output_bytes + DISK_MARGIN)} of free disk (the weights, and "
            f"{format_size(DISK_MARGIN)} for the other files and the file system), about "
            f"{format_size(memory_needed(plan))} of memory "
            f"({threads} thread{'s' if threads > 1 else ''})",
        ),
        ("plan", plan.digest[:16]),
    ):
        facts.add_row(f"[bold]{name}", escape(value))
    console.print(facts)


def _jobs_table(plan: Plan, verbose: bool) -> Table:
    """Tensors by role; with ``verbose`` one by one."""
    title = "tensor" if verbose else "tensors"
    table = _table(
        (title, "count", "parameters", "from", "method", "numbers"), right=("count", "parameters")
    )
    groups: dict[tuple[Any, ...], list[TensorJob]] = {}
    for job in plan.jobs:
        alike = job.role, job.method, tuple(job.numbers), tuple(r.source for r in job.reads)
        key = (job.name,) if verbose else alike
        groups.setdefault(key, []).append(job)
    for jobs in groups.values():
        first = jobs[0]
        inputs = " + ".join(plan.sources[read.source].reference.name for read in first.reads)
        table.add_row(
            escape(first.name if verbose else first.role),
            str(len(jobs)),
            f"{sum(j.spec.numel for j in jobs):,}",
            escape(inputs),
            first.method,
            escape(_numbers(jobs)),
        )
    return table


def _numbers(jobs: Sequence[TensorJob]) -> str:
    """Parameters that several tensors have; a range where they differ."""
    texts = []
    for name in jobs[0].numbers:
        values = [job.numbers[name] for job in jobs]
        distinct = list(dict.fromkeys(values))
        ends = distinct if len(distinct) == 1 else [values[0], values[-1]]
        text = " … ".join(_number(value) for value in ends)
        texts.append(f"{name.rstrip('_')} {text}")
    return ", ".join(texts)


def _number(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_number(entry) for entry in value) + "]"
    return (
        f"{value:.4g}"
        if isinstance(value, float)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )


def _layers_table(plan: Plan, module: str, layers: Sequence[Sequence[tuple[int, int]]]) -> Table:
    """Which layers the output's layers are, runs of them on one line."""
    table = _table(("output layers" + ("" if module == DEFAULT else f" of {module}"), "made of"))
    begin = 0
    for end in range(1, len(layers) + 1):
        next_in_all = tuple((s, i + end - begin) for s, i in layers[begin])
        if end < len(layers) and tuple(layers[end]) == next_in_all:
            continue
        made_of = " + ".join(
            f"{plan.sources[s].reference.name} {_run(i, end - begin)}" for s, i in layers[begin]
        )
        table.add_row(_run(begin, end - begin), escape(made_of))
        begin = end
    return table


def _depths(modules: Iterable[Module]) -> str:
    """How many layers each part of a model has."""
    depths = [str(module.depth) for module in modules if module.depth]
    return " + ".join(depths) or "–"


def _run(first: int, count: int) -> str:
    return str(first) if count == 1 else f"{first}–{first + count - 1}"


def show_result(result: MergeResult, *, verbose: bool = False) -> None:
    """Print what a merge made."""
    console = _console()
    report = result.outcome.report
    if report is not None:
        numbers = ("weight", "normalised", "effective", "differs")
        table = _table(("model", *numbers), right=numbers)
        for model in report.models:
            requested, effective = _decimal(model.requested), _decimal(model.effective)
            moved = (
                requested != effective
                and abs((model.effective or 0) - (model.requested or 0)) > 0.02
            )
            table.add_row(
                escape(model.model),
                _decimal(model.given),
                requested,
                f"[yellow]{effective}" if moved else effective,
                "–" if model.differ is None else f"{model.differ:.1%}",
            )
        console.print(table)
        if verbose and report.worst:
            worst = _table(
                ("tensor", "model", "normalised", "effective"),
                right=("normalised", "effective"),
                title="farthest from what was asked",
            )
            for tensor, name, wanted, got in report.worst:
                worst.add_row(escape(tensor), escape(name), _decimal(wanted), _decimal(got))
            console.print(worst)
    size, seconds = result.plan.output_bytes, result.timings["total_s"]
    where = f"[bold]{escape(str(result.folder))}[/]: " if result.folder else ""
    console.print(
        f"{where}{result.plan.parameters:,} parameters, {format_size(size)} in {seconds:.1f} s "
        f"({format_size(size / max(seconds, 1e-9))}/s)",
        highlight=False,
    )


def show_point(point: Point) -> None:
    """Print which point of a sweep is told of next."""
    _console().print(f"\n── [bold]{escape(point.name)}[/]\n")


def show_points(planned: Sequence[tuple[Point, Plan]], input_bytes: int) -> None:
    """Print the points of a sweep for people, and what they take together."""
    console = _console()
    keys = list(dict.fromkeys(key for point, _ in planned for key in point.values))
    table = _table(("point", *keys, "method", "dtype", "size", "plan"), right=("size",))
    for point, decided in planned:
        values = [_value(point, key) for key in keys]
        facts = [decided.method.name, decided.dtype.name, format_size(decided.output_bytes)]
        table.add_row(*map(escape, (point.name, *values, *facts, decided.digest[:16])))
    console.print(table)
    written = sum(decided.output_bytes for _, decided in planned)
    console.print(
        f"\n{len(planned)} points; reads {format_size(input_bytes)}, writes {format_size(written)}",
        highlight=False,
    )


def _value(point: Point | Entry, key: str) -> str:
    from merganser.study.expressions import text

    value = point.values.get(key)
    if isinstance(value, list):
        return f"[{', '.join(map(text, value))}]"
    return "–" if value is None else text(value)


def show_sweep(result: SweepResult, *, verbose: bool = False) -> None:
    """Print what a sweep made: a line a point; with ``verbose`` each point's own table."""
    console = _console()
    keys = list(dict.fromkeys(key for each in result.points for key in each.point.values))
    table = _table(("point", *keys, "effective weights", ""))
    for each in result.points:
        if verbose and each.merged is not None:
            show_result(each.merged, verbose=True)
        report = each.merged.outcome.report if each.merged else None
        weights = ", ".join(_decimal(m.effective) for m in report.models) if report else "–"
        values = [_value(each.point, key) for key in keys]
        state = "is up to date" if each.merged is None else ""
        table.add_row(*map(escape, (each.point.name, *values, weights, state)))
    console.print(table)
    made = [each for each in result.points if each.merged is not None]
    size = sum(each.plan.output_bytes for each in made)
    passes = "1 pass" if result.passes == 1 else f"{result.passes} passes"
    console.print(
        f"{len(made)} of {len(result.points)} points merged, {format_size(size)} in {passes} and "
        f"{result.seconds:.1f} s",
        highlight=False,
    )


def show_search_plan(
    search: Search, planned: Sequence[tuple[Point, Plan]], *, verbose: bool = False
) -> None:
    """Print what a search will try, and a sample of it."""
    console = _console()
    table = Table(box=None, pad_edge=False)
    for column in ("key", "values", "numbers"):
        table.add_column(column, justify="right" if column == "numbers" else "left")
    for key, each in search.over.items():
        table.add_row(escape(key), escape(str(each)), str(len(each.axes)))
    console.print(table)
    facts = Table.grid(padding=(0, 2))
    goals = ", ".join(
        f"{'most' if d == 'max' else 'least'} {s}" for s, d in search.objectives.items()
    )
    limits = ", ".join(
        f"{score} {word} {value:g}"
        for score, limit in search.limits.items()
        for word, value in (("at least", limit.least), ("at most", limit.most))
        if value is not None
    )
    held = search.held_out
    apart = f"{held:.0%} of the problems" if isinstance(held, float) else ", ".join(held or ())
    for name, value in (
        ("wanted", goals),
        ("with", limits),
        ("method", f"{search.method}, {search.budget} candidates, seed {search.seed}"),
        ("held out", apart),
        ("kept", "the front" if search.keep is None else f"the best {search.keep}"),
    ):
        if value:
            facts.add_row(f"[bold]{name}", escape(value))
    console.print()
    console.print(facts)
    for point, decided in planned if verbose else planned[:1]:
        values = ", ".join(f"{key}={_value(point, key)}" for key in point.values)
        console.print(f"\n── a sample: [bold]{escape(values)}[/]\n")
        show_plan(decided, verbose=verbose)


def show_search(result: SearchResult, *, verbose: bool = False) -> None:
    """Print the candidates that a search chose, with their scores; with ``verbose`` all of them."""
    console = _console()
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
    columns = [
        _Column("model", list(shown)),
        *(_Column(key, [_value(entry, key) for entry in entries]) for key in keys),
        *(_Column(name, _scores([e.scores.get(name) for e in entries]), True) for name in scores),
        *(
            _Column(
                f"{name}, held out",
                _scores([e.scores.get(name) if e else None for e in again]),
                True,
            )
            for name in beside
        ),
        _Column("", why),
    ]
    _print_columns(console, columns)
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
    from merganser.study.language import told

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
    from merganser.study import diff

    console = _console()
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
            _Column(key.replace("_", " "), [_figure(row[key]) for row in rows], True)
            for key in found.figures(found.tensors)
        ]
        _print_columns(console, [_Column(title, list(groups)), *columns])
        console.print()
    total = sum(t.elements for t in found.tensors)
    ulps = Table(box=None, pad_edge=False)
    ulps.add_column("units in the last place")
    ulps.add_column("share", justify="right")
    for name, count in diff.histogram(found.tensors).items():
        if count:
            ulps.add_row(name, f"{count / max(total, 1):.3%}")
    console.print(ulps)
    for name, reason in found.skipped.items():
        console.print(f"not compared: {name} ({reason})", markup=False, highlight=False)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def show_publication(
    publication: Publication, state: State | None = None, *, on_stderr: bool = False
) -> None:
    """What a push will publish: every repository's files, licences, and local paths."""
    console = Console(stderr=True) if on_stderr else _console()
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
    console = _console()
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

    console = _console()
    if not full:
        table = Table(box=None, pad_edge=False)
        for column in ("method", "base", "models", "parameters", "what it does"):
            table.add_column(column)
        for method in methods:
            table.add_row(
                method.name,
                method.base,
                _count(method),
                ", ".join(p.name + ("*" if p.required else "") for p in method.parameters),
                escape(method.summary),
            )
        console.print(table)
        console.print("[dim]* must be given. More: merganser methods NAME[/]")
        return
    for method in methods:
        console.print(
            f"[bold]{method.name}[/] ({escape(method.title)}): {_count(method)} models, base {method.base}"
        )
        console.print(escape(inspect.getdoc(method.function) or ""), highlight=False)
        console.print(f"Costs: {method.cost}.", highlight=False)
        if method.origin is not None:
            source = method.origin.package or method.origin.source
            console.print(f"From {escape(source)}, sha256 {method.origin.digest}.", highlight=False)
        table = Table(box=None, pad_edge=False)
        for column in ("parameter", "type", "default", "usual values", "valid values"):
            table.add_column(column)
        for parameter in method.parameters:
            table.add_row(
                parameter.name,
                parameter.kind,
                "must be given" if parameter.required else str(parameter.default).lower(),
                parameter.range.usual_text if parameter.range else "",
                parameter.range.valid_text if parameter.range else "",
            )
        console.print(table)


def _count(method: Method) -> str:
    least, most = method.models
    return str(least) if least == most else f"{least}+" if most is None else f"{least}–{most}"


def _console() -> Console:
    """Writes to stdout; off a terminal lines are not cut."""
    return Console(width=None if sys.stdout.isatty() else 200, soft_wrap=False)
