"""Prepare the evaluation of a sweep: tasks, models with plans, and the rule that selects points."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from merganser.errors import MerganserError
from merganser.evaluation import harness, running
from merganser.evaluation.engines import AnyOptions, EngineName
from merganser.evaluation.tasks import Task
from merganser.merging.options import WriteOptions
from merganser.planning import Config, Plan, PlanOptions
from merganser.recipe.sweep_file import Pattern, Point, load_points, read_pattern
from merganser.results.scores import Direction, Entry
from merganser.study import sweep
from merganser.study.evaluate_block import Study, choose_engine, load_block
from merganser.study.held_out import split
from merganser.study.keep import Rule, parse_rule
from merganser.study.live import make_live
from merganser.study.live_model import Live
from merganser.study.participants import (
    SAMPLES,
    StudyModel,
    base_and_experts,
    check_names,
    point_model,
    references_of,
    stated_references,
)
from merganser.study.progress import Listener, Turn, ignore
from merganser.study.scoring import harness_scores, score


@dataclass(frozen=True, slots=True)
class Stage:
    """Scores models of one study.

    Attributes:
        block: the study's block.
        tasks: the tasks that select points.
        live: the live model that becomes each of them.
        home: the study's folder.
        beside: the folder that relative paths of tasks start at.
    """

    block: Study
    tasks: Sequence[Task]
    live: Live
    home: Path
    beside: Path

    def score(
        self, model: StudyModel, on_progress: Listener, turn: Turn, home: Path | None = None
    ) -> Entry:
        """Return a model's scores on the study's tasks and on those of the lm-evaluation-harness.

        Args:
            model: the model.
            on_progress: called with an event at each step.
            turn: the model's position among all models, for the events.
            home: the folder with the folder of completions; None for the study's.
        """
        folder = home or self.home
        more = partial(
            harness_scores,
            model.plan,
            self.block,
            self.live,
            self.beside,
            harness_file(model, folder),
            quiet=on_progress is ignore,
        )
        return score(model, self.tasks, self.live, folder, on_progress, turn, more)

    def is_complete(self, model: StudyModel) -> bool:
        """Whether all completions and scores of a model are stored, so that it need not run."""
        key = self.live.key(model.plan, model.entry.name)
        digest = "-".join(key.values())
        scored = harness.read_kept(harness_file(model, self.home), digest, self.block.lm_eval)
        samples = self.home / SAMPLES / f"{model.entry.name}.jsonl"
        return len(scored) == len(self.block.lm_eval) and running.is_complete(
            self.tasks, key=key, samples=samples
        )


def harness_file(model: StudyModel, home: Path) -> Path:
    """Return the file of a model's scores on tasks of the lm-evaluation-harness."""
    return home / SAMPLES / f"{model.entry.name}.lm-eval.json"


@dataclass(frozen=True, slots=True)
class PreparedStudy:
    """An evaluated sweep that is planned and checked, before a model runs.

    Attributes:
        pattern: the sweep's file.
        block: its ``evaluate:`` block.
        engine: options of the engine that runs the models.
        seen: the tasks that select points.
        unseen: the held-out tasks.
        directions: ``max`` (more is better) or ``min`` for each score, by name.
        rule: returns the names of the points to write, with the reason for each.
        home: the study's folder.
        planned: the requested points, with their plans.
        asked: the requested points as models.
        names: names of all points of the sweep, in their order.
        earlier: the sweep's other points that an earlier run has scored.
        others: base, experts and references of the requested and the earlier points.
        stated: references whose scores are given in the file.
    """

    pattern: Pattern
    block: Study
    engine: AnyOptions
    seen: Sequence[Task]
    unseen: Sequence[Task]
    directions: Mapping[str, Direction]
    rule: Rule
    home: Path
    planned: Sequence[tuple[Point, Plan]]
    asked: Sequence[StudyModel]
    names: Sequence[str]
    earlier: Sequence[StudyModel]
    others: Sequence[StudyModel]
    stated: Sequence[Entry]

    @property
    def models(self) -> list[StudyModel]:
        """The models to score: base, experts and references, then the requested points."""
        wanted = references_of(self.block, self.asked, self.pattern.document)
        needed = {reference.text for reference, _, _ in wanted}
        return [model for model in self.others if model.entry.model in needed] + list(self.asked)

    def make_live(self, threads: int | None) -> Live:
        """Return the live model of the study's engine; the caller closes it."""
        return make_live(
            self.engine,
            device=self.block.device,
            dtype=self.block.dtype,
            threads=threads,
            batch_size=self.block.batch_size,
        )

    def stage(self, live: Live) -> Stage:
        """Return the scoring of the study's models with a live model."""
        return Stage(self.block, self.seen, live, self.home, self.pattern.folder or Path())

    def check_ready(self, writing: WriteOptions) -> None:
        """Check that the points that the rule may select can be written.

        Raises:
            OutputExistsError: a folder holds something else.
            ResourceError: the disk is too small.
        """
        if self.block.keep != "none":
            everything = self.block.keep == "all"
            sweep.check_ready(self.planned, self.home, writing, all_points=everything)


def prepare(
    config: Config,
    out: str | Path,
    planning: PlanOptions,
    *,
    only: Sequence[str] = (),
    engine: EngineName | None = None,
    engine_options: Mapping[str, Any] | None = None,
    allow_code: bool = False,
    on_warning: Callable[[str], None] = lambda _: None,
) -> PreparedStudy:
    """Plan and check a sweep that is evaluated, without running a model.

    Args:
        config, out, only, engine, engine_options, allow_code, on_warning: as for
            :func:`merganser.evaluate_sweep`.
        planning: options of planning.

    Raises:
        MerganserError: one of its subclasses, by cause.
    """
    pattern = read_pattern(config, "sweep", planning.strictness)
    document = pattern.document
    block, tasks = load_block(document, pattern.folder, allow_code=allow_code)
    running_on = choose_engine(block, engine, engine_options)
    held_out = [block.held_out] if isinstance(block.held_out, str) else block.held_out
    seen, unseen = split(
        tasks,
        held_out,
        0,
        lambda problem: document.error(f"evaluate.held_out: {problem}", ("evaluate", "held_out")),
    )
    directions = block.directions(seen)
    rule = parse_rule(block.keep, directions, document)
    home = Path(os.path.abspath(out))  # noqa: PTH100
    planned = sweep.plan_points(config, only, planning)
    asked = [point_model(point, plan) for point, plan in planned]
    warned = {w: m.entry.name for m in reversed(asked) for w in m.plan.warnings}
    for warning, name in warned.items():
        on_warning(f"{name}: {warning}")
    points = load_points(config, planning.strictness)
    earlier = [
        point_model(point, plan) for point, plan in _scored_earlier(points, asked, home, planning)
    ]
    others = base_and_experts(block, [*asked, *earlier], pattern.folder, document, planning)
    check_names([*others, *asked])
    stated = stated_references(block, directions, document, [m.entry for m in (*others, *asked)])
    return PreparedStudy(
        pattern,
        block,
        running_on,
        seen,
        unseen,
        directions,
        rule,
        home,
        planned,
        asked,
        [point.name for point in points],
        earlier,
        others,
        stated,
    )


def _scored_earlier(
    points: Sequence[Point], asked: Sequence[StudyModel], home: Path, options: PlanOptions
) -> list[tuple[Point, Plan]]:
    """Return a sweep's other points with completions in ``home``, if they can be planned."""
    names = {model.entry.name for model in asked}
    planned: list[tuple[Point, Plan]] = []
    for point in points:
        if point.name not in names and any((home / SAMPLES).glob(f"{point.name}.*")):
            with suppress(MerganserError):
                planned += sweep.plan_all([point], options)
    return planned
