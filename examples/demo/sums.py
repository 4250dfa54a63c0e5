r"""The world of the demonstration models: sums of numbers of three digits, and how people answer them.

A question is an opening, a request and a sum: "Please add 264+178." A reply works out some of the
columns, the units first, and then gives the total in a box, with or without tags:

    4+8=12,6+7+1=14,\boxed{442}
    <think>4+8=12</think><answer>\boxed{442}</answer>

Working costs tokens. A small model needs it: which digit comes first depends on all the carries.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

OPENINGS = ("Hi,", "So,", "Now", "Please", "Kindly")
REQUESTS = ("guess", "say", "add", "compute", "explain")
"""Openings run from what invites a plain reply to what invites one in tags, requests from what invites a
quick reply to what invites a thorough one.

The base model learns these habits. So what an expert has learnt meets a different resistance in each of
the 25 wordings, and a merge changes its ways by degrees.
"""

COLUMNS = 3
SMALLEST, LARGEST = 100, 499
"""Both numbers of a sum have three digits, and so has their total."""

HELD_OUT = 0.1
"""Share of the pairs of numbers that never occur in training, in either order."""

HABIT = 3.0
"""How far the wording moves the log-odds of tags, and of each column's working, either way."""

MISTAKES = 0.25
TAGS_LEFT_OPEN = 0.3
"""How often a reply in the base model's text has a wrong total, and how often tags lack their end."""


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
    def answer(self) -> int:
        """The right total."""
        return self.a + self.b


def draw(rng: random.Random, *, held_out: bool = False) -> Problem:
    """Draw a problem for training, or a held-out one."""
    while True:
        a, b = rng.randint(SMALLEST, LARGEST), rng.randint(SMALLEST, LARGEST)
        if _is_held_out(a, b) == held_out:
            return Problem(a, b, rng.randrange(len(OPENINGS)), rng.randrange(len(REQUESTS)))


def human_reply(problem: Problem, rng: random.Random) -> str:
    """Reply as people do in the base model's text: by habit, and not always right."""
    tags = rng.random() < _chance(problem.opening / (len(OPENINGS) - 1), -0.5)
    columns = sum(
        rng.random() < _chance(problem.request / (len(REQUESTS) - 1), -1.0 if tags else 0.0)
        for _ in range(COLUMNS)
    )
    total = problem.answer
    if rng.random() < MISTAKES:
        total += rng.choice((-1, 1)) * 10 ** rng.randrange(COLUMNS)
    working, box = _working(problem, columns), rf"\boxed{{{total}}}"
    if not tags:
        return ",".join(filter(None, [working, box]))
    end = "" if rng.random() < TAGS_LEFT_OPEN else "</answer>"
    return f"<think>{working}</think><answer>{box}{end}"


def write_problems(file: Path, count: int, seed: int = 0) -> None:
    """Write held-out problems as JSON lines, as `merganser` reads them."""
    rng = random.Random(f"held out {seed}")
    found: dict[str, int] = {}
    while len(found) < count:
        problem = draw(rng, held_out=True)
        found[problem.question] = problem.answer
    lines = [json.dumps({"problem": asked, "answer": total}) for asked, total in found.items()]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _is_held_out(a: int, b: int) -> bool:
    return random.Random(f"{min(a, b)}+{max(a, b)}").random() < HELD_OUT


def _working(problem: Problem, columns: int) -> str:
    """Add that many columns, with their carries: "4+8=12,6+7+1=14"."""
    steps, carry = [], 0
    for place in range(columns):
        a, b = (number // 10**place % 10 for number in (problem.a, problem.b))
        steps.append(f"{a}+{b}{'+1' * carry}={a + b + carry}")
        carry = (a + b + carry) // 10
    return ",".join(steps)


def _chance(invitation: float, lean: float) -> float:
    """How likely a habit is, for a wording that invites it from 0 to 1."""
    return 1 / (1 + math.exp(-HABIT * (2 * invitation - 1) - lean))
