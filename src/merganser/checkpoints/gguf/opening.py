"""Open GGUF files of llama.cpp: dense llama, qwen2 and qwen3, with the names of transformers.

The format (versions 2 and 3): the magic ``GGUF``, counts of tensors and of keys, keys with typed
values (the model's sizes, its vocabulary), for each tensor its name, sizes (innermost first), type
and offset, then the tensors' bytes, aligned. Reading dequantises ranges to float32; results are
bfloat16 unless the recipe sets a dtype. The files interleave the two halves of each head of llama's
queries and keys; reading restores the order of transformers.

A ``config.json`` next to the file is used; otherwise one is built from the keys. The tokenizer's
files are handled the same way, in a temporary folder that exists until the process ends.
"""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from merganser.checkpoints.computed.derived import Derived, DerivedCheckpoint, read_stored
from merganser.checkpoints.gguf import ggml, tokenizer
from merganser.checkpoints.gguf.header import GgufTensor, read_header
from merganser.checkpoints.gguf.model_keys import FACTORS, ModelKeys, read_factors
from merganser.checkpoints.protocol import VOCABULARIES, Checkpoint, Stamp
from merganser.checkpoints.sidecar_files import read_config
from merganser.checkpoints.stored import StoredCheckpoint
from merganser.errors import InputError, ResourceError
from merganser.tensors import BY_NAME, FLOAT32, TensorSpec

Array = np.ndarray[Any, Any]

SUFFIX = ".gguf"

_BFLOAT16 = BY_NAME["bfloat16"]

_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def open_folder(path: Path, label: str) -> Checkpoint | None:
    """Open a GGUF file, or a folder with one; None if there is none.

    Raises:
        InputError: when a header is invalid, or the model type is not supported.
    """
    files = _files(path)
    if not files:
        return None
    keys: dict[str, Any] = {}
    entries: dict[str, GgufTensor] = {}
    for number, file in enumerate(files):
        part_keys, tensors = read_header(file)
        keys = keys or part_keys
        _check_part(file, part_keys, number, len(files))
        for name, entry in tensors.items():
            if name in entries:
                raise InputError(f"{file}: tensor {name!r} is also in {entries[name].file.name}")
            entries[name] = entry
    factors = read_factors(entries.pop(FACTORS, None))
    model = ModelKeys(files[0], keys, entries)
    home = path if path.is_dir() or len(files) == 1 else path.parent
    beside = path if path.is_dir() else path.parent
    given = beside / "config.json"
    if given.is_file():
        config = read_config(beside)
        model.check(config, given)
    else:
        config = model.config(factors)
    mine = path.is_dir() or given.is_file()  # otherwise the folder may contain unrelated files
    folder = beside if mine else home
    made: Path | None = None
    notes = []
    if not (mine and any((beside / name).is_file() for name in VOCABULARIES)):
        try:
            made = _companions(files, keys, beside if mine else None)
        except ValueError as error:
            notes.append(f"{label}: no tokenizer can be built from the file: {error}")
    stored = StoredCheckpoint(
        label,
        home,
        {name: model.stored(name) for name in entries},
        format="GGUF",
        files=files,
        config=config,
        path=made or folder,
        notes=notes,
    )
    tensors_of: dict[str, Derived | str] = {}
    for name, entry in entries.items():
        form = ggml.FORMATS.get(entry.kind)
        tensors_of[model.names[name]] = (
            name if form is None else _dequantised(stored, name, entry, form)
        )
    kinds = [
        ggml.FORMATS[entry.kind].name for entry in entries.values() if entry.kind in ggml.FORMATS
    ]
    kinds_by_count = ", ".join(
        dict.fromkeys(sorted(kinds, key=lambda kind: (-kinds.count(kind), kind)))
    )
    opened = DerivedCheckpoint(
        stored,
        tensors_of,
        config,
        repr([(name, entry.kind) for name, entry in entries.items()]),
        format=f"GGUF ({kinds_by_count})" if kinds_by_count else "GGUF",
    )
    return opened


_made: dict[object, Path] = {}
"""Temporary folders of this process by their sources, reused when a model is opened again."""


def _companions(files: Sequence[Path], keys: Mapping[str, Any], beside: Path | None) -> Path | None:
    """A temporary folder with generated files and those next to the model; None if none are
    generated. It exists until the process ends.

    Raises:
        ResourceError: when it cannot be written.
        ValueError: when the keys describe no supported tokenizer.
    """
    state = tuple((file.absolute(), Stamp.of(file.stat())) for file in files)
    small = [file for file in beside.iterdir() if file.is_file()] if beside is not None else []
    source = state, tuple((file.name, Stamp.of(file.stat())) for file in sorted(small))
    if source in _made and _made[source].is_dir():
        return _made[source]
    texts = tokenizer.files(keys)
    if not texts:
        return None
    folder = _made[source] = Path(tempfile.mkdtemp(prefix="merganser-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        for name, text in texts.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        for file in small:
            if file.suffix in (".json", ".jinja", ".md"):
                (folder / file.name).unlink(missing_ok=True)  # existing files take precedence
                (folder / file.name).symlink_to(file.absolute())
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise ResourceError(f"{folder}: cannot be written ({error.strerror})") from None
    return folder


def _files(path: Path) -> list[Path]:
    """The files of the model; empty if there are none.

    Raises:
        InputError: when the choice is ambiguous, or files are missing.
    """
    if path.is_file():
        first = path
    else:
        parts = [file for file in sorted(path.glob(f"*{SUFFIX}")) if file.is_file()]
        starts = [
            file for file in parts if (m := _SPLIT.fullmatch(file.name)) is None or int(m[2]) == 1
        ]
        if len(starts) > 1:
            names = ", ".join(file.name for file in starts[:3])
            raise InputError(
                f"{path}: holds several GGUF models ({names} …); name one of the files"
            )
        if not parts:
            return []
        first = (starts or parts)[0]
    split = _SPLIT.fullmatch(first.name)
    if split is None:
        return [first]
    count = int(split[3])
    parts = [first.with_name(f"{split[1]}-{i + 1:05d}-of-{split[3]}{SUFFIX}") for i in range(count)]
    missing = next((part for part in parts if not part.is_file()), None)
    if missing is not None:
        raise InputError(f"{missing}: is missing, one of the {count} files of this model")
    return parts


def _check_part(file: Path, keys: Mapping[str, Any], number: int, count: int) -> None:
    stated = keys.get("split.count", 0)
    if not isinstance(stated, int):
        raise InputError(f"{file}: split.count is not a number")
    if stated not in (0, 1) or count > 1:
        if stated != count:
            raise InputError(
                f"{file}: is one of {stated} files of a model, whose names must end in "
                f"-00001-of-{count:05d}{SUFFIX}"
            )
        if keys.get("split.no") != number:
            raise InputError(
                f"{file}: says that it is part {str(keys.get('split.no'))[:20]!r}, not {number}"
            )


def _dequantised(
    stored: StoredCheckpoint, name: str, entry: GgufTensor, form: ggml.BlockFormat
) -> Derived:
    spec = TensorSpec(FLOAT32, entry.shape, _BFLOAT16)
    return Derived(spec, partial(_fill, stored, name, form))


def _fill(
    stored: StoredCheckpoint, name: str, form: ggml.BlockFormat, start: int, into: Array
) -> None:
    """Dequantise the blocks that contain a range of elements."""
    count = len(into) // FLOAT32.itemsize
    first, last = start // form.count, -(-(start + count) // form.count)
    blocks = read_stored(stored, name, first * form.size, (last - first) * form.size)
    skip = start - first * form.count
    into.view(np.float32)[:] = ggml.dequantise(form, blocks)[skip : skip + count]
