"""Plans as tables: of one merge, of the points of a sweep, of a search."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from merganser import number_format
from merganser.cli.columns import (
    GAP,
    Column,
    letter,
    print_columns,
    print_points,
    print_shared,
    stdout,
    value_text,
)
from merganser.engine import default_threads, memory_needed
from merganser.modules import DEFAULT, Module
from merganser.planning import DISK_MARGIN, Plan, TensorJob

if TYPE_CHECKING:
    from merganser.recipe.steps import Step
    from merganser.recipe.sweep_file import Point
    from merganser.study.search_space import Search


def show_step(step: Step) -> None:
    """Print which of several merges the following plan belongs to."""
    role = "output" if step.final else "intermediate result"
    console = stdout()
    console.print(f"\n── [bold]{escape(step.name)}[/], {role}" if step.name else f"\n── {role}")
    console.print()


def show_plan(plan: Plan, *, verbose: bool = False) -> None:
    """Print a plan: its inputs, tensors, numbers, files, memory and disk."""
    console = stdout()
    console.print(Text(f"{plan.method.title} merge", style="italic"))
    _print_models(console, plan)
    console.print()
    _print_jobs(console, plan, verbose)
    console.print()
    for module, layers in plan.layers.items():
        _print_layers(console, plan, module, layers)
        console.print()
    how = f"{plan.arithmetic} arithmetic, rounding to {plan.rounding}"
    if plan.rounding == "stochastic":
        how = f"{plan.arithmetic} arithmetic, stochastic rounding (seed {plan.seed})"
    files = (
        plan.shards[0].file
        if len(plan.shards) == 1
        else f"{len(plan.shards)} files, {plan.shards[0].file} …"
    )
    threads = default_threads([plan])
    facts = {
        "output": f"{plan.parameters:,} parameters, {plan.dtype}, {how}",
        "tokenizer": _tokenizer(plan),
        "files": f"{files}, {number_format.size(plan.output_bytes)}",
        "reads": f"{number_format.size(plan.input_bytes)}, each byte once",
        "needs": f"{number_format.size(plan.output_bytes + DISK_MARGIN)} of free disk (the weights, and "
        f"{number_format.size(DISK_MARGIN)} for the other files and the file system), about "
        f"{number_format.size(memory_needed(plan))} of memory "
        f"({threads} thread{'s' if threads > 1 else ''})",
        "plan": plan.digest[:16],
    }
    _print_facts(console, facts)


def _print_facts(console: Console, facts: dict[str, str]) -> None:
    """Print a summary of a plan, one line per fact."""
    table = Table.grid(padding=(0, GAP, 0, 0))
    for name, value in facts.items():
        if value:
            table.add_row(f"[bold]{name}", Text(value))
    console.print(table)


def _tokenizer(plan: Plan) -> str:
    """The output's tokenizer, and how it differs from its model's."""
    if plan.tokenizer is None:
        return ""
    output = plan.tokenizer.output
    changes = f", {len(output.new)} added" if output.new else ""
    changes += f", {len(output.dropped)} left out" if output.dropped else ""
    tokens = f"{len(output.tokens):,} tokens, {plan.vocabulary:,} rows"
    return f"{output.start.label}'s{changes}; {tokens}"


def _print_models(console: Console, plan: Plan) -> None:
    """Print the inputs, with the letters that abbreviate them in later tables."""
    specs = [source.checkpoint.specs.values() for source in plan.sources]
    depths = [_depths(source.architecture.modules.values()) for source in plan.sources]
    donor = plan.donor if len(plan.sources) > 1 else None
    roles = [
        "base" if i == plan.base else "config" if i == donor else ""
        for i in range(len(plan.sources))
    ]
    dtypes = [
        ", ".join(dict.fromkeys(spec.dtype.name for spec in specs_of_model))
        for specs_of_model in specs
    ]
    sizes = [
        number_format.size(sum(spec.nbytes for spec in specs_of_model)) for specs_of_model in specs
    ]
    columns = [
        *([Column("", [letter(i) for i in range(len(specs))])] if len(specs) > 1 else []),
        Column("model", [source.reference.text for source in plan.sources]),
        Column("", roles),
        Column("layers", depths, True, "layers "),
        Column("tensors", [str(len(specs_of_model)) for specs_of_model in specs], True, "tensors "),
        Column("dtypes", dtypes, shared=""),
        Column("size", sizes, True),
    ]
    print_columns(console, columns, "all models")


def _print_jobs(console: Console, plan: Plan, verbose: bool) -> None:
    """Print the tensors by role, or with ``verbose`` one by one; what all share is printed once."""
    groups: dict[tuple[Any, ...], list[TensorJob]] = {}
    for job in plan.jobs:
        kind = job.role, job.method, tuple(job.numbers), tuple(r.source for r in job.reads)
        groups.setdefault((job.name,) if verbose else kind, []).append(job)
    rows = list(groups.values())
    count = len(plan.jobs)
    alike = f"all {count} tensors" if count > 1 else f"the tensor {plan.jobs[0].name}"
    several = len(plan.sources) > 1
    numbers = list(dict.fromkeys(name for jobs in rows for name in jobs[0].numbers))
    facts = [
        Column("method", [jobs[0].method for jobs in rows], shared=""),
        *([Column("from", [_inputs(jobs[0]) for jobs in rows], shared="from ")] if several else []),
        *(
            Column(
                name.rstrip("_"),
                [_range([job.numbers.get(name) for job in jobs]) for jobs in rows],
                shared=f"{name.rstrip('_')} ",
            )
            for name in numbers
        ),
    ]
    if all(fact.is_constant for fact in facts) and not verbose:
        print_shared(console, facts, alike)
        return
    columns = [
        Column("tensor" if verbose else "tensors", [_title(jobs, verbose) for jobs in rows]),
        *([] if verbose else [Column("count", [str(len(jobs)) for jobs in rows], True)]),
        Column("parameters", [f"{sum(j.spec.numel for j in jobs):,}" for jobs in rows], True),
        *facts,
    ]
    print_columns(console, columns, alike)


def _title(jobs: Sequence[TensorJob], verbose: bool) -> str:
    return jobs[0].name if verbose else jobs[0].role


def _inputs(job: TensorJob) -> str:
    return " + ".join(letter(read.source) for read in job.reads)


def _range(values: Sequence[Any]) -> str:
    """A parameter's values in several tensors as text: the first and the last if they differ."""
    if all(isinstance(value, tuple) for value in values) and len(set(map(len, values))) == 1:
        texts = [_range(entries) for entries in zip(*values, strict=True)]
        return f"{texts[0]} each" if len(texts) > 1 == len(set(texts)) else ", ".join(texts)
    ends = values[0], values[-1]
    if ends[0] == ends[1] and all(isinstance(value, int | float) for value in values):
        ends = min(values), max(values)
    return " … ".join(dict.fromkeys(map(number_format.parameter, ends)))


def _print_layers(
    console: Console, plan: Plan, module: str, layers: Sequence[Sequence[tuple[int, int]]]
) -> None:
    """Print which source layers the output's layers are from, runs of consecutive layers on one line."""
    runs, sources = [], []
    begin = 0
    for end in range(1, len(layers) + 1):
        next_in_all = tuple((s, i + end - begin) for s, i in layers[begin])
        if end < len(layers) and tuple(layers[end]) == next_in_all:
            continue
        runs.append(_run(begin, end - begin))
        parts = [(letter(s) if len(plan.sources) > 1 else "", i) for s, i in layers[begin]]
        sources.append(" + ".join(f"{name} {_run(i, end - begin)}".strip() for name, i in parts))
        begin = end
    title = "output layers" + ("" if module == DEFAULT else f" of {module}")
    print_columns(console, [Column(title, runs), Column("from", sources)])


def _depths(modules: Iterable[Module]) -> str:
    """The number of layers of each module, as text."""
    depths = [str(module.depth) for module in modules if module.depth]
    return " + ".join(depths) or "–"


def _run(first: int, count: int) -> str:
    return str(first) if count == 1 else f"{first}–{first + count - 1}"


def show_point(point: Point) -> None:
    """Print which point of a sweep the following plan belongs to."""
    stdout().print(f"\n── [bold]{escape(point.name)}[/]\n")


def show_points(planned: Sequence[tuple[Point, Plan]], input_bytes: int, passes: int = 1) -> None:
    """Print the points of a sweep, and what they read and write in total."""
    console = stdout()
    points, plans = zip(*planned, strict=True)
    keys = list(dict.fromkeys(key for point in points for key in point.values))
    columns = [
        *(Column(key, [value_text(point, key) for point in points]) for key in keys),
        Column("method", [plan.method.name for plan in plans], shared=""),
        Column("dtype", [plan.dtype.name for plan in plans], shared=""),
        Column("size", [number_format.size(plan.output_bytes) for plan in plans], True, "size "),
        Column("plan", [plan.digest[:16] for plan in plans]),
    ]
    print_points(console, [point.name for point in points], columns)
    written = sum(plan.output_bytes for plan in plans)
    times = f" in each of {passes} passes" if passes > 1 else ""
    console.print(
        f"\n{number_format.counted(len(points), 'point')}; reads {number_format.size(input_bytes)}{times}, "
        f"writes {number_format.size(written)}",
        highlight=False,
    )


def show_search_plan(
    search: Search, planned: Sequence[tuple[Point, Plan]], *, verbose: bool = False
) -> None:
    """Print a search: its ranges, objectives and budget, and the plan of one candidate."""
    console = stdout()
    columns = [
        Column("key", list(search.over)),
        Column("values", [str(choice) for choice in search.over.values()]),
        Column("numbers", [str(len(choice.axes)) for choice in search.over.values()], True),
    ]
    print_columns(console, columns)
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
    facts = {
        "wanted": goals,
        "with": limits,
        "method": f"{search.method}, {search.budget} candidates, seed {search.seed}",
        "held out": f"{held:.0%} of the problems"
        if isinstance(held, float)
        else ", ".join(held or ()),
        "kept": "the front" if search.keep is None else f"the best {search.keep}",
    }
    console.print()
    _print_facts(console, facts)
    for point, plan in planned if verbose else planned[:1]:
        values = ", ".join(f"{key}={value_text(point, key)}" for key in point.values)
        console.print(f"\n── a sample: [bold]{escape(values)}[/]\n")
        show_plan(plan, verbose=verbose)
