r"""What the experts are rewarded for: the reward functions of the reference study, on sums.

A reward sees all replies to one problem, as GRPO draws them, and gives each a number. Definitions are
those of open-rs (knoveleng/open-rs, ``rewards.py``), but that a total is compared as a number, for which
no algebra is needed. `merganser` scores merges by the same rules: ``exact``, ``think_answer``, ``tokens``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

BOX = re.compile(r"\\boxed\{(\d+)\}")
STRICT = re.compile(r"<think>.*</think><answer>.*</answer>", re.DOTALL)


@dataclass(frozen=True)
class Reply:
    """What a model said, and how many tokens it took."""

    text: str
    tokens: int

    def is_right(self, answer: int) -> bool:
        """Whether the last box holds the answer."""
        boxes = BOX.findall(self.text)
        return bool(boxes) and int(boxes[-1]) == answer

    def is_strict(self) -> bool:
        """Whether it is one think block and one answer block, and nothing else."""
        once = all(self.text.count(tag) == 1 for tag in ("<think>", "</think>", "</answer>"))
        return once and STRICT.fullmatch(self.text) is not None


Reward = Callable[[int, Sequence[Reply]], list[float]]
"""The right answer and the replies to one problem, to a number for each reply."""


def acc(answer: int, replies: Sequence[Reply]) -> list[float]:
    """1 for a right answer."""
    return [float(reply.is_right(answer)) for reply in replies]


def accfmt(answer: int, replies: Sequence[Reply]) -> list[float]:
    """1 for a right answer, and 1 for the strict format."""
    return [float(reply.is_right(answer)) + reply.is_strict() for reply in replies]


def length(answer: int, replies: Sequence[Reply]) -> list[float]:
    """1 for a right answer, and the length reward of Kimi k1.5 (arXiv:2501.12599) on top.

    From 0.5 for the shortest of the replies to -0.5 for the longest; a wrong one gains nothing by being
    short. Without the 1 an empty box, wrong but never punished, is all that a model learns from it.
    """
    sizes = [reply.tokens for reply in replies]
    span = max(sizes) - min(sizes) or 1
    bonus = [0.5 - (size - min(sizes)) / span for size in sizes]
    return [
        1 + more if reply.is_right(answer) else min(0.0, more)
        for reply, more in zip(replies, bonus, strict=True)
    ]


def mixed(answer: int, replies: Sequence[Reply]) -> list[float]:
    """The mean of the rewards of ``acc`` and ``len``: what their merges are compared with.

    One model that is trained on both at once is the usual alternative to merging one model for each.
    """
    return [
        (one + other) / 2
        for one, other in zip(acc(answer, replies), length(answer, replies), strict=True)
    ]


REWARDS: dict[str, Reward] = {"acc": acc, "accfmt": accfmt, "len": length, "acclen": mixed}
