"""Prepare a search: its space, tasks and models, checked before a model runs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from merganser.evaluation import tasks as evaluations
from merganser.evaluation.engines import AnyOptions, EngineName, name_of
from merganser.evaluation.tasks import Task
from merganser.planning import Config, PlanOptions
from merganser.release import contents
from merganser.results.scores import Entry
from merganser.study import search_loop
from merganser.study.evaluate_block import Study, choose_engine, load_block
from merganser.study.held_out import split
from merganser.study.history import INPUTS
from merganser.study.live import make_live
from merganser.study.live_model import Live
from merganser.study.participants import StudyModel, base_and_experts, stated_references
from merganser.study.preparing import Stage
from merganser.study.search_space import Search, load_search
from merganser.version import VERSION

_CANDIDATE = re.compile(r"_\d{3,}$")
"""The end of the names of candidates."""


@dataclass(frozen=True, slots=True)
class PreparedSearch:
    """A search that is planned and checked, before a model runs.

    Attributes:
        wanted: the search's space, objectives and settings.
        block: its ``evaluate:`` block.
        engine: options of the engine that runs the models.
        seen: the tasks that candidates are scored on.
        unseen: the held-out tasks.
        stated: references whose scores are given in the file.
        samples: the merges at the middle of all ranges, with every choice once.
        others: the base, the experts, and references that are scored.
        home: the search's folder.
        planning: options of planning.
    """

    wanted: Search
    block: Study
    engine: AnyOptions
    seen: Sequence[Task]
    unseen: Sequence[Task]
    stated: Sequence[Entry]
    samples: Sequence[StudyModel]
    others: Sequence[StudyModel]
    home: Path
    planning: PlanOptions

    @property
    def models(self) -> list[StudyModel]:
        """The models that workers score, except candidates: without those named like a candidate."""
        return [model for model in self.others if not _CANDIDATE.search(model.entry.name)]

    def stage(self, live: Live) -> Stage:
        """Return the scoring of the search's models with a live model."""
        folder = self.wanted.pattern.folder or Path()
        return Stage(self.block, self.seen, live, self.home, folder)

    def make_live(self, threads: int | None) -> Live:
        """Return the live model of the search's engine; the caller closes it."""
        return make_live(
            self.engine,
            device=self.block.device,
            dtype=self.block.dtype,
            threads=threads,
            batch_size=self.block.batch_size,
        )

    def settings(self, live: Live) -> dict[str, Any]:
        """Return what determines the scores of candidates, for the history."""
        inputs = {
            name: state
            for sample in self.samples
            for name, state in contents.of_models(sample.plan).items()
        }
        return {
            "merganser": VERSION,
            "tasks": evaluations.describe(self.seen),
            "engine": live.engine_name,
            INPUTS: inputs,
        }


def prepare_search(
    config: Config,
    out: str | Path,
    planning: PlanOptions,
    *,
    budget: int | None = None,
    engine: EngineName | None = None,
    engine_options: Mapping[str, Any] | None = None,
    allow_code: bool = False,
    on_warning: Callable[[str], None] = lambda _: None,
) -> PreparedSearch:
    """Plan and check a search, without running a model.

    Args:
        config, out, budget, engine, engine_options, allow_code, on_warning: as for
            :func:`merganser.search`.
        planning: options of planning.

    Raises:
        MerganserError: one of its subclasses, by cause.
    """
    wanted = load_search(config, planning.strictness)
    wanted = wanted if budget is None else replace(wanted, budget=budget)
    document, folder = wanted.pattern.document, wanted.pattern.folder
    block, tasks = load_block(document, folder, allow_code=allow_code)
    running_on = choose_engine(block, engine, engine_options)
    if name_of(running_on) == "endpoint":
        raise document.error(
            "search: its candidates are new merges, which a server cannot load; use engine: transformers or vllm"
        )
    for key in ("keep", "held_out"):
        if key in block.model_fields_set and getattr(block, key) is not None:
            raise document.error(
                f"evaluate.{key}: a search takes search.{key} instead", ("evaluate", key)
            )
    if block.lm_eval:
        raise document.error(
            "evaluate.lm_eval: candidates of a search are scored by evaluate.tasks",
            ("evaluate", "lm_eval"),
        )
    seen, unseen = split(
        tasks,
        wanted.held_out,
        wanted.seed,
        lambda problem: wanted.error(f"search.held_out: {problem}", "held_out"),
    )
    _check_scores(wanted, seen)
    stated = stated_references(block, evaluations.score_names(seen), document)
    samples = [
        StudyModel(Entry(point.name, "point"), plan, point)
        for point, plan in search_loop.plan_samples(wanted, planning)
    ]
    others = base_and_experts(block, samples, folder, document, planning)
    for problem in search_loop.invalid_ends(wanted, planning):
        on_warning(problem)
    return PreparedSearch(
        wanted,
        block,
        running_on,
        seen,
        unseen,
        stated,
        samples,
        others,
        Path(os.fspath(out)),
        planning,
    )


def _check_scores(wanted: Search, tasks: Sequence[Task]) -> None:
    """Check that the tasks have the scores that a search names.

    Raises:
        RecipeError: with file and line.
    """
    there = evaluations.score_names(tasks)
    for key, names in (("objectives", wanted.objectives), ("constraints", wanted.limits)):
        for name in names:
            if name not in there:
                raise wanted.error(
                    f"search.{key}.{name}: there is no such score; there are {', '.join(there)}",
                    key,
                    name,
                )
