"""Merge: recipe → plan → engine → a folder that is ready to publish."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from merganser.checkpoints import Checkpoint
from merganser.merging import output_folder
from merganser.merging.folders import Runner, check_output, write_folders
from merganser.merging.options import MergeKeywords, WriteOptions, split_options
from merganser.merging.output_folder import Leftover
from merganser.merging.result import MergeResult
from merganser.planning import Config, Plan, PlanOptions, make_plan
from merganser.release import manifest


def merge(
    config: Config | Plan,
    out: str | Path,
    *,
    resume: bool | None = False,
    checkpoints: Mapping[str, Checkpoint] | None = None,
    **options: Unpack[MergeKeywords],
) -> MergeResult:
    """Merge models into a folder that is ready to publish.

    The folder appears when it is complete: the merge is written to ``OUT.partial``, synced, and
    renamed.

    Args:
        config: a recipe: a file, a mapping, or a loaded recipe; or a plan.
        out: the output folder.
        resume: True resumes an unfinished merge in ``OUT.partial`` from its finished files; the
            result has the same bytes. None resumes it if it is the same merge and deletes it
            otherwise. False raises, or deletes it with ``force``.
        checkpoints: open checkpoints, as in :func:`merganser.plan`.
        options: for planning, if ``config`` is a recipe: arithmetic, rounding, seed, shard_size,
            strictness, weights, truncate_embeddings, tensor_names; see
            :class:`merganser.planning.PlanOptions`. For writing: force, threads, memory,
            digest_inputs, on_nonfinite, public, write_card, copy_tokenizer, on_event; see
            :class:`merganser.merging.options.WriteOptions`.

    Returns:
        The folder, the plan, effective weights, manifest, warnings and timings.

    Raises:
        MerganserError: one of its subclasses, by cause. Finished files stay in ``OUT.partial``, and the
            error's notes say so; without any, nothing is left behind.
    """
    planning, writing = split_options(options)
    return write_merge(config, out, planning, writing, resume=resume, checkpoints=checkpoints)


def write_merge(
    config: Config | Plan,
    out: str | Path,
    planning: PlanOptions,
    writing: WriteOptions,
    *,
    resume: bool | None = False,
    ancestors: Sequence[manifest.Ancestor] = (),
    checkpoints: Mapping[str, Checkpoint] | None = None,
    runner: Runner | None = None,
) -> MergeResult:
    """Merge as :func:`merge` does, with the options as two objects.

    Args:
        config, out, resume, checkpoints: as in :func:`merge`.
        planning, writing: the options.
        ancestors: plans and manifests of the merges that produced inputs; the output lists their
            recipes before this one.
        runner: writes the files with other processes; see :data:`merganser.merging.folders.Runner`.

    Raises:
        TypeError: when ``config`` is a plan and there are planning options.
    """
    began = time.perf_counter()
    folder = Path(os.path.abspath(out))  # has a name, also for "."  # noqa: PTH100
    output_folder.check_existing(folder, writing.force)
    if isinstance(config, Plan):
        if planning != PlanOptions():
            raise TypeError(
                "a plan was given, which fixes the options of planning already; leave them out"
            )
        plan = config
    else:
        plan = make_plan(config, planning, checkpoints=checkpoints)
    check_output(plan, folder, writing.force)
    output_folder.check_space({folder: plan})
    planned = time.perf_counter()
    [result] = write_folders(
        {folder: plan},
        writing,
        leftover=_leftover(writing.force, resume),
        ancestors=ancestors,
        checkpoints=checkpoints,
        runner=runner,
    )
    plan_s, total_s = planned - began, time.perf_counter() - began
    timings = result.timings | {"plan_s": round(plan_s, 3), "total_s": round(total_s, 3)}
    return replace(result, timings=timings)


def _leftover(force: bool, resume: bool | None) -> Leftover:
    if resume is None:
        return "either"
    return "resume" if resume else "discard" if force else "refuse"
