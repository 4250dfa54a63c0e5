"""What a caller may decide of a plan beside the recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from merganser.checkpoints import Weights
from merganser.errors import RecipeError
from merganser.planning.plan_data import Arithmetic, Names, Rounding
from merganser.recipe import Strictness
from merganser.tensors import parse_size


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What a caller decides of a plan.

    Attributes:
        arithmetic, rounding, seed, weights: replace what the recipe says.
        shard_size: greatest size of an output file; a larger tensor has one of its own.
        strictness: what becomes of keys that have no meaning; see :func:`merganser.recipe.load`.
        truncate_embeddings: cut vocabularies of different sizes to the shortest one's rows.
        tensor_names: what becomes of tensors that some models lack: an error, but for those that models
            of a kind may lack (``same``), left out (``intersection``), or merged from the models that
            have them (``union``).
    """

    arithmetic: Arithmetic | None = None
    rounding: Rounding | None = None
    seed: int | None = None
    shard_size: int | str = "5GB"
    strictness: Strictness = "normal"
    weights: Weights | None = None
    truncate_embeddings: bool = False
    tensor_names: Names = "same"

    @property
    def shard_bytes(self) -> int:
        """The greatest size of an output file in bytes.

        Raises:
            RecipeError: when it is no size.
        """
        try:
            return parse_size(self.shard_size)
        except ValueError as error:
            raise RecipeError(f"shard size: {error}") from None


class MemoryKeywords(TypedDict, total=False):
    """Fields of :class:`PlanOptions` as keywords of functions whose models are in memory."""

    arithmetic: Arithmetic | None
    rounding: Rounding | None
    seed: int | None
    shard_size: int | str
    strictness: Strictness
    truncate_embeddings: bool
    tensor_names: Names


class PlanKeywords(MemoryKeywords, total=False):
    """The fields of :class:`PlanOptions` as keywords of public functions."""

    weights: Weights | None
