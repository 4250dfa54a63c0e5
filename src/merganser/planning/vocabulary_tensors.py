"""Which tensors of a model have one row per token."""

from __future__ import annotations

from merganser.architecture import vocabulary_axis, vocabulary_size
from merganser.planning.heads import token_embedding
from merganser.planning.plan_data import Source


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
