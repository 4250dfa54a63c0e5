"""Blocks of code on pages of the documentation."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def blocks(text: str, language: str) -> list[str]:
    """The contents of a page's fenced blocks of one language."""
    parts = re.split(r"^```(\w*)\n", text, flags=re.MULTILINE)[1:]  # fence, content, fence, text …
    fences, contents = parts[0::2], parts[1::2]
    opening = range(0, len(fences), 2)
    return [contents[i] for i in opening if fences[i] == language]


def page(name: str, language: str) -> list[str]:
    """The blocks of a page in docs."""
    return blocks((DOCS / name).read_text(), language)
