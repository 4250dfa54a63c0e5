"""Fill the prose of Markdown pages to 100 columns; tables, code, headings and comments stay.

python docs/reflow.py FILE ...            rewrite
python docs/reflow.py --check FILE ...    only say which pages would change
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

COLUMNS = 100
ITEM = re.compile(r"(\s*)([-*]|\d+\.) +")
CLOSED = re.compile(r"\s*(\||#|<!--|!\[|:::|---)")
"""Lines that stay as they are: tables, headings, comments, pictures, directives, rules."""
TOGETHER = re.compile(r"`[^`]*`|\[[^\]]*\]\([^)]*\)|\d %|\S+ (?:[-+*>#|]|\d+[.)])(?= )")
"""What no line break may go through: code, links, percentages, and what would begin a list."""


def reflow(text: str) -> str:
    """The page with its prose filled."""
    return "\n".join(lines(text.split("\n")))


def lines(old: list[str]) -> Iterator[str]:
    """The page's new lines."""
    paragraph: list[str] = []
    fence = front = False
    for number, line in enumerate([*old, ""]):
        front = (number == 0 and line == "---") or (front and line != "---")
        if line.lstrip().startswith("```"):
            fence = not fence
            yield from fill(paragraph)
            paragraph = []
        elif not (fence or front or not line.strip() or CLOSED.match(line) or ITEM.match(line)):
            paragraph.append(line)
            continue
        else:
            yield from fill(paragraph)
            paragraph = []
            if ITEM.match(line) and not (fence or front):
                paragraph = [line]
                continue
        if number < len(old):
            yield line


def fill(paragraph: list[str]) -> Iterator[str]:
    """One paragraph or list item, filled."""
    if not paragraph:
        return
    text = " ".join(line.strip() for line in paragraph)
    indent = paragraph[0][: len(paragraph[0]) - len(paragraph[0].lstrip())]
    item = ITEM.match(paragraph[0])
    hanging = " " * (item.end() if item else len(indent))
    joined = TOGETHER.sub(lambda match: match[0].replace(" ", "\x00"), text)
    filled = textwrap.fill(
        joined,
        COLUMNS,
        initial_indent=indent,
        subsequent_indent=hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )
    yield from filled.replace("\x00", " ").split("\n")


def main() -> None:
    """Rewrite, or check."""
    check = "--check" in sys.argv
    changed = []
    for path in map(Path, sys.argv[1:]):
        if str(path) != "--check":
            text = path.read_text(encoding="utf-8")
            if (new := reflow(text)) != text:
                changed.append(str(path))
                if not check:
                    path.write_text(new, encoding="utf-8")
    if check and changed:
        sys.exit(f"not filled to {COLUMNS} columns: {', '.join(changed)}; run: make docs")


if __name__ == "__main__":
    main()
