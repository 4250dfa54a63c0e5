"""The story of a merge: recipe → plan → engine → a folder that is ready to be published."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from merganser.checkpoints import Checkpoint
from merganser.merging import output_folder
from merganser.merging.folders import check_output, write_folders
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
    """Merge models into a folder that is ready to be published.

    The folder appears only when it is complete: the merge is written to ``OUT.partial``, synced, and
    renamed.

    Args:
        config: a recipe: a file, a mapping, or one that was loaded; or a plan.
        out: the output folder.
        resume: go on with the unfinished merge in ``OUT.partial``, if there is one: from its finished
            files, to the same bytes. None: if it is the same merge; else it is thrown away. Without
            ``resume`` it is refused, or thrown away with ``force``.
        checkpoints: open ones, as in :func:`merganser.plan`.
        options: of the plan, where ``config`` is a recipe: arithmetic, rounding, seed, shard_size,
            strictness, weights, truncate_embeddings, tensor_names; see
            :class:`merganser.planning.PlanOptions`. Of the output: force, threads, memory,
            digest_inputs, on_nonfinite, public, write_card, copy_tokenizer, on_event; see
            :class:`merganser.merging.options.WriteOptions`.

    Raises:
        MerganserError: of the kind that fits. Files that are finished are kept in ``OUT.partial``,
            and its notes say so; where there are none, nothing is left behind.
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
) -> MergeResult:
    """What :func:`merge` gives, by options in two pieces.

    Args:
        config, out, resume, checkpoints: as in :func:`merge`.
        planning, writing: the options.
        ancestors: the merges that the inputs came from, whose recipes go before this one's: their
            plans and manifests.

    Raises:
        TypeError: when there are options for the planning of a plan.
    """
    began = time.perf_counter()
    folder = Path(os.path.abspath(out))  # a name of its own, also for "."  # noqa: PTH100
    output_folder.check_existing(folder, writing.force)
    if isinstance(config, Plan):
        if planning != PlanOptions():
            raise TypeError("a plan takes no further options of plans")
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
    )
    plan_s, total_s = planned - began, time.perf_counter() - began
    timings = result.timings | {"plan_s": round(plan_s, 3), "total_s": round(total_s, 3)}
    return replace(result, timings=timings)


def _leftover(force: bool, resume: bool | None) -> Leftover:
    if resume is None:
        return "either"
    return "resume" if resume else "discard" if force else "refuse"
