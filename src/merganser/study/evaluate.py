"""A sweep that is evaluated: base, experts and every point scored in memory, the chosen ones written."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from merganser import engine, extras, recipe, suggestions
from merganser.checkpoints import Weights
from merganser.errors import InputError, MerganserError, RecipeError, ResourceError
from merganser.evaluation import engines, harness, running
from merganser.evaluation import samples as kept_samples
from merganser.evaluation import tasks as languages
from merganser.evaluation.engines import AnyOptions, EngineName
from merganser.evaluation.generation import Backend
from merganser.evaluation.harness import HarnessTask
from merganser.evaluation.statistics import Score
from merganser.evaluation.tasks import Task
from merganser.merging.multistage import up_to_date
from merganser.merging.options import MergeKeywords, split_options
from merganser.planning import Config, Plan, PlanOptions, make_plan
from merganser.planning.model_argument import find
from merganser.publishing import study_cards
from merganser.recipe import Document, ModelReference, ParsedRecipe, Strictness, model_references
from merganser.recipe.steps import folder_name
from merganser.recipe.sweep_file import Point, load_points, read_pattern
from merganser.results import scores as results
from merganser.results.references import stated_score
from merganser.results.scores import Direction, Entry, Results, Role
from merganser.sinks import NullSink
from merganser.study import sharing, sweep
from merganser.study.evaluate_block import Study
from merganser.study.held_out import split
from merganser.study.keep import parse_rule
from merganser.study.live import make_live
from merganser.study.live_model import Computing, Live, LiveModel
from merganser.study.progress import Listener, Meter, Scored, Turn, Waiting, ignore
from merganser.study.served_model import ServedModel
from merganser.version import VERSION

SAMPLES = "samples"
"""The folder of completions, beside the points' folders."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the study, before it is scored.

    Attributes:
        entry: its name, and what it is.
        plan: what makes it.
        point: which it is, if it is one.
    """

    entry: Entry
    plan: Plan
    point: Point | None = None


def evaluate_sweep(
    config: Config,
    out: str | Path,
    *,
    only: Sequence[str] = (),
    write: bool = True,
    engine: EngineName | None = None,
    engine_options: Mapping[str, Any] | None = None,
    on_progress: Listener = ignore,
    on_warning: Callable[[str], None] = lambda _: None,
    **options: Unpack[MergeKeywords],
) -> Results:
    """Score base, experts and all points of a sweep in memory, and write the points that its rule keeps.

    Writes ``results.json``, ``results.csv`` and ``samples/NAME.jsonl`` into ``out``, and those of the
    chosen points on what is held out into ``out/held_out``. Completions that are
    there from the same plans, problems and settings are reused, and points that ``only`` leaves out stay in
    the results. Several processes can share one study: each model is scored by one of them.

    Args:
        config: a file with ``sweep:`` and ``evaluate:`` blocks, or a mapping.
        out: the folder of the study.
        only: conditions on the points, such as ``w=0.7,0.9``.
        write: False to write no models, whatever the rule says.
        engine: what runs the models, in place of the file's engine.
        engine_options: its options, in place of the file's.
        on_progress: told of the completions.
        on_warning: takes warnings: of the points' plans, and of kept completions that must be generated
            again, before the first completion; of the merges that are written.
        options: of :func:`merganser.merge`.

    Raises:
        MerganserError: of the kind that fits; completions that are there are kept.
    """
    planning, writing = split_options(options)
    threads = writing.threads
    strictness = planning.strictness
    pattern = read_pattern(config, "sweep", strictness)
    document = pattern.document
    block, tasks = load_block(document, pattern.folder)
    running_on = choose_engine(block, engine, engine_options)
    apart = [block.held_out] if isinstance(block.held_out, str) else block.held_out
    seen, unseen = split(
        tasks,
        apart,
        0,
        lambda problem: document.error(f"evaluate.held_out: {problem}", ("evaluate", "held_out")),
    )
    directions = block.directions(seen)
    rule = parse_rule(block.keep, directions, document)
    home = Path(os.path.abspath(out))  # noqa: PTH100
    planned = sweep.plan_points(config, only, planning)
    if write and block.keep != "none":
        sweep.check_ready(planned, home, writing, all_points=block.keep == "all")
    with ExitStack() as stack:
        asked = [_point(point, plan) for point, plan in planned]
        warned = {w: m.entry.name for m in reversed(asked) for w in m.plan.warnings}
        for warning, name in warned.items():
            on_warning(f"{name}: {warning}")
        earlier = [
            _point(point, plan) for point, plan in _scored_earlier(config, asked, home, planning)
        ]
        others = base_and_experts(block, [*asked, *earlier], pattern.folder, document, planning)
        _check_names([*others, *asked])
        stated = stated_references(
            block, directions, document, [m.entry for m in (*others, *asked)]
        )
        make(home / SAMPLES)
        live = stack.enter_context(
            closing(
                make_live(
                    running_on,
                    device=block.device,
                    dtype=block.dtype,
                    threads=threads,
                    batch_size=block.batch_size,
                )
            )
        )
        stage = _Stage(block, seen, live, home, pattern.folder or Path())
        needed = {reference.text for reference, _, _ in _references(block, asked, document)}
        models = [model for model in others if model.entry.model in needed] + asked
        if isinstance(live, ServedModel):
            live.check([model.entry.name for model in models if not stage.is_complete(model)])
        for line in to_redo(models, seen, live, home):
            on_warning(line)
        entries = {entry.name: entry for entry in stage.score_all(models, on_progress)}
        with sharing.exclusive(home / SAMPLES / ".results.lock"):
            for model in (*others, *earlier):
                if model.entry.name not in entries and stage.is_complete(model):
                    entry = stage.score(model, ignore, Turn(model.entry.name))
                    entries[entry.name] = entry
            names = [point.name for point in load_points(config, strictness)]
            points = sorted([*asked, *earlier], key=lambda model: names.index(model.entry.name))
            models = [model for model in (*others, *points) if model.entry.name in entries]
            scored = measured([entries[model.entry.name] for model in models], models, threads)
            scored = beside_points(scored, stated)
            chosen = rule(scored)
            last = [*others, *(point for point in points if point.entry.name in chosen)]
            again = _on_held_out(last if chosen else [], unseen, live, home, threads, on_progress)
            if not chosen and block.keep != "none":
                on_warning("the rule of evaluate.keep keeps no point")
            kept = [(m.point, m.plan) for m in asked if m.entry.name in chosen and m.point]
            written = sweep.merge_points(kept, home, writing).points if write and kept else ()
            for each in written:
                for warning in each.merged.warnings if each.merged else ():
                    if warning not in warned:
                        on_warning(f"{each.point.name}: {warning}")
            there = {m.entry.name for m in points if up_to_date(home / m.entry.name, m.plan)}
            found = Results(
                name=Path(document.file).stem if document.file else "study",
                recipe=document.text or "",
                directions=directions,
                settings=describe(seen, live, block.lm_eval),
                entries=tuple(replace(e, folder=e.name) if e.name in there else e for e in scored),
                chosen=chosen,
                places=results.places(home, pattern.folder),
            )
            results.write(found, home)
            _write_held_out(found, again, unseen, live, home)
            if writing.write_card:
                study_cards.rewrite_all(home, found)
    return found


def _on_held_out(
    models: Sequence[Model],
    tasks: Sequence[Task],
    live: Live,
    home: Path,
    threads: int | None,
    on_progress: Listener,
) -> list[Entry]:
    """Score models on what was held out; nothing where nothing was."""
    if not tasks or not models:
        return []
    folder = home / results.HELD_OUT
    make(folder / SAMPLES)
    entries = [
        score(model, tasks, live, folder, on_progress, Turn(model.entry.name, n, len(models)))
        for n, model in enumerate(models, 1)
    ]
    return measured(entries, models, threads)


def _write_held_out(
    found: Results, entries: Sequence[Entry], tasks: Sequence[Task], live: Live, home: Path
) -> None:
    """Write the results on what was held out; where there are none, earlier ones are removed."""
    folder = home / results.HELD_OUT
    if not entries:
        results.remove(folder)
        return
    folders = {e.name: f"../{e.folder}" for e in found.entries if e.folder is not None}
    held_out = replace(
        found,
        directions=languages.score_names(tasks),
        settings=describe(tasks, live),
        entries=tuple(replace(entry, folder=folders.get(entry.name)) for entry in entries),
        places=tuple(os.path.join("..", place) for place in found.places),  # noqa: PTH118
    )
    results.write(held_out, folder)


def _point(point: Point, plan: Plan) -> Model:
    """A point as a model."""
    return Model(Entry(point.name, "point", values=point.values), plan, point)


def _scored_earlier(
    config: Config, asked: Sequence[Model], home: Path, options: PlanOptions
) -> list[tuple[Point, Plan]]:
    """The other points of a sweep with completions in ``home``; those that cannot be planned now are left out."""
    names = {model.entry.name for model in asked}
    found: list[tuple[Point, Plan]] = []
    for point in load_points(config, options.strictness):
        if point.name not in names and any((home / SAMPLES).glob(f"{point.name}.*")):
            with suppress(MerganserError):
                found += sweep.plan_all([point], options)
    return found


@dataclass(frozen=True, slots=True)
class _Stage:
    """What the models of one study are scored with."""

    block: Study
    tasks: Sequence[Task]
    live: Live
    home: Path
    beside: Path

    def score_all(self, models: Sequence[Model], on_progress: Listener) -> list[Entry]:
        """Score models, each once where several processes work on the study."""
        turns = [Turn(m.entry.name, n, len(models)) for n, m in enumerate(models, 1)]
        return sharing.each_once(
            models,
            lambda model: self.home / SAMPLES / f".{model.entry.name}.lock",
            lambda place, model: self.score(model, on_progress, turns[place]),
            lambda place, _model: on_progress(Waiting(turns[place])),
        )

    def score(self, model: Model, on_progress: Listener, turn: Turn) -> Entry:
        """Score one model on tasks and on the harness's."""
        more = partial(
            _harness,
            model.plan,
            self.block,
            self.live,
            self.beside,
            self._harness_file(model),
            quiet=on_progress is ignore,
        )
        return score(model, self.tasks, self.live, self.home, on_progress, turn, more)

    def is_complete(self, model: Model) -> bool:
        """Whether all completions and scores of a model are kept, so that it can be scored without running."""
        key = self.live.key(model.plan, model.entry.name)
        own = "-".join(key.values())
        kept = harness.read_kept(self._harness_file(model), own, self.block.lm_eval)
        samples = self.home / SAMPLES / f"{model.entry.name}.jsonl"
        return len(kept) == len(self.block.lm_eval) and running.is_complete(
            self.tasks, key=key, samples=samples
        )

    def _harness_file(self, model: Model) -> Path:
        return self.home / SAMPLES / f"{model.entry.name}.lm-eval.json"


def check_block(config: Config, strictness: Strictness = "normal") -> None:
    """Raise what is wrong with the ``evaluate:`` block of a sweep, without running a model.

    Raises:
        MerganserError: of the kind that fits, with file and line.
    """
    pattern = read_pattern(config, "sweep", strictness)
    block, tasks = load_block(pattern.document, pattern.folder)
    parse_rule(block.keep, block.directions(tasks), pattern.document)


def choose_engine(
    block: Study,
    engine: EngineName | None = None,
    options: Mapping[str, Any] | None = None,
) -> AnyOptions:
    """The options of the engine that models run on, after a check that nothing stops it.

    Args:
        block: names an engine.
        engine: in place of the block's.
        options: in place of the block's.

    Raises:
        MerganserError: an extra is not installed, or an option is wrong.
    """
    found = engines.choose(block.engine, block.engine_options, engine, options)
    engines.check_installed(found)
    if block.lm_eval:
        if engines.name_of(found) != "transformers":
            raise RecipeError("lm_eval: tasks of the harness run with engine: transformers only")
        extras.check("lm_eval", "lm-eval")
    return found


def load_block(document: Document, folder: Path | None) -> tuple[Study, list[Task]]:
    """The ``evaluate:`` block of a study's file, and its tasks.

    Raises:
        MerganserError: of the kind that fits, with file and line.
    """
    if not isinstance(document.data, dict) or "evaluate" not in document.data:
        raise document.error("there is no evaluate: block that says how models are scored")
    block = languages.read_block(document, ("evaluate",), Study)
    return block, languages.make_tasks(block, document, ("evaluate",), folder)


def settle(text: str, beside: Path | None = None, weights: Weights | None = None) -> Plan:
    """The plan that is one model as it is.

    Args:
        text: a reference, as recipes have it.
        beside: the folder that it is looked for in too.
        weights: which weights of training steps are taken.

    Raises:
        MerganserError: when there is none.
    """
    data = {"merge_method": "passthrough", "models": [{"model": text}]}
    parsed = recipe.validate(Document(data), beside, "normal")
    return make_plan(parsed, PlanOptions(weights=weights))


def base_and_experts(
    block: Study,
    points: Sequence[Model],
    folder: Path | None,
    document: Document,
    options: PlanOptions,
) -> list[Model]:
    """The base and the experts of all points, each once: first the bases.

    Args:
        block: which names a base of its own, or wants no experts.
        points: what is merged.
        folder: that models are looked for beside.
        document: for the address of what is wrong.
        options: of :func:`merganser.plan`.

    Raises:
        MerganserError: when one cannot be read.
    """
    wanted = _references(block, points, document)
    taken = {point.entry.name.casefold() for point in points}
    found: list[Model] = []
    for reference, role, own_name in wanted:
        name = own_name or folder_name(reference.name)
        if name.casefold() in taken:
            name = folder_name(reference.text).strip("._-")[-150:]
        if name.casefold() in taken:
            name = f"{name}_{role}{len(found)}"
        taken.add(name.casefold())
        own = role == "base" and block.base is not None
        place = ("evaluate", "references") if role in results.REFERENCES else ()
        with document.addressed(("evaluate", "base") if own else place):
            plan = settle(reference.text, folder, options.weights)
        found.append(Model(Entry(name, role, model=reference.text), plan))
    return found


def _references(
    block: Study, points: Sequence[Model], document: Document
) -> list[tuple[ModelReference, Role, str | None]]:
    """The base and the experts of points, each once, and the block's references with their names: first
    the bases."""
    merged: dict[str, ModelReference] = {}
    bases: dict[str, ModelReference] = {}
    for point in points:
        parsed: ParsedRecipe = point.plan.recipe
        written = parsed.recipe
        inputs = [written.models or [], written.slices or [], written.modules or {}]
        merged |= {r.text: r for _, r in model_references(inputs)}
        if written.base_model is not None:
            bases[written.base_model.text] = written.base_model
    if block.base is not None:
        try:
            bases = {block.base: recipe.parse_reference(block.base)}
        except ValueError as error:
            raise document.error(f"evaluate.base: {error}", ("evaluate", "base")) from None
    else:
        bases = {text: r for text, r in bases.items() if text not in merged}
    wanted: list[tuple[ModelReference, Role, str | None]] = [
        (r, "base", None) for r in bases.values()
    ]
    if block.experts:
        wanted += [(r, "expert", None) for text, r in merged.items() if text not in bases]
    known = {reference.text for reference, _, _ in wanted}
    for number, each in enumerate(block.references):
        if each.model is None:
            continue
        path = ("evaluate", "references", number, "model")
        try:
            reference = recipe.parse_reference(each.model)
        except ValueError as error:
            raise document.error(f"evaluate.references[{number}]: {error}", path) from None
        if reference.text in known:
            raise document.error(
                f"evaluate.references[{number}]: {each.model} is in the study already", path
            )
        known.add(reference.text)
        wanted.append((reference, each.role, each.name and folder_name(each.name)))
    return wanted


def stated_references(
    block: Study,
    directions: Mapping[str, Direction],
    document: Document,
    taken: Sequence[Entry] = (),
) -> list[Entry]:
    """The block's references whose scores are typed in.

    Args:
        block: of the study.
        directions: the study's scores.
        document: for the address of what is wrong.
        taken: the other entries.

    Raises:
        RecipeError: when a score is none of the study's, or nothing tells how sure it is.
    """
    names = {folder_name(entry.name).casefold() for entry in taken}
    found: list[Entry] = []
    for number, each in enumerate(block.references):
        if each.model is not None or each.name is None:
            continue
        path = ("evaluate", "references", number)
        if folder_name(each.name).casefold() in names:
            raise document.error(f"evaluate.references: two models are called {each.name!r}", path)
        names.add(folder_name(each.name).casefold())
        stated = {}
        for score, values in each.scores.items():
            place = (*path, "scores", score)
            where = f"evaluate.references[{number}].scores.{score}"
            if score not in directions:
                hint = suggestions.suggest(score, list(directions))
                raise document.error(f"{where}: there is no score {score!r}; {hint}", place)
            try:
                stated[score] = stated_score(**values.model_dump())
            except ValueError as error:
                raise document.error(f"{where}: {error}", place) from None
        found.append(Entry(each.name, each.role, scores=stated, source=each.source))
    return found


def beside_points(entries: Sequence[Entry], stated: Sequence[Entry]) -> list[Entry]:
    """Entries in the order in which they are shown: stated references before the points."""
    others = [entry for entry in entries if entry.role != "point"]
    return [*others, *stated, *(entry for entry in entries if entry.role == "point")]


def _check_names(models: Sequence[Model]) -> None:
    for model in models:
        if model.point is not None and model.entry.name.casefold() == SAMPLES:
            raise RecipeError(f"a point cannot be called {SAMPLES!r}: its folder holds completions")
        if model.point is not None and model.entry.name.casefold() == results.HELD_OUT:
            raise RecipeError(
                f"a point cannot be called {results.HELD_OUT!r}: its folder holds the scores on "
                "problems that are held out"
            )


def to_redo(models: Sequence[Model], tasks: Sequence[Task], live: Live, home: Path) -> list[str]:
    """Which kept completions no longer hold: a line for each reason, with the models that it concerns.

    Raises:
        InputError: when completions or an input cannot be read.
    """
    counts: dict[str, dict[str, int]] = {}
    for model in models:
        file = home / SAMPLES / f"{model.entry.name}.jsonl"
        if file.is_file():
            key = live.key(model.plan, model.entry.name)
            for why, count in running.to_redo(tasks, key=key, samples=file).items():
                counts.setdefault(why, {})[model.entry.name] = count
    return [redone(sum(own.values()), why, list(own)) for why, own in counts.items()]


def redone(count: int, why: str, names: Sequence[str]) -> str:
    """A line on completions that are generated again."""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{count:,} kept completions of {shown} are generated again and replaced: {why}"


def score(
    model: Model,
    tasks: Sequence[Task],
    live: Live,
    home: Path,
    on_progress: Listener,
    turn: Turn,
    more: Callable[[], Mapping[str, Score]] = dict,
) -> Entry:
    """Be a model, and score it; its completions are kept in a folder of ``home`` that exists.

    Args:
        model: which.
        tasks: what it is asked.
        live: the model in memory that becomes it.
        home: the study's folder.
        on_progress: gets an event at each step.
        turn: of the model, for the events.
        more: gives further scores of the model, after its tasks.

    Raises:
        MerganserError: of the kind that fits.
    """
    outcome: list[engine.Outcome] = []
    own = f"{SAMPLES}/{model.entry.name}.jsonl"
    meter = Meter(turn, on_progress)
    found = running.evaluate(
        live.backend_of(
            model.plan,
            outcome.append if model.point is not None else None,
            meter.generated,
            model.entry.name,
        ),
        tasks,
        key=live.key(model.plan, model.entry.name),
        samples=home / own if tasks else None,
        on_progress=meter.completed,
    )
    scores = {**found.scores, **more()}
    on_progress(Scored(turn, scores, len(found.samples), found.generated))
    entry = replace(model.entry, scores=scores, samples=own if tasks else None)
    return _weighed(entry, model, outcome[0]) if outcome else entry


def _harness(
    plan: Plan,
    block: Study,
    live: Live,
    beside: Path,
    file: Path | None = None,
    *,
    quiet: bool,
) -> dict[str, Score]:
    """Scores on tasks of the lm-evaluation-harness, kept ones taken from a file.

    Raises:
        InputError: when a task cannot be run or lacks a metric; the scores of its other metrics are kept.
    """
    key = "-".join(live.key(plan).values()) if file is not None else ""
    found = harness.read_kept(file, key, block.lm_eval) if file is not None else {}
    for tasks in harness.runs([task for task in block.lm_eval if task.score not in found]):
        assert isinstance(live, LiveModel)
        live.settle(plan)
        outcome = harness.run(
            live.module, live.tokenizer, tasks[0], beside, block.batch_size, quiet=quiet
        )
        errors = []
        for task in tasks:
            try:
                found[task.score] = harness.score(task, outcome)
            except InputError as error:
                errors.append(error)
        if file is not None:
            harness.keep(file, key, block.lm_eval, found)
        if errors:
            raise errors[0]
    return {task.score: found[task.score] for task in block.lm_eval}


def measured(entries: Sequence[Entry], models: Sequence[Model], threads: int | None) -> list[Entry]:
    """The weights of points that were not blended now, because all of their completions were there."""
    missing = [i for i, m in enumerate(models) if m.point and not entries[i].weights]
    plans = [models[i].plan for i in missing]
    found = list(entries)
    for start in range(0, len(plans), sweep.MOST_TOGETHER):
        some = plans[start : start + sweep.MOST_TOGETHER]
        outcomes = engine.run(some, [NullSink() for _ in some], threads=threads)
        for i, outcome in zip(missing[start:], outcomes, strict=False):
            found[i] = _weighed(found[i], models[i], outcome)
    return found


def _weighed(entry: Entry, model: Model, outcome: engine.Outcome) -> Entry:
    """An entry with its requested and effective weights, those of a base left out."""
    if outcome.report is None:
        return entry
    written = model.plan.recipe.recipe
    inputs = [written.models or [], written.slices or [], written.modules or {}]
    merged = {r.text for _, r in model_references(inputs)}
    own = [m for m in outcome.report.models if m.model in merged]
    return replace(
        entry,
        weights={m.model: m.requested for m in own if m.requested is not None},
        effective={m.model: m.effective for m in own if m.effective is not None},
    )


def describe(
    tasks: Sequence[Task], live: Live, lm_eval: Sequence[HarnessTask] = ()
) -> dict[str, Any]:
    """How completions were made, for results."""
    versions = {"merganser": VERSION}
    names = ["torch", "transformers", "math-verify"]
    names += list(engines.VLLM_PACKAGES) if live.engine_name.startswith("vllm") else []
    for name in (*names, *(["lm-eval"] if lm_eval else [])):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "tasks": languages.describe(tasks),
        "lm_eval": [task.model_dump(mode="json") for task in lm_eval],
        "engine": live.engine_name,
        "device": live.device,
        "dtype": live.computing,
        "versions": versions,
    }


def make(folder: Path) -> None:
    """Make a folder, and those that it lies in.

    Raises:
        ResourceError: when it cannot be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be made ({error.strerror})") from None


# -- one model --------------------------------------------------------------------------------------


def evaluate(
    model: str,
    tasks_file: str | Path,
    *,
    samples: str | Path | None = None,
    endpoint: str | None = None,
    concurrency: int = 16,
    engine: EngineName | None = None,
    engine_options: Mapping[str, Any] | None = None,
    device: str | None = None,
    dtype: Computing | None = None,
    batch_size: int | None = None,
    threads: int | None = None,
    on_progress: Listener = ignore,
    on_warning: Callable[[str], None] = lambda _: None,
) -> Results:
    """Score one model, without writing it.

    Args:
        model: a reference as recipes have it, a recipe, a point (``SWEEP.yml#w=0.7``), or the name of a
            model that a server has.
        tasks_file: a file of tasks, or one with an ``evaluate:`` block.
        samples: the file of kept completions; None to keep none.
        endpoint: URL of a server that speaks OpenAI's protocol, for the engine ``endpoint``.
        concurrency: requests at once to it.
        engine: what runs the model, in place of the file's engine.
        engine_options: its options, in place of the file's.
        device: overrides the file's device: ``auto``, ``cpu``, ``cuda`` …
        dtype: overrides the file's dtype, in which the model computes.
        batch_size: overrides the file's number of completions at once.
        threads: of the merge.
        on_progress: told of the completions.
        on_warning: as in :func:`evaluate_sweep`.

    Returns:
        Results of one entry.

    Raises:
        MerganserError: of the kind that fits.
    """
    block, tasks, folder = languages.load(tasks_file, Study)
    if endpoint is not None:
        engine = "endpoint"
        engine_options = {"url": endpoint, "concurrency": concurrency, **(engine_options or {})}
    running_on = choose_engine(block, engine, engine_options)
    with ExitStack() as stack:
        live = make_live(
            running_on,
            device=device or block.device,
            dtype=dtype or block.dtype,
            batch_size=batch_size or block.batch_size,
            threads=threads,
        )
        stack.enter_context(closing(live))
        plan: Plan | None = None
        if isinstance(live, ServedModel):
            served = live.choose(model)
            name, key = model, {"the model at the endpoint": f"{live.options.url} {served.model}"}
            meter = Meter(Turn(name), on_progress)
            backend: Backend = partial(served, on_tokens=meter.generated)
        else:
            name, plan = find(model)
            meter = Meter(Turn(name), on_progress)
            key = live.key(plan) if samples is not None else {}
            backend = live.backend_of(plan, on_tokens=meter.generated)
        kept = Path(samples) if samples is not None and tasks else None
        if kept is not None:
            for why, count in running.to_redo(tasks, key=key, samples=kept).items():
                on_warning(redone(count, why, [str(kept)]))
        found = running.evaluate(
            backend,
            tasks,
            key=key,
            samples=kept,
            on_progress=meter.completed,
        )
        scores = dict(found.scores)
        if plan is not None:
            quiet = on_progress is ignore
            scores |= _harness(plan, block, live, folder or Path(), quiet=quiet)
        on_progress(Scored(meter.turn, scores, len(found.samples), found.generated))
    settings = describe(tasks, live, block.lm_eval)
    entry = Entry(name, "expert", model=model, scores=scores)
    return Results(name, "", block.directions(tasks), settings, (entry,))


def judge_again(samples: Path, tasks_file: str | Path) -> Results:
    """Judge kept completions by the scorers of a file of tasks, without running a model.

    Raises:
        MerganserError: of the kind that fits, such as where a problem has no completion.
    """
    _, tasks, _ = languages.load(tasks_file, Study)
    judged = running.judge(tasks, kept_samples.read(samples))
    entry = Entry(samples.stem, "expert", scores=running.scores(tasks, judged))
    settings = {"tasks": languages.describe(tasks)}
    return Results(samples.stem, "", languages.score_names(tasks), settings, (entry,))
