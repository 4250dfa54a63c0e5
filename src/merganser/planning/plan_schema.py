"""The schema of a plan's JSON."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from merganser.checkpoints import Weights
from merganser.planning.plan_data import Arithmetic, Names, Rounding
from merganser.recipe import Strictness

Count = Annotated[int, Field(ge=0, lt=2**53)]

SHARD = r"^([\w-][\w.-]*/)*model(-\d{5}-of-\d{5})?\.safetensors$"
"""Names of output files: relative to the output folder, not hidden."""


class PlanEntry(BaseModel):
    """Base class of the file's records. Types are strict; unknown keys are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class ReferenceEntry(PlanEntry):
    """See :class:`merganser.recipe.ModelReference`."""

    text: str
    path: str
    revision: str | None
    adapter: str | None
    adapter_revision: str | None
    architecture: str | None


class InputEntry(PlanEntry):
    """An input: its reference, its locator, and the files with its headers."""

    reference: str
    base: bool = False
    donor: bool = False
    header_digest: str
    names: ReferenceEntry
    published: bool
    adapter: str | None
    published_adapter: bool
    locator: Count | None
    files: dict[str, Annotated[list[int], Field(min_length=3, max_length=3)]]


class RecipeEntry(PlanEntry):
    """The recipe: its text, or its data if it was built in Python."""

    text: str | None
    data: dict[str, Any] | None
    file: str | None
    folder: str | None
    strictness: Strictness
    results: dict[str, str]
    references: list[ReferenceEntry]


class CodeEntry(PlanEntry):
    """See :class:`merganser.methods.Origin`."""

    source: str
    digest: str | None
    package: str | None


class TensorInput(PlanEntry):
    """A tensor to read."""

    model: str
    tensor: str


class TensorEntry(PlanEntry):
    """An output tensor."""

    name: Annotated[str, Field(min_length=1, max_length=512)]
    role: str
    layer: Count | None
    dtype: str
    shape: list[Count]
    method: str
    numbers: dict[str, Any]
    based: bool
    computed_in: str
    cast: str | None
    inputs: list[TensorInput]


class ShardEntry(PlanEntry):
    """An output file."""

    file: Annotated[str, Field(pattern=SHARD, max_length=512)]
    size: Count
    tensors: Count


class LayerEntry(PlanEntry):
    """The source of an output layer."""

    model: str
    layer: Count


class TokenizerEntry(PlanEntry):
    """The output's tokenizer."""

    from_: Annotated[str, Field(alias="from")]
    tokens: Count
    added: dict[str, Count]
    left_out: list[str]


class TokenizerEditEntry(PlanEntry):
    """The instructions that turn a model's tokenizer files into the output's."""

    flags: list[Annotated[list[bool], Field(min_length=5, max_length=5)]]
    conflicts: list[str]
    model: Count | None
    folder: str | None
    files: str
    moved: list[Annotated[tuple[str, int, int | None], Field(strict=False)]]
    donors: list[InputEntry]


class PlanFile(PlanEntry):
    """A plan."""

    method: str
    code: CodeEntry | None
    arithmetic: Arithmetic
    rounding: Rounding
    seed: int
    dtype: str
    weights: Weights
    tensor_names: Names
    digest: str
    tied: bool
    tie_word_embeddings: bool | None
    vocabulary: Count | None
    root: str
    recipe: RecipeEntry
    models: list[InputEntry]
    locators: list[dict[str, Any]]
    tokenizer: TokenizerEntry | None
    tokenizer_edit: TokenizerEditEntry | None
    chat_template: str | None
    layers: dict[str, list[list[LayerEntry]]]
    shards: list[ShardEntry]
    tensors: list[TensorEntry]
    warnings: list[str]
