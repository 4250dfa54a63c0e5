r"""Scorers of completions. Each is a function whose docstring is its definition.

Users name their scorers ``module:function`` or ``file.py:function``. A plain function is called as
``function(completion, problem, **parameters)`` with the completion's text and the problem's record,
and returns a number. A function declared with :func:`scorer` takes a :class:`Sample` and a
:class:`Problem`, as the scorers here do.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import re
import sys
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from merganser import suggestions
from merganser.errors import InputError, MerganserError, RecipeError
from merganser.evaluation.grader import Rule, grade
from merganser.evaluation.problems import Problem
from merganser.evaluation.samples import Sample
from merganser.evaluation.statistics import Direction

Function = TypeVar("Function", bound=Callable[..., Any])

_MARK = "__merganser_scorer__"


@dataclass(frozen=True, slots=True)
class Scorer:
    """A scorer of completions.

    Attributes:
        name: its name in tasks and results.
        function: ``(sample, problem, **parameters)`` to a number; with ``group``,
            ``(samples, problem, **parameters)`` to one number per sample.
        better: ``max`` if larger scores are better, else ``min``.
        group: whether it scores all samples of a problem together.
        check: ``(problem, **parameters)``; raises an error for an unsuitable problem, before any
            completion is generated.
        parameters: values of the function's parameters.
    """

    name: str
    function: Callable[..., Any]
    better: Direction = "max"
    group: bool = False
    check: Callable[..., None] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def judge(self, problem: Problem, samples: Sequence[Sample]) -> list[float]:
        """Score all samples of one problem.

        Raises:
            MerganserError: when the function fails, or does not return a finite number.
        """
        try:
            if self.group:
                scores = list(self.function(samples, problem, **self.parameters))
            else:
                scores = [self.function(each, problem, **self.parameters) for each in samples]
            numbers = [float(value) for value in scores]
            if len(numbers) != len(samples) or not all(map(math.isfinite, numbers)):
                raise ValueError(f"gave {scores!r:.60} for {len(samples)} samples")
        except MerganserError:
            raise
        except Exception as error:  # a user's function may raise anything
            reason = " ".join(str(error).split())[:160]
            raise MerganserError(
                f"scorer {self.name}: failed on {problem.address} "
                f"({type(error).__name__}: {reason}{_line_of(error)})"
            ) from error
        return numbers

    @property
    def is_built_in(self) -> bool:
        """Whether it is one of Merganser's scorers."""
        return self.name in _BUILT_IN and self.function is _BUILT_IN[self.name].function


def _line_of(error: Exception) -> str:
    """The line of the scorer's code that raised an error: ``; scores.py:12: return 1 / 0``."""
    own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    if not own:
        return ""
    return f"; {Path(own[-1].filename).name}:{own[-1].lineno}: {own[-1].line}"


_BUILT_IN: dict[str, Scorer] = {}


def scorer(
    name: str,
    *,
    better: Direction = "max",
    group: bool = False,
    check: Callable[..., None] | None = None,
) -> Callable[[Function], Function]:
    """Declare a function as a scorer; see :class:`Scorer`. The function is returned unchanged."""

    def declare(function: Function) -> Function:
        declared = Scorer(name, function, better, group, check)
        setattr(function, _MARK, declared)
        if function.__module__ == __name__:
            _BUILT_IN[name] = declared
        return function

    return declare


def names() -> list[str]:
    """Sorted names of Merganser's scorers."""
    return sorted(_BUILT_IN)


def get(
    reference: str,
    parameters: Mapping[str, Any] | None = None,
    beside: Path | None = None,
) -> Scorer:
    """Return a scorer.

    Args:
        reference: a name, ``module:function`` or ``file.py:function``; modules and files are run.
        parameters: values of the function's parameters.
        beside: the folder to search for files first.

    Raises:
        RecipeError: when there is no such scorer, or its parameters differ.
    """
    if reference in _BUILT_IN:
        chosen = _BUILT_IN[reference]
    elif ":" in reference:
        chosen = _imported(reference, beside)
    else:
        hint = suggestions.suggest(reference, names())
        own = ", and your own as module:function or file.py:function"
        raise RecipeError(
            f"there is no scorer {reference!r}; {hint}{'' if hint.endswith('?') else own}"
        )
    return replace(chosen, parameters=_settled(chosen, parameters or {}))


def _imported(reference: str, beside: Path | None) -> Scorer:
    place, _, name = reference.rpartition(":")
    folders = [folder for folder in (beside, Path()) if folder is not None]
    try:
        module = _run_file(reference, place, folders) if place.endswith(".py") else None
        if module is None and not _is_installed(place):
            module = _run_file(reference, f"{place.replace('.', '/')}.py", folders)
        module = module or importlib.import_module(place)
    except RecipeError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise RecipeError(
            f"scorer {reference}: cannot be loaded ({type(error).__name__}: {reason})"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise RecipeError(f"scorer {reference}: there is no function {name!r} in it")
    declared = getattr(function, _MARK, None)
    return declared if isinstance(declared, Scorer) else Scorer(name, _Plain(function))


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # its package is missing, or it is not a module's name
        return False


def _run_file(reference: str, name: str, folders: Sequence[Path]) -> ModuleType:
    """Run the file ``name`` in the first folder that has it."""
    path = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if path is None:
        raise RecipeError(
            f"scorer {reference}: cannot be loaded: no such file {name} in {' or '.join(map(_named, folders))}"
            + ("" if reference.partition(":")[0].endswith(".py") else ", and no installed module")
        )
    spec = importlib.util.spec_from_file_location(f"merganser_scorers_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and type hints look their module up there
    spec.loader.exec_module(module)
    return module


def _named(folder: Path) -> str:
    return "the current folder" if folder == Path() else str(folder)


class _Plain:
    """Adapts a function of a completion's text and a problem's record to a scorer."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, sample: Sample, problem: Problem, **parameters: Any) -> float:
        return float(self.function(sample.completion, dict(problem.record), **parameters))


def _settled(scorer: Scorer, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Convert parameters to the types in the function's signature."""
    function = scorer.function.function if isinstance(scorer.function, _Plain) else scorer.function
    known = list(inspect.signature(function).parameters.values())[2:]
    if any(each.kind is each.VAR_KEYWORD for each in known):
        return dict(parameters)
    declared = {each.name: each for each in known}
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # ignore annotations that cannot be read
        hints = {}
    settled: dict[str, Any] = {}
    for name, value in parameters.items():
        if name not in declared:
            has = ", ".join(declared) or "none"
            raise RecipeError(f"scorer {scorer.name}: has no parameter {name!r}; it has {has}")
        try:
            settled[name] = TypeAdapter(hints.get(name, Any)).validate_python(value)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise RecipeError(f"scorer {scorer.name}: {name}: {problem}, found {value!r}") from None
    for name, each in declared.items():
        if each.default is each.empty and name not in settled:
            raise RecipeError(f"scorer {scorer.name}: needs the parameter {name!r}")
    return settled


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

    As open-rs's ``accuracy_reward`` (knoveleng/open-rs, ``rewards.py``): the answer is LaTeX in a box, or
    follows "final answer is"; nothing else counts. Answers that cannot be compared score 0.

    Args:
        sample: the completion.
        problem: a problem with an answer.
        rule: ``sound`` reads an answer without LaTeX marks, such as ``12``, as the content of a box,
            and refuses the problem if math-verify cannot read that either. ``open-rs`` does as
            open-rs: with such an answer **every** completion scores 1.
    """
    verdict = grade(_gold(problem), sample.completion, rule)
    return 1.0 if verdict is None else verdict


def _check_answer(problem: Problem, **_parameters: Any) -> None:
    _gold(problem)


@scorer("exact", check=_check_answer)
def exact(sample: Sample, problem: Problem) -> float:
    """1 if :func:`answer_of` the completion equals the problem's answer as text, else 0.

    Spaces at the ends do not count. If the problem's answer has a box, as in a worked solution, the
    answer is the content of the box.
    """
    gold = _gold(problem)
    return float(answer_of(sample.completion) == (_boxed(gold) or gold).strip())


def answer_of(text: str) -> str | None:
    r"""The answer in a text: the content of the last ``\boxed{}``, else of the last ``<answer>`` tags,
    else the last number."""
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

    ``<think>…</think><answer>…</answer>``, with only white space around and between them, and each
    tag once: a strict reading of the rule of DeepSeek-R1-Zero (arXiv:2501.12948).
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
    r"""One third per mark of a step, at most 1: open-rs's ``reasoning_steps_reward``.

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

    With n characters, among the samples of a problem: ``0.5 - (n - n_min) / (n_max - n_min)`` for a
    right answer, and the smaller of that and 0 for a wrong one; 0 if all samples are equally long. It
    compares samples, so a task needs two or more; ``tokens`` measures the length itself.

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

    ``a + (b - a) / 2 * (1 + cos(pi n / max_length))`` with n characters; a and b are the minimum and
    maximum value for right answers, the maximum and minimum for wrong ones (Yeo et al. 2025,
    arXiv:2502.03373).

    Args:
        sample: the completion.
        problem: a problem with an answer.
        min_value_wrong: score of the shortest wrong answer; open-rs's training script has 0 here, so
            that short wrong answers score **more** there.
        max_value_wrong: score of the longest wrong answer.
        min_value_correct: score of the longest right answer.
        max_value_correct: score of the shortest right answer.
        max_length: in characters; 3584 in open-rs's Experiment 3.
        clamp: treat longer completions as ``max_length`` long. open-rs does not, and there the cosine
            rises again: twice the length scores as much as none.
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
    """open-rs's repetition penalty: ``(1 - distinct n-grams / n-grams) * max_penalty``, of lower-case words.

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
