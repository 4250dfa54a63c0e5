"""A plan: every decision of a merge as plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from merganser import hub, methods, notebook, number_format
from merganser.architecture import Architecture
from merganser.checkpoints import Checkpoint, Described, Headers, Weights, check_unchanged
from merganser.checkpoints.computed.derived import DerivedCheckpoint
from merganser.checkpoints.locators import Mover
from merganser.errors import RecipeError
from merganser.methods import Combination, Method, Origin, SparseDeltas
from merganser.recipe import ModelReference, ParsedRecipe
from merganser.tensors import DType, TensorSpec
from merganser.tokenizer.vocabulary import OutputTokenizer

DISK_MARGIN = 64 * 2**20
"""Free bytes that a merge requires beyond its weights: config, tokenizer, card, file system."""

Rounding = Literal["nearest", "stochastic"]
Arithmetic = Literal["exact", "mergekit", "mergekit-0.1.4"]
Names = Literal["same", "intersection", "union"]
"""How to treat tensors that some models lack: raise (unless optional for the model class), omit
them, or merge them from the models that have them."""


@dataclass(frozen=True, slots=True)
class Read:
    """An input's tensor: the index of its source and its name there."""

    source: int
    name: str


@dataclass(frozen=True, slots=True)
class TensorJob:
    """How one output tensor is computed.

    Attributes:
        name: of the output.
        spec: dtype and shape of the output.
        reads: the inputs; the base first, if the method has one.
        method: its name; ``copy`` for bitwise copies.
        numbers: the method's parameters by their Python names, resolved for this tensor.
        combination: the coefficients, if they are known without the weights; otherwise None.
        consensus: the method's rule for sparse deltas; None for another form.
        based: whether the first input is the base.
        work: the dtype of the computation.
        cast: the dtype to which inputs are rounded first (MergeKit's arithmetic), or None.
        layer: the output layer, or None.
        role: embedding, head, attention, mlp, norm or other.
    """

    name: str
    spec: TensorSpec
    reads: tuple[Read, ...]
    method: str
    numbers: Mapping[str, Any]
    combination: Combination | None
    work: DType
    cast: DType | None
    layer: int | None
    role: str
    consensus: SparseDeltas | None = None
    based: bool = False


@dataclass(frozen=True, slots=True)
class Shard:
    """One output file: its name, header, size, and the position of every tensor in it.

    Attributes:
        file: its name.
        header: everything before the data, padding included.
        offsets: offset of each tensor's first byte in the file, by name.
        size: of the file, in bytes.
    """

    file: str
    header: bytes = field(repr=False)
    offsets: Mapping[str, int]
    size: int


@dataclass(frozen=True)
class Source:
    """An input of the plan.

    Attributes:
        reference: how the recipe names it.
        checkpoint: its headers, and the locator of its weights.
        architecture: the roles of its tensors.
        published: whether it is a model on the Hub rather than a local one.
        adapter: the folder of the adapter on top of it, or None.
        published_adapter: whether the adapter is on the Hub.
        scratch: by tensor, temporary bytes per element while it is computed from stored ones.
    """

    reference: ModelReference
    checkpoint: Described
    architecture: Architecture
    published: bool
    adapter: Path | None = None
    published_adapter: bool = False
    scratch: Mapping[str, int] = field(default_factory=dict, repr=False)

    @property
    def folders(self) -> tuple[Path, ...]:
        """Its files and folders."""
        parts = (self.checkpoint.home, self.checkpoint.path, self.adapter)
        return tuple(dict.fromkeys(part for part in parts if part is not None))

    @cached_property
    def hashes(self) -> dict[str, str]:
        """The SHA-256 of each weight file if the Hub's cache knows all of them; otherwise empty."""
        digests = {file.name: hub.sha256(file) for file in self.checkpoint.stamps}
        known = {name: digest for name, digest in digests.items() if digest is not None}
        return known if len(known) == len(self.checkpoint.stamps) else {}

    @property
    def commits(self) -> dict[str, str]:
        """The commits of its Hub repositories, by repository name."""
        reference = self.reference
        parts = [(self.published, reference.path, self.checkpoint.home)]
        parts += [(self.published_adapter, reference.adapter or "", self.adapter)]
        commits = {name: hub.commit(folder) for published, name, folder in parts if published}
        return {name: commit for name, commit in commits.items() if commit is not None}

    @property
    def bare(self) -> bool:
        """Whether it is a weight file without a config."""
        path = self.checkpoint.path
        return path is not None and path.is_file() and not self.checkpoint.config


@dataclass(frozen=True)
class OpenSource(Source):
    """An input during planning: its checkpoint is open."""

    checkpoint: Checkpoint

    def closed(self) -> Source:
        """The input as data, with its files closed."""
        checkpoint = self.checkpoint
        checkpoint.close()
        scratch = {}
        if isinstance(checkpoint, DerivedCheckpoint):
            sizes = {name: checkpoint.scratch(name) for name in checkpoint.specs}
            scratch = {name: size for name, size in sizes.items() if size}
        return Source(
            self.reference,
            Headers.of(checkpoint),
            self.architecture,
            self.published,
            self.adapter,
            self.published_adapter,
            scratch,
        )


@dataclass(frozen=True, slots=True)
class TokenizerEdit:
    """The output's tokenizer, which differs from the donor's.

    Attributes:
        output: the tokenizer.
        moved: new token ids in configs, by key and old id; None for a removed token.
        donors: models that are not merged but provide rows.
    """

    output: OutputTokenizer
    moved: Mapping[tuple[str, int], int | None]
    donors: tuple[Source, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Every decision of a merge, as plain data.

    Attributes:
        recipe: the recipe.
        method_name: the recipe's merge method.
        code: source of a user's method; None for a built-in one.
        sources: the inputs in the recipe's order.
        base: index of the base model among them, or None.
        donor: index of the model whose config and tokenizer the output takes.
        jobs: the output tensors, in the order of the output files.
        shards: the output files.
        dtype: the dtype of the output's merged tensors.
        arithmetic, rounding, seed: how numbers are computed.
        weights: which weights of training steps are used.
        tensor_names: how tensors that some models lack are treated.
        layers: for each module stacked from slices, the sources of its output layers, as
            (source, layer) pairs; empty without slices.
        tied: whether the output's head is its embedding.
        tie_word_embeddings: the value for ``config.json``; None if the donor's is right.
        tokenizer: the output's tokenizer, if the recipe asks for one; None for the donor's.
        vocabulary: number of rows of its embeddings, if changed; None for the donor's.
        chat_template: the template that the recipe asks for; None for the donor's.
        warnings: warnings for the user.
        digest: a digest of everything that determines the output's bytes.
    """

    recipe: ParsedRecipe
    method_name: str
    code: Origin | None
    sources: tuple[Source, ...]
    base: int | None
    donor: int
    jobs: tuple[TensorJob, ...]
    shards: tuple[Shard, ...]
    dtype: DType
    arithmetic: Arithmetic
    rounding: Rounding
    seed: int
    weights: Weights
    tensor_names: Names
    layers: Mapping[str, tuple[tuple[tuple[int, int], ...], ...]]
    tied: bool
    tie_word_embeddings: bool | None
    warnings: tuple[str, ...]
    digest: str
    tokenizer: TokenizerEdit | None = None
    vocabulary: int | None = None
    chat_template: str | None = None

    @cached_property
    def method(self) -> Method:
        """The merge method, in its variant for the arithmetic.

        Raises:
            RecipeError: when it is not registered, or its code changed since planning.
        """
        method = methods.get(self.method_name, self.arithmetic)
        if method is None:
            raise RecipeError(
                f"the plan's merge method {self.method_name!r} is not registered; load the file "
                "of merge methods that has it"
            )
        if method.origin != self.code and _code(method.origin) != _code(self.code):
            raise RecipeError(
                f"the merge method {self.method_name!r} is not the one that was planned with; plan again"
            )
        return method

    def __getstate__(self) -> dict[str, Any]:
        """The state to pickle: the plan with absolute paths, without the method's function."""
        absolute = relocated(self, lambda path: path.absolute())
        return {field.name: getattr(absolute, field.name) for field in fields(self)}

    @property
    def summary(self) -> str:
        """A few lines of text: tensors, method, dtypes, size."""
        models = f"{len(self.sources)} model{'s' if len(self.sources) > 1 else ''}"
        return (
            f"{self.method_name} of {models}, {len(self.jobs)} tensors, {self.parameters:,} parameters, "
            f"{self.dtype}, {number_format.size(self.output_bytes)}"
        )

    def __repr__(self) -> str:
        count = f", {len(self.warnings)} warnings" if self.warnings else ""
        return f"Plan({self.summary}, digest {self.digest[:16]}{count})"

    def _repr_html_(self) -> str:
        facts = {
            "method": self.method_name,
            "arithmetic": self.arithmetic,
            "rounding": self.rounding,
            "tensors": f"{len(self.jobs):,}",
            "parameters": f"{self.parameters:,}",
            "dtype": self.dtype.name,
            "files": len(self.shards),
            "size": number_format.size(self.output_bytes),
            "digest": self.digest[:16],
        }
        models = [
            (
                source.reference.text,
                "base" if index == self.base else "",
                len(source.checkpoint.specs),
                source.architecture.depth,
            )
            for index, source in enumerate(self.sources)
        ]
        return (
            notebook.facts(facts, "Plan")
            + notebook.table(("model", "", "tensors", "layers"), models)
            + notebook.notes(self.warnings)
        )

    @property
    def homes(self) -> dict[Path, str]:
        """Every folder and file of the inputs, with the name of its model."""
        homes: dict[Path, str] = {}
        if self.tokenizer is not None:
            start = self.tokenizer.output.start
            homes[start.folder] = start.label
        for source in self.all_sources:
            homes |= dict.fromkeys(source.folders, source.reference.text)
        return homes

    def check_inputs_unchanged(self) -> None:
        """Check that no file of the inputs changed since planning.

        Raises:
            InputError: when a file changed.
        """
        for source in self.all_sources:
            check_unchanged(source.checkpoint)

    @property
    def all_sources(self) -> tuple[Source, ...]:
        """The inputs, and models that provide only rows of tokens."""
        return (*self.sources, *(self.tokenizer.donors if self.tokenizer is not None else ()))

    @property
    def output_bytes(self) -> int:
        """Total size of the output files, in bytes."""
        return sum(shard.size for shard in self.shards)

    @property
    def input_bytes(self) -> int:
        """Bytes of weights to read, each counted once."""
        reads = {read for job in self.jobs for read in job.reads}
        return sum(self.sources[r.source].checkpoint.specs[r.name].nbytes for r in reads)

    @property
    def parameters(self) -> int:
        """Number of elements of all output tensors."""
        return sum(job.spec.numel for job in self.jobs)


def relocated(plan: Plan, move: Callable[[Path], Path]) -> Plan:
    """The plan with other paths for its inputs.

    Args:
        plan: the plan.
        move: returns the new path for an old one.
    """
    mover = Mover(move)

    def moved(source: Source) -> Source:
        model = source.checkpoint
        headers = replace(
            Headers.of(model),
            home=model.home and move(model.home),
            path=model.path and move(model.path),
            stamps={move(file): stamp for file, stamp in model.stamps.items()},
            locator=mover(model.locator),
        )
        return replace(source, checkpoint=headers, adapter=source.adapter and move(source.adapter))

    tokenizer = plan.tokenizer
    if tokenizer is not None:
        start = tokenizer.output.start
        output = replace(tokenizer.output, start=replace(start, folder=move(start.folder)))
        donors = tuple(moved(donor) for donor in tokenizer.donors)
        tokenizer = replace(tokenizer, output=output, donors=donors)
    recipe = plan.recipe
    results = {name: move(path) for name, path in recipe.results.items()}
    recipe = replace(recipe, folder=recipe.folder and move(recipe.folder), results=results)
    return replace(
        plan,
        recipe=recipe,
        sources=tuple(moved(source) for source in plan.sources),
        tokenizer=tokenizer,
    )


def _code(origin: Origin | None) -> str | None:
    return None if origin is None else origin.digest or origin.source
