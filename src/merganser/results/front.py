"""The trade-off between several scores: Pareto front, hypervolume, knee, and their uncertainty.

"Better" means more or less of a score, according to the results' directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from merganser import extras
from merganser.results.scores import Direction, Entry

Array = np.ndarray[Any, np.dtype[Any]]
Directions = Mapping[str, Direction]

PerProblem = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Score of each problem, by entry, score and problem name."""

MARGIN = 0.1
"""Distance of the reference point beyond each score's worst value, as a share of the score's range."""

DRAWS = 2000
"""Number of bootstrap resamples of the problems."""


def scored(entries: Sequence[Entry], directions: Directions) -> list[Entry]:
    """Return the entries that have all scores."""
    return [entry for entry in entries if all(name in entry.scores for name in directions)]


def table(entries: Sequence[Entry], directions: Directions) -> Array:
    """Return the scores' means, float64 [entries, scores]."""
    rows = [[entry.scores[name].mean for name in directions] for entry in entries]
    return np.array(rows, np.float64).reshape(len(entries), len(directions))


def non_dominated(entries: Sequence[Entry], directions: Directions) -> list[Entry]:
    """Return the Pareto front: the entries that no other entry dominates.

    Args:
        entries: the models; those that lack a score are ignored; ties all stay on the front.
        directions: the scores to compare, and whether more or less of each is better.

    Raises:
        MerganserError: moocore is not installed.
    """
    complete = scored(entries, directions)
    if not complete or not directions:
        return complete
    mask = extras.load("moocore", "plot").is_nondominated(
        table(complete, directions), maximise=_maximise(directions), keep_weakly=True
    )
    return [entry for entry, on_front in zip(complete, mask, strict=True) if on_front]


def _maximise(directions: Directions) -> list[bool]:
    return [direction == "max" for direction in directions.values()]


def _signs(directions: Directions) -> Array:
    """Return factors, 1 or -1, after which more of every score is better, float64 [scores]."""
    return np.array([1.0 if maximise else -1.0 for maximise in _maximise(directions)])


# -- hypervolume ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hypervolume:
    """The volume of score space that some models dominate; comparable only within the same frame.

    Attributes:
        value: the volume of all models. Scores are scaled so that the worst of the frame is 0 and the best 1,
            so that the value is between 0 and ``(1 + margin) ** scores``.
        contributions: by name, the volume lost without the model; 0 for dominated models and duplicates.
        worst, best: the values of each score that are scaled to 0 and 1.
        reference: the reference point, in the scores' units.
        margin: distance of the reference point beyond the worst, as a share of the range.
    """

    value: float
    contributions: Mapping[str, float]
    worst: Mapping[str, float]
    best: Mapping[str, float]
    reference: Mapping[str, float]
    margin: float


def hypervolume(
    entries: Sequence[Entry],
    directions: Directions,
    *,
    frame: Sequence[Entry] | None = None,
    margin: float = MARGIN,
) -> Hypervolume:
    """Return the hypervolume of some models (Zitzler and Thiele 1998), scaled to a frame.

    Args:
        entries: the models; those that lack a score are ignored.
        directions: the scores to compare.
        frame: models whose worst and best scores become 0 and 1; use one frame for all values that
            are compared. By default the entries. A constant score has a range of 1.
        margin: distance of the reference point beyond the worst; with 0 the worst contribute nothing.

    Raises:
        MerganserError: moocore is not installed.
    """
    moocore = extras.load("moocore", "plot")
    signs = _signs(directions)
    bounds = table(scored(entries if frame is None else frame, directions), directions) * signs
    complete = scored(entries, directions)
    if not len(bounds) or not directions:
        return Hypervolume(0.0, {}, {}, {}, {}, margin)
    worst, best = bounds.min(axis=0), bounds.max(axis=0)
    width = np.where(best > worst, best - worst, 1.0)
    scaled = (table(complete, directions) * signs - worst) / width
    reference = np.full(len(signs), -margin)
    value, contributions = 0.0, np.zeros(0)
    if (
        len(signs) == 1
    ):  # moocore needs two scores: add one in which all models are one better than the reference
        scaled, reference = np.pad(scaled, ((0, 0), (0, 1))), np.array([-margin, -1.0])
    if complete:
        value = float(moocore.hypervolume(scaled, ref=reference, maximise=True))
        contributions = moocore.hv_contributions(
            scaled, ref=reference, maximise=True, ignore_dominated=False
        )
    return Hypervolume(
        value,
        {e.name: float(c) for e, c in zip(complete, contributions, strict=True)},
        dict(zip(directions, (worst * signs).tolist(), strict=True)),
        dict(zip(directions, (best * signs).tolist(), strict=True)),
        dict(zip(directions, ((worst - margin * width) * signs).tolist(), strict=True)),
        margin,
    )


# -- selecting one model -------------------------------------------------------------------------


def knee(entries: Sequence[Entry], directions: Directions) -> Entry | None:
    """Return the knee of a front of two scores: the point farthest beyond the line through its ends.

    Distances are measured with both scores scaled to the front's ranges (Das 1999, "On characterizing
    the knee of the Pareto curve based on normal-boundary intersection").

    Returns:
        None if there are not two scores, fewer than three points, or none beyond the line.
    """
    front = non_dominated(entries, directions)
    if len(directions) != 2 or len(front) < 3:
        return None
    numbers = table(front, directions) * _signs(directions)
    low, high = numbers.min(axis=0), numbers.max(axis=0)
    if not (high > low).all():
        return None
    # Scaled, the front's ends are (0, 1) and (1, 0), and the line through them is x + y = 1.
    beyond = ((numbers - low) / (high - low)).sum(axis=1) - 1
    first = int(beyond.argmax())
    return front[first] if beyond[first] > 1e-12 else None


def best(
    entries: Sequence[Entry],
    directions: Directions,
    score: str,
    bounds: Mapping[str, float] | None = None,
) -> Entry | None:
    """Return the entry with the best score among those whose other scores satisfy bounds.

    Returns:
        None if no entry satisfies the bounds; the first of ties.
    """

    def good(entry: Entry, name: str, value: float | None = None) -> float:
        number = entry.scores[name].mean if value is None else value
        return number if directions[name] == "max" else -number

    chosen = [
        entry
        for entry in scored(entries, {score: directions[score]})
        if all(
            name in entry.scores and good(entry, name) >= good(entry, name, bound)
            for name, bound in (bounds or {}).items()
        )
    ]
    return max(chosen, key=lambda entry: good(entry, score), default=None)


# -- uncertainty ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Certainty:
    """The stability of a front when problems are resampled.

    Attributes:
        on_front: by name, the share of resamples in which no other entry dominates it.
        dominates: by a pair of names, the share of resamples in which the first entry dominates the second.
        paired: whether problems were resampled, the same for all entries; otherwise scores were drawn
            independently, from normal distributions with their means and standard errors.
    """

    on_front: Mapping[str, float]
    dominates: Mapping[str, Mapping[str, float]]
    paired: bool


def certainty(
    entries: Sequence[Entry],
    directions: Directions,
    per_problem: PerProblem | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Certainty:
    """Return the shares of resamples of the problems in which each entry is on the front, and dominates
    each other entry.

    Args:
        entries: the models; those that lack a score are ignored.
        directions: the scores to compare.
        per_problem: the scores of each problem. Scores named ``task/scorer`` share the problems of
            their task. Used if every entry has the same problems in every score.
        draws: number of resamples.
        seed: seed of the resampling.
    """
    complete = scored(entries, directions)
    random = np.random.default_rng(seed)
    sampled = _resample(complete, directions, per_problem or {}, draws, random)
    paired = sampled is not None
    if sampled is None:
        means = table(complete, directions)
        errors = np.array([[e.scores[name].error for name in directions] for e in complete])
        noise = random.standard_normal((draws, *means.shape))
        sampled = means + errors.reshape(means.shape) * noise
    good = sampled * _signs(directions)  # [draws, entries, scores]
    free = np.ones(good.shape[:2], bool)
    wins: dict[str, dict[str, float]] = {}
    for i, entry in enumerate(complete):
        mine = good[:, i : i + 1]
        over = (mine >= good).all(axis=2) & (mine > good).any(axis=2)
        free &= ~over
        wins[entry.name] = {
            other.name: float(share)
            for other, share in zip(complete, over.mean(axis=0), strict=True)
            if other is not entry
        }
    shares = {e.name: float(s) for e, s in zip(complete, free.mean(axis=0), strict=True)}
    return Certainty(shares, wins, paired)


def _resample(
    entries: Sequence[Entry],
    directions: Directions,
    per_problem: PerProblem,
    draws: int,
    random: np.random.Generator,
) -> Array | None:
    """Return means over resampled problems, float64 [draws, entries, scores]; None if problems differ."""
    draws_of = np.empty((draws, len(entries), len(directions)))
    weights: dict[tuple[str, ...], Array] = {}
    for s, score in enumerate(directions):
        rows = [per_problem.get(entry.name, {}).get(score, {}) for entry in entries]
        names = tuple(rows[0]) if rows else ()
        if not names or any(row.keys() != rows[0].keys() for row in rows):
            return None
        key = (score.rpartition("/")[0], *sorted(names))
        if key not in weights:
            counts = random.multinomial(len(names), np.full(len(names), 1 / len(names)), draws)
            weights[key] = counts / len(names)
        values = np.array([[row[name] for name in key[1:]] for row in rows])
        draws_of[:, :, s] = weights[key] @ values.T
    return draws_of
