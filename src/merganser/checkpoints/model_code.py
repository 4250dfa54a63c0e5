"""Find the Python files that a model needs to load. They are read, never run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merganser.checkpoints.sentence_transformers import MODULES, module_classes
from merganser.checkpoints.sidecar_files import read_json, read_text

CUSTOM_GENERATE = "custom_generate"
"""The folder of a model's custom generation loop, as transformers names it."""

_MODULE = re.compile(r"\w[\w-]*", re.ASCII)

_IMPORT = re.compile(r"^\s*(?:from\s+\.(\w+)\s+import|import\s+\.(\w+)\s*$)", re.MULTILINE)
"""The imports of neighbouring files that transformers follows."""


@dataclass(frozen=True, slots=True)
class ModelCode:
    """The Python files that a model's configs name.

    Attributes:
        files: files in the folder, with the neighbouring files that they import.
        missing: pairs of a missing file's name and the file that names it.
    """

    files: tuple[Path, ...]
    missing: tuple[tuple[str, str], ...]


def find(folder: Path, *configs: str) -> ModelCode:
    """Find the code that a folder's configs name in ``auto_map`` and ``custom_pipelines``.

    If ``configs`` contains ``config.json``, the result includes the code of sentence-transformers modules.
    It excludes code in another repository (``org/name--module.Class``).

    Raises:
        InputError: when a config or a code file cannot be read.
    """
    to_read = [
        (module, name)
        for name in configs
        if (folder / name).is_file()
        for module in _modules(read_json(folder / name))
    ]
    if "config.json" in configs:  # the class of a module may also belong to an installed package
        own_modules = {
            kind.partition(".")[0] for kind in module_classes(folder) if kind.count(".") == 1
        }
        own_modules = {module for module in own_modules if _MODULE.fullmatch(module)}
        to_read += [
            (each, MODULES) for each in sorted(own_modules) if (folder / f"{each}.py").is_file()
        ]
    files: dict[Path, None] = {}
    missing: dict[tuple[str, str], None] = {}
    while to_read:
        module, user = to_read.pop(0)
        file = folder / f"{module}.py"
        if file in files:
            continue
        if not file.is_file():
            missing[file.name, user] = None
            continue
        files[file] = None
        imported = {first or second for first, second in _IMPORT.findall(read_text(file))}
        to_read += [(each, file.name) for each in sorted(imported)]
    if "config.json" in configs:
        home = folder / CUSTOM_GENERATE
        custom = [*sorted(home.glob("*.py")), home / "requirements.txt"]
        files |= dict.fromkeys(file for file in custom if file.is_file())
    return ModelCode(tuple(files), tuple(missing))


def _modules(config: dict[str, Any]) -> Iterator[str]:
    """The modules in a config's references to classes, as ``module.Class``."""
    by_class = config.get("auto_map")
    references = [*by_class.values()] if isinstance(by_class, dict) else [by_class]
    pipelines = config.get("custom_pipelines")
    for pipeline in pipelines.values() if isinstance(pipelines, dict) else ():
        references.append(pipeline.get("impl") if isinstance(pipeline, dict) else None)
    for reference in references:
        for each in reference if isinstance(reference, list) else [reference]:
            if isinstance(each, str) and "--" not in each:
                module, dot, _ = each.partition(".")
                if dot and _MODULE.fullmatch(module):
                    yield module
