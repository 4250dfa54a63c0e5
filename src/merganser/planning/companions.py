"""Warnings about files besides the weights: model code, tokenizer size, sentence-transformers
modules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from merganser.checkpoints import model_code, sentence_transformers
from merganser.checkpoints.sidecar_files import MAX_BYTES, parse_json
from merganser.errors import InputError
from merganser.planning.plan_data import Source, TensorJob
from merganser.planning.shards import folder_of
from merganser.planning.vocabulary_tensors import vocabulary_tensors
from merganser.tokenizer.vocabulary import CONTENTS, SETTINGS, read_vocabulary

PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""Configs of image and audio preprocessors."""


def module_folders(donor: Source) -> list[str]:
    """The folders of the donor's sentence-transformers modules."""
    folder = donor.checkpoint.path
    return (
        sentence_transformers.module_folders(folder)
        if folder is not None and folder.is_dir()
        else []
    )


def check_modules(
    sources: Sequence[Source], donor: Source, jobs: Sequence[TensorJob], folders: Sequence[str]
) -> None:
    """Check that the donor has the sentence-transformers module of every output tensor.

    The output takes the files that describe the modules from the donor.

    Args:
        sources: the inputs.
        donor: the model whose config and modules the output takes.
        jobs: the output's tensors.
        folders: the donor's module folders.

    Raises:
        InputError: when a tensor belongs to a module that the donor lacks.
    """
    inner = {i: module_folders(source) for i, source in enumerate(sources)}
    for job in jobs:
        first = job.reads[0]
        if folder_of(job.name, inner[first.source]) and not folder_of(job.name, folders):
            other = sources[first.source].reference
            raise InputError(
                f"{other}: tensor {first.name!r} belongs to a sentence-transformers module that "
                f"{donor.reference}, which the config is from, does not have; base_model: {other} takes "
                "its modules, tensor_names='intersection' leaves them out"
            )


def different_modules(sources: Sequence[Source], donor: Source) -> Iterator[str]:
    """Warnings about sentence-transformers modules that the output lacks or takes from the donor
    alone."""
    home = donor.checkpoint.path
    if home is None or not home.is_dir():
        return
    for file in sentence_transformers.other_files(home):
        yield f"{file}: is neither a setting nor weights in a known format; the output lacks it"
    for source in sources:
        folder = source.checkpoint.path
        if (
            source is donor
            or folder is None
            or not (folder / sentence_transformers.MODULES).is_file()
        ):
            continue
        if not (home / sentence_transformers.MODULES).is_file():
            yield (
                f"{source.reference}: is a sentence-transformers model, but {donor.reference} is none: "
                f"the output has none of its modules; base_model: {source.reference} copies them"
            )
            continue
        files, wanted = (
            {file.relative_to(place): file for file in sentence_transformers.small_files(place)}
            for place in (folder, home)
        )
        different = [
            name.as_posix()
            for name in sorted({*files, *wanted})
            if name not in files or name not in wanted or not _same(files[name], wanted[name])
        ]
        if different:
            yield (
                f"{source.reference}: {', '.join(different[:5])}{' …' if different[5:] else ''} "
                f"{'differs' if len(different) == 1 else 'differ'} from those of {donor.reference}, "
                "which the output has"
            )


def _same(one: Path, other: Path) -> bool:
    """Whether two files have the same content, except for versions of the libraries that wrote
    them."""
    left, right = (file.read_bytes() for file in (one, other))
    if left == right or one.suffix != ".json":
        return left == right
    try:
        settings = [parse_json(left), parse_json(right)]
    except ValueError:
        return False
    for part in settings:
        if isinstance(part, dict):
            part.pop("__version__", None)
    return bool(settings[0] == settings[1])


def missing_config(sources: Sequence[Source], donor: Source) -> Iterator[str]:
    """A warning if the donor's folder lacks ``config.json`` while another model has one."""
    folder = donor.checkpoint.path
    if folder is None or donor.checkpoint.config:
        return
    others = [source.reference for source in sources if source.checkpoint.config]
    if others:
        yield (
            f"{donor.reference} has no config.json, so the output has none and cannot be loaded; "
            f"{others[0]} has one: copy it into the folder of {donor.reference}, or into the output"
        )


def missing_code(donor: Source) -> Iterator[str]:
    """A line for each code file that the donor's configs name and its folder lacks."""
    folder = donor.checkpoint.path
    if folder is None or not folder.is_dir():
        return
    for file, user in model_code.find(folder, "config.json", SETTINGS, *PROCESSORS).missing:
        yield (
            f"{donor.reference}: {user} needs {file}, which is missing; the output lacks it too, "
            "and cannot be loaded until it is added"
        )


def tokens_without_rows(donor: Source, vocabulary: int | None) -> Iterator[str]:
    """A warning if the donor's tokenizer has tokens without a row in the output's embedding.

    Args:
        donor: the model whose tokenizer the output takes unchanged.
        vocabulary: number of rows of the output's embedding; None for the donor's.
    """
    folder, tensors = donor.checkpoint.path, vocabulary_tensors(donor)
    if folder is None or not folder.is_dir() or not tensors:
        return
    rows = vocabulary or donor.checkpoint.specs[tensors[0]].shape[0]
    size = _tokens(folder, rows)
    if size > rows:
        yield (
            f"{donor.reference}: its tokenizer has {size} tokens, but the output's embedding {rows} "
            f"rows: the output fails on tokens from {rows} on; tokenizer_source: {donor.reference} "
            "leaves them out"
        )


def _tokens(folder: Path, rows: int) -> int:
    """Number of tokens of the tokenizer in a folder if greater than ``rows``; otherwise a lower
    bound.

    Parsing a large tokenizer takes half a second, so it is skipped if no number in its files is
    that large. 0 if there is no readable tokenizer.
    """
    files = [folder / name for name in (CONTENTS, SETTINGS, "added_tokens.json")]
    if not files[0].is_file():
        return 0
    states = [file.stat() if file.is_file() else None for file in files]
    if any(state is not None and state.st_size > MAX_BYTES for state in states):
        return 0
    return _tokens_of(folder, rows, tuple(s and (s.st_size, s.st_mtime_ns) for s in states))


@lru_cache(maxsize=64)
def _tokens_of(folder: Path, rows: int, _states: tuple[object, ...]) -> int:
    contents, settings, added = (
        file.read_bytes() if file.is_file() else b""
        for file in (folder / CONTENTS, folder / SETTINGS, folder / "added_tokens.json")
    )
    numbers = re.findall(rb'":\s*(\d{1,9})', contents)
    numbers += re.findall(rb'":\s*(\d{1,9})', added)
    numbers += re.findall(rb'"(\d{1,9})"\s*:', settings)
    pieces = contents.count(b"[") if b'"Unigram"' in contents else 0  # a list without ids
    if max([pieces, *(int(number) + 1 for number in numbers)]) <= rows:
        return pieces
    try:
        return read_vocabulary(folder, str(folder)).size
    except InputError:
        return 0
