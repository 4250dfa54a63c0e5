"""Read vocabularies of tokenizers, and determine the output's.

A vocabulary consists of the ids of tokens and the settings of added tokens, read from ``tokenizer.json``
and the other tokenizer files of a folder. A new tokenizer is a model's tokenizer with tokens appended, as
in MergeKit; pieces and merges are unchanged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from merganser.checkpoints import VOCABULARIES, read_json
from merganser.errors import InputError

CONTENTS = "tokenizer.json"
SETTINGS = "tokenizer_config.json"

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
"""The settings of an added token, in the order of ``tokenizer.json``."""

SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""Roles of special tokens: ``bos_token`` in tokenizer settings, ``bos_token_id`` in configs."""

MAX_ID = 1 << 24
"""Upper limit of token ids, since memory grows with the largest."""

Flags = tuple[bool, ...]

PLAIN: Flags = (False, False, False, True, False)
AS_SPECIAL: Flags = (False, False, False, False, True)


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is matched before text is split into pieces.

    Attributes:
        content: its text.
        id: its id.
        flags: its settings, in the order of :data:`FLAGS`.
    """

    content: str
    id: int
    flags: Flags

    def entry(self) -> dict[str, Any]:
        """Its entry in ``tokenizer.json``."""
        return {"id": self.id, "content": self.content, **dict(zip(FLAGS, self.flags, strict=True))}


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary of a model's tokenizer.

    Attributes:
        label: the model's name in messages.
        folder: the folder of its files.
        tokens: ids by token, including added tokens.
        added: settings of the added tokens.
        roles: special tokens by role: ``{"bos": "<s>"}``.
        loose: added tokens that only other files list, not ``tokenizer.json``.
    """

    label: str
    folder: Path
    tokens: Mapping[str, int] = field(repr=False)
    added: Mapping[str, Flags] = field(repr=False)
    roles: Mapping[str, str]
    loose: tuple[str, ...] = ()

    @cached_property
    def size(self) -> int:
        """One more than the greatest id."""
        return max(self.tokens.values(), default=-1) + 1


@dataclass(frozen=True)
class OutputTokenizer:
    """The output's tokenizer: a model's, with added, changed and dropped tokens.

    Attributes:
        start: the vocabulary of the model's files.
        tokens: ids by token.
        new: added tokens that the files lack, or list with other settings.
        dropped: tokens of the files that the output lacks.
        conflicts: tokens whose settings differ between models; the first model's settings are used.
    """

    start: Vocabulary
    tokens: Mapping[str, int] = field(repr=False)
    new: tuple[AddedToken, ...] = ()
    dropped: frozenset[str] = frozenset()
    conflicts: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether it differs from the model's tokenizer."""
        return bool(self.new or self.dropped)

    @cached_property
    def size(self) -> int:
        """One more than the greatest id."""
        return max(self.tokens.values(), default=-1) + 1


# -- reading -----------------------------------------------------------------------------------------


def has_tokenizer(folder: Path | None) -> bool:
    """Whether a folder contains a tokenizer in any form."""
    return folder is not None and any((folder / name).is_file() for name in VOCABULARIES)


def fingerprint(folder: Path) -> str:
    """A digest of a vocabulary's files: equal digests mean equal vocabularies."""
    digest = hashlib.sha256()
    for name in (SETTINGS, "special_tokens_map.json", "added_tokens.json", *VOCABULARIES):
        if (folder / name).is_file():
            contents = hashlib.sha256((folder / name).read_bytes())
            digest.update(name.encode() + contents.digest())
    return digest.hexdigest()


def read_vocabulary(folder: Path, label: str) -> Vocabulary:
    """Read the vocabulary of a folder's tokenizer, with the ids of transformers.

    Raises:
        InputError: when there is no tokenizer, or its files are broken.
    """
    contents = read_contents(folder, label)
    settings = _optional(folder / SETTINGS)
    tokens = dict(ids_of(contents, folder / CONTENTS))
    added = {
        entry["content"]: tuple(bool(entry.get(name)) for name in FLAGS)
        for entry in contents.get("added_tokens") or []
        if entry["content"] in tokens
    }
    roles, special = _special(settings, _optional(folder / "special_tokens_map.json"))
    elsewhere = {
        token: _flags_of(entry) for number, token, entry in _decoder(settings, folder / SETTINGS)
    }
    older = _optional(folder / "added_tokens.json")
    _check_ids(older, folder / "added_tokens.json")
    by_id = sorted(older, key=lambda token: int(older[token]))
    elsewhere |= {token: PLAIN for token in by_id if token not in elsewhere}
    elsewhere |= {token: AS_SPECIAL for token in special if token not in elsewhere}
    loose = []
    for token, flags in elsewhere.items():
        added.setdefault(token, flags)
        if token not in tokens:
            tokens[token] = max(tokens.values(), default=-1) + 1
            loose.append(token)
    return Vocabulary(label, folder, tokens, added, roles, tuple(loose))


def _decoder(settings: Mapping[str, Any], file: Path) -> list[tuple[int, str, Mapping[str, Any]]]:
    """The added tokens in tokenizer settings, sorted by id: id, text and settings.

    Raises:
        InputError: when the list is malformed.
    """
    listed = settings.get("added_tokens_decoder") or {}
    well_formed = isinstance(listed, dict) and all(
        number.isdecimal()
        and len(number) < 9
        and isinstance(entry, dict)
        and isinstance(entry.get("content", ""), str)
        for number, entry in listed.items()
    )
    if not well_formed:
        raise InputError(f"{file}: its added_tokens_decoder is malformed")
    tokens = ((int(n), entry.get("content", ""), entry) for n, entry in listed.items())
    return sorted(tokens, key=lambda token: token[:2])


def _check_ids(ids: Mapping[str, Any], file: Path) -> None:
    """Check that ids are integers within limits."""
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in ids.values()):
        raise InputError(f"{file}: its vocabulary is malformed")
    if ids and not 0 <= min(ids.values()) <= max(ids.values()) < MAX_ID:
        raise InputError(f"{file}: some ids are not between 0 and {MAX_ID}")


def read_contents(folder: Path, label: str) -> dict[str, Any]:
    """Read ``tokenizer.json``, or convert older files to it if transformers is installed.

    Raises:
        InputError: when there is no tokenizer, or it is broken.
    """
    file = folder / CONTENTS
    contents = read_json(file) if file.is_file() else _converted(folder, label)
    model = contents.get("model")
    added = contents.get("added_tokens") or []
    well_formed = (
        isinstance(model, dict)
        and isinstance(model.get("vocab"), dict | list)
        and isinstance(added, list)
        and all(isinstance(e, dict) and isinstance(e.get("content"), str) for e in added)
    )
    if not well_formed:
        raise InputError(f"{file}: is not a tokenizer (it has no vocabulary)")
    return contents


def _converted(folder: Path, label: str) -> dict[str, Any]:
    """Convert a tokenizer in older files with transformers."""
    if not has_tokenizer(folder):
        raise InputError(f"{label}: has no tokenizer (no {CONTENTS}), and the recipe needs it")
    advice = (
        f"{label}: has no {CONTENTS}, only older tokenizer files; write one with: python -c "
        f"\"from transformers import AutoTokenizer as A; A.from_pretrained('{folder}')"
        f".save_pretrained('{folder}')\""
    )
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise InputError(advice) from None
    try:
        loaded = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        contents = json.loads(loaded.backend_tokenizer.to_str())
    except Exception as error:  # any error of the library on broken files
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{advice} (it failed here: {reason})") from None
    assert isinstance(contents, dict)
    return contents


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _pieces(model: Mapping[str, Any]) -> dict[str, int]:
    """Ids of a tokenizer model's pieces; Unigram lists pieces with scores, in the order of ids."""
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        return vocab
    pieces = {entry[0]: i for i, entry in enumerate(vocab)}
    if not all(isinstance(piece, str) for piece in pieces):
        raise TypeError
    return pieces


def ids_of(contents: Mapping[str, Any], file: Path) -> Mapping[str, int]:
    """Ids by token, as in the tokenizers library.

    The library ignores the ids of added tokens in the file: those that are not pieces follow the
    pieces in the file's order. If the pieces' ids have gaps, the rule is less simple, and the library
    computes the ids.
    """
    try:
        pieces = dict(_pieces(contents["model"]))
        _check_ids(pieces, file)
        if max(pieces.values(), default=-1) + 1 == len(pieces):
            for entry in contents.get("added_tokens") or []:
                pieces.setdefault(entry["content"], len(pieces))
            return pieces
    except (TypeError, ValueError, KeyError, IndexError):
        raise InputError(f"{file}: its vocabulary is malformed") from None
    return ids_by_library(contents, file)


def ids_by_library(contents: Mapping[str, Any], file: Path) -> Mapping[str, int]:
    """Ids by token, from the tokenizers library itself."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(json.dumps(contents)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises plain exceptions
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{file}: is not a tokenizer ({reason})") from None


def _flags_of(entry: Mapping[str, Any]) -> Flags:
    special = bool(entry.get("special"))
    defaults = dict(zip(FLAGS, AS_SPECIAL if special else PLAIN, strict=True))
    return tuple(bool(entry.get(name, defaults[name])) for name in FLAGS)


def _special(*settings: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Special tokens by role, and a list of all special tokens, from tokenizer settings."""

    def text(value: Any) -> str | None:
        content = value.get("content") if isinstance(value, dict) else value
        return content if isinstance(content, str) and content else None

    roles: dict[str, str] = {}
    named: list[str | None] = []
    for each in settings:
        for role in SPECIAL:
            token = text(each.get(f"{role}_token"))
            if token is not None:
                roles.setdefault(role, token)
        for key in ("additional_special_tokens", "extra_special_tokens"):
            more = each.get(key) or []
            more = [*more.values()] if isinstance(more, dict) else more
            named += map(text, more if isinstance(more, list) else [more])
    ordered = [*roles.values(), *(token for token in named if token is not None)]
    return roles, list(dict.fromkeys(ordered))


# -- output ------------------------------------------------------------------------------------------


def kept(start: Vocabulary, rows: int | None) -> OutputTokenizer:
    """A model's tokenizer, without tokens that have no row in its embedding.

    Args:
        start: the model's vocabulary.
        rows: number of rows of the model's embedding; None if unknown.
    """
    if rows is None or start.size <= rows:
        return OutputTokenizer(start, start.tokens)
    tokens = {token: number for token, number in start.tokens.items() if number < rows}
    return OutputTokenizer(start, tokens, dropped=frozenset(start.tokens.keys() - tokens.keys()))


def union(
    base: OutputTokenizer, others: Iterable[tuple[Vocabulary, int | None]]
) -> OutputTokenizer:
    """Add all tokens of other vocabularies at the end of the base's tokenizer.

    Pieces come first, then added tokens, both in the order of the models and of their ids. A token
    gets the settings of the first model that adds it.

    Args:
        base: the tokenizer to extend.
        others: vocabularies, each with the number of rows of its model's embedding (None if unknown).
    """
    start = base.start
    first = {t: flags for t, flags in start.added.items() if t in base.tokens}
    flags = dict(first)
    conflicts, plain = [], []
    for other, rows in others:
        limit = other.size if rows is None else rows
        for token in sorted(other.added.keys(), key=other.tokens.__getitem__):
            if other.tokens[token] >= limit:
                continue
            if flags.setdefault(token, other.added[token]) != other.added[token]:
                conflicts.append(token)
        missing = {t: n for t, n in other.tokens.items() if t not in base.tokens and n < limit}
        plain += sorted(missing.keys() - other.added.keys(), key=missing.__getitem__)
    news = {token: PLAIN for token in dict.fromkeys(plain) if token not in flags}
    news |= {token: each for token, each in flags.items() if token not in first}
    result = extended(base, news)
    return OutputTokenizer(
        start, result.tokens, result.new, result.dropped, tuple(dict.fromkeys(conflicts))
    )


def extended(base: OutputTokenizer, news: Mapping[str, Flags]) -> OutputTokenizer:
    """Add tokens at the end of a tokenizer; pieces among them become added tokens."""
    tokens, new, size = dict(base.tokens), list(base.new), base.size
    for token, flags in news.items():
        if token not in tokens:
            tokens[token] = size
            size += 1
        new.append(AddedToken(token, tokens[token], flags))
    return OutputTokenizer(base.start, tokens, tuple(new), base.dropped, base.conflicts)
