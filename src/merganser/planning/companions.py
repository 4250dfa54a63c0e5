"""Warnings about what belongs to a model besides its weights: its code, its tokenizer's size."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from merganser.checkpoints import model_code
from merganser.checkpoints.small_files import MAX_BYTES
from merganser.errors import InputError
from merganser.planning.alignment import vocabulary_tensors
from merganser.planning.plans import Source
from merganser.tokenizer import CONTENTS, SETTINGS, read_vocabulary

PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""Configs of what makes a model's inputs of images and sounds."""


def missing_code(donor: Source) -> Iterator[str]:
    """A line for each code file that the donor's configs name and its folder lacks."""
    folder = donor.checkpoint.path
    if folder is None or not folder.is_dir():
        return
    for file, user in model_code.find(folder, "config.json", SETTINGS, *PROCESSORS).missing:
        yield (
            f"{donor.reference}: {user} needs {file}, which is not there; the output lacks it too, "
            "and loads only where it is added"
        )


def tokens_without_rows(donor: Source, vocabulary: int | None) -> Iterator[str]:
    """A line if the donor's tokenizer has tokens that the output's embedding has no row for.

    Args:
        donor: the model whose tokenizer the output has, unchanged.
        vocabulary: the rows of the output's embedding; None for the donor's.
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
    """How many tokens the tokenizer in a folder has, if more than ``rows``; else a lower number.

    Most tokenizers are not parsed, which takes half a second for a large one: no number in their
    files is that large. 0 where no tokenizer can be read.
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
    numbers = re.findall(rb'":\s*(\d{1,9})', contents + added)
    numbers += re.findall(rb'"(\d{1,9})"\s*:', settings)
    pieces = contents.count(b"[") if b'"Unigram"' in contents else 0  # a list, without ids
    if max([pieces, *(int(number) + 1 for number in numbers)]) <= rows:
        return pieces
    try:
        return read_vocabulary(folder, str(folder)).size
    except InputError:
        return 0
