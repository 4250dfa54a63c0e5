"""Open a recipe's models as the inputs of a merge, with common tensor names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from merganser import hub
from merganser.architecture import Architecture, infer, without_layers
from merganser.checkpoints import Checkpoint, Weights, as_numbers, open_checkpoint
from merganser.checkpoints.computed.planned import PlannedCheckpoint
from merganser.checkpoints.locators import Given
from merganser.planning.naming import named_alike
from merganser.planning.plan_data import Names, OpenSource
from merganser.recipe import ModelReference, ParsedRecipe, Recipe, Setting, key_name
from merganser.recipe.document import KeyPath
from merganser.recipe.schema import ModelInput, OutputSlice


class Warnings:
    """A plan's warnings, in order.

    Args:
        parsed: the recipe, whose places warnings name.
    """

    def __init__(self, parsed: ParsedRecipe) -> None:
        self.lines = list(parsed.warnings)
        self._parsed = parsed

    def __call__(self, path: KeyPath, message: str) -> None:
        """Add a warning about a place in the recipe.

        Raises:
            RecipeError: in strict mode.
        """
        address = self._parsed.document.address(path)
        text = f"{key_name(path)}: {message}"
        if self._parsed.strictness == "strict":
            raise self._parsed.error(text, path)
        self.lines.append(f"{address}: {text}" if address else text)

    def add(self, lines: Iterable[str]) -> None:
        """Add warnings without a place in the recipe; strict mode does not make them errors."""
        self.lines += lines


@dataclass(frozen=True)
class Inputs:
    """The models of a merge.

    Attributes:
        sources: the models in the recipe's order.
        base: index of the base model among them, or None.
        donor: index of the model whose config and tokenizer the output takes.
    """

    sources: tuple[OpenSource, ...]
    base: int | None
    donor: int

    @property
    def index(self) -> dict[str, int]:
        """Indices of the sources by the text of their references."""
        return {source.reference.text: i for i, source in enumerate(self.sources)}

    def with_sources(self, sources: Iterable[OpenSource]) -> Inputs:
        """The same models with other sources."""
        return replace(self, sources=tuple(sources))


@dataclass(frozen=True)
class Opener:
    """Opens the models that a recipe names.

    Attributes:
        parsed: the recipe.
        weights: which weights of a training step to read: its shards, or its Hugging Face folder.
        given: open checkpoints by the text of their references.
        warnings: receives warnings about them.
    """

    parsed: ParsedRecipe
    weights: Weights
    given: Mapping[str, Checkpoint]
    warnings: Warnings

    def open(self, reference: ModelReference, at: KeyPath) -> OpenSource:
        """Open a model; quantised weights are dequantised when they are read.

        Args:
            reference: the model.
            at: the place of the recipe that names it.

        Raises:
            InputError: when it does not exist or cannot be merged.
        """
        here = self.parsed.folder
        revision = "" if reference.revision is None else f"@{reference.revision}"
        alone = f"{reference.path}{revision}"
        checkpoint = self.given.get(alone)
        published = False
        if checkpoint is not None and isinstance(checkpoint.locator, Given | None):
            planned = isinstance(checkpoint, PlannedCheckpoint)
            checkpoint.locator = None if planned else Given(alone)
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
        self.warnings.add(checkpoint.notes)
        architecture = architecture_of(reference, checkpoint, self.parsed.recipe)
        return OpenSource(
            reference, checkpoint, architecture, published, adapter, published_adapter
        )


def open_inputs(opener: Opener) -> Inputs:
    """Open all models of a recipe.

    Raises:
        RecipeError: when a model is listed twice.
        InputError: when one is missing, corrupt, or cannot be merged.
    """
    recipe = opener.parsed.recipe
    listed = _references(opener.parsed)
    sources = tuple(opener.open(reference, at) for reference, at in listed.values())
    base = None if recipe.base_model is None else list(listed).index(recipe.base_model.text)
    return Inputs(sources, base, base if base is not None else 0)


def with_one_set_of_names(
    inputs: Inputs, parsed: ParsedRecipe, tensor_names: Names, warnings: Warnings
) -> Inputs:
    """Rename the inputs' tensors to the output's names.

    Raises:
        InputError: when tensors with different names may correspond, without proof.
    """
    checkpoints = [source.checkpoint for source in inputs.sources]
    named = named_alike(checkpoints, inputs.donor, refuse=tensor_names == "same")
    sources = []
    for source, checkpoint in zip(inputs.sources, named, strict=True):
        if checkpoint is source.checkpoint:
            sources.append(source)
            continue
        warnings.add(checkpoint.notes[len(source.checkpoint.notes) :])
        architecture = architecture_of(source.reference, checkpoint, parsed.recipe)
        sources.append(replace(source, checkpoint=checkpoint, architecture=architecture))
    return inputs.with_sources(sources)


def without_layers_if_bare(inputs: Inputs, parsed: ParsedRecipe, warnings: Warnings) -> Inputs:
    """The inputs; without layers if all are files without a config, which are merged tensor by
    tensor, like ``mergekit-pytorch``.

    Raises:
        RecipeError: when the recipe selects layers of such files.
    """
    if not all(source.bare for source in inputs.sources):
        return inputs
    recipe = parsed.recipe
    if recipe.models is None:
        key = "slices" if recipe.slices is not None else "modules"
        raise parsed.error(
            f"{key}: these models are single files without a config, so their layers are unknown; "
            "list them under models",
            (key,),
        )
    for path, parameters, _ in parameter_blocks(recipe):
        for name, setting in parameters.items():
            if any(
                isinstance(rule.value, tuple) and len(set(rule.value)) > 1 for rule in setting.rules
            ):
                warnings(
                    (*path, name),
                    "single files have no layers for a gradient; its first value is "
                    "used for all tensors, as in MergeKit",
                )
    return inputs.with_sources(
        replace(source, architecture=without_layers(source.architecture))
        for source in inputs.sources
    )


def architecture_of(
    reference: ModelReference, checkpoint: Checkpoint, recipe: Recipe
) -> Architecture:
    """A model's architecture, with the class and the modules that the recipe names."""
    config = dict(checkpoint.config)
    if reference.architecture is not None:
        config["architectures"] = [reference.architecture]
    return infer(checkpoint.specs, config, recipe.modules or ())


# -- what the recipe lists ---------------------------------------------------------------------------


def forms(
    recipe: Recipe,
) -> Iterator[tuple[KeyPath, Sequence[ModelInput] | None, Sequence[OutputSlice] | None]]:
    """The recipe's lists, top-level or one per module: place, models, slices."""
    if recipe.modules is None:
        yield (), recipe.models, recipe.slices
    for name, module in (recipe.modules or {}).items():
        yield ("modules", name), module.models, module.slices


def parameter_blocks(
    recipe: Recipe,
) -> Iterator[tuple[KeyPath, Mapping[str, Setting], ModelReference | None]]:
    """The recipe's parameter blocks: place, parameters, and the model if they belong to one."""
    yield ("parameters",), recipe.parameters, None
    for name, module in (recipe.modules or {}).items():
        yield ("modules", name, "parameters"), module.parameters, None
    for path, models, slices in forms(recipe):
        for i, model in enumerate(models or []):
            yield (*path, "models", i, "parameters"), model.parameters, model.model
        for i, piece in enumerate(slices or []):
            here = (*path, "slices", i)
            yield (*here, "parameters"), piece.parameters, None
            for j, source in enumerate(piece.sources):
                yield (*here, "sources", j, "parameters"), source.parameters, source.model


def _references(parsed: ParsedRecipe) -> dict[str, tuple[ModelReference, KeyPath]]:
    """All models in the recipe's order; a base that is not listed comes last, as in MergeKit."""
    references: dict[str, tuple[ModelReference, KeyPath]] = {}
    for path, models, slices in forms(parsed.recipe):
        listed = set()
        for i, model in enumerate(models or []):
            here = (*path, "models", i, "model")
            if model.model.text in listed:
                raise parsed.error(f"{key_name(here)}: {model.model} is listed twice", here)
            listed.add(model.model.text)
            references.setdefault(model.model.text, (model.model, here))
        for i, piece in enumerate(slices or []):
            for j, source in enumerate(piece.sources):
                here = (*path, "slices", i, "sources", j, "model")
                references.setdefault(source.model.text, (source.model, here))
            if piece.base_model is not None:
                here = (*path, "slices", i, "base_model")
                references.setdefault(piece.base_model.text, (piece.base_model, here))
    base = parsed.recipe.base_model
    if base is not None:
        references.setdefault(base.text, (base, ("base_model",)))
    return references
