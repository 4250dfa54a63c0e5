"""Draw ``docs/architecture.svg``, the rooms of Merganser, from the imports in its source.

Rooms stand in the order of the floors that import-linter checks (``pyproject.toml``), each with the
first sentence of its docstring. An arc leads from a room to one that it imports. Arcs that follow
from others are left out: where A imports B and B imports C, there is none from A to C.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "merganser"
TARGET = ROOT / "docs" / "architecture.svg"

ROW, TOP, LEFT, WIDTH, GAP = 24, 14, 232, 930, 7
LONGEST = 78
"""Characters of a purpose that fit."""

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #57606a }
.card { fill: #f6f8fa; stroke: #d0d7de }
.room { font-weight: 600; fill: #1f2328 }
.floor { stroke: #d8dee4 }
.arc { fill: none; stroke: #0b7285; stroke-opacity: .55; stroke-width: 1.3 }
.dot { fill: #0b7285 }
@media (prefers-color-scheme: dark) {
  text { fill: #9198a1 }
  .card { fill: #151b23; stroke: #3d444d }
  .room { fill: #f0f6fc }
  .floor { stroke: #2a313c }
  .arc { stroke: #3bc9db }
  .dot { fill: #3bc9db }
}
"""


def floors() -> list[list[str]]:
    """The rooms of each floor, from the top, as the contract of import-linter lists them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = next(c for c in settings["tool"]["importlinter"]["contracts"] if "layers" in c)
    return [
        [room.strip().removeprefix("merganser.") for room in floor.split("|")]
        for floor in contract["layers"]
    ]


def modules(room: str) -> Iterator[Path]:
    """The source files of a room, its ``__init__`` first."""
    folder = SOURCE / room
    yield from sorted(folder.rglob("*.py")) if folder.is_dir() else [SOURCE / f"{room}.py"]


def purpose(room: str) -> str:
    """The first sentence of a room's docstring."""
    text = ast.get_docstring(ast.parse(next(modules(room)).read_text(encoding="utf-8"))) or ""
    sentence = text.split("\n\n")[0].replace("\n", " ").replace("``", "").split(". ")[0].rstrip(".")
    return sentence if len(sentence) <= LONGEST else sentence[:LONGEST].rsplit(" ", 1)[0] + " …"


def imports(room: str, rooms: set[str]) -> set[str]:
    """The other rooms that a room imports, anywhere in its code."""
    names: set[str] = set()
    for file in modules(room):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module == "merganser":
                names |= {f"merganser.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
    parts = [name.split(".") for name in names]
    return {p[1] for p in parts if p[0] == "merganser" and len(p) > 1 and p[1] in rooms} - {room}


def reduced(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The graph without the edges that follow from longer ways. It must have no circles."""

    @cache
    def below(room: str) -> frozenset[str]:
        return frozenset(graph[room]).union(*(below(other) for other in graph[room]))

    return {
        room: {o for o in others if not any(o in below(between) for between in others - {o})}
        for room, others in graph.items()
    }


def draw() -> str:
    """The picture as SVG."""
    heights: dict[str, float] = {}
    purposes = LEFT + 20 + 8 * max(len(room) for floor in floors() for room in floor)
    lines: list[str] = []
    y = float(TOP)
    for i, floor in enumerate(floors()):
        if i:
            lines.append(f'<path class="floor" d="M{LEFT} {y + GAP / 2:g}H{WIDTH - 16}"/>')
            y += GAP
        for room in floor:
            heights[room] = y + ROW / 2
            lines.append(
                f'<text class="room" x="{LEFT}" y="{y + 16:g}">{room}</text>'
                f'<text x="{purposes}" y="{y + 16:g}">{escape(purpose(room))}</text>'
            )
            y += ROW
    graph = reduced({room: imports(room, set(heights)) for room in heights})
    start = LEFT - 14
    arcs, dots = [], []
    for room, upper in heights.items():
        dots.append(f'<circle class="dot" cx="{start}" cy="{upper:g}" r="3"/>')
        for other in sorted(graph[room], key=heights.__getitem__):
            radius = (heights[other] - upper) / 2
            if radius < 0:
                raise ValueError(f"{room} imports {other}, which is on a higher floor")
            bow = min(start - 16, 12 + 0.72 * radius)
            arcs.append(
                f'<path class="arc" d="M{start} {upper:g}A{bow:g} {radius:g} 0 0 0 '
                f'{start} {heights[other]:g}"/>'
            )
    height = y + TOP
    size = f'width="{WIDTH}" height="{height:g}" viewBox="0 0 {WIDTH} {height:g}"'
    card = f'<rect class="card" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1:g}" rx="8"/>'
    title = "<title>The rooms of Merganser, floor by floor, and what each imports</title>"
    body = "\n".join([f"<style>{STYLE}</style>", title, card, *arcs, *dots, *lines])
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}>\n{body}\n</svg>\n'


if __name__ == "__main__":
    TARGET.write_text(draw(), encoding="utf-8")
