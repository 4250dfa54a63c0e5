"""References to models in recipes: ``path@revision+adapter@revision``."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merganser.errors import InputError


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A reference to a model.

    Attributes:
        text: the reference in the recipe.
        path: folder or Hub id of the model.
        revision: branch, tag or commit on the Hub, or None.
        adapter: folder or Hub id of a LoRA adapter to apply, or None.
        adapter_revision: the adapter's revision, or None.
        architecture: replaces ``architectures`` in the model's config, unless None.
    """

    text: str
    path: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None
    architecture: str | None = None

    def __str__(self) -> str:
        return self.text

    @property
    def name(self) -> str:
        """A short name: ``acc`` for ``runs/acc/global_step_54/actor/huggingface``."""
        parts = [part for part in Path(self.path).parts if part not in ("/", "..", ".")]
        while len(parts) > 1 and (
            parts[-1] in ("huggingface", "actor")
            or parts[-1].startswith(("global_step_", "checkpoint-"))
        ):
            parts.pop()
        name = parts[-1] if parts else self.path
        return f"{name}+{Path(self.adapter).name}" if self.adapter else name


def parse_reference(value: object) -> ModelReference:
    """Parse a reference: a string, or MergeKit's mapping.

    If the string is the path of an existing folder, ``@`` and ``+`` in it are part of the path.

    Raises:
        ValueError: when it is neither, or has more than one ``+``, or ``@`` in one part.
    """
    if isinstance(value, ModelReference):
        return value
    if isinstance(value, str):
        return _from_text(value)
    if isinstance(value, Mapping):
        return _from_mapping(value)
    raise ValueError(f"a model must be a string, not {value!r}")


_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""Errors of a path that does not exist."""


def exists(path: str) -> bool:
    """Whether a path exists; False for texts that are not valid paths.

    Raises:
        InputError: when the system cannot say; the path is then not tried on the Hub.
    """
    try:
        Path(path).expanduser().stat()  # from Python 3.14 on Path.exists() says no to any error
        return True
    except (RuntimeError, ValueError):  # an unknown home, a NUL
        return False
    except OSError as error:
        if error.errno in _NOWHERE:
            return False
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _from_text(text: str) -> ModelReference:
    _check_text(text)
    if ("@" in text or "+" in text) and exists(text):
        return ModelReference(text, text)
    parts = text.split("+")
    if len(parts) > 2:
        raise ValueError(f"{text!r} has more than one '+': a model takes one adapter")
    path, revision = _split_revision(parts[0])
    adapter, adapter_revision = _split_revision(parts[1]) if len(parts) == 2 else (None, None)
    return ModelReference(text, path, revision, adapter, adapter_revision)


def _check_text(text: object) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"a model must be a string that is not empty, not {text!r}")
    if any(ord(character) < 32 for character in text):
        raise ValueError(f"a model reference holds a control character: {text!r}")
    return text


def _split_revision(text: str) -> tuple[str, str | None]:
    path, *revision = text.split("@")
    if len(revision) > 1:
        raise ValueError(f"{text!r} has more than one '@': a model takes one revision")
    if not path or revision == [""]:
        raise ValueError(f"{text!r} is not a model reference")
    return path, revision[0] if revision else None


def _from_mapping(value: Mapping[str, Any]) -> ModelReference:
    unknown = set(value) - {"model", "lora", "override_architecture"}
    if unknown or "model" not in value:
        raise ValueError(
            "a model written as a mapping has the keys model, lora, override_architecture"
        )

    def part(entry: object) -> tuple[str, str | None]:
        if isinstance(entry, str):
            return _split_revision(_check_text(entry))
        if isinstance(entry, Mapping) and set(entry) <= {"path", "revision"}:
            revision = entry.get("revision")
            return _check_text(entry.get("path")), None if revision is None else _check_text(
                revision
            )
        raise ValueError(
            f"{entry!r} is not a model path; write a string, or {{path: …, revision: …}}"
        )

    path, revision = part(value["model"])
    adapter, adapter_revision = part(value["lora"]) if value.get("lora") else (None, None)
    text = path + (f"@{revision}" if revision else "")
    if adapter:
        text += f"+{adapter}" + (f"@{adapter_revision}" if adapter_revision else "")
    architecture = value.get("override_architecture")
    if architecture is not None:
        _check_text(architecture)
    return ModelReference(text, path, revision, adapter, adapter_revision, architecture)
