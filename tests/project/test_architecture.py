"""The shape of the source: no circles, no long files, one thing for a name."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import merganser

ROOT = Path(merganser.__file__).parent

LONGEST = 500
"""Most lines of a file of the source."""

UNIQUE = ("Layers", "Model", "Part", "Path", "Place")
"""Names that several classes or types of the source once had."""


@functools.cache
def modules() -> dict[str, ast.Module]:
    """All modules of the package, by their names."""
    found = {}
    for file in ROOT.rglob("*.py"):
        parts = ["merganser", *file.relative_to(ROOT).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(file.read_text(encoding="utf-8"))
    return found


def imports(tree: ast.AST) -> Iterator[str]:
    """The names that code imports, in functions too, but not for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
            case ast.Import(names=names):
                yield from (each.name for each in names)
            case ast.ImportFrom(module=str(module), names=names):
                yield from (f"{module}.{each.name}" for each in names)
        yield from imports(node)


def arrows(known: dict[str, ast.Module]) -> dict[str, set[str]]:
    """The modules that each module imports."""
    found: dict[str, set[str]] = {}
    for name, tree in known.items():
        wanted = set(imports(tree))
        targets = {each if each in known else each.rpartition(".")[0] for each in wanted}
        found[name] = targets & known.keys() - {name}
    return found


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(arrows(modules())).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_no_file_is_long() -> None:
    kinds = (".py", ".cpp", ".hpp")
    files = [file for file in ROOT.rglob("*") if file.suffix in kinds]
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert {str(file.relative_to(ROOT)): n for file, n in lengths.items() if n > LONGEST} == {}


@pytest.mark.parametrize("name", UNIQUE)
def test_a_name_means_one_thing(name: str) -> None:
    places = []
    for module, tree in modules().items():
        for node in tree.body:
            defined = {
                target.id
                for target in (node.targets if isinstance(node, ast.Assign) else ())
                if isinstance(target, ast.Name)
            }
            if isinstance(node, ast.ClassDef):
                defined.add(node.name.removeprefix("_"))
            if name in defined:
                places.append(f"{module}:{node.lineno}")
    assert len(places) <= (0 if name == "Path" else 1), places
