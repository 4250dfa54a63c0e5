r"""Rule-based scorers of completions: functions whose docstrings define their scores.

Users name their scorers ``module:function`` or ``file.py:function``. A plain function is called as
``function(completion, problem, **parameters)`` with the completion's text and the problem's record,
and returns a number; it may be ``async``. A function declared with :func:`scorer` takes a
:class:`Sample` and a :class:`Problem`, as the scorers here do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from merganser.errors import InputError, RecipeError
from merganser.evaluation.grader import Rule, grade
from merganser.evaluation.problems import Problem
from merganser.evaluation.samples import Sample
from merganser.evaluation.scorer_registry import Scorer, get, names, scorer

__all__ = [
    "Scorer",
    "accuracy",
    "answer_of",
    "characters",
    "cosine",
    "exact",
    "format_rule",
    "get",
    "length",
    "names",
    "reasoning_steps",
    "repetition",
    "scorer",
    "tag_count",
    "think_answer",
    "tokens",
]

# -- answers ---------------------------------------------------------------------------------------


def _gold(problem: Problem) -> str:
    if problem.answer is None:
        raise InputError(f"{problem.address}: has no answer (or solution) to compare with")
    return problem.answer


def _check_gold(problem: Problem, *, rule: Rule = "sound", **_others: Any) -> None:
    gold = _gold(problem)
    if rule == "sound" and grade(gold, None, rule) is None:
        raise InputError(
            f"{problem.address}: math-verify cannot read the answer {gold[:60]!r}; open-rs would give "
            "every completion 1 (rule: open-rs does), so correct it, or leave the problem out"
        )


@scorer("accuracy", check=_check_gold)
def accuracy(sample: Sample, problem: Problem, *, rule: Rule = "sound") -> float:
    r"""1 if math-verify finds the completion's answer equal to the problem's, else 0.

    This is open-rs's ``accuracy_reward`` (knoveleng/open-rs, ``rewards.py``): the completion's answer is the
    LaTeX in a box, or the LaTeX after "final answer is". Answers that cannot be compared score 0.

    Args:
        sample: the completion.
        problem: a problem with an answer.
        rule: ``sound`` reads an answer without LaTeX marks, such as ``12``, as the content of a box,
            and raises an error if math-verify cannot parse that either. ``open-rs`` does not:
            for a problem with such an answer **every** completion scores 1, as in open-rs.
    """
    verdict = grade(_gold(problem), sample.completion, rule)
    return 1.0 if verdict is None else verdict


def _check_answer(problem: Problem, **_parameters: Any) -> None:
    _gold(problem)


@scorer("exact", check=_check_answer)
def exact(sample: Sample, problem: Problem) -> float:
    """1 if :func:`answer_of` the completion equals the problem's answer as text, else 0.

    Spaces at the ends are ignored. If the problem's answer contains a box, as in a worked solution, the
    content of the box is compared.
    """
    gold = _gold(problem)
    return float(answer_of(sample.completion) == (_boxed(gold) or gold).strip())


def answer_of(text: str) -> str | None:
    r"""The answer in a text; None if there is none.

    It is the content of the last ``\boxed{}``, else of the last ``<answer>`` tags, else the last number.
    """
    boxed = _boxed(text)
    if boxed is not None:
        return boxed.strip()
    tagged = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    if tagged:
        return str(tagged[-1]).strip()
    numbers = re.findall(r"-?\d+(?:[.,]\d+)*", text)
    return numbers[-1] if numbers else None


def _boxed(text: str) -> str | None:
    """The content of the last box, with matching braces; None if there is none."""
    begin = text.rfind("\\boxed{")
    if begin < 0:
        return None
    depth = 0
    for place in range(begin + 6, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin + 7 : place]
    return None


# -- format ----------------------------------------------------------------------------------------


@scorer("format")
def format_rule(sample: Sample, problem: Problem) -> float:
    r"""1 if ``\n</think>\n`` occurs exactly once, else 0: open-rs's ``format_reward``.

    In open-rs the chat template adds the opening tag, and ``<answer>`` tags are not required;
    :func:`think_answer` is the strict rule.
    """
    return float(sample.completion.count("\n</think>\n") == 1)


@scorer("think_answer")
def think_answer(sample: Sample, problem: Problem) -> float:
    """1 if the completion is one think block and one answer block, else 0.

    The form is ``<think>…</think><answer>…</answer>``: every tag occurs once, and only white space precedes,
    separates or follows the blocks. This is a strict reading of DeepSeek-R1-Zero's rule (arXiv:2501.12948).
    """
    tags = ("<think>", "</think>", "<answer>", "</answer>")
    whole = re.fullmatch(
        r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", sample.completion, re.DOTALL
    )
    return float(bool(whole) and all(sample.completion.count(tag) == 1 for tag in tags))


@scorer("tag_count")
def tag_count(sample: Sample, problem: Problem) -> float:
    r"""0.5 if ``<think>\n`` occurs exactly once, and 0.5 if ``\n</think>\n`` does: open-rs's
    ``tag_count_reward``."""
    text = sample.completion
    return 0.5 * (text.count("<think>\n") == 1) + 0.5 * (text.count("\n</think>\n") == 1)


@scorer("reasoning_steps")
def reasoning_steps(sample: Sample, problem: Problem) -> float:
    r"""One third per mark of a reasoning step, at most 1: open-rs's ``reasoning_steps_reward``.

    Marks are ``Step 1:``, ``1.`` at the beginning of the text, a line that begins with ``-`` or ``*``,
    and ``First,`` ``Second,`` ``Next,`` ``Finally,``.
    """
    marks = r"(Step \d+:|^\d+\.|\n-|\n\*|First,|Second,|Next,|Finally,)"
    return min(1.0, len(re.findall(marks, sample.completion)) / 3)


# -- length ----------------------------------------------------------------------------------------


@scorer("tokens", better="min")
def tokens(sample: Sample, problem: Problem) -> float:
    """Number of tokens of the completion, including its end token."""
    return float(sample.tokens)


@scorer("characters", better="min")
def characters(sample: Sample, problem: Problem) -> float:
    """Number of characters of the completion, which open-rs calls its length."""
    return float(len(sample.completion))


@scorer("length", group=True, check=_check_gold)
def length(samples: Sequence[Sample], problem: Problem, *, rule: Rule = "sound") -> list[float]:
    """The length reward of Kimi k1.5 (arXiv:2501.12599), as open-rs's ``len_reward``.

    A right answer of n characters scores ``0.5 - (n - n_min) / (n_max - n_min)``, where n_min and n_max are
    the shortest and longest length among the problem's samples. A wrong answer scores the minimum of that
    and 0. All scores are 0 if all samples have the same length. A problem needs at least two samples; the
    scorer ``tokens`` measures a single completion's length.

    Args:
        samples: the samples of the problem.
        problem: a problem with an answer.
        rule: see :func:`accuracy`. open-rs skips samples if the problem's answer cannot be read; here
            they count as right.
    """
    if len(samples) < 2:
        raise RecipeError(
            "scorer length: compares the samples of a problem, and there is one; give samples: 2 or "
            "more, or take the scorer tokens"
        )
    sizes = [len(sample.completion) for sample in samples]
    least, most = min(sizes), max(sizes)
    if least == most:
        return [0.0] * len(samples)
    rewards = []
    for sample, size in zip(samples, sizes, strict=True):
        share = 0.5 - (size - least) / (most - least)
        rewards.append(share if accuracy(sample, problem, rule=rule) else min(0.0, share))
    return rewards


@scorer("cosine", check=_check_gold)
def cosine(
    sample: Sample,
    problem: Problem,
    *,
    min_value_wrong: float = -1.0,
    max_value_wrong: float = -0.5,
    min_value_correct: float = 0.5,
    max_value_correct: float = 1.0,
    max_length: int = 1000,
    clamp: bool = True,
    rule: Rule = "sound",
) -> float:
    """open-rs's cosine reward: right answers score more if shorter, wrong answers if longer.

    The score is ``a + (b - a) / 2 * (1 + cos(pi n / max_length))`` for n characters (Yeo et al. 2025,
    arXiv:2502.03373). For a right answer a and b are ``min_value_correct`` and ``max_value_correct``; for a
    wrong one they are ``max_value_wrong`` and ``min_value_wrong``.

    Args:
        sample: the completion.
        problem: a problem with an answer.
        min_value_wrong: score of the shortest wrong answer; open-rs's training script has 0 here, so
            that short wrong answers score **more** there.
        max_value_wrong: score of the longest wrong answer.
        min_value_correct: score of the longest right answer.
        max_value_correct: score of the shortest right answer.
        max_length: the length, in characters, at which the score is a; 3584 in open-rs's Experiment 3.
        clamp: score longer completions as if they had ``max_length`` characters. open-rs does not, so its
            cosine rises again: a completion of twice the length scores as an empty one.
        rule: see :func:`accuracy`.
    """
    size = len(sample.completion)
    turn = math.cos(math.pi * (min(size, max_length) if clamp else size) / max_length)
    if accuracy(sample, problem, rule=rule):
        low, high = min_value_correct, max_value_correct
    else:
        low, high = max_value_wrong, min_value_wrong
    return low + (high - low) / 2 * (1 + turn)


@scorer("repetition")
def repetition(
    sample: Sample, problem: Problem, *, ngram: int = 3, max_penalty: float = -1.0
) -> float:
    """open-rs's repetition penalty: ``(1 - distinct / all) * max_penalty`` for n-grams of lower-case words.

    Args:
        sample: the completion.
        problem: not used.
        ngram: number of words of an n-gram.
        max_penalty: score of a completion that only repeats; at most 0.
    """
    if ngram < 1 or max_penalty > 0:
        raise RecipeError("scorer repetition: ngram is 1 or more, and max_penalty at most 0")
    words = sample.completion.lower().split()
    grams = [tuple(words[i : i + ngram]) for i in range(len(words) - ngram + 1)]
    return (1 - len(set(grams)) / len(grams)) * max_penalty if grams else 0.0
