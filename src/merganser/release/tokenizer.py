"""Write the output's tokenizer and chat template: copied byte for byte, edited only where they changed."""

from __future__ import annotations

from pathlib import Path

from merganser.checkpoints import model_code, read_json
from merganser.planning import Plan
from merganser.planning.vocabulary_tensors import vocabulary_tensors
from merganser.release import files
from merganser.tokenizer import chat_templates
from merganser.tokenizer.editing import edited_contents, edited_settings
from merganser.tokenizer.vocabulary import CONTENTS, SETTINGS, OutputTokenizer, has_tokenizer

FILES = (
    CONTENTS,
    SETTINGS,
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    chat_templates.FILE,
    chat_templates.LEGACY_FILE,
)
"""Files of a tokenizer; ``additional_chat_templates/`` and the tokenizer's code are copied too."""

_MORE_TEMPLATES = "additional_chat_templates"


def _home(plan: Plan) -> Path | None:
    """The folder of the model whose tokenizer the output gets; None if there is none."""
    edit = plan.tokenizer
    model = edit.output.start.folder if edit else plan.sources[plan.donor].checkpoint.path
    return model if model is not None and model.is_dir() else None


def copied(plan: Plan) -> list[Path]:
    """The tokenizer files to copy; some are edited afterwards."""
    model = _home(plan)
    if model is None:
        return []
    more = sorted((model / _MORE_TEMPLATES).glob("*.jinja"))
    tokenizer_files = [model / name for name in FILES if (model / name).is_file()]
    return [*tokenizer_files, *more, *model_code.find(model, SETTINGS).files]


def write_tokenizer(plan: Plan, folder: Path) -> list[str]:
    """Write the output's tokenizer and its chat template.

    Args:
        plan: the plan.
        folder: the output folder.

    Returns:
        Warnings about missing or different files.

    Raises:
        InputError: when the tokenizer cannot be changed as planned.
    """
    edit, donor = plan.tokenizer, plan.sources[plan.donor]
    lacking = []
    if donor.checkpoint.config and vocabulary_tensors(donor):
        lacking = [f"{donor.reference} has no tokenizer, so the output has none"]
    model = _home(plan)
    if model is None:
        return lacking
    warnings: list[str] = []
    for file in copied(plan):
        target = folder / file.relative_to(model)
        if target.is_file() and target.suffix == ".py":  # the model's code, which is written first
            if target.read_bytes() != file.read_bytes():
                warnings.append(
                    f"{file} differs from the model's own, which the output has instead"
                )
            continue
        files.copy(file, target)
    if edit is not None and edit.output.changed:
        _change(edit.output, folder)
    if plan.chat_template is not None and plan.chat_template != chat_templates.of_model(folder):
        _set_template(plan.chat_template, folder)
    if edit is None and not has_tokenizer(folder):
        warnings += lacking
    return warnings


def _change(output: OutputTokenizer, folder: Path) -> None:
    """Rewrite the files that list added or dropped tokens."""
    files.write_json(folder / CONTENTS, edited_contents(output))
    for name in (SETTINGS, "special_tokens_map.json"):
        if (folder / name).is_file():
            settings = read_json(folder / name)
            edited = edited_settings(output, settings)
            if edited != settings:
                files.write_json(folder / name, edited)
    if output.dropped:  # these files still contain the dropped pieces
        for name in ("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model"):
            (folder / name).unlink(missing_ok=True)
    older = folder / "added_tokens.json"
    if older.is_file():
        known = {t: i for t, i in read_json(older).items() if t not in output.dropped}
        files.write_json(older, known | {each.content: each.id for each in output.new})


def _set_template(template: str, folder: Path) -> None:
    """Write a chat template to the file that transformers reads first, and remove it everywhere else."""
    files.write_text(folder / chat_templates.FILE, template)
    (folder / chat_templates.LEGACY_FILE).unlink(missing_ok=True)
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    old = settings.pop("chat_template", None)
    if old is None:
        return
    files.write_json(folder / SETTINGS, settings)
    if isinstance(old, list):  # write the named templates to files
        for name, text in chat_templates.by_name(old).items():
            plain = len(name) < 64 and name.replace("_", "").replace("-", "").isalnum()
            if plain and name != "default":
                files.write_text(folder / _MORE_TEMPLATES / f"{name}.jinja", text)
