"""The folder of a studio, and the models of the Hub's cache; nothing else is read or written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from merganser.checkpoints.training.run_folders import companions, holds_shards
from merganser.errors import InputError, OutputExistsError, RecipeError
from merganser.hub import catalogue
from merganser.recipe.references import ModelReference
from merganser.release import manifest
from merganser.results.scores import JSON_NAME, PARTIAL_NAME

MOST_FOLDERS = 20_000
MOST_FOUND = 2_000
MOST_DEPTH = 8
MOST_TEXT = 2**20
"""Bytes of a recipe that are read to list it."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=-]{0,99}")
_WEIGHTS = re.compile(r"(?!adapter_|training_args).*\.(safetensors|gguf)|pytorch_model.*\.bin")


@dataclass
class Contents:
    """The contents of a library, as paths relative to its root.

    Attributes:
        models, adapters, merged, studies, problems, recipes, sweeps: paths, sorted by name; ``merged`` has
            the models that Merganser wrote, ``sweeps`` those recipes that are evaluated sweeps.
        cached, cached_adapters: names of the models and adapters in the Hub's cache.
        cut_off: whether the lists are incomplete because the folder has too many entries.
    """

    models: list[str] = field(default_factory=list)
    adapters: list[str] = field(default_factory=list)
    merged: list[str] = field(default_factory=list)
    studies: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    recipes: list[str] = field(default_factory=list)
    sweeps: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    cached_adapters: list[str] = field(default_factory=list)
    cut_off: bool = False


class Library:
    """Access to a folder, limited to paths below it, and to the models of the Hub's cache.

    All paths that it refuses get the same answer, whether something exists there or not.

    Args:
        root: the folder.
        hub_cache: whether the models of the Hub's cache may be read.

    Raises:
        InputError: it is not a folder.
    """

    def __init__(self, root: str | os.PathLike[str], *, hub_cache: bool = False) -> None:
        self.root = Path(root).resolve()
        self._cache = catalogue.cache_folder().resolve() if hub_cache else None
        if not self.root.is_dir():
            raise InputError(f"{root}: is not a folder")

    def inside(self, text: str) -> Path:
        """Return an existing path below the root, with its symbolic links resolved.

        Raises:
            InputError: the path does not exist, or is outside the root.
        """
        path = self._below(self.root, text)
        if path is None:
            raise _absent(text)
        return path

    def has(self, text: str) -> bool:
        """Whether a path exists below the root."""
        return self._below(self.root, text) is not None

    def output(self, text: str) -> Path:
        """Return a path below the root that may exist, for a command that continues there.

        Raises:
            InputError: the path is not below the root.
        """
        try:
            path = (self.root / text).resolve()
        except (OSError, ValueError, RuntimeError):
            raise _absent(text) from None
        if not path.is_relative_to(self.root):
            raise _absent(text)
        return path

    def readable(self, path: Path, shown: str) -> Path:
        """Return an existing path below the root or a model of the Hub's cache, with its links resolved.

        Args:
            path: the path.
            shown: its name in messages.

        Raises:
            InputError: the path does not exist, or is elsewhere.
        """
        resolved = self._below(self.root, str(path))
        if resolved is None and self._cache is not None:
            resolved = self._below(self._cache, str(path))
            inner = resolved.relative_to(self._cache).parts if resolved else ()
            if not inner or not inner[0].startswith("models--"):
                resolved = None
        if resolved is None:
            raise _absent(shown)
        return resolved

    @staticmethod
    def _below(folder: Path, text: str) -> Path | None:
        try:
            path = (folder / text).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            return None
        return path if path.is_relative_to(folder) else None

    def model(self, text: str) -> Path:
        """Return the path of a model's folder or file; files that it links to are below the root too.

        Raises:
            InputError: the model does not exist, or a part of it is outside the root.
        """
        path = self.inside(text)
        self._check_links(path, text)
        return path

    def _check_links(self, path: Path, shown: str) -> None:
        for home in [path, companions(path)] if path.is_dir() else []:
            self.readable(home, shown)
            for entry in home.iterdir():
                if entry.is_symlink():
                    self.readable(entry, shown)

    def _model_path(self, text: str, revision: str | None) -> Path:
        """Return the path of a model below the root, or of one in the Hub's cache.

        Raises:
            InputError: there is none, or a part of it is elsewhere.
        """
        if revision is None and self._below(self.root, text) is not None:
            return self.model(text)
        folder = catalogue.cached_folder(text, revision) if self._cache is not None else None
        if folder is None:
            raise _absent(text if revision is None else f"{text}@{revision}")
        self._check_links(folder, text)
        return folder

    def new(self, text: str) -> Path:
        """Return a path below the root that does not exist yet.

        Raises:
            RecipeError: the text is not a valid name, or the path is outside the root.
            OutputExistsError: the path exists.
        """
        parts = text.split("/")
        if len(parts) > MOST_DEPTH or not all(_NAME.fullmatch(part) for part in parts):
            raise RecipeError(
                f"{text[:200]!r} cannot be a name here: use letters, digits, and . _ + = -, with / between "
                "folders"
            )
        path = self.root.joinpath(*parts)
        if not path.resolve().is_relative_to(self.root):
            raise RecipeError(f"{text[:200]}: is not below the studio's folder")
        if path.exists() or path.is_symlink():
            raise OutputExistsError(f"{text}: is there already; choose another name")
        return path

    def save(self, name: str, text: str) -> Path:
        """Write a new text file, and return its path; an existing file may have the same text.

        Raises:
            RecipeError, OutputExistsError: see :meth:`new`.
        """
        try:
            path = self.new(name)
        except OutputExistsError:
            existing = self.inside(name)
            if existing.is_file() and existing.read_bytes() == text.encode():
                return existing
            raise
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(text.encode())
        return path

    def located(self, reference: ModelReference) -> ModelReference:
        """Return a reference whose paths are resolved below the root, or in the Hub's cache.

        Raises:
            InputError: the model is in neither.
        """
        adapter = None
        if reference.adapter is not None:
            adapter = str(self._model_path(reference.adapter, reference.adapter_revision))
        return ModelReference(
            reference.text,
            str(self._model_path(reference.path, reference.revision)),
            None,
            adapter,
            None,
            reference.architecture,
        )

    def contents(self) -> Contents:
        """Return everything that a page offers, by a bounded walk that follows no links."""
        found = Contents()
        for count, (folder, names, files) in enumerate(self._walk()):
            listed = sum(map(len, (found.models, found.studies, found.problems, found.recipes)))
            if count >= MOST_FOLDERS or listed > MOST_FOUND:
                found.cut_off = True
                break
            shown = folder.relative_to(self.root).as_posix()
            if _is_model(folder, files):
                found.models.append(shown)
                if manifest.NAME in files:
                    found.merged.append(shown)
                names[:] = [name for name in names if name == "actor"]
            elif "adapter_config.json" in files:
                found.adapters.append(shown)
            if JSON_NAME in files or PARTIAL_NAME in files:
                found.studies.append(shown)
            for file in files:
                place = file if shown == "." else f"{shown}/{file}"
                if file.endswith(".gguf"):
                    found.models.append(place)
                elif file.endswith(".jsonl") and JSON_NAME not in files and "samples" not in shown:
                    found.problems.append(place)
                elif file.endswith((".yml", ".yaml")):
                    found.recipes.append(place)
                    if _is_evaluated_sweep(folder / file):
                        found.sweeps.append(place)
        if self._cache is not None:
            for model in catalogue.cached_models():
                (found.cached_adapters if model.adapter else found.cached).append(model.name)
        return found

    def _walk(self) -> Iterator[tuple[Path, list[str], list[str]]]:
        for home, names, files in os.walk(self.root):
            folder = Path(home)
            depth = len(folder.relative_to(self.root).parts)
            names[:] = sorted(
                name
                for name in names
                if not name.startswith((".", "__"))
                and not name.endswith(".partial")
                and name.isprintable()
            )
            if depth >= MOST_DEPTH:
                names.clear()
            yield folder, names, sorted(file for file in files if file.isprintable())


def _is_evaluated_sweep(path: Path) -> bool:
    """Whether a file looks like an evaluated sweep, without reading it as YAML."""
    if path.is_symlink():
        return False
    with suppress(OSError), path.open("rb") as file:
        lines = file.read(MOST_TEXT).splitlines()
        return {b"sweep", b"evaluate"} <= {line.partition(b":")[0] for line in lines}
    return False


def _absent(text: str) -> InputError:
    """Return the one answer for all paths that are not the studio's."""
    return InputError(f"{text[:200]}: is not below the studio's folder")


def _is_model(folder: Path, files: list[str]) -> bool:
    if "config.json" in files and any(_WEIGHTS.fullmatch(file) for file in files):
        return True
    shards = any(file.endswith(".pt") for file in files) or ".metadata" in files
    return shards and holds_shards(folder) and (companions(folder) / "config.json").is_file()
