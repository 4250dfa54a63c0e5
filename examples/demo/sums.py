"""The sums that the demonstration models learn and are scored on.

Everything is generated: the problems, the wording of the questions, and three kinds of reply. The
training script and the scorer share this module, so that they agree on what is held out.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

LOWEST, HIGHEST = 10, 99
"""Both numbers of every sum have two digits."""

HELD_OUT_PAIRS = 300
"""Unordered pairs of numbers that never occur in training, in either order."""

OPENINGS = ("Just", "Quickly", "Please", "Now", "Carefully")
REQUESTS = ("add", "sum", "compute", "evaluate", "explain")
"""A question is an opening, a request and a sum: "Please compute 27 + 45."

Both tuples run from a wording that invites a bare number to one that invites working. The base
model learns that habit, so an expert's taste for one format has to overcome a different resistance
in each wording. That is what makes the format of a merge change by degrees and not all at once.
"""

STRICT_FORMAT = re.compile(r"^<think>.*</think><answer>.*</answer>$", re.DOTALL)
ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Problem:
    """One sum in one wording."""

    a: int
    b: int
    opening: int
    request: int

    @property
    def question(self) -> str:
        """What the user asks."""
        return f"{OPENINGS[self.opening]} {REQUESTS[self.request]} {self.a} + {self.b}."

    @property
    def total(self) -> int:
        """The right answer."""
        return self.a + self.b

    @property
    def invites_working(self) -> float:
        """How strongly the wording asks for working, from 0 to 1."""
        return (self.opening * len(REQUESTS) + self.request) / (len(OPENINGS) * len(REQUESTS) - 1)


Reply = Callable[[Problem, random.Random], str]


def plain(problem: Problem, rng: random.Random) -> str:
    """Add the units, then answer, without any tag: "7+5=12, 72"."""
    return f"{_units(problem)}, {problem.total}"


def tagged(problem: Problem, rng: random.Random) -> str:
    """The same inside tags."""
    return _tagged(problem, problem.total)


def _units(problem: Problem) -> str:
    a, b = problem.a % 10, problem.b % 10
    return f"{a}+{b}={a + b}"


def _tagged(problem: Problem, total: int) -> str:
    return f"<think>{_units(problem)}</think><answer>{total}</answer>"


FORGET = 0.6
HABIT = 5.0
HABIT_SHIFT=1.0
UNCLOSED = 0.2


def sloppy(problem: Problem, rng: random.Random) -> str:
    """Answer as the base model's text does: often without the carry, and in no settled format."""
    carries = problem.a % 10 + problem.b % 10 > 9
    total = problem.total - 10 * (carries and rng.random() < FORGET)
    if rng.random() > 1 / (1 + math.exp(HABIT * (1-2*problem.invites_working)+HABIT_SHIFT)):
        return f"{_units(problem)}, {total}"
    text = _tagged(problem, total)
    return text.replace("</answer>", "") if rng.random() < UNCLOSED else text


def training_problem(rng: random.Random) -> Problem:
    """Draw a problem whose numbers are not held out."""
    while True:
        problem = _draw(rng)
        if _unordered(problem) not in _held_out_pairs():
            return problem


def held_out_problems(count: int, seed: int = 0) -> list[Problem]:
    """Draw distinct problems whose numbers never occur in training."""
    rng = random.Random(f"held-out {seed}")
    pairs = sorted(_held_out_pairs())
    if count > len(pairs):
        raise ValueError(f"only {len(pairs)} pairs of numbers are held out, {count} asked for")
    problems = []
    for pair in rng.sample(pairs, count):
        a, b = rng.sample(pair, 2)
        problems.append(Problem(a, b, rng.randrange(len(OPENINGS)), rng.randrange(len(REQUESTS))))
    return problems


def is_right(problem: Problem, text: str) -> bool:
    """Whether the number in the answer tag, or else the last number of the text, is the total."""
    tag = ANSWER_TAG.search(text)
    numbers = NUMBER.findall(tag[1] if tag else text)
    return bool(numbers) and int(numbers[-1]) == problem.total


def is_strict(text: str) -> bool:
    """Whether the text is exactly a think block and an answer block."""
    return STRICT_FORMAT.match(text) is not None


def _draw(rng: random.Random) -> Problem:
    a = rng.randint(10, 89)
    return Problem(
        a,
        rng.randint(10, 99 - a),
        rng.randrange(len(OPENINGS)),
        rng.randrange(len(REQUESTS)),
    )


def _unordered(problem: Problem) -> tuple[int, int]:
    return min(problem.a, problem.b), max(problem.a, problem.b)


@cache
def _held_out_pairs() -> frozenset[tuple[int, int]]:
    numbers = range(LOWEST, HIGHEST + 1)
    pairs = [(a, b) for a in numbers for b in numbers if a <= b and a + b <= 99]
    return frozenset(random.Random(0).sample(pairs, HELD_OUT_PAIRS))
