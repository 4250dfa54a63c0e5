"""The folder of a studio; nothing outside it is read or written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from merganser.checkpoints.training.run_folders import companions, holds_shards
from merganser.errors import InputError, OutputExistsError, RecipeError
from merganser.recipe.references import ModelReference
from merganser.results.scores import JSON_NAME

MOST_FOLDERS = 20_000
MOST_FOUND = 2_000
MOST_DEPTH = 8

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=-]{0,99}")
_WEIGHTS = re.compile(r"(?!adapter_|training_args).*\.(safetensors|gguf)|pytorch_model.*\.bin")


@dataclass
class Contents:
    """The contents of a library, as paths relative to its root.

    Attributes:
        models, adapters, studies, problems, recipes: paths, sorted by name.
        cut_off: whether the lists are incomplete because the folder has too many entries.
    """

    models: list[str] = field(default_factory=list)
    adapters: list[str] = field(default_factory=list)
    studies: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    recipes: list[str] = field(default_factory=list)
    cut_off: bool = False


class Library:
    """Access to a folder, limited to paths below it.

    Args:
        root: the folder.

    Raises:
        InputError: it is not a folder.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).resolve()
        if not self.root.is_dir():
            raise InputError(f"{root}: is not a folder")

    def inside(self, text: str) -> Path:
        """Return an existing path below the root, with its symbolic links resolved.

        Raises:
            InputError: the path does not exist, or is outside the root.
        """
        try:
            path = (self.root / text).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            raise InputError(f"{text[:200]}: does not exist below {self.root.name}") from None
        if not path.is_relative_to(self.root):
            raise InputError(f"{text[:200]}: is outside of the studio's folder")
        return path

    def model(self, text: str) -> Path:
        """Return the path of a model's folder or file; files that it links to are below the root too.

        Raises:
            InputError: the model does not exist, or a part of it is outside the root.
        """
        path = self.inside(text)
        homes = [path, companions(path)] if path.is_dir() else []
        for home in homes:
            self.inside(str(home))
            for entry in home.iterdir():
                if entry.is_symlink():
                    self.inside(str(entry))
        return path

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
            raise RecipeError(f"{text[:200]}: is outside of the studio's folder")
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
        """Return a reference whose paths are resolved below the root.

        Raises:
            InputError: the model is outside the root, or on the Hub.
        """
        if reference.revision is not None or reference.adapter_revision is not None:
            raise InputError(f"{reference.text}: the studio reads no models from the Hub")
        adapter = None if reference.adapter is None else str(self.model(reference.adapter))
        return ModelReference(
            reference.text,
            str(self.model(reference.path)),
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
                names[:] = [name for name in names if name == "actor"]
            elif "adapter_config.json" in files:
                found.adapters.append(shown)
            if JSON_NAME in files:
                found.studies.append(shown)
            for file in files:
                place = file if shown == "." else f"{shown}/{file}"
                if file.endswith(".gguf"):
                    found.models.append(place)
                elif file.endswith(".jsonl") and JSON_NAME not in files and "samples" not in shown:
                    found.problems.append(place)
                elif file.endswith((".yml", ".yaml")):
                    found.recipes.append(place)
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


def _is_model(folder: Path, files: list[str]) -> bool:
    if "config.json" in files and any(_WEIGHTS.fullmatch(file) for file in files):
        return True
    shards = any(file.endswith(".pt") for file in files) or ".metadata" in files
    return shards and holds_shards(folder) and (companions(folder) / "config.json").is_file()
