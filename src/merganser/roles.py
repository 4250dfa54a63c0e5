"""What a tensor is in its model, from its name, its shape and the vocabulary's size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from merganser.tensors import TensorSpec

TOKEN_EMBEDDINGS = frozenset(
    {"embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "shared"}
)
"""Modules that embed tokens, whatever vocabulary size the config states."""

HEADS = frozenset(
    {"lm_head", "embed_out", "output_layer", "score", "classifier", "proj_out", "cls"}
    | {"vocab_projector", "qa_outputs"}
)
"""Modules that compute a model's output."""

CLASSIFIERS = frozenset({"score", "classifier", "qa_outputs"})
"""Heads that never predict tokens, however many labels they have."""

_NOT_TOKENS = ("position", "wpe", "token_type", "pos_emb")
"""Words in names of embeddings of something other than tokens."""

_BUFFERS = ("rotary_emb.inv_freq", "masked_bias", "position_ids")


def role(name: str, spec: TensorSpec) -> str:
    """A word for people: attention, mlp, norm, buffer, other."""
    square = len(spec.shape) == 4 and spec.shape[2] == spec.shape[3]  # GPT-2's causal mask
    mask = square and spec.shape[:2] == (1, 1) and name.endswith(".bias")
    if mask or not spec.dtype.floating or name.endswith(_BUFFERS):
        return "buffer"
    if "norm" in name.lower() or ".ln_" in name or name.startswith("ln_"):
        return "norm"
    if "attn" in name or "attention" in name:
        return "attention"
    if "mlp" in name or "feed_forward" in name or "expert" in name or "ffn" in name:
        return "mlp"
    return "other"


def outer_role(name: str, spec: TensorSpec, vocabularies: set[int]) -> str | None:
    """Embedding or head, for a tensor outside the layers that is one."""
    words = name.split(".")
    rows = bool(spec.shape) and spec.shape[0] in vocabularies
    if not HEADS.isdisjoint(words) or (rows and words[0] in ("head", "output")):
        return "head"
    matrix = rows and len(spec.shape) == 2
    named = "embed" in name or not {"wte", "wpe", "shared"}.isdisjoint(words)
    return "embedding" if (named and "norm" not in name.lower()) or matrix else None


def has_row_per_token(name: str, spec: TensorSpec, vocabularies: set[int]) -> bool:
    """Whether an embedding or a head is a matrix with a row for every token: only such a head can
    be the same tensor as the embedding. The shape alone is no evidence: a classifier of two labels
    has that of BERT's embedding of two token types."""
    return (
        len(spec.shape) == 2
        and spec.shape[0] in vocabularies
        and CLASSIFIERS.isdisjoint(name.split("."))
        and not any(word in name for word in _NOT_TOKENS)
    )


def vocabulary_sizes(specs: Mapping[str, TensorSpec], stated: Iterable[int]) -> set[int]:
    """The sizes that the config states, and the rows of embeddings that are known by name: a
    checkpoint may have more rows than its config says."""
    named = {
        spec.shape[0]
        for name, spec in specs.items()
        if len(spec.shape) == 2 and not TOKEN_EMBEDDINGS.isdisjoint(name.split(".")[-2:-1])
    }
    return {*stated, *named}
