"""Write plans into folders that are ready to publish."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from merganser import engine
from merganser.checkpoints import Checkpoint
from merganser.errors import InputError, MerganserError, ResourceError
from merganser.merging import output_folder
from merganser.merging.options import WriteOptions
from merganser.merging.output_folder import Leftover, Partial
from merganser.merging.result import MergeResult, all_warnings, timings_of
from merganser.planning import Plan
from merganser.planning.made_folders import with_made_folders
from merganser.release import card, config, files, manifest, public_names, tokenizer
from merganser.release.copies import check_copies
from merganser.version import VERSION

INDEX = "model.safetensors.index.json"

Runner = Callable[[Partial, WriteOptions, Callable[[engine.TensorOutcome], None]], engine.Outcome]
"""Writes the remaining files of an unfinished folder in other processes, and passes on every outcome of a
tensor. An error of theirs is raised here."""


def write_folders(
    plans: Mapping[Path, Plan],
    options: WriteOptions,
    *,
    leftover: Leftover = "refuse",
    ancestors: Sequence[manifest.Ancestor] = (),
    checkpoints: Mapping[str, Checkpoint] | None = None,
    runner: Runner | None = None,
) -> list[MergeResult]:
    """Run plans in one pass, each into a folder that appears when it is complete.

    Args:
        plans: the plans by output folder, an absolute path that :func:`check_output` accepts.
        options: options of writing.
        leftover: how to treat unfinished merges.
        ancestors: plans and manifests of the merges that produced inputs.
        checkpoints: checkpoints in memory; see :func:`merganser.engine.run`.
        runner: writes each folder's files with other processes; None for this process, in one pass.

    Returns:
        A result per plan; the timings are those of the run.

    Raises:
        MerganserError: one of its subclasses, by cause. Finished folders stay, and finished files of others
            stay in ``OUT.partial``; the error's notes list them.
    """
    began = time.perf_counter()
    plans = {folder: with_made_folders(plan) for folder, plan in plans.items()}
    partials: list[Partial] = []
    manifests: list[dict[str, Any]] = []
    try:
        for folder, plan in plans.items():
            check_copies([plan], options.copy_tokenizer)
            partials.append(
                Partial(
                    folder,
                    plan,
                    force=options.force,
                    leftover=leftover,
                    digest_inputs=options.digest_inputs,
                    shared=runner is not None,
                )
            )

        def take_note(index: int, tensor: engine.TensorOutcome) -> None:
            if options.on_nonfinite == "error":
                _check_nonfinite(partials[index].plan, tensor)
            partials[index].journal.note_tensor(tensor)

        for partial in partials:
            for tensor in partial.known.values() if options.on_nonfinite == "error" else ():
                _check_nonfinite(plans[partial.folder], tensor)
        if runner is not None:
            outcomes = [
                runner(partial, options, functools.partial(take_note, index))
                for index, partial in enumerate(partials)
            ]
        else:
            outcomes = engine.run(
                list(plans.values()),
                [partial.sink() for partial in partials],
                threads=options.threads,
                memory=options.memory,
                digest_inputs=options.digest_inputs,
                made=[partial.known for partial in partials],
                checkpoints=checkpoints,
                on_tensor=take_note,
                on_event=options.on_event,
            )
        merged = time.perf_counter()
        for partial, outcome in zip(partials, outcomes, strict=True):
            facts = _finish_folder(
                partial.plan,
                outcome,
                partial.new,
                partial.folder.name,
                options,
                ancestors,
            )
            partial.put_in_place()
            manifests.append(facts)
    except BaseException as error:
        notes = output_folder.abandon_all(partials[len(manifests) :])
        if isinstance(error, OSError):
            error = _whose_fault(error, plans.values())
        for note in notes:
            error.add_note(note)
        raise error from None
    timings = timings_of(began, began, merged, time.perf_counter())
    return [
        MergeResult(folder, plan, outcome, facts, all_warnings(plan, facts), timings)
        for (folder, plan), outcome, facts in zip(plans.items(), outcomes, manifests, strict=True)
    ]


# -- the output folder -----------------------------------------------------------------------------


def check_output(plan: Plan | None, folder: Path, force: bool) -> None:
    """Check, as far as the plan allows, that the output can be written there.

    Raises:
        OutputExistsError: when the path holds something that must not be replaced.
    """
    output_folder.check_existing(folder, force)
    if plan is not None:
        output_folder.check_overlap(plan, folder)


def _whose_fault(error: OSError, plans: Iterable[Plan]) -> MerganserError:
    """Convert an OSError: to an InputError if its file belongs to an input, else to one of the output."""
    message = f"{error.filename or 'the output'}: {error.strerror or error}"
    for home in (home for plan in plans for home in plan.homes):
        if isinstance(error.filename, str) and Path(error.filename).is_relative_to(home):
            return InputError(message)
    return ResourceError(message)


def _check_nonfinite(plan: Plan, tensor: engine.TensorOutcome) -> None:
    """Check that a tensor has no infinite or NaN values.

    Raises:
        InputError: the tensor has some; the message names the input that has them, if one has.
    """
    if not tensor.nonfinite:
        return
    job = next(job for job in plan.jobs if job.name == tensor.name)
    *inputs, own_count = tensor.nonfinite
    for read, count in zip(job.reads, inputs, strict=True):
        if count:
            label = plan.sources[read.source].checkpoint.label
            raise InputError(
                f"{label}: tensor {read.name!r} has {count} values that are infinite or not a number"
            )
    raise InputError(
        f"tensor {tensor.name!r} of the result has {own_count} values that are infinite or not a number, "
        "its inputs none; out_dtype: float32 may hold them"
    )


def _finish_folder(
    plan: Plan,
    outcome: engine.Outcome,
    folder: Path,
    title: str,
    options: WriteOptions,
    ancestors: Sequence[manifest.Ancestor],
) -> dict[str, Any]:
    """Write all files except the weights; return the manifest."""
    shards = [shard for shard in plan.shards if "/" not in shard.file]  # without modules' shards
    if len(shards) > 1:
        homes = {name: shard.file for shard in shards for name in shard.offsets}
        specs = [job.spec for job in plan.jobs if job.name in homes]
        index = {
            "metadata": {
                "total_size": sum(spec.nbytes for spec in specs),
                "total_parameters": sum(spec.numel for spec in specs),
            },
            "weight_map": homes,
        }
        files.write_json(folder / INDEX, index)
    config.write_config(plan, folder, public=options.public)
    config.write_companions(plan, folder)
    missing = tokenizer.write_tokenizer(plan, folder) if options.copy_tokenizer else []
    facts = manifest.build(plan, outcome, VERSION, ancestors)
    plans = [*(ancestor for ancestor, _ in ancestors), plan]
    named = facts["names"] if options.public else None
    recipes = [public_names.recipe_text(ancestor, named) for ancestor in plans]
    files.write_text(folder / manifest.RECIPE, "---\n".join(recipes))
    facts["warnings"] += missing
    if options.public:
        facts = public_names.made_public(facts)
    if options.write_card:
        card.write_card(facts, recipes[-1], folder, plan.recipe.recipe.name or title)
    manifest.write(facts, folder)
    return facts
