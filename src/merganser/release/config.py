"""Write ``config.json`` and the donor's other small files, edited only where the merge differs from it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from merganser.architecture import VOCABULARY_KEYS, vocabulary_size
from merganser.checkpoints import model_code, read_json, sentence_transformers
from merganser.modules import sections
from merganser.planning import Plan
from merganser.planning.companions import PROCESSORS
from merganser.release import files
from merganser.tokenizer.editing import map_token_ids

OTHER_FILES = ("generation_config.json", *PROCESSORS)

_DTYPE_KEYS = ("dtype", "torch_dtype")


def edited_config(plan: Plan) -> dict[str, Any]:
    """Return the output's ``config.json``: the donor's, with the output's dtype, layers, tied head and
    vocabulary size.

    Raises:
        InputError: when the layers changed and the config has no layer count.
    """
    donor = plan.sources[plan.donor]
    config: dict[str, Any] = copy.deepcopy(dict(donor.checkpoint.config))
    if not config:
        return config
    parts = [part for part in sections(config) if isinstance(part, dict)]
    for part in parts:
        for key in _DTYPE_KEYS:
            if key in part and part[key] is not None:
                part[key] = plan.dtype.name
    if not any(key in config for key in _DTYPE_KEYS):
        config["torch_dtype"] = plan.dtype.name
    if donor.reference.architecture is not None:
        config["architectures"] = [donor.reference.architecture]
    if plan.tie_word_embeddings is not None:
        _set_tie(config, parts, plan.tie_word_embeddings)
    if plan.layers:
        from merganser.planning.depth import restacked

        config = restacked(config, plan.sources, plan.donor, plan.layers)
    if plan.vocabulary is not None and plan.vocabulary != vocabulary_size(config):
        _set_vocabulary(config, plan.vocabulary)
    return with_token_ids(plan, config)


def _set_tie(config: dict[str, Any], parts: list[dict[str, Any]], tied: bool) -> None:
    """Set whether the head is tied to the embedding."""
    config["tie_word_embeddings"] = tied
    for part in parts:
        if not tied and part.get("tie_word_embeddings") is True:
            part["tie_word_embeddings"] = False


def write_config(plan: Plan, folder: Path, *, public: bool = False) -> None:
    """Write ``config.json`` in the donor's order of keys; with ``public``, without ``_name_or_path``."""
    config = edited_config(plan)
    if public:
        config.pop("_name_or_path", None)
    if config:
        files.write_json(folder / "config.json", config)


def copied(plan: Plan) -> list[Path]:
    """Return the donor's other files that the output gets: generation config, processors, code, and
    the settings of sentence-transformers modules."""
    model = plan.sources[plan.donor].checkpoint.path
    if model is None or not model.is_dir():
        return []
    others = [model / name for name in OTHER_FILES if (model / name).is_file()]
    code = model_code.find(model, "config.json", *OTHER_FILES).files
    return [*others, *code, *sentence_transformers.small_files(model)]


def write_companions(plan: Plan, folder: Path) -> None:
    """Copy the donor's other files byte for byte; only token ids that changed are edited."""
    home = plan.sources[plan.donor].checkpoint.path
    for file in copied(plan):
        is_generation = file.name == "generation_config.json"
        if is_generation and plan.tokenizer is not None and plan.tokenizer.moved:
            files.write_json(folder / file.name, with_token_ids(plan, read_json(file)))
        elif home is not None:
            files.copy(file, folder / file.relative_to(home))


def with_token_ids(plan: Plan, data: dict[str, Any]) -> dict[str, Any]:
    """Return a config of the donor with the token ids of the output's tokenizer."""
    moved = plan.tokenizer.moved if plan.tokenizer is not None else {}
    if not moved:
        return data
    edited = map_token_ids(data, lambda key, number: moved.get((key, number), number))
    assert isinstance(edited, dict)
    return edited


def _set_vocabulary(config: dict[str, Any], rows: int) -> None:
    """Set the vocabulary size wherever the config has the text model's."""
    old = vocabulary_size(config)
    stated = [
        (part, key)
        for part in sections(config)
        for key in VOCABULARY_KEYS
        if old is not None and part.get(key) == old
    ]
    for part, key in stated:
        if isinstance(part, dict):
            part[key] = rows
    if not stated:
        text = config.get("text_config")
        (text if isinstance(text, dict) else config)["vocab_size"] = rows
