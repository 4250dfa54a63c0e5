"""Find local paths in a model folder's text files, and replace them with public names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merganser.errors import InputError, reraise_os_errors
from merganser.recipe import ParsedRecipe
from merganser.release import manifest, public_names

LOOKED_AT = (".md", ".yml", ".yaml", ".json", ".csv", ".jsonl", ".txt")
"""Suffixes of files that may contain paths; weights and vocabularies are not searched."""

SKIPPED = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")

MOST_BYTES = 64 * 2**20

_HOMES = frozenset(
    {"home", "root", "Users", "mnt", "data", "tmp", "scratch", "workspace", "work", "opt", "srv"}
    | {"media", "var", "private", "Volumes", "lustre", "gpfs", "nfs", "fsx", "shared", "net"}
)
"""Top-level folders that mark a text as an absolute path; so do those that exist on this machine."""

_ABSOLUTE = re.compile(
    r"(?<![\w/:.>)\]-])(?:~|/(?P<top>[\w.-]+)|[A-Za-z]:\\\\?[\w.-]+)(?:[/\\]+[\w.@+=-]+)+"
)


@dataclass(frozen=True, slots=True)
class Disclosed:
    """A local path in a file."""

    file: str
    path: str


def local_paths(
    files: Mapping[str, Path | bytes], made: Mapping[str, Any] | None = None
) -> list[Disclosed]:
    """Find the local paths in a model's text files: absolute paths, and paths of the merge's inputs.

    Args:
        files: local files or contents by name.
        made: the merge's manifest, or None.
    """
    named = public_names.public_names(made) if made else {}
    inputs = sorted((r for r, name in named.items() if r != name and "/" in r), key=len)
    disclosed: dict[Disclosed, None] = {}
    for name, content in files.items():
        if not name.endswith(LOOKED_AT) or Path(name).name in SKIPPED:
            continue
        text = _text(content)
        mentioned = [path for path in inputs if _mentioned(path, text)]
        paths = [*mentioned, *_absolute(text)]
        disclosed |= dict.fromkeys(Disclosed(name, path) for path in paths)
    return list(disclosed)


def made_public(
    files: Mapping[str, Path | bytes], made: Mapping[str, Any], recipes: Sequence[ParsedRecipe]
) -> dict[str, bytes]:
    """Rewrite manifest, recipe and config with public names for models and without local folders.

    Args:
        files: the folder's files by name.
        made: the manifest.
        recipes: the documents of the recipe file.

    Returns:
        The contents of the files that change, by name.
    """
    named = public_names.public_names(made)
    texts = [public_names.recipe_made_public(each, named) for each in recipes]
    changed = {
        manifest.NAME: manifest.as_text(public_names.made_public(made)),
        manifest.RECIPE: "---\n".join(texts),
    }
    if "config.json" in files:
        config = json.loads(_text(files["config.json"]))
        if isinstance(config, dict) and "_name_or_path" in config:
            del config["_name_or_path"]
            changed["config.json"] = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    return {name: text.encode() for name, text in changed.items() if name in files}


def _text(content: Path | bytes) -> str:
    if isinstance(content, Path):
        with reraise_os_errors(InputError, "read", content):
            if content.stat().st_size > MOST_BYTES:
                return ""
            content = content.read_bytes()
    return content.decode("utf-8", errors="replace")


def _mentioned(path: str, text: str) -> bool:
    """Whether a text contains a path that is not part of a longer word."""
    return re.search(rf"(?<![\w./-]){re.escape(path)}(?![\w/-])", text) is not None


def _absolute(text: str) -> Iterator[str]:
    for match in _ABSOLUTE.finditer(text):
        top = match["top"]
        if top is None or top in _HOMES or Path("/", top).is_dir():
            yield match[0].rstrip(".")
