"""The files of a merge besides weights: config, tokenizer and templates, as engines read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from merganser import extras
from merganser.errors import InputError
from merganser.evaluation.codec import Codec
from merganser.planning import Plan
from merganser.release import config as configs
from merganser.release import contents
from merganser.release import tokenizer as tokenizers

UNREAD = ("_name_or_path", "transformers_version")
"""Keys of a config that do not affect the model."""


def make(plan: Plan, folder: Path) -> Codec:
    """Write a merge's files except weights, and return its tokenizer and config as a codec.

    Args:
        plan: the merge.
        folder: an empty folder.

    Raises:
        InputError: transformers cannot run the model.
    """
    transformers = extras.load("transformers", "eval")
    label = str(plan.sources[plan.donor].reference)
    written = plan.sources[plan.donor].checkpoint.config
    if not written:
        raise InputError(f"{label}: has no config.json, so it cannot be run")
    _check_runnable(transformers, written, label)
    configs.write_config(plan, folder)
    configs.write_companions(plan, folder)
    tokenizers.write_tokenizer(plan, folder)
    with quiet(transformers):
        try:
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # a config can make libraries raise anything
            raise InputError(cannot_make(label, error)) from None
        generation = _read_generation(transformers, folder, config)
    ends = [generation.eos_token_id, config.get_text_config().eos_token_id]
    return Codec(tokenizer, _numbers([*ends, tokenizer.eos_token_id]), config, label)


def cannot_make(label: str, error: Exception) -> str:
    """Return a one-line message with the reason why transformers cannot load a model."""
    return f"{label}: transformers cannot load this model ({' '.join(str(error).split())[:200]})"


def specs(plan: Plan) -> Mapping[str, Any]:
    """Return the dtype and shape of each tensor of a merge, by name."""
    return {job.name: job.spec for job in plan.jobs}


def are_alike(one: Plan, other: Plan) -> bool:
    """Whether two plans give models with equal tensor specs, config and tokenizer.

    Their files may be in different folders: experts of one base have equal ones.

    Raises:
        InputError: when a file cannot be read.
    """
    if one is other:
        return True
    return (
        specs(one) == specs(other)
        and _config(one) == _config(other)
        and one.chat_template == other.chat_template
        and one.tokenizer is None
        and other.tokenizer is None
        and (
            one.sources[one.donor].folders == other.sources[other.donor].folders
            or _small_files(one) == _small_files(other)
        )
    )


def _config(plan: Plan) -> dict[str, Any]:
    """Return the config of a merge, without what does not affect the model."""
    found = configs.edited_config(plan)
    return {key: value for key, value in found.items() if key not in UNREAD}


def _small_files(plan: Plan) -> dict[str, str]:
    """Return the digest of each file of a merge besides weights and config, by name."""
    files = [*configs.copied(plan), *tokenizers.copied(plan)]
    return {file.name: contents.digest_of_file(file) for file in files}


def quiet(transformers: Any) -> ExitStack:
    """Silence transformers' loading reports, which assume files, until the returned context ends."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with ExitStack() as stack:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        stack.callback(logging.set_verbosity, verbosity)
        if bars:
            stack.callback(logging.enable_progress_bar)
        return stack.pop_all()


def _read_generation(transformers: Any, folder: Path, config: Any) -> Any:
    if (folder / "generation_config.json").is_file():
        try:
            return transformers.GenerationConfig.from_pretrained(folder)
        except Exception as error:
            reason = " ".join(str(error).split())[:120]
            raise InputError(f"generation_config.json cannot be read ({reason})") from None
    return transformers.GenerationConfig(eos_token_id=config.get_text_config().eos_token_id)


def _numbers(ids: Sequence[Any]) -> list[int]:
    """Return the ids of all end tokens, from sources with one, several or none."""
    flat = [i for part in ids for i in (part if isinstance(part, list) else [part])]
    return sorted({i for i in flat if isinstance(i, int) and not isinstance(i, bool)})


def _check_runnable(transformers: Any, config: Mapping[str, Any], label: str) -> None:
    """Check that transformers can generate text with a model's architecture.

    Raises:
        InputError: the model needs custom code, or its class has no language-model head.
    """
    if config.get("auto_map") and config.get("model_type") not in transformers.CONFIG_MAPPING:
        raise InputError(
            f"{label}: its model needs its own code (auto_map in config.json), which is never run here; "
            "write the merge, and load it with trust_remote_code=True yourself"
        )
    classes = config.get("architectures") or []
    heads = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice")
    if classes and all(str(name).endswith(heads) for name in classes):
        raise InputError(f"{label}: is a {classes[0]}, which classifies and does not generate text")
