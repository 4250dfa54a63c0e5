"""Roles of tensors (attention, mlp, norm ...), from name, shape and vocabulary size."""

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
    """The role of a tensor in a layer: attention, mlp, norm, buffer or other."""
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
    """The role of a tensor outside the layers: embedding or head; None for others."""
    words = name.split(".")
    rows = bool(spec.shape) and spec.shape[0] in vocabularies
    if not HEADS.isdisjoint(words) or (rows and words[0] in ("head", "output")):
        return "head"
    matrix = rows and len(spec.shape) == 2
    named = "embed" in name or not {"wte", "wpe", "shared"}.isdisjoint(words)
    return "embedding" if (named and "norm" not in name.lower()) or matrix else None


def has_row_per_token(name: str, spec: TensorSpec, vocabularies: set[int]) -> bool:
    """Whether an embedding or a head has one row per token: only such a head can be tied.

    The shape alone is no evidence: a classifier of two labels has the shape of BERT's embedding of
    two token types.
    """
    return (
        len(spec.shape) == 2
        and spec.shape[0] in vocabularies
        and CLASSIFIERS.isdisjoint(name.split("."))
        and not any(word in name for word in _NOT_TOKENS)
    )


def vocabulary_sizes(specs: Mapping[str, TensorSpec], stated: Iterable[int]) -> set[int]:
    """The config's vocabulary sizes, and the rows of token embeddings, which may be more."""
    named = {
        spec.shape[0]
        for name, spec in specs.items()
        if len(spec.shape) == 2 and not TOKEN_EMBEDDINGS.isdisjoint(name.split(".")[-2:-1])
    }
    return {*stated, *named}
