"""Merge a chain: plan and run the recipes of one file, each after its inputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from merganser.checkpoints import open_checkpoint
from merganser.checkpoints.computed.planned import NotMergedYet
from merganser.engine.events import Listener
from merganser.errors import InputError, OutputExistsError
from merganser.merging.chain_plans import as_planned, plan_steps
from merganser.merging.dry_run import run_dry
from merganser.merging.folders import Runner, check_output
from merganser.merging.merge import write_merge
from merganser.merging.options import MergeKeywords, WriteOptions, split_options
from merganser.merging.output_folder import check_space, clear_finished
from merganser.merging.result import MergeResult
from merganser.planning import Config, Plan, PlanOptions, make_plan
from merganser.recipe import ParsedRecipe, load_all
from merganser.recipe.steps import Step, ancestors, folder_name, load_steps
from merganser.release import contents, manifest
from merganser.sinks import Sink
from merganser.version import VERSION


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of one recipe of a chain.

    Attributes:
        step: the recipe.
        folder: the folder of its result.
        plan: its plan.
        merged: the merge's result; None if the folder was up to date.
    """

    step: Step
    folder: Path
    plan: Plan
    merged: MergeResult | None

    def __repr__(self) -> str:
        if self.merged is not None:
            return f"StepResult({self.merged!r})"
        return f"StepResult({str(self.folder)!r}, up to date)"


def merge_all(
    config: Config,
    out: str | Path,
    *,
    intermediate_dir: str | Path | None = None,
    redo: bool = False,
    resume: bool | None = False,
    on_step: Callable[[StepResult], None] = lambda _: None,
    runner: Runner | None = None,
    **options: Unpack[MergeKeywords],
) -> list[StepResult]:
    """Merge all recipes of a file, each after its inputs.

    All merges are planned before the first one runs. The output is written to ``out``; several outputs
    are written to ``out/NAME``. Intermediate results are written to folders in ``intermediate_dir`` and
    stay there; they are merged again if their recipe, an input or Merganser's version changed.

    Args:
        config: a recipe, or a file with several.
        out: the output folder.
        intermediate_dir: the folder of intermediate results; ``OUT.intermediate`` by default.
        redo: merge intermediate results even if they are up to date.
        resume: like ``force``, as in :func:`merganser.merge`, for the output. Unfinished
            intermediate results are resumed if they are the same merge.
        on_step: called with each finished result.
        runner: writes the files with other processes; see :data:`merganser.merging.folders.Runner`.
        options: those of :func:`merganser.merge`.

    Returns:
        The result of every recipe, in the order of merging.

    Raises:
        MerganserError: one of its subclasses, by cause; finished intermediate results stay.
    """
    planning, writing = split_options(options)
    force = writing.force
    steps = load_steps(config, planning.strictness)
    folder = Path(os.path.abspath(out))  # noqa: PTH100
    if len(steps) == 1:
        merged = write_merge(
            steps[0].parsed, folder, planning, writing, resume=resume, runner=runner
        )
        result = StepResult(steps[0], folder, merged.plan, merged)
        on_step(result)
        return [result]
    plans = {step.name: plan for step, plan in plan_steps(steps, planning)}
    intermediate = Path(os.path.abspath(intermediate_dir or f"{folder}.intermediate"))  # noqa: PTH100
    if intermediate.is_relative_to(folder) or folder.is_relative_to(intermediate):
        raise OutputExistsError(
            f"{intermediate}: the folder of intermediate results must be neither inside the output {folder} "
            "nor around it"
        )
    several = sum(step.final for step in steps) > 1
    folders: dict[str | None, Path] = {}
    for step in steps:
        place = folder_name(step.name or "")
        folders[step.name] = (
            intermediate / place if not step.final else folder / place if several else folder
        )
        check_output(plans[step.name], folders[step.name], force or not step.final)
    reusable = [step.name for step in steps if not (step.final or redo)]
    check_space(
        {
            folders[name]: plan
            for name, plan in plans.items()
            if plan is not None and not (name in reusable and up_to_date(folders[name], plan))
        }
    )
    done: dict[str | None, StepResult] = {}
    for step in steps:
        target = folders[step.name]
        bound = step.parsed.bound({name: folders[name] for name in step.needs})
        plan = None if step.final or redo else make_plan(bound, planning)
        if plan is not None and up_to_date(target, plan):
            clear_finished(target)
            result = StepResult(step, target, plan, None)
        else:
            if not step.final:
                _check_others(target)
            how = writing if step.final else replace(writing, force=True, copy_tokenizer=True)
            merged = write_merge(
                bound,
                target,
                planning,
                how,
                ancestors=[
                    (done[name].plan, manifest.read(done[name].folder))
                    for name in ancestors(step, steps)
                ],
                resume=resume if step.final else None,
                runner=runner,
            )
            result = StepResult(step, target, merged.plan, merged)
        on_step(result)
        done[step.name] = result
    return list(done.values())


def merge_again(
    folder: Path,
    against: str | Path | None,
    sink: Sink,
    *,
    digest_inputs: bool,
    on_event: Listener,
) -> MergeResult:
    """Recompute a folder's merge from its recipe file, with its manifest's settings.

    Intermediate results are read from their folders. They are merged again, into a temporary
    folder, if they are missing, if a public manifest does not locate them, or with ``against``.

    Args:
        folder: a merge's output folder.
        against: the folder for the recipe's relative paths; None for the recipe's folder.
        sink: receives the result.
        digest_inputs, on_event: as in :func:`merganser.merge`.

    Raises:
        MerganserError: one of its subclasses, by cause.
    """
    stated = manifest.read(folder)
    home = Path(against or stated["log"].get("recipe_folder") or folder)
    results: dict[str, Path] = {}
    if against is None:
        folders = stated["log"].get("results") or {}
        results = {name: Path(path) for name, path in folders.items() if Path(path).is_dir()}
    *_, written = load_all(folder / manifest.RECIPE, "lenient")
    steps = load_steps(folder / manifest.RECIPE, "lenient")
    earlier = {entry["name"]: entry for entry in stated.get("earlier", [])}
    last = next(step for step in steps if step.name == (written.recipe.name or None))

    def located(parsed: ParsedRecipe, facts: Mapping[str, Any]) -> ParsedRecipe:
        commits = {entry["reference"]: entry.get("commits", {}) for entry in facts["inputs"]}
        return replace(parsed, folder=home).bound(results).pinned(commits)

    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix="merganser-") as place:
        missing = [step for step in steps if step.name in earlier and step.name not in results]
        for step in missing if set(last.needs) - set(results) else ():
            facts = earlier[step.name]
            results[str(step.name)] = Path(place, folder_name(str(step.name)))
            write_merge(
                located(step.parsed, facts),
                results[str(step.name)],
                _settings(facts),
                WriteOptions(write_card=False, digest_inputs=False),
            )
        plan = make_plan(located(written, stated), _settings(stated))
        return run_dry(plan, sink, digest_inputs=digest_inputs, on_event=on_event)


def _settings(facts: Mapping[str, Any]) -> PlanOptions:
    """Return the planning options in a manifest."""
    return PlanOptions(
        arithmetic=facts["arithmetic"],
        rounding=facts["rounding"],
        seed=facts["seed"],
        weights=facts.get("weights"),
        tensor_names=facts.get("tensor_names", "same"),
    )


def up_to_date(folder: Path, plan: Plan) -> bool:
    """Whether a folder holds a plan's result, judging by headers and inputs."""
    try:
        stated = manifest.read(folder)
        existing = open_checkpoint(folder)
    except InputError:
        return False
    wanted = as_planned(plan, "")
    return (
        stated["merganser"] == VERSION
        and stated["plan"] == plan.digest
        and existing.header_digest == wanted.header_digest
        and existing.files == wanted.files
        and _same_inputs(stated["log"], plan)
    )


def _same_inputs(log: Mapping[str, Any], plan: Plan) -> bool:
    """Whether inputs are unchanged, by their files' sizes and times, or else by their contents."""
    if log.get("inputs") == manifest.inputs_state(plan):
        return True
    try:
        return log.get("contents") is not None and log["contents"] == contents.state(plan)
    except NotMergedYet:
        return False


def _check_others(folder: Path) -> None:
    """Check that a folder is the output of a merge, so that it may be replaced."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / manifest.NAME).is_file():
        raise OutputExistsError(
            f"{folder}: exists, but is not a merged folder; move it away, or choose another folder "
            "for intermediate results"
        )
