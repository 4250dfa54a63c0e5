"""Weights of several models that add up to one: even lattices, and samples.

``{simplex: [acc, fmt, len], step: 0.1}`` is the lattice of Das and Dennis 1998 ("Normal-boundary
intersection", SIAM J. Optim. 8): all weights that are multiples of the step. Every weight is a decimal
number, and those of a point add up to exactly one.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from merganser.recipe.document import Document, KeyPath, key_name

Point = tuple[Decimal, ...]

MAX_POINTS = 1000

DIGITS = 4
"""Digits after the decimal point of weights that are not multiples of a step."""

KINDS: Mapping[str, frozenset[str]] = {
    "simplex": frozenset({"step", "layers", "inside"}),
    "dirichlet": frozenset({"points", "alpha", "seed"}),
    "sobol": frozenset({"points", "seed"}),
}
"""The keys that list the models, each with the other keys that may stand with it."""

TRIES = 20
"""Draws for each point of a sample, since draws that round to the same weights count as one."""

LARGEST = 2**63

SOBOL: tuple[tuple[int, tuple[int, ...]], ...] = (
    (0, (1,)),
    (1, (1, 3)),
    (1, (1, 3, 1)),
    (2, (1, 1, 1)),
    (1, (1, 1, 3, 3)),
    (4, (1, 3, 5, 13)),
    (2, (1, 1, 5, 5, 17)),
    (4, (1, 1, 5, 5, 5)),
    (7, (1, 1, 7, 11, 19)),
)
"""Primitive polynomials and first direction numbers of the dimensions from the second on, by Joe and Kuo
2008 ("Constructing Sobol sequences with better two-dimensional projections", SIAM J. Sci. Comput. 30)."""

MOST_OF_SOBOL = len(SOBOL) + 2
"""Most models of a Sobol sample; n models have n - 1 dimensions."""

_BITS = 30


def is_simplex(value: Any) -> bool:
    """Whether the values of a key are weights that add up to one."""
    return isinstance(value, Mapping) and not KINDS.keys().isdisjoint(value)


def names(document: Document, value: Mapping[str, Any], path: KeyPath) -> list[str]:
    """The names of a simplex's models.

    Raises:
        RecipeError: when there are fewer than two, one is not a name, or one occurs twice.
    """
    kind = next(key for key in KINDS if key in value)
    here = (*path, kind)
    listed = value[kind]
    good = isinstance(listed, list) and all(isinstance(n, str) and n.isidentifier() for n in listed)
    if not good or len(listed) < 2:
        raise document.error(
            f"{key_name(here)}: give two or more names, such as [acc, fmt, len]; "
            "{{ KEY.acc }} is then the weight of acc",
            here,
        )
    if twice := next((n for n in listed if listed.count(n) > 1), None):
        raise document.error(f"{key_name(here)}: {twice!r} is given twice", here)
    return list(listed)


def check_keys(
    document: Document, value: Mapping[str, Any], path: KeyPath, known: frozenset[str]
) -> None:
    """Check that a simplex has only known keys.

    Raises:
        RecipeError: for the first unknown key.
    """
    kind = next(key for key in KINDS if key in value)
    for key in value:
        if key != kind and key not in known:
            there = ", ".join(sorted(known)) or "no other key"
            raise document.error(
                f"{key_name((*path, key))}: unknown key; {kind} takes {there}",
                (*path, key),
            )


def read_points(
    document: Document, value: Mapping[str, Any], path: KeyPath
) -> list[dict[str, float]]:
    """The points of ``{simplex: …}``, ``{dirichlet: …}`` or ``{sobol: …}``, in lexicographic order.

    Returns:
        For each point the weights by model; they add up to 1.

    Raises:
        RecipeError: for the first error, with file, line and key.
    """
    kind = next(key for key in KINDS if key in value)
    check_keys(document, value, path, KINDS[kind])
    models = names(document, value, path)
    if kind == "simplex":
        weights = _lattice(document, value, path, len(models))
    else:
        weights = _samples(document, value, path, kind, len(models))
    points = sorted(itertools.islice(dict.fromkeys(weights), value.get("points")))
    return [dict(zip(models, map(float, point), strict=True)) for point in points]


# -- lattices ------------------------------------------------------------------------------------


def count(models: int, parts: int, inside: bool = False) -> int:
    """The number of points of a lattice whose weights are multiples of ``1 / parts``.

    With ``inside``, only points whose weights are all above 0 count.
    """
    if inside:
        parts -= models
    return math.comb(models + parts - 1, models - 1) if parts >= 0 else 0


def _lattice(
    document: Document, value: Mapping[str, Any], path: KeyPath, models: int
) -> Iterator[Point]:
    inside = value.get("inside", False)
    if not isinstance(inside, bool):
        raise document.error(
            f"{key_name((*path, 'inside'))}: must be true or false", (*path, "inside")
        )
    if ("step" in value) == ("layers" in value):
        raise document.error(
            f"{key_name(path)}: give either the step, such as 0.1, or layers, such as [3, 2]", path
        )
    if "step" in value:
        layers = [parts(document, value["step"], (*path, "step"))]
    else:
        layers = _layers(document, value["layers"], (*path, "layers"))
    total = sum(count(models, parts, inside) for parts in layers)
    if total > MAX_POINTS:
        raise document.error(
            f"{key_name(path)}: {models} models give {total:,} points, more than {MAX_POINTS:,}"
            + _fewer(models, layers, inside),
            path,
        )
    if not total:
        raise document.error(
            f"{key_name(path)}: there is no inner point: {models} weights of at least "
            f"1/{layers[0]} add up to more than 1; take a smaller step",
            path,
        )
    return itertools.chain.from_iterable(
        _layer(models, parts, inside, Decimal(len(layers) - n) / len(layers))
        for n, parts in enumerate(layers)
    )


def _fewer(models: int, layers: Sequence[int], inside: bool) -> str:
    """Advice for too many points: a step whose lattice is small enough, or a sample."""
    for step in ("0.1", "0.2", "0.25", "0.5"):
        parts = int(1 / Decimal(step))
        points = count(models, parts, inside)
        if parts < max(layers) and 0 < points <= MAX_POINTS:
            return f"; a step of {step} has {points}"
    return "; {sobol: […], points: 100} samples it"


def parts(document: Document, step: Any, path: KeyPath) -> int:
    """The number of steps from 0 to 1.

    Raises:
        RecipeError: when the step is not a number from 0.001 to 1, or does not divide 1.
    """
    try:
        exact = Decimal(str(step)) if not isinstance(step, bool) else Decimal(0)
    except ArithmeticError:
        exact = Decimal(0)
    if not exact.is_finite() or not 0 < exact <= 1 or 1 / exact > MAX_POINTS:
        raise document.error(f"{key_name(path)}: must be a number from 0.001 to 1", path)
    count = int(1 / exact)
    if count * exact != 1:
        near = ", ".join(f"{Decimal(1) / n:f}" for n in (2, 4, 5, 10, 20))
        raise document.error(
            f"{key_name(path)}: weights that are multiples of {exact:f} cannot add up to 1; "
            f"take a step that divides it, such as {near}, or layers: [{count}]",
            path,
        )
    return count


def _layers(document: Document, layers: Any, path: KeyPath) -> list[int]:
    good = isinstance(layers, list) and all(type(n) is int and 1 <= n <= MAX_POINTS for n in layers)
    if not good or not layers:
        raise document.error(
            f"{key_name(path)}: give whole numbers, such as [3, 2]: the number of steps along an edge of the "
            "outer layer, and of each inner one",
            path,
        )
    return list(layers)


def _layer(models: int, parts: int, inside: bool, shrink: Decimal) -> Iterator[Point]:
    """The points of one layer of a lattice, shrunk towards the middle by a factor.

    Layers of Deb and Jain 2014 ("An evolutionary many-objective optimization algorithm", IEEE Trans.
    Evol. Comput. 18, section IV-A): of two layers, the inner one is half-way to the middle.
    """
    least = 1 if inside else 0
    for bars in itertools.combinations(range(parts - models * least + models - 1), models - 1):
        edges = (-1, *bars, parts - models * least + models - 1)
        shares = [b - a - 1 + least for a, b in itertools.pairwise(edges)]
        exact = [shrink * n / parts + (1 - shrink) / models for n in shares]
        plain = all(weight == round(weight, 2 * DIGITS) for weight in exact) and sum(exact) == 1
        yield tuple(weight.normalize() for weight in exact) if plain else rounded(exact)


def rounded(weights: Sequence[Decimal | float], grain: int = 10**DIGITS) -> Point:
    """Weights rounded to multiples of ``1 / grain`` that add up to exactly 1.

    All are rounded down; the remaining units go to the weights that lost most.
    """
    scaled = [Decimal(weight) * grain for weight in weights]
    counts = [int(weight) for weight in scaled]
    rest = sorted(range(len(counts)), key=lambda i: (counts[i] - scaled[i], i))
    for i in range(grain - sum(counts)):
        counts[rest[i % len(counts)]] += 1
    return tuple((Decimal(n) / grain).normalize() for n in counts)


# -- samples -------------------------------------------------------------------------------------


def _samples(
    document: Document, value: Mapping[str, Any], path: KeyPath, kind: str, models: int
) -> Iterator[Point]:
    points, seed = value.get("points"), value.get("seed", 0)
    if not (type(points) is int and 1 <= points <= MAX_POINTS):
        raise document.error(
            f"{key_name((*path, 'points'))}: must be a whole number from 1 to {MAX_POINTS:,}",
            (*path, "points"),
        )
    if not (type(seed) is int and 0 <= seed < LARGEST):
        raise document.error(
            f"{key_name((*path, 'seed'))}: must be a whole number", (*path, "seed")
        )
    if kind == "sobol":
        if models > MOST_OF_SOBOL:
            raise document.error(
                f"{key_name(path)}: a Sobol sample has at most {MOST_OF_SOBOL} models; take dirichlet",
                path,
            )
        places = sobol(models - 1, TRIES * points, seed)
        return (rounded(from_cube(place)) for place in places)
    alpha = value.get("alpha", 1.0)
    good = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not good or not 0.01 <= alpha <= 1000:
        raise document.error(
            f"{key_name((*path, 'alpha'))}: must be a number from 0.01 to 1000; below 1 favours the corners, "
            "above 1 the middle",
            (*path, "alpha"),
        )
    return _dirichlet(models, TRIES * points, float(alpha), random.Random(seed))


def _dirichlet(models: int, points: int, alpha: float, draw: random.Random) -> Iterator[Point]:
    for _ in range(points):
        sizes = [draw.gammavariate(alpha, 1.0) for _ in range(models)]
        total = math.fsum(sizes)
        yield rounded([size / total for size in sizes] if total else [1 / models] * models)


def from_cube(place: Sequence[float]) -> list[float]:
    """Map a point of the unit cube to weights that add up to 1, by breaking a stick.

    Uniform points of the cube give uniform weights: each coordinate is the quantile of its weight,
    given the earlier ones.
    """
    left, weights = 1.0, []
    for n, share in enumerate(place):
        part = left * (1.0 - (1.0 - share) ** (1.0 / (len(place) - n)))
        weights.append(part)
        left -= part
    return [*weights, max(0.0, left)]


def sobol(dimensions: int, points: int, seed: int) -> Iterator[tuple[float, ...]]:
    """The first points of a Sobol sequence (Sobol 1967), with a random digital shift.

    Each dimension is XORed with one random number, drawn from the seed. Coordinates are in (0, 1).
    """
    directions = [[1 << (_BITS - 1 - i) for i in range(_BITS)]]
    directions += [_directions(*entry) for entry in SOBOL[: dimensions - 1]]
    draw = random.Random(seed)
    place = [draw.getrandbits(_BITS) for _ in directions]
    for number in range(points):
        yield tuple((x + 0.5) / 2**_BITS for x in place)
        bit = (~number & number + 1).bit_length() - 1  # the lowest zero: Gray's order
        place = [x ^ numbers[bit] for x, numbers in zip(place, directions, strict=True)]


def _directions(polynomial: int, first: Sequence[int]) -> list[int]:
    degree = len(first)
    numbers = [m << (_BITS - 1 - i) for i, m in enumerate(first)]
    for i in range(degree, _BITS):
        new = numbers[i - degree] ^ (numbers[i - degree] >> degree)
        for k in range(1, degree):
            if polynomial >> (degree - 1 - k) & 1:
                new ^= numbers[i - k]
        numbers.append(new)
    return numbers
