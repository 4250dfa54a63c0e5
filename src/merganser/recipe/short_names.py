"""Names of a study's models and points, short enough for a picture."""

from __future__ import annotations

import re
from collections.abc import Sequence

LONGEST = 28

POINTS = 40
"""Characters of a point's name in a table."""

SHORT = 12
"""Length up to which names stay unchanged."""


def shorten(names: Sequence[str], longest: int = LONGEST) -> list[str]:
    """Names without what they all begin and end with, and the rest without its middle.

    ``["accfmt_LR2e-6", "acc_LR2e-6"]`` gives ``["accfmt", "acc"]``.
    """
    parts = [re.split(r"([_/]+)", " ".join(name.split())) for name in names]
    if len(set(names)) > 1 and max(map(len, names)) > SHORT:
        while all(len(each) > 2 for each in parts) and len({tuple(p[:2]) for p in parts}) == 1:
            parts = [each[2:] for each in parts]
        while all(len(each) > 2 for each in parts) and len({tuple(p[-2:]) for p in parts}) == 1:
            parts = [each[:-2] for each in parts]
    return [_cut("".join(each), longest) for each in parts]


def matching(names: Sequence[str], wanted: str) -> list[str]:
    """The names that a short one stands for: itself, else those that :func:`shorten` or a part of them gives.

    A part begins and ends where an underscore or a slash is, and may have ``…`` for what was cut.
    """
    if wanted in names:
        return [wanted]
    short = zip(names, shorten(names, POINTS), strict=True)
    if exact := [name for name, each in short if each == wanted]:
        return exact
    part = ".*".join(map(re.escape, wanted.split("…")))
    return [name for name in names if wanted and re.search(rf"(^|[_/]){part}($|[_/])", name)]


def _cut(name: str, longest: int) -> str:
    if len(name) <= longest:
        return name
    half = (longest - 1) // 2
    return f"{name[: longest - 1 - half]}…{name[-half:]}"
