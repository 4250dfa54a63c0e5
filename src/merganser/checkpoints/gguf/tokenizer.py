"""Convert the tokenizer in a GGUF file's keys to the files that transformers reads.

``tokenizer.ggml.model`` is ``gpt2`` (byte-level BPE with merges; ``tokenizer.ggml.pre`` only names
how texts are split into words) or ``llama`` (SentencePiece's BPE: pieces with scores, which
determine the merges). Token types determine which tokens are matched before splitting. A name in ``pre``
has llama.cpp's meaning. If the model's original tokenizer is known to do more (NFC normalization, lookup
of full words before merging), the result does so too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""llama.cpp's token types."""

_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""Special tokens by transformers' names and by the keys'."""

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_WORDS = {
    "gpt-2": "",
    "default": "",
    "smollm": "",
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": _TEKKEN,
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "smaug-bpe"), _LLAMA3),
}
"""Patterns that split texts into words, by the name in ``pre``; empty for GPT-2's."""

_BEGIN = ("llama3", "llama-v3", "llama-bpe", "falcon3", "tekken")
"""Names for which llama.cpp looks up full words before merging, and begins texts with ``bos``."""

_PADDING = re.compile(r"\[PAD\d+\]")


def files(keys: Mapping[str, Any]) -> dict[str, str]:
    """The tokenizer's files by name: empty if the keys describe none.

    Args:
        keys: the file's keys.

    Returns:
        The texts of ``tokenizer.json``, ``tokenizer_config.json`` and, if there are any, templates.

    Raises:
        ValueError: with the reason, when the keys cannot be converted.
    """
    model = keys.get("tokenizer.ggml.model")
    if model is None:
        return {}
    tokens, kinds = _tokens(keys)
    if model == "gpt2":
        made, begins = _byte_level(keys, tokens)
    elif model == "llama":
        made, begins = _sentencepiece(keys, tokens, kinds)
    else:
        raise ValueError(f"it is of type {str(model)[:40]!r}; gpt2 and llama are supported")
    roles = {}
    for role, key in _ROLES.items():
        number = keys.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(number, int) and 0 <= number < len(tokens):
            roles[role] = number
    settings: dict[str, Any] = {"clean_up_tokenization_spaces": False}
    settings["add_bos_token"] = bool(keys.get("tokenizer.ggml.add_bos_token", begins))
    settings["add_eos_token"] = bool(keys.get("tokenizer.ggml.add_eos_token", False))
    settings |= {f"{role}_token": tokens[number] for role, number in roles.items()}
    length = keys.get(f"{keys.get('general.architecture')}.context_length")
    settings |= {"model_max_length": length} if isinstance(length, int) else {}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    _add(made, tokens, kinds, set(roles.values()))
    _begin_and_end(made, tokens, roles, settings)
    return {
        "tokenizer.json": made.to_str(),
        "tokenizer_config.json": json.dumps(settings, indent=2, ensure_ascii=False) + "\n",
        **_templates(keys),
    }


def _tokens(keys: Mapping[str, Any]) -> tuple[list[str], Sequence[int]]:
    """The tokens and their types, without padding rows."""
    tokens = keys.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise ValueError("tokenizer.ggml.tokens is not a list of tokens")
    kinds = keys.get("tokenizer.ggml.token_type")
    kinds = [NORMAL] * len(tokens) if kinds is None else kinds
    if isinstance(kinds, str | bytes) or not isinstance(kinds, Sequence | np.ndarray):
        raise ValueError("tokenizer.ggml.token_type is not a list of types")
    kinds = [int(kind) for kind in kinds]
    if len(kinds) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens have {len(kinds)} types")
    count = len(tokens)
    while count > 1 and kinds[count - 1] == UNUSED and _PADDING.fullmatch(tokens[count - 1]):
        count -= 1
    return tokens[:count], kinds[:count]


def _byte_level(keys: Mapping[str, Any], tokens: Sequence[str]) -> tuple[Tokenizer, bool]:
    """A tokenizer like GPT-2's, and its default for beginning texts with ``bos``."""
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers
    from tokenizers.pre_tokenizers import PreTokenizer

    words = keys.get("tokenizer.ggml.pre", "default")
    if words not in _WORDS:
        raise ValueError(f"its pre-tokenizer {str(words)[:40]!r} is not supported")
    made = _bpe(tokens, _merges(keys), ignore_merges=words in _BEGIN)
    split = _WORDS[words]
    steps: list[PreTokenizer] = [
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)
    ]
    if split:
        steps.insert(0, pre_tokenizers.Split(Regex(split), "isolated"))
    if words == "smollm":
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    if words == "qwen2":
        made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    made.decoder = decoders.ByteLevel()
    return made, words in _BEGIN


def _sentencepiece(
    keys: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int]
) -> tuple[Tokenizer, bool]:
    """A tokenizer like Llama 2's, and its default for beginning texts with ``bos``."""
    from tokenizers import decoders, pre_tokenizers

    merges = _merges(keys) if "tokenizer.ggml.merges" in keys else _implied(keys, tokens, kinds)
    unknown = keys.get("tokenizer.ggml.unknown_token_id")
    known = unknown if isinstance(unknown, int) and 0 <= unknown < len(tokens) else None
    made = _bpe(
        tokens,
        merges,
        unk_token=tokens[known] if known is not None else None,
        fuse_unk=True,
        byte_fallback=True,
    )
    space = bool(keys.get("tokenizer.ggml.add_space_prefix", True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme="first" if space else "never", split=False
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if space else steps)
    return made, True


def _bpe(tokens: Sequence[str], merges: list[tuple[str, str]], **settings: Any) -> Tokenizer:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    vocabulary = {token: number for number, token in enumerate(tokens)}
    try:
        return Tokenizer(BPE(vocabulary, merges, **settings))
    except Exception as error:  # the library raises plain exceptions
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"its merges do not fit its tokens ({reason})") from None


def _merges(keys: Mapping[str, Any]) -> list[tuple[str, str]]:
    given = keys.get("tokenizer.ggml.merges")
    if not isinstance(given, list):
        raise ValueError("it has no tokenizer.ggml.merges")
    merges = []
    for merge in given:
        left, _, right = merge.partition(" ")
        if not left or not right or " " in right:
            raise ValueError(f"{merge[:40]!r} is not a merge")
        merges.append((left, right))
    return merges


def _implied(
    keys: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int]
) -> list[tuple[str, str]]:
    """All merges of two pieces into a third, by descending score, as SentencePiece merges; for
    equal scores by descending length of the left and then the right part, as transformers orders
    them."""
    scores = keys.get("tokenizer.ggml.scores")
    if not isinstance(scores, np.ndarray) or len(scores) < len(tokens):
        raise ValueError("its tokens have no scores")
    pieces = {
        token: number
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == NORMAL
    }
    merges = []
    for piece, number in pieces.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in pieces and right in pieces:
                order = -float(scores[number]), -len(left), -len(right), number, pieces[left]
                merges.append((order, left, right))
    return [(left, right) for _, left, right in sorted(merges)]


def _add(made: Tokenizer, tokens: Sequence[str], kinds: Sequence[int], special: set[int]) -> None:
    """Add special and user-defined tokens, which are matched before splitting."""
    from tokenizers import AddedToken

    matched = dict(zip(tokens, kinds, strict=True))
    whole = {tokens[number] for number in special}
    whole |= {token for token, kind in matched.items() if kind == CONTROL}
    given = [
        token for token, kind in matched.items() if kind == USER_DEFINED and token not in whole
    ]
    made.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t in matched if t in whole]
    )
    made.add_tokens([AddedToken(t, normalized=False, special=False) for t in given])


def _begin_and_end(
    made: Tokenizer, tokens: Sequence[str], roles: Mapping[str, int], settings: Mapping[str, Any]
) -> None:
    from tokenizers import processors

    def around(wanted: Iterable[str]) -> list[str]:
        return [role for role in wanted if settings[f"add_{role}_token"] and role in roles]

    begin, end = around(["bos"]), around(["eos"])
    if not begin and not end:
        return
    text = {role: tokens[roles[role]] for role in (*begin, *end)}
    once = [*(text[role] for role in begin), "$A", *(text[role] for role in end)]
    more = [f"{piece}:1" if piece != "$A" else "$B:1" for piece in once]
    made.post_processor = processors.TemplateProcessing(
        single=once,
        pair=[*once, *more],
        special_tokens=[(text[role], roles[role]) for role in text],
    )


def _templates(keys: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates: the default one, and named ones."""
    files = {}
    prefix = "tokenizer.chat_template"
    for key, template in keys.items():
        if not isinstance(template, str):
            continue
        if key == prefix:
            files["chat_template.jinja"] = template
        elif re.fullmatch(re.escape(prefix) + r"\.\w{1,80}", key):
            name = key.removeprefix(f"{prefix}.")
            files[f"additional_chat_templates/{name}.jinja"] = template
    return files
