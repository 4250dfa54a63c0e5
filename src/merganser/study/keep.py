"""The ``keep:`` rule of an evaluated sweep, which selects the points to write."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence

from merganser import extras, suggestions
from merganser.errors import RecipeError
from merganser.evaluation.statistics import Direction
from merganser.recipe import Document
from merganser.results.scores import Entry

Rule = Callable[[Sequence[Entry]], dict[str, str]]
"""Returns the names of the selected points, with the reason for each."""

_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_BEST = re.compile(r"(max|min|best)[:\s]\s*(\S+)(?:\s+with\s+(.+))?")
_CONDITION = re.compile(r"(\S+?)\s*(>=|<=|>|<)\s*(\S+)")


def parse_rule(
    keep: str | Mapping[str, str | list[str]],
    directions: Mapping[str, Direction],
    document: Document,
) -> Rule:
    """Return the rule that selects the points to write.

    Args:
        keep: ``all``, ``none``, ``front`` (with all scores, or ``{front: [accuracy, format]}``),
            ``best: accuracy``, or ``max accuracy with format >= 0.95 and tokens < 500``.
        directions: the study's scores.
        document: gives errors their file and line.

    Raises:
        RecipeError: the rule has another form, or names an unknown score.
    """

    def error(message: str) -> RecipeError:
        return document.error(f"evaluate.keep: {message}", ("evaluate", "keep"))

    def known(name: str) -> str:
        if name not in directions:
            raise error(f"there is no score {name!r}; {suggestions.suggest(name, directions)}")
        return name

    if not isinstance(keep, str):
        if len(keep) != 1 or next(iter(keep)) not in ("best", "front"):
            raise error("must be {best: SCORE} or {front: [SCORE, SCORE]}")
        [(word, value)] = keep.items()
        names = [value] if isinstance(value, str) else list(value)
        if word == "front":
            chosen = {known(name): directions[name] for name in names}
            return _front(chosen, f"front of {', '.join(chosen)}")
        if not isinstance(value, str):
            raise error("best takes one score")
        keep = f"best: {value}"
    text = " ".join(keep.split())
    if text == "all":
        return lambda entries: {e.name: text for e in entries if e.role == "point"}
    if text == "none":
        return lambda entries: {}
    if text == "front":
        return _front(directions, text)
    match = _BEST.fullmatch(text)
    if match is None:
        raise error(
            f"{text!r} is not a rule; write all, none, front, best: SCORE, or max SCORE with SCORE >= NUMBER"
        )
    way, score, wished = match.groups()
    known(score)
    way = directions[score] if way == "best" else way
    conditions = []
    for part in wished.split(" and ") if wished else ():
        condition = _CONDITION.fullmatch(part.strip())
        try:
            assert condition is not None
            limit = float(condition[3])
        except (AssertionError, ValueError):
            raise error(f"{part!r} is not a condition like format >= 0.95") from None
        conditions.append((known(condition[1]), _COMPARISONS[condition[2]], limit))
    return _best(score, way, conditions, text)


def _front(directions: Mapping[str, Direction], reason: str) -> Rule:
    extras.check("moocore", "plot")

    def rule(entries: Sequence[Entry]) -> dict[str, str]:
        from merganser.results import front  # numpy, which parsing a rule does not need

        non_dominated = front.non_dominated(entries, directions)
        return {entry.name: reason for entry in non_dominated if entry.role == "point"}

    return rule


def _best(
    score: str,
    way: str,
    conditions: Sequence[tuple[str, Callable[[float, float], bool], float]],
    reason: str,
) -> Rule:
    def rule(entries: Sequence[Entry]) -> dict[str, str]:
        allowed = [
            entry
            for entry in entries
            if entry.role == "point"
            and all(holds(entry.scores[name].mean, limit) for name, holds, limit in conditions)
        ]
        if not allowed:
            return {}
        most = max if way == "max" else min
        best = most(allowed, key=lambda entry: entry.scores[score].mean)
        return {best.name: reason}

    return rule
