"""Planning options beyond the recipe."""

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
    """Options of a plan that the recipe does not contain, or that override it.

    Attributes:
        arithmetic, rounding, seed, weights: override the recipe; None for its values.
        shard_size: maximum size of an output file, in bytes or as text (``5GB``); a larger tensor
            gets a separate file.
        strictness: how to treat unknown keys; see :func:`merganser.recipe.load`.
        truncate_embeddings: cut vocabularies of different sizes to the shortest.
        tensor_names: how to treat tensors that some models lack: raise unless they are optional
            for the model class (``same``), omit them (``intersection``), or merge them from the
            models that have them (``union``).
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
        """The maximum size of an output file in bytes.

        Raises:
            RecipeError: when the setting is not a size.
        """
        try:
            return parse_size(self.shard_size)
        except ValueError as error:
            raise RecipeError(f"shard size: {error}") from None


class MemoryKeywords(TypedDict, total=False):
    """The fields of :class:`PlanOptions` that apply to models in memory, as keywords."""

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
