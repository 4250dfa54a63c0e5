"""Short names of a study's models and points, for figures and tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

LONGEST = 28

POINTS = 40
"""Characters of a point's name in a table."""

SHORT = 12
"""Length up to which names stay unchanged."""


def shorten(names: Sequence[str], longest: int = LONGEST) -> list[str]:
    """Shortened names: without their common beginning and end, and without the middle of long ones.

    ``["accfmt_LR2e-6", "acc_LR2e-6"]`` gives ``["accfmt", "acc"]``.
    """
    parts = [re.split(r"([_/]+)", " ".join(name.split())) for name in names]
    if len(set(names)) > 1 and max(map(len, names)) > SHORT:
        while all(len(part) > 2 for part in parts) and len({tuple(p[:2]) for p in parts}) == 1:
            parts = [part[2:] for part in parts]
        while all(len(part) > 2 for part in parts) and len({tuple(p[-2:]) for p in parts}) == 1:
            parts = [part[:-2] for part in parts]
    return [_cut("".join(part), longest) for part in parts]


def matching(names: Sequence[str], wanted: str) -> list[str]:
    """The names that a short name can mean: an equal one, else those whose short name or a part equals it.

    A part begins and ends at an underscore or a slash, and may contain ``…`` for omitted characters.
    """
    if wanted in names:
        return [wanted]
    short = zip(names, shorten(names, POINTS), strict=True)
    if exact := [name for name, short_name in short if short_name == wanted]:
        return exact
    part = ".*".join(map(re.escape, wanted.split("…")))
    return [name for name in names if wanted and re.search(rf"(^|[_/]){part}($|[_/])", name)]


def _cut(name: str, longest: int) -> str:
    if len(name) <= longest:
        return name
    half = (longest - 1) // 2
    return f"{name[: longest - 1 - half]}…{name[-half:]}"
