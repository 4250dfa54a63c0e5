"""Suggestions for names that are not known."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

MOST_NAMES = 10_000
"""Most entries of a folder that are compared with a name."""


def nearest(word: str, known: Iterable[str], cutoff: float = 0.8) -> str | None:
    """The known name that ``word`` is evidently a slip for, or None."""
    import difflib  # loaded for mistakes alone

    folded = {name.lower().replace("-", "_"): name for name in known}
    asked = word.lower().replace("-", "_")
    # Letters that changed places are the slip that is nearest: ``modles`` is ``models``, not ``modules``.
    swapped = [name for name in folded if len(word) > 3 and sorted(name) == sorted(asked)]
    matches = swapped[:1] or difflib.get_close_matches(asked, folded, n=1, cutoff=cutoff)
    return folded[matches[0]] if matches else None


def suggest(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: ``did you mean 'x'?``, or the list of valid names."""
    known = list(known)
    slip = nearest(word, known, cutoff=0.6)
    return f"did you mean {slip!r}?" if slip else f"there are {', '.join(known) or 'none'}"


def nearest_in(folder: Path, name: str) -> str | None:
    """The entry of a folder that ``name`` is evidently a slip for, or None."""
    try:
        entries = [entry.name for entry in islice(folder.iterdir(), MOST_NAMES)]
    except OSError:
        return None
    return nearest(name, [each for each in entries if not each.startswith(".")], cutoff=0.65)
