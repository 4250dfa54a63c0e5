"""Plan a chain: the recipes of one file, including those that use results of others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from merganser.checkpoints.computed.planned import PlannedCheckpoint
from merganser.planning import Config, Plan, PlanOptions, make_plan
from merganser.recipe import model_references
from merganser.recipe.steps import Step, load_steps
from merganser.release.config import edited_config


def plan_all(
    config: Config,
    options: PlanOptions = PlanOptions(),  # noqa: B008  # frozen
) -> list[tuple[Step, Plan | None]]:
    """Plan all merges of a file, including those with inputs that are not merged yet.

    The plan is None if it needs results of an earlier merge: a merge that aligns vocabularies or
    chooses a chat template from inputs whose tokenizers do not exist yet, and every merge that
    builds on such a merge.

    Args:
        config: a recipe, or a file with several.
        options: of :func:`merganser.plan`.

    Raises:
        MerganserError: as :func:`merganser.plan`.
    """
    return plan_steps(load_steps(config, options.strictness), options)


def plan_steps(steps: Sequence[Step], options: PlanOptions) -> list[tuple[Step, Plan | None]]:
    """:func:`plan_all` for the recipes of a file that is read already."""
    planned: dict[str, PlannedCheckpoint] = {}
    plans: list[tuple[Step, Plan | None]] = []
    for step in steps:
        plan = None
        if _can_be_planned(step, planned):
            given = {name: planned[name] for name in step.needs}
            plan = make_plan(step.parsed, options, checkpoints=given)
            if step.name is not None:
                planned[step.name] = as_planned(plan, step.name)
        plans.append((step, plan))
    return plans


def _can_be_planned(step: Step, planned: Mapping[str, PlannedCheckpoint]) -> bool:
    """Whether a step's inputs are known, including tokenizers if it uses them."""
    if not planned.keys() >= set(step.needs):
        return False
    written = step.parsed.recipe
    asks = written.tokenizer or written.tokenizer_source or written.chat_template
    outside = model_references([written.tokenizer, written.tokenizer_source])
    return not asks or (
        all(planned[name].path is not None for name in step.needs)
        and not any(reference.path in planned for _, reference in outside)
    )


def as_planned(plan: Plan, name: str) -> PlannedCheckpoint:
    """Return the checkpoint that a plan will produce, with the digest of its headers."""
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
