r"""Public sets of problems and presets of settings, in tables by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ProblemSet:
    """A public set of problems.

    Attributes:
        title: its name in papers.
        source: the data set on the Hub, with configuration, split, and the columns of question and
            answer.
        size: number of problems.
        answer_pattern: a regular expression whose first group is the answer in its column; None if
            the column contains only the answer.
    """

    title: str
    source: str
    size: int
    answer_pattern: str | None = None


@dataclass(frozen=True, slots=True)
class Preset:
    """Defaults of a task.

    Attributes:
        settings: defaults of temperature, top_p, max_tokens and template.
        problems: names of problem sets for a task without ``problems``; each set becomes one task.
        scorers: the scorers of a task without ``scorers``.
    """

    settings: Mapping[str, Any]
    problems: tuple[str, ...] = ()
    scorers: tuple[str, ...] = field(default=())


PROBLEM_SETS: Mapping[str, ProblemSet] = {
    "math-500": ProblemSet(
        "MATH-500", "hub://HuggingFaceH4/MATH-500/default:test#problem,answer", 500
    ),
    "aime-2024": ProblemSet(
        "AIME 2024", "hub://HuggingFaceH4/aime_2024/default:train#problem,answer", 30
    ),
    "aime-2025": ProblemSet(
        "AIME 2025", "hub://yentinglin/aime_2025/default:train#problem,answer", 30
    ),
    "amc-2023": ProblemSet("AMC 2023", "hub://knoveleng/AMC-23/default:train#problem,answer", 40),
    "gsm8k": ProblemSet(
        "GSM8K", "hub://openai/gsm8k/main:test#question,answer", 1319, r"####\s*(\S.*)"
    ),
    "minerva": ProblemSet(
        "Minerva Math", "hub://knoveleng/Minerva-Math/default:train#problem,solution", 272
    ),
    "olympiadbench": ProblemSet(
        "OlympiadBench", "hub://knoveleng/OlympiadBench/default:train#question,answer", 675
    ),
}
"""Problem sets by name. AIME 2024 and 2025, MATH-500, AMC 2023, Minerva and OlympiadBench are the data
sets of open-rs's evaluation."""

_MATHEMATICS = {
    "max_tokens": 4096,
    "template": "{problem}\n\nReason step by step, and put your final answer within \\boxed{}.",
}

PRESETS: Mapping[str, Preset] = {
    "greedy": Preset({"temperature": 0.0, "top_p": 1.0}),
    "open-rs": Preset(
        {
            "temperature": 0.6,
            "top_p": 0.95,
            "max_tokens": 32768,
            "template": (
                "Solve this problem of mathematics efficiently and clearly, thinking step by step before "
                "you answer. The last line of your response must read 'Therefore, the final answer is: "
                "$\\boxed{ANSWER}$. I hope it is correct' (without the quotes), where ANSWER is nothing but "
                "the number or expression that solves the problem.\n\n{problem}"
            ),
        },
        ("aime-2024", "math-500", "amc-2023", "minerva", "olympiadbench"),
        ("accuracy",),
    ),
    **{name: Preset(_MATHEMATICS, (name,), ("accuracy",)) for name in PROBLEM_SETS},
}
"""Presets by name. ``open-rs``: problems, sampling and scorer of the open-rs study, without a system prompt.
The template paraphrases open-rs's instructions, except the required last line, which is identical."""
