"""Evaluate a sweep: score base, experts and every point in memory, and write the selected points."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from merganser.evaluation import tasks as languages
from merganser.evaluation.engines import EngineName
from merganser.evaluation.tasks import Task
from merganser.merging.multistage import up_to_date
from merganser.merging.options import MergeKeywords, WriteOptions, split_options
from merganser.planning import Config
from merganser.publishing import study_cards
from merganser.results import scores as results
from merganser.results.scores import Entry, Results
from merganser.study import sharing, sweep
from merganser.study.live_model import Live
from merganser.study.participants import SAMPLES, StudyModel, beside_points
from merganser.study.preparing import PreparedStudy, Stage, prepare
from merganser.study.progress import Listener, Turn, Waiting, ignore
from merganser.study.scoring import describe, make_folder, measured, score, to_redo
from merganser.study.served_model import ServedModel
from merganser.study.watching import OnResults, no_results, watch
from merganser.tracking import Track, choose


class SweepKeywords(MergeKeywords, total=False):
    """The keywords of :func:`evaluate_sweep`."""

    only: Sequence[str]
    write: bool
    engine: EngineName | None
    engine_options: Mapping[str, Any] | None
    allow_code: bool
    track: Track | None
    on_progress: Listener
    on_results: OnResults
    on_warning: Callable[[str], None]


def evaluate_sweep(
    config: Config,
    out: str | Path,
    *,
    only: Sequence[str] = (),
    write: bool = True,
    engine: EngineName | None = None,
    engine_options: Mapping[str, Any] | None = None,
    allow_code: bool = False,
    track: Track | None = None,
    on_progress: Listener = ignore,
    on_results: OnResults = no_results,
    on_warning: Callable[[str], None] = lambda _: None,
    **options: Unpack[MergeKeywords],
) -> Results:
    """Score the base, the experts and all points of a sweep in memory, and write the points that
    ``evaluate.keep`` selects.

    Writes ``results.json``, ``results.csv`` and ``samples/NAME.jsonl`` into ``out``, and the
    chosen points' results on held-out problems into ``out/held_out``. Completions of the same
    plans, problems and settings are reused, and points that ``only`` excludes stay in the results.
    Several processes can share one study: each model is scored by one of them.

    Args:
        config: a file with ``sweep:`` and ``evaluate:`` blocks, or a mapping.
        out: the folder of the study.
        only: conditions on the points, such as ``w=0.7,0.9``.
        write: False to write no models, whatever ``evaluate.keep`` selects.
        engine: overrides the file's engine, which runs the models.
        engine_options: override the file's options of that engine.
        allow_code: allow scorers that run programs of models, whatever the file says.
        track: the tracker that scores are logged with, or its name, in place of the file's;
            ``none`` for none.
        on_progress: called with the progress of the completions.
        on_results: called after each model with the results so far, and with the number of models
            that the study scores. If several processes share the study, one of them calls it.
        on_warning: called with each warning: before the first completion those of the points'
            plans and of stored completions that must be generated again; later those of the
            written merges, and that of a tracker that fails.
        options: those of :func:`merganser.merge`.

    Returns:
        The results of all entries: base, experts, references and points.

    Raises:
        MerganserError: one of its subclasses, by cause; existing completions stay on disk.
    """
    planning, writing = split_options(options)
    study = prepare(
        config,
        out,
        planning,
        only=only,
        engine=engine,
        engine_options=engine_options,
        allow_code=allow_code,
        on_warning=on_warning,
    )
    if write:
        study.check_ready(writing)
    found = evaluate_prepared(
        study,
        writing,
        write=write,
        track=track,
        on_progress=on_progress,
        on_results=on_results,
        on_warning=on_warning,
    )
    sharing.remove_idle_claims(study.home)
    return found


def evaluate_prepared(
    study: PreparedStudy,
    writing: WriteOptions,
    *,
    write: bool,
    track: Track | None,
    on_progress: Listener,
    on_results: OnResults,
    on_warning: Callable[[str], None],
) -> Results:
    """Score the models of a planned study, and write results and chosen points.

    Args:
        study: the study.
        writing: options of writing the points.
        write, track, on_progress, on_results, on_warning: as for :func:`evaluate_sweep`.

    Raises:
        MerganserError: one of its subclasses, by cause; existing completions stay on disk.
    """
    threads = writing.threads
    document, block, home = study.pattern.document, study.block, study.home
    tracker = choose(track, block.track)
    with ExitStack() as stack:
        asked, earlier, others, stated = study.asked, study.earlier, study.others, study.stated
        make_folder(home / SAMPLES)
        live = stack.enter_context(closing(study.make_live(threads)))
        stage = study.stage(live)
        models = study.models
        if isinstance(live, ServedModel):
            live.check([model.entry.name for model in models if not stage.is_complete(model)])
        for line in to_redo(models, study.seen, live, home):
            on_warning(line)
        frame = Results(
            name=Path(document.file).stem if document.file else "study",
            recipe=document.text or "",
            directions=study.directions,
            settings=describe(study.seen, live, block.lm_eval),
            entries=(),
            places=results.places(home, study.pattern.folder),
        )
        names = study.names
        watching = stack.enter_context(
            watch(
                frame,
                home,
                [*(model.entry.name for model in others), *names],
                names,
                stated,
                len(models),
                tracker=tracker,
                on_results=on_results,
                on_warning=on_warning,
            )
        )
        scored_now = _score_all(stage, models, on_progress, watching.scored)
        entries = {entry.name: entry for entry in scored_now}
        with sharing.exclusive(home / SAMPLES / ".results.lock"):
            for model in (*others, *earlier):
                if model.entry.name not in entries and stage.is_complete(model):
                    entry = stage.score(model, ignore, Turn(model.entry.name))
                    entries[entry.name] = entry
            points = sorted([*asked, *earlier], key=lambda model: names.index(model.entry.name))
            models = [model for model in (*others, *points) if model.entry.name in entries]
            scored = measured([entries[model.entry.name] for model in models], models, threads)
            scored = beside_points(scored, stated)
            chosen = study.rule(scored)
            last = [*others, *(point for point in points if point.entry.name in chosen)]
            last = last if chosen else []
            again = _on_held_out(last, study.unseen, live, home, threads, on_progress)
            watching.held_out(again)
            if not chosen and block.keep != "none":
                on_warning("the rule of evaluate.keep keeps no point")
            to_write = [(m.point, m.plan) for m in asked if m.entry.name in chosen and m.point]
            written = (
                sweep.merge_points(to_write, home, writing).points if write and to_write else ()
            )
            warned = {warning for model in asked for warning in model.plan.warnings}
            for each in written:
                for warning in each.merged.warnings if each.merged else ():
                    if warning not in warned:
                        on_warning(f"{each.point.name}: {warning}")
            there = {m.entry.name for m in points if up_to_date(home / m.entry.name, m.plan)}
            study_results = replace(
                frame,
                entries=tuple(replace(e, folder=e.name) if e.name in there else e for e in scored),
                chosen=chosen,
            )
            results.write(study_results, home)
            _write_held_out(study_results, again, study.unseen, live, home)
            if writing.write_card:
                study_cards.rewrite_all(home, study_results)
    return study_results


def _on_held_out(
    models: Sequence[StudyModel],
    tasks: Sequence[Task],
    live: Live,
    home: Path,
    threads: int | None,
    on_progress: Listener,
) -> list[Entry]:
    """Return the models' scores on the held-out problems; empty if none are held out."""
    if not tasks or not models:
        return []
    folder = home / results.HELD_OUT
    make_folder(folder / SAMPLES)
    entries = [
        score(model, tasks, live, folder, on_progress, Turn(model.entry.name, n, len(models)))
        for n, model in enumerate(models, 1)
    ]
    return measured(entries, models, threads)


def _write_held_out(
    searched: Results, entries: Sequence[Entry], tasks: Sequence[Task], live: Live, home: Path
) -> None:
    """Write the results on held-out problems; remove earlier ones if there are none now."""
    folder = home / results.HELD_OUT
    if not entries:
        results.remove(folder)
        return
    folders = {e.name: f"../{e.folder}" for e in searched.entries if e.folder is not None}
    held_out = replace(
        searched,
        directions=languages.score_names(tasks),
        settings=describe(tasks, live),
        entries=tuple(replace(entry, folder=folders.get(entry.name)) for entry in entries),
        places=tuple(os.path.join("..", place) for place in searched.places),  # noqa: PTH118
    )
    results.write(held_out, folder)


def _score_all(
    stage: Stage,
    models: Sequence[StudyModel],
    on_progress: Listener,
    on_entry: Callable[[Entry], None],
) -> list[Entry]:
    """Return the models' scores; if several processes share the study, each model is scored once."""
    turns = [Turn(m.entry.name, n, len(models)) for n, m in enumerate(models, 1)]

    def work(place: int, model: StudyModel) -> Entry:
        entry = stage.score(model, on_progress, turns[place])
        on_entry(entry)
        return entry

    return sharing.each_once(
        models,
        lambda model: stage.home / SAMPLES / f".{model.entry.name}.lock",
        work,
        lambda place, _model: on_progress(Waiting(turns[place])),
    )
