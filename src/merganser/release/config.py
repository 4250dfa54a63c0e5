"""``config.json`` and its neighbours: the donor's own files, only what the merge changed edited."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

from merganser.architecture import sections, stated_tie
from merganser.planning import Plan, restacked

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""Copied byte for byte, with ``additional_chat_templates/``."""

OTHER_FILES = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)

_DTYPE_KEYS = ("dtype", "torch_dtype")


def edited_config(plan: Plan) -> dict[str, Any]:
    """The output's ``config.json``: the donor's, with the dtype, the layers and the tied head as they are now.

    Raises:
        InputError: when the layers changed and the config does not say how many there are.
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
    _tell_of_the_head(plan, config, parts)
    return restacked(config, plan.sources, plan.donor, plan.layers)[0]


def _tell_of_the_head(plan: Plan, config: dict[str, Any], parts: list[dict[str, Any]]) -> None:
    """Say whether the head is the embedding, where that is no longer as the donor had it."""
    donor = plan.sources[plan.donor]
    specs, places = donor.checkpoint.specs, donor.architecture.places
    embeddings = {specs[name].shape for name, p in places.items() if p.role == "embedding"}
    headed = any(p.role == "head" and specs[n].shape in embeddings for n, p in places.items())
    said = stated_tie(config)
    if plan.tied and headed and not said:
        config["tie_word_embeddings"] = True
    if not plan.tied and (said or not headed):
        config["tie_word_embeddings"] = False
        for part in parts:
            if part.get("tie_word_embeddings") is True:
                part["tie_word_embeddings"] = False


def write_config(plan: Plan, folder: Path, *, public: bool = False) -> None:
    """Write ``config.json`` in the donor's order of keys; with ``public`` without where that came from."""
    config = edited_config(plan)
    if public:
        config.pop("_name_or_path", None)
    if config:
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")


def copy_companions(plan: Plan, folder: Path, *, tokenizer: bool = True) -> list[str]:
    """Copy tokenizer, chat templates and generation config from the donor, byte for byte.

    Args:
        plan: tells the donor.
        folder: the output folder.
        tokenizer: whether to copy the tokenizer and its templates.

    Returns:
        Warnings: what a user would miss.
    """
    model = plan.sources[plan.donor].checkpoint.path
    if model is None or not model.is_dir():
        return []
    for name in (*OTHER_FILES, *(TOKENIZER_FILES if tokenizer else ())):
        if (model / name).is_file():
            shutil.copyfile(model / name, folder / name)
    if not tokenizer:
        return []
    templates = model / "additional_chat_templates"
    if templates.is_dir():
        (folder / templates.name).mkdir()
        for file in sorted(templates.glob("*.jinja")):
            shutil.copyfile(file, folder / templates.name / file.name)
    if not any(
        (folder / name).exists()
        for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
    ):
        return [f"{plan.sources[plan.donor].reference} has no tokenizer, so the output has none"]
    return []
