"""A chain of merges: the recipes of one file are planned and merged, each after what it builds on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from merganser.checkpoints import open_checkpoint
from merganser.checkpoints.computed.planned import NotMergedYet, PlannedCheckpoint
from merganser.engine.events import Listener
from merganser.errors import InputError, OutputExistsError
from merganser.merging.dry_run import run_dry
from merganser.merging.folders import check_output
from merganser.merging.merge import write_merge
from merganser.merging.options import MergeKeywords, WriteOptions, split_options
from merganser.merging.output_folder import check_space, clear_finished
from merganser.merging.result import MergeResult
from merganser.planning import Config, Plan, PlanOptions, make_plan
from merganser.recipe import ParsedRecipe, load_all, model_references
from merganser.recipe.steps import Step, ancestors, folder_name, load_steps
from merganser.release import contents, manifest
from merganser.release.config import edited_config
from merganser.sinks import Sink
from merganser.version import VERSION


@dataclass(frozen=True, slots=True)
class StepResult:
    """What became of one recipe of a chain.

    Attributes:
        step: the recipe.
        folder: where its result is.
        plan: its plan.
        merged: what the merge made; None if the folder was up to date.
    """

    step: Step
    folder: Path
    plan: Plan
    merged: MergeResult | None

    def __repr__(self) -> str:
        if self.merged is not None:
            return f"StepResult({self.merged!r})"
        return f"StepResult({str(self.folder)!r}, up to date)"


def plan_all(
    config: Config,
    options: PlanOptions = PlanOptions(),  # noqa: B008  # frozen
) -> list[tuple[Step, Plan | None]]:
    """Decide all merges of a file, those too whose inputs are not merged yet.

    What cannot be decided yet is None: a merge that aligns vocabularies or chooses a chat template, if
    an input's are only made by the merge before it, and whatever builds on such a merge.

    Args:
        config: a recipe, or a file with several.
        options: of :func:`merganser.plan`.

    Raises:
        MerganserError: as :func:`merganser.plan`.
    """
    return _plan_steps(load_steps(config, options.strictness), options)


def _plan_steps(steps: Sequence[Step], options: PlanOptions) -> list[tuple[Step, Plan | None]]:
    planned: dict[str, PlannedCheckpoint] = {}
    plans: list[tuple[Step, Plan | None]] = []
    for step in steps:
        plan = None
        if _can_be_planned(step, planned):
            given = {name: planned[name] for name in step.needs}
            plan = make_plan(step.parsed, options, checkpoints=given)
            if step.name is not None:
                planned[step.name] = _planned(plan, step.name)
        plans.append((step, plan))
    return plans


def _can_be_planned(step: Step, planned: Mapping[str, PlannedCheckpoint]) -> bool:
    """Whether all is known of what a step builds on, its tokenizers too where they matter."""
    if not planned.keys() >= set(step.needs):
        return False
    written = step.parsed.recipe
    asks = written.tokenizer or written.tokenizer_source or written.chat_template
    outside = model_references([written.tokenizer, written.tokenizer_source])
    return not asks or (
        all(planned[name].path is not None for name in step.needs)
        and not any(reference.path in planned for _, reference in outside)
    )


def _planned(plan: Plan, name: str) -> PlannedCheckpoint:
    """The checkpoint that a plan will have made, its headers' digest included."""
    shards = sorted(plan.shards, key=lambda shard: shard.file)
    headers = b"".join(shard.header[8:] for shard in shards)
    tokenizer = plan.sources[plan.donor].checkpoint.path
    if plan.tokenizer is not None:
        output = plan.tokenizer.output
        tokenizer = None if output.changed else output.start.folder
    return PlannedCheckpoint(
        name,
        tokenizer if plan.chat_template is None else None,
        {job.name: job.spec for job in plan.jobs},
        edited_config(plan),
        {shard.file: shard.size for shard in shards},
        hashlib.sha256(headers).hexdigest(),
    )


def merge_all(
    config: Config,
    out: str | Path,
    *,
    intermediate_dir: str | Path | None = None,
    redo: bool = False,
    resume: bool | None = False,
    on_step: Callable[[StepResult], None] = lambda _: None,
    **options: Unpack[MergeKeywords],
) -> list[StepResult]:
    """Merge all recipes of a file, in the order in which they need each other.

    All is planned before anything is merged. The output goes to ``out``, several outputs to folders
    of their names in it; what is only built on goes to folders in ``intermediate_dir``, is kept, and
    merged again only if its recipe, its inputs or the version changed.

    Args:
        config: a recipe, or a file with several.
        out: the output folder.
        intermediate_dir: where the results go that others build on; ``OUT.intermediate`` by default.
        redo: merge intermediate results again, even if they are up to date.
        resume: as in :func:`merganser.merge`, as is ``force``; for the output. Intermediate results that are
            unfinished are gone on with where they are the same.
        on_step: told of each result when it is there.
        options: of :func:`merganser.merge`, ``on_event`` included.

    Raises:
        MerganserError: of the kind that fits; intermediate results that are finished are kept.
    """
    planning, writing = split_options(options)
    force = writing.force
    steps = load_steps(config, planning.strictness)
    folder = Path(os.path.abspath(out))  # noqa: PTH100
    if len(steps) == 1:
        merged = write_merge(steps[0].parsed, folder, planning, writing, resume=resume)
        result = StepResult(steps[0], folder, merged.plan, merged)
        on_step(result)
        return [result]
    plans = {step.name: plan for step, plan in _plan_steps(steps, planning)}
    intermediate = Path(os.path.abspath(intermediate_dir or f"{folder}.intermediate"))  # noqa: PTH100
    if intermediate.is_relative_to(folder) or folder.is_relative_to(intermediate):
        raise OutputExistsError(
            f"{intermediate}: the folder of intermediate results and the output {folder} must lie "
            "beside each other"
        )
    several = sum(step.final for step in steps) > 1
    folders: dict[str | None, Path] = {}
    for step in steps:
        own = folder_name(step.name or "")
        folders[step.name] = (
            intermediate / own if not step.final else folder / own if several else folder
        )
        check_output(plans[step.name], folders[step.name], force or not step.final)
    kept = [step.name for step in steps if not (step.final or redo)]
    check_space(
        {
            folders[name]: plan
            for name, plan in plans.items()
            if plan is not None and not (name in kept and up_to_date(folders[name], plan))
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
    """Compute again what a folder holds, from its recipe file, by the settings in its manifest.

    Results that the recipe builds on are read where the merge left them. Those that are gone, that a
    public manifest does not locate, or that are computed ``against`` other inputs are merged again,
    into a temporary folder.

    Args:
        folder: one that a merge wrote.
        against: the folder that the recipe's references start from; the recipe's own if None.
        sink: where the result goes.
        digest_inputs, on_event: as in :func:`merganser.merge`.

    Raises:
        MerganserError: of the kind that fits.
    """
    stated = manifest.read(folder)
    home = Path(against or stated["log"].get("recipe_folder") or folder)
    results: dict[str, Path] = {}
    if against is None:
        kept = stated["log"].get("results") or {}
        results = {name: Path(path) for name, path in kept.items() if Path(path).is_dir()}
    *_, written = load_all(folder / manifest.RECIPE, "lenient")
    steps = load_steps(folder / manifest.RECIPE, "lenient")
    earlier = {each["name"]: each for each in stated.get("earlier", [])}
    last = next(step for step in steps if step.name == (written.recipe.name or None))

    def located(parsed: ParsedRecipe, facts: Mapping[str, Any]) -> ParsedRecipe:
        commits = {each["reference"]: each.get("commits", {}) for each in facts["inputs"]}
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
    """The options of a merge, as a manifest has them."""
    return PlanOptions(
        arithmetic=facts["arithmetic"],
        rounding=facts["rounding"],
        seed=facts["seed"],
        weights=facts.get("weights"),
        tensor_names=facts.get("tensor_names", "same"),
    )


def up_to_date(folder: Path, plan: Plan) -> bool:
    """Whether a folder holds what a plan would make, as far as headers and its inputs tell."""
    try:
        stated = manifest.read(folder)
        found = open_checkpoint(folder)
    except InputError:
        return False
    wanted = _planned(plan, "")
    return (
        stated["merganser"] == VERSION
        and stated["plan"] == plan.digest
        and found.header_digest == wanted.header_digest
        and found.files == wanted.files
        and _same_inputs(stated["log"], plan)
    )


def _same_inputs(log: Mapping[str, Any], plan: Plan) -> bool:
    """Whether inputs are what they were, by their files' sizes and times, or else by their contents."""
    if log.get("inputs") == manifest.inputs_state(plan):
        return True
    try:
        return log.get("contents") is not None and log["contents"] == contents.state(plan)
    except NotMergedYet:
        return False


def _check_others(folder: Path) -> None:
    """Only what a merge left there may be replaced without a word."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / manifest.NAME).is_file():
        raise OutputExistsError(
            f"{folder}: is there already, and no merge left it; move it away, or choose another folder "
            "for intermediate results"
        )
