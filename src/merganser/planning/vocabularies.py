"""Vocabularies of inputs merged without token alignment: which tensors have one row per token,
truncation to the shortest, and the chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from merganser.architecture import vocabulary_size
from merganser.checkpoints.computed.vocabulary_rows import (
    Donor,
    GatheredTensor,
    RowMap,
    gathered,
    vocabulary_axis,
)
from merganser.planning.heads import token_embedding
from merganser.planning.plan_data import OpenSource, Source
from merganser.recipe import ParsedRecipe
from merganser.tokenizer import chat_templates

Array = np.ndarray[Any, Any]


def chosen_template(parsed: ParsedRecipe, sources: Sequence[OpenSource]) -> str | None:
    """The chat template that the recipe sets; None to keep the donor's.

    Raises:
        RecipeError: when it is neither a name nor a template.
    """
    given = parsed.recipe.chat_template
    if given is None:
        return None
    if given == "auto":
        folders = (source.checkpoint.path for source in sources)
        return chat_templates.commonest(
            chat_templates.of_model(folder) for folder in folders if folder is not None
        )
    if given in chat_templates.names():
        return chat_templates.named(given)
    try:
        chat_templates.check(given)
    except ValueError as error:
        raise parsed.error(f"chat_template: {error}", ("chat_template",)) from None
    return given


def truncated(sources: Sequence[OpenSource]) -> tuple[tuple[OpenSource, ...], int | None]:
    """The sources with their vocabularies cut to the shortest, and its number of rows (None if no
    source has a vocabulary)."""
    names = [vocabulary_tensors(source) for source in sources]
    sizes = [
        source.checkpoint.specs[matrices[0]].shape[0] if matrices else None
        for source, matrices in zip(sources, names, strict=True)
    ]
    known = [size for size in sizes if size is not None]
    if not known:
        return tuple(sources), None
    least = min(known)
    first = RowMap(
        np.zeros(least, np.int32), np.arange(least, dtype=np.int32), np.zeros((0, 1), np.int32)
    )
    cut = []
    for source, matrices, size in zip(sources, names, sizes, strict=True):
        if size is not None and size > least:
            tensors = {
                name: GatheredTensor([Donor(source.checkpoint, name)], 0, first)
                for name in matrices
            }
            source = replace(source, checkpoint=gathered(source.checkpoint, tensors))
        cut.append(source)
    return tuple(cut), least


def vocabulary_tensors(source: Source) -> tuple[str, ...]:
    """A model's tensors with one row per token: embeddings, heads, and heads' biases."""
    specs, places = source.checkpoint.specs, source.architecture.places

    def with_rows(rows: int | None) -> tuple[str, ...]:
        """The tensors with this many rows: matrices, then biases, so that the first tensor's first
        axis is the vocabulary; empty without a matrix."""
        biases, matrices = [], []
        for name, place in places.items():
            spec = specs[name]
            axis = vocabulary_axis(name, spec)
            if place.layer is not None or spec.shape[axis : axis + 1] != (rows,):
                continue
            if place.vocabulary:
                matrices.append(name)
            elif axis + 1 == len(spec.shape) and name.endswith("bias") and "norm" not in name:
                biases.append(name)
        return (*matrices, *biases) if matrices else ()

    tensors = with_rows(vocabulary_size(source.checkpoint.config))
    if tensors:
        return tensors
    embedding = token_embedding(source)
    return with_rows(specs[embedding].shape[0]) if embedding is not None else ()
