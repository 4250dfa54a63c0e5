"""Find heads that are tied to the embedding: by the config, or by comparing bytes if a file
holds both."""

from __future__ import annotations

import re

from merganser.architecture import Place, lends_embedding, stated_tie
from merganser.checkpoints import Checkpoint, Stamp
from merganser.checkpoints.computed.planned import NotMergedYet
from merganser.modules import DECODER, DEFAULT, SHARED, TEXT
from merganser.planning.plan_data import OpenSource, Source
from merganser.roles import TOKEN_EMBEDDINGS

BLOCK = 2**22
"""Bytes compared at a time."""

_TEXT_MODULES = (DEFAULT, TEXT, DECODER, SHARED)

_compared: dict[tuple[str, tuple[Stamp, ...], str, str], bool] = {}
"""Cache of :func:`same_bytes` for files, so that a sweep's points read them once."""


def embedding_as_head(
    source: OpenSource, head: str | None, place: Place, shape: tuple[int, ...]
) -> str | None:
    """The name of the embedding that a model uses as this head; None if its head is a separate tensor.

    A model without a stored head uses its embedding if its config ties them, or if its class ties
    them by default. If a model stores both although its config ties them (as verl writes), the
    head is separate unless both have the same bytes: transformers loads and uses a head that differs.

    Args:
        source: the model.
        head: its tensor for the head; None if it has none.
        place: the head's place, in any of the models.
        shape: the head's shape.
    """
    if place.role != "head" or not place.vocabulary:
        return None
    checkpoint = source.checkpoint
    if head is not None and stated_tie(checkpoint.config) is not True:
        return None
    if head is None and not lends_embedding(checkpoint.config):
        return None
    embedding = token_embedding(source, shape)
    if head is None or embedding is None:
        return embedding
    return embedding if same_bytes(checkpoint, head, embedding) else None


def token_embedding(source: Source, shape: tuple[int, ...] | None = None) -> str | None:
    """The name of the token embedding that a head may be tied to, or None.

    Embeddings with well-known names come first. With ``shape``, only embeddings of it are considered.
    """
    specs = source.checkpoint.specs
    candidates = [
        name
        for name, place in source.architecture.places.items()
        if place.role == "embedding"
        and place.vocabulary
        and not place.after_layers
        and re.search(r"(?:^|\.)\d+\.", name) is None  # excludes layers for multi-token prediction
        and place.module in _TEXT_MODULES
        and shape in (None, specs[name].shape)
    ]
    known = (n for n in candidates if not TOKEN_EMBEDDINGS.isdisjoint(n.split(".")))
    return next(known, next(iter(candidates), None))


def changed_tie(donor: OpenSource, tied: bool) -> bool | None:
    """The value of ``tie_word_embeddings`` for the output's config; None if the donor's is right.

    A donor that stores a separate head although its config ties it keeps its config: T5 scales
    the head's input by that setting.
    """
    specs, places = donor.checkpoint.specs, donor.architecture.places
    heads = {n: p for n, p in places.items() if p.role == "head" and p.vocabulary}
    stated = stated_tie(donor.checkpoint.config)
    if tied:
        return True if heads and not stated else None
    if heads and not stated:
        return None
    substitutes = (
        embedding_as_head(donor, name, p, specs[name].shape) for name, p in heads.items()
    )
    return None if heads and None in substitutes else False


def same_bytes(checkpoint: Checkpoint, one: str, other: str) -> bool:
    """Whether two tensors are bitwise equal. Reading stops at the first block that differs;
    usually that is the first one."""
    spec = checkpoint.specs[one]
    if spec != checkpoint.specs[other]:
        return False
    stamps = tuple(checkpoint.stamps.values())
    key = checkpoint.header_digest, stamps, one, other
    if stamps and key in _compared:
        return _compared[key]
    try:
        equal = _equal(checkpoint, one, other, spec.nbytes)
    except NotMergedYet:
        return False  # a planned checkpoint stores a head only if it differs from the embedding
    if stamps:
        _compared[key] = equal
    return equal


def _equal(checkpoint: Checkpoint, one: str, other: str, size: int) -> bool:
    import numpy as np

    from merganser.checkpoints.computed.derived import look

    first, second = (np.empty(min(BLOCK, size), np.uint8) for _ in range(2))
    for start in range(0, size, BLOCK):
        a = look(checkpoint, one, start, first[: size - start])
        b = look(checkpoint, other, start, second[: size - start])
        if not np.array_equal(a, b):
            return False
    return True
