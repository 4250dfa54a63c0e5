"""The story of a merge: recipe → plan → engine → a folder that is ready to be published."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from merganser import engine, hub, recipe
from merganser.checkpoints import Checkpoint, Weights, open_checkpoint, read_config
from merganser.checkpoints.training.training_runs import companions
from merganser.engine.events import Listener, ignore
from merganser.errors import InputError, MerganserError, RecipeError, ResourceError
from merganser.kernels import library
from merganser.merging import multistage, output_folder
from merganser.merging.output_folder import Leftover, Partial
from merganser.merging.result import MergeResult
from merganser.planning import Arithmetic, Config, Names, Plan, Rounding, make_plan
from merganser.recipe import Strictness
from merganser.release import card, config, files, manifest, public_names, tokenizer
from merganser.release.copies import refuse_foreign_links
from merganser.sinks import DigestSink, NullSink, Sink
from merganser.version import VERSION

INDEX = "model.safetensors.index.json"


OnNonfinite = Literal["warn", "error"]


class Writing(TypedDict, total=False):
    """Options of :func:`merge` that say how folders are written, and never what a merge is."""

    force: bool
    threads: int | None
    memory: int | None
    digest_inputs: bool
    on_nonfinite: OnNonfinite
    public: bool
    write_card: bool
    copy_tokenizer: bool
    on_event: Listener


def sort_options(options: Mapping[str, Any]) -> tuple[Writing, dict[str, Any]]:
    """Options of a study's merges, apart: those of :class:`Writing`, and those of :func:`plan`.

    Raises:
        TypeError: when there is another.
    """
    writing = {name: value for name, value in options.items() if name in Writing.__annotations__}
    planning = {name: value for name, value in options.items() if name not in writing}
    if unknown := set(planning) - set(inspect.signature(make_plan).parameters):
        raise TypeError(f"studies have no option {min(unknown)!r}")
    return cast(Writing, writing), planning


def merge(
    config: Config,
    out: str | Path,
    *,
    force: bool = False,
    resume: bool | None = False,
    arithmetic: Arithmetic | None = None,
    rounding: Rounding | None = None,
    seed: int | None = None,
    shard_size: int | str = "5GB",
    strictness: Strictness = "normal",
    weights: Weights | None = None,
    tensor_names: Names = "same",
    threads: int | None = None,
    memory: int | None = None,
    digest_inputs: bool = True,
    on_nonfinite: OnNonfinite = "warn",
    public: bool = False,
    truncate_embeddings: bool = False,
    write_card: bool = True,
    copy_tokenizer: bool = True,
    ancestors: Sequence[manifest.Ancestor] = (),
    checkpoints: Mapping[str, Checkpoint] | None = None,
    on_event: Listener = ignore,
) -> MergeResult:
    """Merge models into a folder that is ready to be published.

    The folder appears only when it is whole: the merge is written to ``OUT.partial``, synced, and
    renamed.

    Args:
        config: a recipe: a file, a mapping, or one that was loaded.
        out: the output folder.
        force: replace an output folder that is not empty; it is kept until the new one is whole.
        resume: go on with the unfinished merge in ``OUT.partial``, if there is one: from its finished
            files, to the same bytes. None: if it is the same merge; else it is thrown away. Without
            ``resume`` it is refused, or thrown away with ``force``.
        arithmetic: ``exact``, or ``mergekit`` or ``mergekit-0.1.4`` for the bits of those releases.
        rounding: ``nearest`` or ``stochastic``.
        seed: for stochastic rounding.
        shard_size: greatest size of a file.
        strictness: what becomes of keys that have no meaning; see :func:`merganser.recipe.load`.
        weights: of training steps that have both: ``auto``, ``shards`` or ``huggingface``.
        tensor_names: what becomes of tensors that some models lack; see :func:`merganser.plan`.
        threads: how many; None for as many as pay off.
        memory: bytes that the process may take.
        digest_inputs: write digests of the contents of all inputs into the manifest, and not of
            their headers alone.
        on_nonfinite: ``warn`` of values that are infinite or not a number, or make them an ``error``.
        public: write short names instead of local paths into card, recipe and manifest.
        truncate_embeddings: cut vocabularies of different sizes to the shortest one's rows.
        write_card: whether to write ``README.md``.
        copy_tokenizer: whether to write the tokenizer and its companions.
        ancestors: the merges that the inputs came from, whose recipes go before this one's: their
            plans and manifests.
        checkpoints: open ones, as in :func:`merganser.plan`.
        on_event: told of the progress.

    Raises:
        MerganserError: of the kind that fits. Files that are finished are kept in ``OUT.partial``,
            and its notes say so; where there are none, nothing is left behind.
    """
    began = time.perf_counter()
    folder = Path(os.path.abspath(out))  # a name of its own, also for "."  # noqa: PTH100
    output_folder.refuse_existing(folder, force)
    plan = make_plan(
        config,
        arithmetic=arithmetic,
        rounding=rounding,
        seed=seed,
        shard_size=shard_size,
        strictness=strictness,
        weights=weights,
        truncate_embeddings=truncate_embeddings,
        tensor_names=tensor_names,
        checkpoints=checkpoints,
    )
    check_output(plan, folder, force)
    output_folder.check_space({folder: plan})
    planned = time.perf_counter()
    [result] = write_folders(
        {folder: plan},
        force=force,
        leftover=_leftover(force, resume),
        threads=threads,
        memory=memory,
        digest_inputs=digest_inputs,
        on_nonfinite=on_nonfinite,
        public=public,
        write_card=write_card,
        copy_tokenizer=copy_tokenizer,
        ancestors=ancestors,
        on_event=on_event,
    )
    plan_s, total_s = planned - began, time.perf_counter() - began
    timings = result.timings | {"plan_s": round(plan_s, 3), "total_s": round(total_s, 3)}
    return replace(result, timings=timings)


def _leftover(force: bool, resume: bool | None) -> Leftover:
    if resume is None:
        return "either"
    return "resume" if resume else "discard" if force else "refuse"


def write_folders(
    plans: Mapping[Path, Plan],
    *,
    force: bool = False,
    leftover: Leftover = "refuse",
    threads: int | None = None,
    memory: int | None = None,
    digest_inputs: bool = True,
    on_nonfinite: OnNonfinite = "warn",
    public: bool = False,
    write_card: bool = True,
    copy_tokenizer: bool = True,
    ancestors: Sequence[manifest.Ancestor] = (),
    on_event: Listener = ignore,
) -> list[MergeResult]:
    """Run plans in one pass, each into a folder that appears only when it is whole.

    Args:
        plans: by the folders that they go to, absolute paths that :func:`check_output` lets pass.
        force: whether folders that are there are replaced.
        leftover: what becomes of unfinished merges.
        threads, memory, digest_inputs, on_nonfinite, public, write_card, copy_tokenizer, ancestors,
            on_event: as in :func:`merge`.

    Returns:
        A result for each, whose timings are those of all together.

    Raises:
        MerganserError: of the kind that fits; folders that are finished stay, and of others, in
            ``OUT.partial``, the files that are; its notes say so.
    """
    began = time.perf_counter()
    partials: list[Partial] = []
    manifests: list[dict[str, Any]] = []
    try:
        for folder, plan in plans.items():
            refuse_foreign_links([plan], copy_tokenizer)
            partials.append(
                Partial(folder, plan, force=force, leftover=leftover, digest_inputs=digest_inputs)
            )

        def take_note(index: int, tensor: engine.TensorOutcome) -> None:
            if on_nonfinite == "error":
                _refuse_nonfinite(partials[index].plan, tensor)
            partials[index].journal.note_tensor(tensor)

        for partial in partials:
            for tensor in partial.known.values() if on_nonfinite == "error" else ():
                _refuse_nonfinite(plans[partial.folder], tensor)
        outcomes = engine.run(
            list(plans.values()),
            [partial.sink() for partial in partials],
            threads=threads,
            memory=memory,
            digest_inputs=digest_inputs,
            made=[partial.known for partial in partials],
            on_tensor=take_note,
            on_event=on_event,
        )
        merged = time.perf_counter()
        for partial, outcome in zip(partials, outcomes, strict=True):
            made = _finish_folder(
                partial.plan,
                outcome,
                partial.new,
                partial.folder.name,
                public,
                write_card,
                copy_tokenizer,
                ancestors,
            )
            partial.put_in_place()
            manifests.append(made)
    except BaseException as error:
        notes = output_folder.abandon_all(partials[len(manifests) :])
        if isinstance(error, OSError):
            error = _whose_fault(error, plans.values())
        for note in notes:
            error.add_note(note)
        raise error from None
    finally:
        for plan in plans.values():
            plan.close()
    timings = _timings(began, began, merged, time.perf_counter())
    return [
        MergeResult(folder, plan, outcome, made, _warnings(plan, made), timings)
        for (folder, plan), outcome, made in zip(plans.items(), outcomes, manifests, strict=True)
    ]


def convert(
    source: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    dtype: str | None = None,
    weights: Weights | None = None,
    **options: Any,
) -> MergeResult:
    """Write any model that can be read as a Hugging Face folder: a merge of that model alone.

    Args:
        source: the model, as a recipe names it: a folder, a file, a training run, ``model+adapter``.
        out: the output folder.
        base: a model that lends config and tokenizer, in place of the source's own.
        dtype: of the result; what the source is stored in if None.
        weights: as in :func:`merge`.
        options: others of :func:`merge`.

    Raises:
        MerganserError: as :func:`merge` does.
    """
    config: dict[str, Any] = {"merge_method": "passthrough", "models": [{"model": str(source)}]}
    config |= {"dtype": dtype} if dtype is not None else {}
    if base is not None:
        options["checkpoints"] = _with_companions(str(source), str(base), weights or "auto")
    return merge(config, out, weights=weights, **options)


def _with_companions(source: str, base: str, weights: Weights) -> dict[str, Checkpoint]:
    """The checkpoint of a reference, with another model's config and tokenizer."""
    try:
        model, lender = recipe.parse_reference(source), recipe.parse_reference(base)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    folder = companions(hub.resolve(lender.path, lender.revision, weights=False))
    lent = read_config(folder)
    if not lent:
        raise InputError(f"{base}: has no config.json to lend")
    checkpoint = open_checkpoint(hub.resolve(model.path, model.revision), source, weights=weights)
    checkpoint.path, checkpoint.config = folder, lent
    return {f"{model.path}@{model.revision}" if model.revision else model.path: checkpoint}


def run_dry(
    config: Config,
    sink: Sink | None = None,
    *,
    threads: int | None = None,
    memory: int | None = None,
    digest_inputs: bool = False,
    on_event: Listener = ignore,
    **options: Any,
) -> MergeResult:
    """Run a merge into a sink that is no folder: the null sink by default, to measure the engine.

    Args:
        config: as in :func:`merge`.
        sink: where to; None for nowhere.
        threads, memory, digest_inputs, on_event: as in :func:`merge`.
        options: of :func:`plan`.
    """
    began = time.perf_counter()
    plan = make_plan(config, **options)
    planned = time.perf_counter()
    try:
        [outcome] = engine.run(
            [plan],
            [sink or NullSink()],
            threads=threads,
            memory=memory,
            digest_inputs=digest_inputs,
            on_event=on_event,
        )
    finally:
        plan.close()
    done = time.perf_counter()
    made = manifest.build(plan, outcome, VERSION)
    return MergeResult(
        None, plan, outcome, made, _warnings(plan, made), _timings(began, planned, done, done)
    )


def verify(
    folder: str | Path,
    *,
    recompute: bool = False,
    against: str | Path | None = None,
    may_differ: Collection[str] = (),
    on_event: Listener = ignore,
) -> list[str]:
    """Check a merged folder against its manifest: every file, and every tensor.

    Args:
        folder: one that :func:`merge` wrote.
        recompute: compute the merge again from its inputs, and compare that too, with the inputs'
            own digests where the manifest has them.
        against: the folder that the recipe's references start from, for ``recompute``, which it
            implies; the recipe's own if None.
        may_differ: files that somebody may have edited since.
        on_event: told of the progress.

    Returns:
        What is wrong, a sentence each; empty if all is well.

    Raises:
        InputError: when the folder has no manifest, or cannot be read at all.
    """
    path = Path(folder)
    stated = manifest.read(path)
    if not manifest.is_as_written(stated, path):
        return [f"{manifest.NAME} is not what was written"]
    problems = manifest.damage(stated, path, may_differ)
    reading = {"merge_method": "passthrough", "models": [{"model": str(path)}]}
    try:
        found = run_dry(
            reading,
            DigestSink(),
            on_event=on_event,
            strictness="lenient",
            checkpoints={str(path): open_checkpoint(path)},
        )
    except InputError as error:
        if not problems:
            raise
        return [*problems, str(error)]
    problems += manifest.difference(stated, manifest.tensor_digests([found.outcome]))
    if recompute or against is not None:
        manifest.check_method(stated, path)
        again = multistage.merge_again(
            path,
            against,
            DigestSink(),
            on_event=on_event,
            digest_inputs=any("tensors" in each for each in stated["inputs"]),
        )
        problems += manifest.different_inputs(stated, again.manifest)
        different = manifest.difference(stated, manifest.tensor_digests([again.outcome]))
        problems += manifest.different_method(stated) if different else []
        problems += [f"merged again from the inputs: {problem}" for problem in different]
    return problems


# -- the output folder -----------------------------------------------------------------------------


def check_output(plan: Plan | None, folder: Path, force: bool) -> None:
    """Refuse a merge that could not be put where it should be, as far as it is decided.

    Raises:
        OutputExistsError: when something is there that may not be replaced.
    """
    output_folder.refuse_existing(folder, force)
    if plan is not None:
        output_folder.refuse_overlap(plan, folder)


def _whose_fault(error: OSError, plans: Iterable[Plan]) -> MerganserError:
    """What the system refused as an error of an input, if it is a file there, or of the output."""
    told = f"{error.filename or 'the output'}: {error.strerror or error}"
    for home in (home for plan in plans for home in plan.homes):
        if isinstance(error.filename, str) and Path(error.filename).is_relative_to(home):
            return InputError(told)
    return ResourceError(told)


def _refuse_nonfinite(plan: Plan, tensor: engine.TensorOutcome) -> None:
    """Refuse a tensor with values that are infinite or not a number.

    Raises:
        InputError: when an input has some, or the output alone.
    """
    if not tensor.nonfinite:
        return
    job = next(job for job in plan.jobs if job.name == tensor.name)
    *inputs, made = tensor.nonfinite
    for read, count in zip(job.reads, inputs, strict=True):
        if count:
            label = plan.sources[read.source].checkpoint.label
            raise InputError(
                f"{label}: tensor {read.name!r} has {count} values that are infinite or not a number"
            )
    raise InputError(
        f"tensor {tensor.name!r} of the result has {made} values that are infinite or not a number, "
        "its inputs none; out_dtype: float32 may hold them"
    )


def _finish_folder(
    plan: Plan,
    outcome: engine.Outcome,
    folder: Path,
    title: str,
    public: bool,
    write_card: bool,
    copy_tokenizer: bool,
    ancestors: Sequence[manifest.Ancestor],
) -> dict[str, Any]:
    """All but the weights."""
    own = [shard for shard in plan.shards if "/" not in shard.file]  # not those of modules
    if len(own) > 1:
        homes = {name: shard.file for shard in own for name in shard.offsets}
        specs = [job.spec for job in plan.jobs if job.name in homes]
        index = {
            "metadata": {
                "total_size": sum(spec.nbytes for spec in specs),
                "total_parameters": sum(spec.numel for spec in specs),
            },
            "weight_map": homes,
        }
        files.write_json(folder / INDEX, index)
    config.write_config(plan, folder, public=public)
    config.write_companions(plan, folder)
    missing = tokenizer.write_tokenizer(plan, folder) if copy_tokenizer else []
    made = manifest.build(plan, outcome, VERSION, ancestors)
    plans = [*(each for each, _ in ancestors), plan]
    named = made["names"] if public else None
    recipes = [public_names.recipe_text(each, named) for each in plans]
    files.write_text(folder / manifest.RECIPE, "---\n".join(recipes))
    made["warnings"] += missing
    if public:
        made = public_names.made_public(made)
    if write_card:
        card.write_card(made, recipes[-1], folder, plan.recipe.recipe.name or title)
    manifest.write(made, folder)
    return made


def _warnings(plan: Plan, made: dict[str, Any]) -> tuple[str, ...]:
    slow = library.warning()
    later = made["warnings"][len(plan.warnings) :]
    return (*plan.warnings, *later, *((slow,) if slow else ()))


def _timings(began: float, planned: float, merged: float, done: float) -> dict[str, float]:
    phases = {
        "plan_s": planned - began,
        "engine_s": merged - planned,
        "finish_s": done - merged,
        "total_s": done - began,
    }
    return {name: round(seconds, 3) for name, seconds in phases.items()}
