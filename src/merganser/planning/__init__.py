"""Recipe and headers in, plan out: every decision of a merge, before a byte of weights is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from merganser import hub, methods, recipe, suggestions
from merganser.architecture import Architecture, infer, without_layers
from merganser.checkpoints import Checkpoint, Weights, as_numbers, open_checkpoint
from merganser.errors import InputError, RecipeError, reraise_os_errors
from merganser.methods import Method
from merganser.planning import unused_settings
from merganser.planning.alignment import Aligner, chosen_template, truncated
from merganser.planning.companions import (
    check_modules,
    different_modules,
    missing_code,
    module_folders,
    tokens_without_rows,
)
from merganser.planning.depth import restacked
from merganser.planning.groups import Path
from merganser.planning.heads import changed_tie
from merganser.planning.jobs import JobMaker
from merganser.planning.layer_blocks import with_joined_blocks
from merganser.planning.layout import Layout
from merganser.planning.naming import named_alike
from merganser.planning.parameter_checks import check_settings
from merganser.planning.plan_data import (
    DISK_MARGIN,
    OVERHEAD,
    TILE,
    Arithmetic,
    Names,
    Plan,
    Read,
    Rounding,
    Shard,
    Source,
    TensorJob,
    TokenizerEdit,
    buffer_bytes,
    default_threads,
    describe,
    memory_needed,
    tile_of,
)
from merganser.planning.shards import deal, folder_of
from merganser.recipe import (
    Config,
    ModelReference,
    ParsedRecipe,
    Setting,
    Strictness,
    key_name,
)
from merganser.recipe.schema import ModelInput, OutputSlice
from merganser.tensors import DType, TensorSpec, parse_size

__all__ = [
    "DISK_MARGIN",
    "OVERHEAD",
    "TILE",
    "Arithmetic",
    "Config",
    "Names",
    "Plan",
    "Read",
    "Rounding",
    "Shard",
    "Source",
    "TensorJob",
    "TokenizerEdit",
    "buffer_bytes",
    "default_threads",
    "describe",
    "make_plan",
    "memory_needed",
    "plan",
    "restacked",
    "tile_of",
]

FORMAT = 1
"""Raised when the same recipe and inputs would give another plan, or other bytes."""


def make_plan(
    config: Config,
    *,
    arithmetic: Arithmetic | None = None,
    rounding: Rounding | None = None,
    seed: int | None = None,
    shard_size: int | str = "5GB",
    strictness: Strictness = "normal",
    weights: Weights | None = None,
    truncate_embeddings: bool = False,
    tensor_names: Names = "same",
    checkpoints: Mapping[str, Checkpoint] | None = None,
) -> Plan:
    """Decide a merge from the recipe and the checkpoints' headers, without reading weights.

    Args:
        config: a recipe: a file, a mapping, or one that was loaded.
        arithmetic, rounding, seed, weights: replace what the recipe says.
        shard_size: greatest size of an output file; a larger tensor has one of its own.
        strictness: what becomes of keys that have no meaning; see :func:`merganser.recipe.load`.
        truncate_embeddings: cut vocabularies of different sizes to the shortest one's rows.
        tensor_names: what becomes of tensors that some models lack: an error, but for those that models of
            a kind may lack (``same``), left out (``intersection``), or merged from the models that
            have them (``union``).
        checkpoints: open checkpoints by the text of their references, adapters left out; others
            are opened.

    Raises:
        RecipeError: when the recipe cannot be what its author meant; with file, line and key.
        InputError: when a checkpoint is missing, corrupt, or does not fit the others.
    """
    try:
        size = parse_size(shard_size)
    except ValueError as error:
        raise RecipeError(f"shard size: {error}") from None
    parsed = recipe.load(config, strictness)
    with reraise_os_errors(InputError, "read", "a model"):
        return _Planner(
            parsed,
            checkpoints or {},
            arithmetic or parsed.recipe.arithmetic or "exact",
            rounding or parsed.recipe.rounding or "nearest",
            seed if seed is not None else parsed.recipe.seed or 0,
            weights or parsed.recipe.weights or "auto",
            truncate_embeddings,
            tensor_names,
        ).plan(size)


plan = make_plan
"""The public name, where no variable has it."""


class _Planner:
    """The steps of :func:`plan` over what they share: the recipe, its sources and its warnings."""

    def __init__(
        self,
        parsed: ParsedRecipe,
        checkpoints: Mapping[str, Checkpoint],
        arithmetic: Arithmetic,
        rounding: Rounding,
        seed: int,
        weights: Weights,
        truncate_embeddings: bool,
        tensor_names: Names,
    ) -> None:
        self.parsed = parsed
        self.recipe = parsed.recipe
        self.arithmetic: Arithmetic = arithmetic
        self.rounding: Rounding = rounding
        self.seed = seed
        self.weights: Weights = weights
        self.tensor_names: Names = tensor_names
        self.warnings = list(parsed.warnings)
        self.method = self._find_method()
        unused_settings.check_names(
            parsed, self.method, self._parameter_blocks(), self.warnings, self._warn
        )
        unused_settings.check_base(parsed.recipe, self.method, self._forms(), self._warn)
        check_settings(parsed, self.method, self._parameter_blocks(), self._warn)
        self.references = self._references()
        opened = [self._open(each, checkpoints, at) for each, at in self.references.values()]
        self.index = {text: i for i, text in enumerate(self.references)}
        base = self.recipe.base_model
        self.base = self.index[base.text] if base is not None else None
        self.donor = self.base if self.base is not None else 0
        self.sources = self._named_alike(opened)
        self._take_bare_files()
        self.chat_template = chosen_template(parsed, self.sources)
        self.tokenizer: TokenizerEdit | None = None
        self.vocabulary: int | None = None
        self._align(truncate_embeddings, checkpoints)

    # -- what the recipe says -----------------------------------------------------------------

    def _find_method(self) -> Method:
        name = self.recipe.merge_method
        method = methods.get(name, self.arithmetic)
        if method is None:
            hint = suggestions.suggest(name, methods.names())
            raise self.parsed.error(
                f"merge_method: there is no method {name!r}; {hint}", ("merge_method",)
            )
        if (
            self.arithmetic == "mergekit-0.1.4"
            and method.arithmetic != self.arithmetic
            and name != "passthrough"
        ):
            raise self.parsed.error(
                f"merge_method: {name} is not supported in the arithmetic of MergeKit 0.1.4 yet; linear is",
                ("merge_method",),
            )
        return method

    def _forms(
        self,
    ) -> Iterator[tuple[Path, Sequence[ModelInput] | None, Sequence[OutputSlice] | None]]:
        """The recipe's lists of models and slices: its own, or those of its modules."""
        if self.recipe.modules is None:
            yield (), self.recipe.models, self.recipe.slices
        for name, module in (self.recipe.modules or {}).items():
            yield ("modules", name), module.models, module.slices

    def _parameter_blocks(
        self,
    ) -> Iterator[tuple[Path, Mapping[str, Setting], ModelReference | None]]:
        """The recipe's blocks of parameters, with the model of those that are one model's own."""
        yield ("parameters",), self.recipe.parameters, None
        for name, module in (self.recipe.modules or {}).items():
            yield ("modules", name, "parameters"), module.parameters, None
        for path, models, slices in self._forms():
            for i, model in enumerate(models or []):
                yield (*path, "models", i, "parameters"), model.parameters, model.model
            for i, piece in enumerate(slices or []):
                here = (*path, "slices", i)
                yield (*here, "parameters"), piece.parameters, None
                for j, source in enumerate(piece.sources):
                    yield (*here, "sources", j, "parameters"), source.parameters, source.model

    def _warn(self, path: Path, message: str) -> None:
        address = self.parsed.document.address(path)
        text = f"{key_name(path)}: {message}"
        if self.parsed.strictness == "strict":
            raise self.parsed.error(text, path)
        self.warnings.append(f"{address}: {text}" if address else text)

    def _references(self) -> dict[str, tuple[ModelReference, Path]]:
        """All models in the order of the recipe; an unlisted base comes last, as in MergeKit."""
        found: dict[str, tuple[ModelReference, Path]] = {}
        for path, models, slices in self._forms():
            listed = set()
            for i, model in enumerate(models or []):
                here = (*path, "models", i, "model")
                if model.model.text in listed:
                    raise self.parsed.error(
                        f"{key_name(here)}: {model.model} is listed twice", here
                    )
                listed.add(model.model.text)
                found.setdefault(model.model.text, (model.model, here))
            for i, piece in enumerate(slices or []):
                for j, source in enumerate(piece.sources):
                    here = (*path, "slices", i, "sources", j, "model")
                    found.setdefault(source.model.text, (source.model, here))
                if piece.base_model is not None:
                    here = (*path, "slices", i, "base_model")
                    found.setdefault(piece.base_model.text, (piece.base_model, here))
        if self.recipe.base_model is not None:
            base = self.recipe.base_model
            found.setdefault(base.text, (base, ("base_model",)))
        return found

    def _open(self, reference: ModelReference, given: Mapping[str, Checkpoint], at: Path) -> Source:
        here = self.parsed.folder
        alone = (
            reference.path
            if reference.revision is None
            else f"{reference.path}@{reference.revision}"
        )
        checkpoint = given.get(alone)
        published = False
        if checkpoint is None:
            published = hub.local_folder(reference.path, here) is None
            with self.parsed.document.addressed(at):
                folder = hub.resolve(reference.path, reference.revision, here)
            checkpoint = open_checkpoint(folder, reference.text, weights=self.weights)
        adapter, published_adapter = None, False
        if reference.adapter is not None:
            published_adapter = hub.local_folder(reference.adapter, here) is None
            with self.parsed.document.addressed(at):
                adapter = hub.resolve(reference.adapter, reference.adapter_revision, here)
        checkpoint = as_numbers(checkpoint, adapter)
        self.warnings += checkpoint.notes
        architecture = _architecture(reference, checkpoint, self.recipe.modules or ())
        return Source(reference, checkpoint, architecture, published, adapter, published_adapter)

    def _named_alike(self, opened: Sequence[Source]) -> tuple[Source, ...]:
        """The sources with one set of names for their tensors, which are those of the output."""
        checkpoints = named_alike(
            [source.checkpoint for source in opened], self.donor, refuse=self.tensor_names == "same"
        )
        sources = []
        for source, checkpoint in zip(opened, checkpoints, strict=True):
            if checkpoint is source.checkpoint:
                sources.append(source)
                continue
            self.warnings += checkpoint.notes[len(source.checkpoint.notes) :]
            architecture = _architecture(source.reference, checkpoint, self.recipe.modules or ())
            sources.append(replace(source, checkpoint=checkpoint, architecture=architecture))
        return tuple(sources)

    def _align(self, truncate: bool, given: Mapping[str, Checkpoint]) -> None:
        """Give all sources the rows that the output's tokenizer asks for."""
        if self.recipe.tokenizer is not None or self.recipe.tokenizer_source is not None:
            aligner = Aligner(
                self.parsed,
                self.sources,
                self.index,
                self.base,
                self.donor,
                lambda reference, at: self._open(reference, given, at),
                self._warn,
            )
            aligned = aligner.align()
            self.sources, self.tokenizer = aligned.sources, aligned.tokenizer
            self.vocabulary = aligned.rows
        elif truncate:
            self.sources, self.vocabulary = truncated(self.sources)

    def _take_bare_files(self) -> None:
        """Files without a config are merged tensor by tensor, as MergeKit's ``mergekit-pytorch`` does."""
        if not all(source.bare for source in self.sources):
            return
        if self.recipe.models is None:
            key = "slices" if self.recipe.slices is not None else "modules"
            raise self.parsed.error(
                f"{key}: these models are single files without a config, which does not tell their "
                "layers; list them under models",
                (key,),
            )
        self.sources = tuple(
            replace(source, architecture=without_layers(source.architecture))
            for source in self.sources
        )
        for path, parameters, _ in self._parameter_blocks():
            for name, setting in parameters.items():
                if any(
                    isinstance(rule.value, tuple) and len(set(rule.value)) > 1
                    for rule in setting.rules
                ):
                    self._warn(
                        (*path, name),
                        "single files have no layers for a gradient to run over; its first value is "
                        "taken for all, as in MergeKit",
                    )

    def plan(self, shard_size: int) -> Plan:
        self.sources = with_joined_blocks(self.parsed, self.sources, self.index)
        layout = Layout(
            self.parsed,
            self.sources,
            self.index,
            self.base,
            self.donor,
            self.tensor_names,
            takes_base=self.method.base != "none",
        )
        maker = JobMaker(self.parsed, self.method, self.sources, self.arithmetic)
        groups = list(layout.groups())
        jobs = [maker.job(group) for group in groups]
        maker.oddities.report(self._warn)
        if not jobs:
            raise InputError(
                "the models have no tensor in common"
                if self.tensor_names == "intersection"
                else "the models hold no tensors to merge"
            )
        doubled = [name for name, count in _counts(job.name for job in jobs).items() if count > 1]
        if doubled:
            raise InputError(f"two inputs give the output tensor {doubled[0]!r}")
        unused_settings.check_filters(
            self.method, self._parameter_blocks(), self.index, jobs, self._warn
        )
        layers = {module: tuple(made_of) for module, made_of in layout.layers.items()}
        config = self.sources[self.donor].checkpoint.config
        restacked(config, self.sources, self.donor, layers)
        self.warnings += layout.warnings(maker.alone)
        self.warnings += missing_code(self.sources[self.donor])
        self.warnings += different_modules(self.sources, self.sources[self.donor])
        if self.tokenizer is None:
            self.warnings += tokens_without_rows(self.sources[self.donor], self.vocabulary)
        floats = [job.spec for job in jobs if job.method != "copy" or job.spec.dtype.floating]
        dtype = _commonest(floats) if floats else jobs[0].spec.dtype
        tied = not any(g.place.role == "head" and g.place.vocabulary for g in groups)
        folders = module_folders(self.sources[self.donor])
        check_modules(self.sources, self.sources[self.donor], jobs, folders)
        jobs.sort(key=lambda job: folder_of(job.name, folders) != "")
        shards = tuple(deal(jobs, shard_size, folders))
        return Plan(
            self.parsed,
            self.method,
            self.sources,
            self.base,
            self.donor,
            tuple(jobs),
            shards,
            dtype,
            self.arithmetic,
            self.rounding,
            self.seed,
            self.weights,
            self.tensor_names,
            layers,
            tied,
            changed_tie(self.sources[self.donor], tied),
            tuple(self.warnings),
            self._digest(jobs, shards),
            self.tokenizer,
            self.vocabulary,
            self.chat_template,
        )

    def _digest(self, jobs: Sequence[TensorJob], shards: Sequence[Shard]) -> str:
        facts = {
            "format": FORMAT,
            "inputs": [[s.reference.text, s.checkpoint.header_digest] for s in self.sources],
            "arithmetic": self.arithmetic,
            "rounding": self.rounding,
            "seed": self.seed if self.rounding == "stochastic" else 0,
            "jobs": [
                [
                    job.name,
                    job.spec.dtype.name,
                    job.spec.shape,
                    [[r.source, r.name] for r in job.reads],
                    job.method,
                    job.numbers,
                    job.cast and job.cast.name,
                ]
                for job in jobs
            ],
            "shards": [hashlib.sha256(shard.header).hexdigest() for shard in shards],
        }
        if self.tokenizer is not None:
            output = self.tokenizer.output
            edits = [[each.entry() for each in output.new], sorted(output.dropped)]
            facts["tokenizer"] = [output.start.label, *edits, sorted(self.tokenizer.moved.items())]
        if self.method.origin is not None:
            facts["method"] = [self.method.name, self.method.origin.digest]
        if self.chat_template is not None:
            facts["chat_template"] = self.chat_template
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _architecture(
    reference: ModelReference, checkpoint: Checkpoint, modules: Iterable[str]
) -> Architecture:
    config = dict(checkpoint.config)
    if reference.architecture is not None:
        config["architectures"] = [reference.architecture]
    return infer(checkpoint.specs, config, modules)


def _commonest(specs: Sequence[TensorSpec]) -> DType:
    sizes: dict[DType, int] = {}
    for spec in specs:
        sizes[spec.dtype] = sizes.get(spec.dtype, 0) + spec.numel
    return max(sizes, key=lambda dtype: sizes[dtype])


def _counts(names: Iterator[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts
