"""Turn a recipe and headers into a plan: every decision of a merge, without reading weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Unpack

from merganser import methods, recipe, suggestions
from merganser.checkpoints import Checkpoint
from merganser.errors import InputError, reraise_os_errors
from merganser.methods import Method
from merganser.planning import unused_settings
from merganser.planning.companions import (
    check_modules,
    different_modules,
    missing_code,
    missing_config,
    module_folders,
    tokens_without_rows,
)
from merganser.planning.digest import plan_digest
from merganser.planning.heads import changed_tie
from merganser.planning.inputs import (
    Inputs,
    Opener,
    Warnings,
    forms,
    open_inputs,
    parameter_blocks,
    with_one_set_of_names,
    without_layers_if_bare,
)
from merganser.planning.jobs import JobMaker
from merganser.planning.layer_blocks import with_joined_blocks
from merganser.planning.layout import Layout
from merganser.planning.options import PlanKeywords, PlanOptions
from merganser.planning.parameter_checks import check_settings
from merganser.planning.plan_data import Arithmetic, OpenSource, Plan, TensorJob, TokenizerEdit
from merganser.planning.shards import deal, folder_of
from merganser.planning.vocabularies import align_vocabularies, chosen_template
from merganser.recipe import Config, ParsedRecipe
from merganser.tensors import DType, TensorSpec


def plan(
    config: Config,
    *,
    checkpoints: Mapping[str, Checkpoint] | None = None,
    **options: Unpack[PlanKeywords],
) -> Plan:
    """The plan of a merge, from the recipe and the checkpoints' headers; no weights are read.

    Args:
        config: a recipe: a file, a mapping, or a loaded recipe.
        checkpoints: open checkpoints by the text of their references, without adapters; others are
            opened. Pass those in memory to :func:`merganser.run` too.
        options: arithmetic, rounding, seed, shard_size, strictness, weights, truncate_embeddings,
            tensor_names; see :class:`merganser.planning.PlanOptions`.

    Returns:
        Every output tensor with its inputs, method and parameters, and every file with its size. A
        plan is plain data: it can be printed, pickled, merged, and sent to another machine.

    Raises:
        RecipeError: when the recipe is wrong, naming file, line and key.
        InputError: when a checkpoint is missing, corrupt, or does not fit the others.
    """
    return make_plan(config, PlanOptions(**options), checkpoints=checkpoints)


def make_plan(
    config: Config,
    options: PlanOptions = PlanOptions(),  # noqa: B008  # frozen
    *,
    checkpoints: Mapping[str, Checkpoint] | None = None,
) -> Plan:
    """:func:`plan` with its options as one object."""
    shard_bytes = options.shard_bytes
    parsed = recipe.load(config, options.strictness)
    written = parsed.recipe
    arithmetic = options.arithmetic or written.arithmetic or "exact"
    weights = options.weights or written.weights or "auto"
    warnings = Warnings(parsed)
    method = _find_method(parsed, arithmetic)
    _check_recipe(parsed, method, warnings)
    opener = Opener(parsed, weights, checkpoints or {}, warnings)
    with reraise_os_errors(InputError, "read", "a model"):
        inputs = open_inputs(opener)
        inputs = with_one_set_of_names(inputs, parsed, options.tensor_names, warnings)
        inputs = without_layers_if_bare(inputs, parsed, warnings)
        template = chosen_template(parsed, inputs.sources)
        inputs, tokenizer, rows = align_vocabularies(inputs, opener, options.truncate_embeddings)
        inputs = inputs.with_sources(with_joined_blocks(parsed, inputs.sources, inputs.index))
        layout = Layout(parsed, inputs, options.tensor_names, takes_base=method.base != "none")
        groups = list(layout.groups())
        maker = JobMaker(parsed, method, inputs.sources, arithmetic)
        jobs = [maker.job(group) for group in groups]
        maker.oddities.report(warnings)
        _check_jobs(jobs, options)
        blocks = parameter_blocks(written)
        unused_settings.check_filters(method, blocks, inputs.index, jobs, warnings)
        donor = inputs.sources[inputs.donor]
        layers = {module: tuple(made_of) for module, made_of in layout.layers.items()}
        if layers:
            _check_stacks(inputs, layers)
        warnings.add(layout.omissions.warnings(inputs, maker.alone))
        warnings.add(_warnings_of_donor(inputs, tokenizer, rows))
        tied = not any(g.place.role == "head" and g.place.vocabulary for g in groups)
        folders = module_folders(donor)
        check_modules(inputs.sources, donor, jobs, folders)
        jobs.sort(key=lambda job: folder_of(job.name, folders) != "")
        shards = tuple(deal(jobs, shard_bytes, folders))
        rounding = options.rounding or written.rounding or "nearest"
        seed = options.seed if options.seed is not None else written.seed or 0
        digest = plan_digest(
            inputs.sources, arithmetic, rounding, seed, jobs, shards, tokenizer, method, template
        )
        return Plan(
            recipe=parsed,
            method_name=method.name,
            code=method.origin,
            sources=tuple(source.closed() for source in inputs.sources),
            base=inputs.base,
            donor=inputs.donor,
            jobs=tuple(jobs),
            shards=shards,
            dtype=_dtype(jobs),
            arithmetic=arithmetic,
            rounding=rounding,
            seed=seed,
            weights=weights,
            tensor_names=options.tensor_names,
            layers=layers,
            tied=tied,
            tie_word_embeddings=changed_tie(donor, tied),
            warnings=tuple(warnings.lines),
            digest=digest,
            tokenizer=_closed(tokenizer),
            vocabulary=rows,
            chat_template=template,
        )


def _find_method(parsed: ParsedRecipe, arithmetic: Arithmetic) -> Method:
    name = parsed.recipe.merge_method
    method = methods.get(name, arithmetic)
    if method is None:
        hint = suggestions.suggest(name, methods.names())
        raise parsed.error(f"merge_method: there is no method {name!r}; {hint}", ("merge_method",))
    if arithmetic == "mergekit-0.1.4" and method.arithmetic != arithmetic and name != "passthrough":
        raise parsed.error(
            f"merge_method: {name} is not supported in the arithmetic of MergeKit 0.1.4; only linear is",
            ("merge_method",),
        )
    return method


def _check_recipe(parsed: ParsedRecipe, method: Method, warnings: Warnings) -> None:
    """Check the recipe alone, before its models are opened."""
    written = parsed.recipe
    unused_settings.check_names(parsed, method, parameter_blocks(written), warnings.lines, warnings)
    unused_settings.check_base(written, method, forms(written), warnings)
    check_settings(parsed, method, parameter_blocks(written), warnings)


def _check_jobs(jobs: Sequence[TensorJob], options: PlanOptions) -> None:
    if not jobs:
        raise InputError(
            "the models have no tensor in common"
            if options.tensor_names == "intersection"
            else "the models hold no tensors to merge"
        )
    name, count = Counter(job.name for job in jobs).most_common(1)[0]
    if count > 1:
        raise InputError(f"two inputs give the output tensor {name!r}")


def _check_stacks(
    inputs: Inputs, layers: Mapping[str, tuple[tuple[tuple[int, int], ...], ...]]
) -> None:
    """Check that the donor's config can describe the stacked layers."""
    from merganser.planning.depth import restacked

    donor = inputs.sources[inputs.donor]
    restacked(donor.checkpoint.config, inputs.sources, inputs.donor, layers)


def _warnings_of_donor(
    inputs: Inputs, tokenizer: TokenizerEdit | None, rows: int | None
) -> list[str]:
    """Warnings about files that the output lacks or takes from the donor alone."""
    donor = inputs.sources[inputs.donor]
    warnings = [
        *missing_config(inputs.sources, donor),
        *missing_code(donor),
        *different_modules(inputs.sources, donor),
    ]
    return warnings if tokenizer is not None else [*warnings, *tokens_without_rows(donor, rows)]


def _dtype(jobs: Sequence[TensorJob]) -> DType:
    """The most frequent dtype of merged elements."""
    floats = [job.spec for job in jobs if job.method != "copy" or job.spec.dtype.floating]
    return _commonest(floats) if floats else jobs[0].spec.dtype


def _commonest(specs: Sequence[TensorSpec]) -> DType:
    sizes: dict[DType, int] = {}
    for spec in specs:
        sizes[spec.dtype] = sizes.get(spec.dtype, 0) + spec.numel
    return max(sizes, key=lambda dtype: sizes[dtype])


def _closed(tokenizer: TokenizerEdit | None) -> TokenizerEdit | None:
    if tokenizer is None:
        return None
    donors = (donor.closed() for donor in tokenizer.donors if isinstance(donor, OpenSource))
    return replace(tokenizer, donors=tuple(donors))
