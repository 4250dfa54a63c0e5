"""Sentence-transformers models: a transformer with further modules in subfolders of its folder.

``modules.json`` lists the folders (``1_Pooling``, ``2_Dense``). Their tensors are named with the
folder: ``2_Dense/linear.weight``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merganser.checkpoints.computed.derived import Derived, DerivedCheckpoint
from merganser.checkpoints.formats import open_weights
from merganser.checkpoints.protocol import Checkpoint
from merganser.checkpoints.sidecar_files import MAX_BYTES, check_link, parse_json
from merganser.errors import InputError

if TYPE_CHECKING:
    from merganser.checkpoints.computed.derived import Array

MODULES = "modules.json"

SETTINGS = (MODULES, "config_sentence_transformers.json")
"""Files of the model, besides ``sentence_*_config.json``, whose name contains the transformer's type."""

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Names of a module's weights file, the first one preferred."""

COPIED = (".json", ".txt", ".model", ".jinja", ".vocab")
"""Suffixes of a module's settings and vocabularies."""

_FOLDER = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)


def module_folders(folder: Path) -> list[str]:
    """The folders of a model's modules, without the transformer's.

    Raises:
        InputError: when ``modules.json`` is not a list of modules, or a path leaves the folder.
    """
    return list(dict.fromkeys(path for path, _ in _modules(folder) if path))


def module_classes(folder: Path) -> list[str]:
    """The classes of a model's modules, as ``package.Class``."""
    return [kind for _, kind in _modules(folder)]


def _modules(folder: Path) -> Iterator[tuple[str, str]]:
    """The folder of each module below the model's, and its class."""
    file = folder / MODULES
    if not file.is_file():
        return
    check_link(file)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError("it is too large")
        entries: Any = parse_json(file.read_bytes())
        modules = [(entry.get("path", ""), entry.get("type", "")) for entry in entries]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: is not a list of modules ({str(error)[:120]})") from None
    home = folder.resolve()
    for path, kind in modules:
        named = isinstance(path, str) and (not path or _FOLDER.fullmatch(path))
        if not named or not (folder / path).resolve().is_relative_to(home):
            raise InputError(f"{file}: the path {str(path)[:80]!r} is not a folder of the model")
        yield path, kind if isinstance(kind, str) else ""


def small_files(folder: Path) -> list[Path]:
    """The settings and vocabularies of a sentence-transformers model and its modules."""
    folders = module_folders(folder)
    if not (folder / MODULES).is_file():
        return []
    top = [*(folder / name for name in SETTINGS), *sorted(folder.glob("sentence_*_config.json"))]
    inner = [file for module in folders for file in _files(folder / module)]
    return [file for file in top if file.is_file()] + [
        file
        for file in inner
        if file.suffix in COPIED and not file.name.endswith(".index.json")
    ]  # fmt: skip


def other_files(folder: Path) -> list[Path]:
    """Files of modules that are neither settings nor weights in a known format."""
    files = [file for module in module_folders(folder) for file in _files(folder / module)]
    return [file for file in files if file.suffix not in COPIED and file.name not in WEIGHTS]


def _files(module: Path) -> list[Path]:
    return [file for file in sorted(module.rglob("*")) if file.is_file()]


def with_modules(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """Add the tensors of a folder's modules to its checkpoint; return it unchanged if there are none.

    Raises:
        InputError: when the weights of a module cannot be read.
    """
    modules = {
        inner: weights
        for inner in _folders_with_weights(folder)
        if (weights := open_weights(folder / inner, f"{checkpoint.label}/{inner}"))
    }
    if not modules:
        return checkpoint
    tensors: dict[str, Derived | str] = {name: name for name in checkpoint.specs}
    for inner, weights in modules.items():
        weights.files = {f"{inner}/{name}": size for name, size in weights.files.items()}
        tensors |= {f"{inner}/{name}": _stored(weights, name) for name in weights.specs}
    return DerivedCheckpoint(
        checkpoint,
        tensors,
        checkpoint.config,
        "sentence-transformers modules",
        format=checkpoint.format,
        others=tuple(modules.values()),
        notes=[note for weights in modules.values() for note in weights.notes],
    )


def _folders_with_weights(folder: Path) -> list[str]:
    """The folders with weights among the modules' folders and their subfolders."""
    inside = [file for module in module_folders(folder) for file in _files(folder / module)]
    homes = [file.parent for file in inside if file.name in WEIGHTS]
    return [home.relative_to(folder).as_posix() for home in dict.fromkeys(homes)]


def _stored(checkpoint: Checkpoint, name: str) -> Derived:
    """A tensor of a module, unchanged."""
    spec = checkpoint.specs[name]

    def fill(start: int, out: Array) -> None:
        checkpoint.read(name, start * spec.dtype.itemsize, out.data)

    return Derived(spec, fill)
