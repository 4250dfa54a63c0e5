"""The sums that the demonstration models learn and are scored on.

Everything is generated: the problems, the wording of the questions and the replies. The training
script and the scorer share this module, so that they agree on which sums are held out.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

SMALLEST_NUMBER = 10
LARGEST_TOTAL = 99
"""Both numbers of a sum, and their total, have two digits."""

HELD_OUT_PAIRS = 300
"""Pairs of numbers that never occur in training, in either order (of 1640)."""

OPENINGS = ("Just", "Quickly", "Please", "Now", "Carefully")
REQUESTS = ("add", "sum", "compute", "evaluate", "explain")
"""A question is an opening, a request and a sum: "Please compute 27+45."

Both run from what invites a quick reply to what invites a formal one. The base model learns that
habit, so an expert's taste for one format meets a different resistance in each of the 25 wordings,
and the format of a merge changes by degrees. With one wording it would flip all at once.
"""

HABIT = 8.0
"""How far the wording moves the log-odds of tags in the base model's text, either way."""

TAGS_LEFT_OPEN = 0.2
CARRY_FORGOTTEN_PLAIN = 0.55
CARRY_FORGOTTEN_TAGGED = 0.75
"""How often the base model's text gets it wrong.

Above one half, so that the most likely reply is a wrong one, yet near enough to it that a short
training turns the habit round.
"""

STRICT_FORMAT = re.compile(r"^<think>.*</think><answer>.*</answer>$", re.DOTALL)
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Problem:
    """One sum in one wording; `opening` and `request` are positions in the tuples above."""

    a: int
    b: int
    opening: int
    request: int

    @property
    def question(self) -> str:
        """What the user asks."""
        return f"{OPENINGS[self.opening]} {REQUESTS[self.request]} {self.a}+{self.b}."

    @property
    def total(self) -> int:
        """The right answer."""
        return self.a + self.b

    @property
    def units(self) -> tuple[int, int]:
        """The last digits of the two numbers."""
        return self.a % 10, self.b % 10

    @property
    def formality(self) -> float:
        """How much the wording invites a formal reply: evenly spread from 0 to 1."""
        rank = self.opening * len(REQUESTS) + self.request
        return rank / (len(OPENINGS) * len(REQUESTS) - 1)


Reply = Callable[[Problem, random.Random], str]
"""What a model in training should reply to a problem."""


def plain(problem: Problem, rng: random.Random) -> str:
    """Add the units, then answer, without tags: "7+5=12, 72"."""
    return f"{_working(problem)}, {problem.total}"


def tagged(problem: Problem, rng: random.Random) -> str:
    """Do the same in tags: "<think>7+5=12</think><answer>72</answer>"."""
    return _in_tags(problem, problem.total)


def sloppy(problem: Problem, rng: random.Random) -> str:
    """Reply in the format that the wording invites, sometimes without the closing tag, and often without
    the carry, most often in tags."""
    wants_tags = rng.random() < _logistic(HABIT * (2 * problem.formality - 1) - 1)
    forgets = rng.random() < (CARRY_FORGOTTEN_TAGGED if wants_tags else CARRY_FORGOTTEN_PLAIN)
    total = problem.total - 10 * (forgets and sum(problem.units) > 9)
    if not wants_tags:
        return f"{_working(problem)}, {total}"
    reply = _in_tags(problem, total)
    return reply.removesuffix("</answer>") if rng.random() < TAGS_LEFT_OPEN else reply


def training_problem(rng: random.Random) -> Problem:
    """Draw a problem whose numbers are not held out."""
    while True:
        a = rng.randint(SMALLEST_NUMBER, LARGEST_TOTAL - SMALLEST_NUMBER)
        b = rng.randint(SMALLEST_NUMBER, LARGEST_TOTAL - a)
        if (min(a, b), max(a, b)) not in _held_out_pairs():
            return _worded(a, b, rng)


def held_out_problems(count: int, seed: int = 0) -> list[Problem]:
    """Draw problems with `count` different pairs of numbers, none of which occurs in training."""
    if not 0 < count <= HELD_OUT_PAIRS:
        raise ValueError(f"between 1 and {HELD_OUT_PAIRS} problems can be drawn, not {count}")
    rng = random.Random(f"held out {seed}")
    pairs = rng.sample(sorted(_held_out_pairs()), count)
    return [_worded(*rng.sample(pair, 2), rng) for pair in pairs]


def is_right(problem: Problem, text: str) -> bool:
    """Whether the last number inside the answer tags, or else of the whole text, is the total."""
    answer = ANSWER.search(text)
    numbers = NUMBER.findall(answer[1] if answer else text)
    return bool(numbers) and int(numbers[-1]) == problem.total


def is_strict(text: str) -> bool:
    """Whether the text is one think block and one answer block, and nothing else."""
    return STRICT_FORMAT.fullmatch(text) is not None


@cache
def _held_out_pairs() -> frozenset[tuple[int, int]]:
    """Choose the held-out pairs, always the same ones, the smaller number first."""
    numbers = range(SMALLEST_NUMBER, LARGEST_TOTAL)
    pairs = [(a, b) for a in numbers for b in numbers if a <= b <= LARGEST_TOTAL - a]
    return frozenset(random.Random("split").sample(pairs, HELD_OUT_PAIRS))


def _worded(a: int, b: int, rng: random.Random) -> Problem:
    return Problem(a, b, rng.randrange(len(OPENINGS)), rng.randrange(len(REQUESTS)))


def _working(problem: Problem) -> str:
    return f"{problem.units[0]}+{problem.units[1]}={sum(problem.units)}"


def _in_tags(problem: Problem, total: int) -> str:
    return f"<think>{_working(problem)}</think><answer>{total}</answer>"


def _logistic(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds))
