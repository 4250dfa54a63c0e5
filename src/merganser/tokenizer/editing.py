"""Edit the files of a tokenizer, and the token ids in configs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from merganser.errors import InputError
from merganser.tokenizer.vocabulary import (
    CONTENTS,
    SPECIAL,
    AddedToken,
    OutputTokenizer,
    ids_by_library,
    ids_of,
    read_contents,
)


def edited_contents(output: OutputTokenizer) -> dict[str, Any]:
    """Return the output's ``tokenizer.json``.

    Raises:
        InputError: when the tokenizers library would assign another id to a token.
    """
    start = output.start
    contents = read_contents(start.folder, start.label)
    file = start.folder / CONTENTS
    model = contents["model"]
    added = {entry["content"]: entry for entry in contents.get("added_tokens") or []}
    for token in start.loose:
        added[token] = AddedToken(token, start.tokens[token], start.added[token]).entry()
    if output.dropped:
        _drop_pieces(model, output.dropped)
        added = {token: entry for token, entry in added.items() if token not in output.dropped}
    for each in output.new:  # last, since a rule may add a dropped token again
        added[each.content] = each.entry()
    added = {token: entry for token, entry in added.items() if token in output.tokens}
    for token, entry in added.items():
        entry["id"] = output.tokens[token]
    contents["added_tokens"] = sorted(added.values(), key=lambda entry: int(entry["id"]))
    if dict(ids_of(contents, file)) != output.tokens:
        if not isinstance(model["vocab"], dict):
            raise InputError(f"{file}: its ids leave gaps, so that no tokens can be added to it")
        # The library assigns added tokens to gaps between ids, even to ids in use; ids of pieces are fixed.
        model["vocab"] |= {token: output.tokens[token] for token in added}
        if dict(ids_by_library(contents, file)) != output.tokens:
            raise InputError(
                f"{file}: tokens cannot be added: the tokenizers library would give them other ids"
            )
    return contents


def _drop_pieces(model: dict[str, Any], dropped: frozenset[str]) -> None:
    if isinstance(model["vocab"], dict):
        model["vocab"] = {t: i for t, i in model["vocab"].items() if t not in dropped}
    else:
        model["vocab"] = [entry for entry in model["vocab"] if entry[0] not in dropped]
    if isinstance(model.get("merges"), list):
        model["merges"] = [m for m in model["merges"] if not dropped.intersection(_merged(m))]


def _merged(merge: object) -> tuple[str, ...]:
    """The two parts of a merge and their concatenation; in older files a merge is one text."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        return ()
    return (*parts, "".join(parts))


def edited_settings(output: OutputTokenizer, settings: dict[str, Any]) -> dict[str, Any]:
    """Return ``tokenizer_config.json`` or ``special_tokens_map.json`` for the output.

    The result contains the new added tokens and lacks the dropped ones.
    """
    edited = dict(settings)
    decoder = edited.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        entries = {
            int(number): entry
            for number, entry in decoder.items()
            if entry.get("content") not in output.dropped
        }
        loose = (
            AddedToken(token, output.tokens[token], output.start.added[token])
            for token in output.start.loose
            if token in output.tokens and token not in output.dropped
        )
        for each in (*loose, *output.new):  # transformers would insert missing tokens before others
            entries[each.id] = {k: v for k, v in each.entry().items() if k != "id"}
        edited["added_tokens_decoder"] = {str(n): entries[n] for n in sorted(entries)}

    def gone(value: Any) -> bool:
        token = value.get("content") if isinstance(value, dict) else value
        return token in output.dropped and token not in output.tokens

    for role in SPECIAL:
        value = edited.get(f"{role}_token")
        if isinstance(value, dict | str) and gone(value):
            del edited[f"{role}_token"]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = edited.get(key)
        if isinstance(more, list):
            edited[key] = [each for each in more if not gone(each)]
    return edited


# -- token ids in configs ----------------------------------------------------------------------------

_ID_ENDINGS = ("token_id", "token_ids", "token_index", "suppress_tokens")


def map_token_ids(data: Any, new_id: Callable[[str, int], int | None], key: str = "") -> Any:
    """Replace token ids in a config: ``eos_token_id``, lists of ids, sub-configs.

    Args:
        data: the config, or a part of it.
        new_id: returns the new id for a key and an id; None for a dropped token.
        key: the key of the part.
    """
    if isinstance(data, dict):
        return {k: map_token_ids(v, new_id, k) for k, v in data.items()}
    if not key.endswith(_ID_ENDINGS) or isinstance(data, bool):
        return data
    if isinstance(data, int):
        return new_id(key, data)
    if isinstance(data, list):
        ids = [map_token_ids(each, new_id, key) for each in data]
        return [each for each in ids if each is not None]
    return data
