"""A plan: every decision of a merge as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from merganser import hub, notebook, number_format, system
from merganser.architecture import Architecture
from merganser.checkpoints import Checkpoint, Weights, refuse_changed
from merganser.checkpoints.computed.derived import DerivedCheckpoint
from merganser.kernels import CELL
from merganser.methods import Combination, Method, SparseDeltas
from merganser.recipe import ModelReference, ParsedRecipe
from merganser.tensors import DType, TensorSpec
from merganser.tokenizer.vocabulary import OutputTokenizer

TILE = 16 * CELL
"""Elements that are read and merged at once: large enough that Python has little to do between."""

SMALL_TILE = 2 * CELL
"""Elements that torch computes with at once: each of its steps goes over all of them, so they should stay in
the cache."""

DISK_MARGIN = 64 * 2**20
"""Free bytes that a merge asks for beyond its weights: for config, tokenizer, card and the file system's own use."""

OVERHEAD = 210 * 2**20
"""Resident bytes of Python and the libraries, by measurement."""

Rounding = Literal["nearest", "stochastic"]
Arithmetic = Literal["exact", "mergekit", "mergekit-0.1.4"]
Names = Literal["same", "intersection", "union"]
"""What becomes of tensors that some models lack: an error (but for those that models of a kind may
lack), left out, or merged from the models that have them."""


@dataclass(frozen=True, slots=True)
class Read:
    """A tensor of an input: which of the plan's sources, and its name there."""

    source: int
    name: str


@dataclass(frozen=True, slots=True)
class TensorJob:
    """How one output tensor is made.

    Attributes:
        name: of the output.
        spec: dtype and shape of the output.
        reads: the inputs; the base first, if the method has one.
        method: its name; ``copy`` for tensors that are taken as they are, bit for bit.
        numbers: the method's parameters by their Python names, settled for this tensor.
        combination: the coefficients, if they are known before reading.
        consensus: the method, if it is one.
        based: whether the first input is the base.
        work: the dtype that is computed in.
        cast: the dtype that inputs are rounded to first (MergeKit's arithmetic), or None.
        layer: the output layer that it lies in, or None.
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
    """One output file, exact to the byte.

    Attributes:
        file: its name.
        header: everything before the data, padding included.
        offsets: where each tensor begins in the file.
        size: of the whole file, in bytes.
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
        checkpoint: its headers, and the way to its weights.
        architecture: what its tensors are.
        published: whether it is a model on the Hub rather than a local one.
        adapter: the folder of the adapter on top of it, or None.
        published_adapter: whether that is on the Hub too.
    """

    reference: ModelReference
    checkpoint: Checkpoint
    architecture: Architecture
    published: bool
    adapter: Path | None = None
    published_adapter: bool = False

    @property
    def folders(self) -> tuple[Path, ...]:
        """All that it is read from."""
        parts = (self.checkpoint.home, self.checkpoint.path, self.adapter)
        return tuple(dict.fromkeys(part for part in parts if part is not None))

    @cached_property
    def hashes(self) -> dict[str, str]:
        """The SHA-256 of every weight file, where the Hub's cache knows all of them; else empty."""
        found = {file.name: hub.sha256(file) for file in self.checkpoint.stamps}
        known = {name: digest for name, digest in found.items() if digest is not None}
        return known if len(known) == len(self.checkpoint.stamps) else {}

    @property
    def commits(self) -> dict[str, str]:
        """The commits of the repositories on the Hub that it is read from, by their names."""
        reference = self.reference
        parts = [(self.published, reference.path, self.checkpoint.home)]
        parts += [(self.published_adapter, reference.adapter or "", self.adapter)]
        found = {name: hub.commit(folder) for published, name, folder in parts if published}
        return {name: commit for name, commit in found.items() if commit is not None}

    @property
    def bare(self) -> bool:
        """Whether it is a file of tensors without a config beside it."""
        path = self.checkpoint.path
        return path is not None and path.is_file() and not self.checkpoint.config


@dataclass(frozen=True, slots=True)
class TokenizerEdit:
    """What becomes of the tokenizer's files.

    Attributes:
        output: the tokenizer.
        moved: new token ids in configs, by key and old id; None for a token that is gone.
        donors: models that are not merged, but that rows of tokens come from.
    """

    output: OutputTokenizer
    moved: Mapping[tuple[str, int], int | None]
    donors: tuple[Source, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A merge, decided.

    Attributes:
        recipe: what it was made from.
        method: the recipe's merge method, in its variant for the arithmetic.
        sources: the inputs in the recipe's order.
        base: index of the base model among them, or None.
        donor: index of the model whose config and tokenizer the output takes.
        jobs: the output tensors, in the order of the output files.
        shards: the output files.
        dtype: the dtype of the output's merged tensors.
        arithmetic, rounding, seed: how numbers are computed.
        weights: which weights of training steps are taken.
        tensor_names: what became of tensors that some models lack.
        layers: of each module that is stacked from slices, what its output layers are made of, as
            (source, layer) pairs; empty where whole models are merged.
        tied: whether the output has no head of its own.
        tie_word_embeddings: what ``config.json`` must say of that; None where the donor's is right.
        tokenizer: the output's tokenizer, if the recipe asks for one; None for the donor's.
        vocabulary: how many rows its embeddings have, if that was decided; None for the donor's.
        chat_template: the template that the recipe asks for; None to leave it as it is.
        warnings: what the user should know before the merge.
        digest: of all that decides the output's bytes.
    """

    recipe: ParsedRecipe
    method: Method
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

    @property
    def summary(self) -> str:
        """The plan in a few words."""
        models = f"{len(self.sources)} model{'s' if len(self.sources) > 1 else ''}"
        return (
            f"{self.method.name} of {models}, {len(self.jobs)} tensors, {self.parameters:,} parameters, "
            f"{self.dtype}, {number_format.size(self.output_bytes)}"
        )

    def __repr__(self) -> str:
        count = f", {len(self.warnings)} warnings" if self.warnings else ""
        return f"Plan({self.summary}, digest {self.digest[:16]}{count})"

    def _repr_html_(self) -> str:
        facts = {
            "method": self.method.name,
            "arithmetic": self.arithmetic,
            "rounding": self.rounding,
            "tensors": f"{len(self.jobs):,}",
            "parameters": f"{self.parameters:,}",
            "dtype": self.dtype.name,
            "files": len(self.shards),
            "size": number_format.size(self.output_bytes),
            "memory": number_format.size(memory_needed(self)),
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
        """Every folder and file that is read, each with the name of its model."""
        found: dict[Path, str] = {}
        if self.tokenizer is not None:
            start = self.tokenizer.output.start
            found[start.folder] = start.label
        for source in self._all_sources:
            found |= dict.fromkeys(source.folders, source.reference.text)
        return found

    def refuse_changed_inputs(self) -> None:
        """Make sure that all files are still those whose headers were read.

        Raises:
            InputError: when one is not.
        """
        for source in self._all_sources:
            refuse_changed(source.checkpoint)

    def close(self) -> None:
        """Close all checkpoints."""
        for source in self._all_sources:
            source.checkpoint.close()

    @property
    def _all_sources(self) -> tuple[Source, ...]:
        return (*self.sources, *(self.tokenizer.donors if self.tokenizer is not None else ()))

    @property
    def output_bytes(self) -> int:
        """Size of all output files together."""
        return sum(shard.size for shard in self.shards)

    @property
    def input_bytes(self) -> int:
        """Bytes of weights that are read, each once."""
        reads = {read for job in self.jobs for read in job.reads}
        return sum(self.sources[r.source].checkpoint.specs[r.name].nbytes for r in reads)

    @property
    def parameters(self) -> int:
        """Number of elements of all output tensors together."""
        return sum(job.spec.numel for job in self.jobs)


def default_threads(plans: Sequence[Plan]) -> int:
    """As many threads as pay off: some wait for the disk while others compute; but of many small
    tensors Python has the most work, which only one thread at a time can do, and torch has threads of
    its own for whole tensors."""
    jobs = sum(len(plan.jobs) for plan in plans)
    if sum(plan.parameters for plan in plans) < jobs * CELL // 4:
        return 1
    if any(plan.method.whole for plan in plans):
        return 1
    cores = system.cores()
    slow = any(plan.method.form == "tensor" and plan.method.fused is None for plan in plans)
    return min(32, cores if slow else 2 * cores)


def memory_needed(plan: Plan) -> int:
    """Estimate of the resident memory that running a plan takes, in bytes."""
    return OVERHEAD + default_threads([plan]) * buffer_bytes([plan], TILE)


def _in_torch(plan: Plan, job: TensorJob) -> bool:
    """Whether torch computes a job, one step after the other, and no fused loop."""
    slow = plan.method.form == "tensor" and plan.method.fused is None
    return job.method != "copy" and (slow or job.cast is not None)


def tile_of(plan: Plan, job: TensorJob, tile: int) -> int:
    """How many elements of a job are worked on at once where ``tile`` are of most."""
    return min(tile, SMALL_TILE) if _in_torch(plan, job) else tile


def buffer_bytes(plans: Sequence[Plan], tile: int) -> int:
    """What one thread's buffers take when plans run together, by their widest jobs."""
    most = 0
    for plan in plans:
        whole = plan.method.whole
        for job in plan.jobs:
            elements = min(tile_of(plan, job, tile), job.spec.numel)
            if whole and job.method != "copy":
                elements = job.spec.numel
            inputs = [(plan.sources[r.source].checkpoint, r.name) for r in job.reads]
            reads = sum(checkpoint.specs[name].dtype.itemsize for checkpoint, name in inputs)
            reads += max((_scratch(checkpoint, name) for checkpoint, name in inputs), default=0)
            numbers = 4 * job.work.itemsize * len(job.reads) if _in_torch(plan, job) else 0
            most = max(most, elements * (reads + numbers + len(plans) * job.spec.dtype.itemsize))
    return most


def _scratch(checkpoint: Checkpoint, name: str) -> int:
    """Bytes an element that reading a tensor takes: one that is dequantised, or has an adapter."""
    return checkpoint.scratch(name) if isinstance(checkpoint, DerivedCheckpoint) else 0


def _described(plan: Plan) -> dict[str, Any] | None:
    """What becomes of the tokenizer, as plain data."""
    if plan.tokenizer is None:
        return None
    output = plan.tokenizer.output
    return {
        "from": output.start.label,
        "tokens": len(output.tokens),
        "rows": plan.vocabulary,
        "added": {each.content: each.id for each in output.new},
        "left_out": sorted(output.dropped),
    }


def describe(plan: Plan) -> dict[str, Any]:
    """The plan as plain data for JSON."""
    return {
        "method": plan.method.name,
        "arithmetic": plan.arithmetic,
        "rounding": plan.rounding,
        "seed": plan.seed,
        "dtype": plan.dtype.name,
        "digest": plan.digest,
        "parameters": plan.parameters,
        "input_bytes": plan.input_bytes,
        "output_bytes": plan.output_bytes,
        "disk_bytes": plan.output_bytes + DISK_MARGIN,
        "models": [
            {
                "reference": s.reference.text,
                "base": i == plan.base,
                "donor": i == plan.donor,
                "tensors": len(s.checkpoint.specs),
                "layers": {m.name: m.depth for m in s.architecture.modules.values()},
                "header_digest": s.checkpoint.header_digest,
            }
            for i, s in enumerate(plan.sources)
        ],
        "tokenizer": _described(plan),
        "chat_template": plan.chat_template,
        "layers": {
            module: [
                [
                    {"model": plan.sources[source].reference.text, "layer": layer}
                    for source, layer in sources
                ]
                for sources in layers
            ]
            for module, layers in plan.layers.items()
        },
        "shards": [
            {"file": s.file, "size": s.size, "tensors": len(s.offsets)} for s in plan.shards
        ],
        "tensors": [
            {
                "name": job.name,
                "role": job.role,
                "layer": job.layer,
                "dtype": job.spec.dtype.name,
                "shape": list(job.spec.shape),
                "method": job.method,
                "numbers": dict(job.numbers),
                "inputs": [
                    {"model": plan.sources[r.source].reference.text, "tensor": r.name}
                    for r in job.reads
                ],
            }
            for job in plan.jobs
        ],
        "warnings": list(plan.warnings),
    }
