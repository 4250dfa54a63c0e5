"""The scorer ``code``: runs the program in a completion against a problem's tests."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from merganser.errors import InputError
from merganser.evaluation import sandbox
from merganser.evaluation.problems import Problem
from merganser.evaluation.samples import Sample
from merganser.evaluation.sandbox import Limits
from merganser.evaluation.scorer_calls import judge_in_threads
from merganser.evaluation.scorer_registry import Judgement, scorer

CODE = 1
"""Version of the extraction and testing of programs; scores stored under another version are not reused."""

_BLOCK = re.compile(r"```[ \t]*(\w*)[^\n]*\n(.*?)```", re.DOTALL)


def _identify(parameters: Mapping[str, Any], _beside: Path | None) -> Mapping[str, Any]:
    names = ("tests", "share", "timeout", "memory_mb", "processes")
    return {
        **{name: parameters[name] for name in names},
        "python": platform.python_version(),
        "lacking": list(sandbox.lacking()),
        "code": CODE,
    }


def _check_tests(problem: Problem, *, tests: str = "tests", **_others: Any) -> None:
    _tests(problem, tests)


@scorer("code", batch=True, streams=True, runs_code=True, check=_check_tests, identify=_identify)
def code(
    samples: Sequence[Sample],
    problems: Sequence[Problem],
    *,
    tests: str = "tests",
    share: bool = False,
    timeout: float = 10.0,
    memory_mb: int = 1024,
    processes: int = 0,
    workers: int | None = None,
) -> Iterator[tuple[int, Judgement]]:
    """1 if the Python program in the completion passes the problem's tests, else 0.

    The program is the last fenced code block marked as Python or without a language, searched after
    ``</think>`` if that occurs; without a code block, it is the entire text after ``</think>``. It runs in
    a sandbox (:mod:`merganser.evaluation.sandbox`), and only if the evaluation has ``allow_code: true``.

    The problem's field ``tests`` has one of these forms:

    - a text of Python statements, or a list of texts, which raise an exception if the program is wrong
      (MBPP). If a single text defines ``check`` (HumanEval), ``check`` is called with the function that
      the field ``entry_point`` names.
    - a list of ``{"input": …, "output": …}``, or ``{"inputs": […], "outputs": […]}`` (APPS): the
      program's stdout is compared with the output line by line, ignoring spaces at the ends of lines.

    Lists and mappings may also be given as JSON texts. A program that exceeds the limit of time or memory
    fails its test.

    Args:
        samples: completions.
        problems: the problem of each completion.
        tests: the name of the field with the tests.
        share: score the fraction of passed tests, instead of 1 if all pass and 0 otherwise.
        timeout: time limit in seconds per test; a text of statements is one test.
        memory_mb: the program's memory limit in MiB.
        processes: maximum number of further processes and threads of the program.
        workers: number of programs that run at the same time; None for one per processor.

    Yields:
        The index of a sample and its judgement, in the order in which programs end.
    """
    limits = Limits(timeout, memory_mb * 2**20, processes)

    def judge(place: int) -> Judgement:
        program = program_of(samples[place].completion)
        cases = _tests(problems[place], tests)
        passed, reason = 0, ""
        for case in cases:
            problem = _failure(program, case, limits)
            passed += problem == ""
            reason = reason or problem
            if problem and not share:
                break
        score = passed / len(cases) if share else float(passed == len(cases))
        return Judgement(score, reason)

    threads = workers or len(os.sched_getaffinity(0))
    yield from judge_in_threads(judge, len(samples), threads)


def program_of(completion: str) -> str:
    """The Python program in a completion: the last code block after ``</think>``, or the entire text."""
    answer = completion.rpartition("</think>")[2]
    blocks = [text for language, text in _BLOCK.findall(answer) if language.lower() in _PYTHON]
    return str(blocks[-1]) if blocks else answer


_PYTHON = ("", "python", "py", "python3")


def _tests(problem: Problem, field: str) -> list[str | Mapping[str, str]]:
    """The tests of a problem: texts of statements, or pairs of ``input`` and ``output``.

    Raises:
        InputError: the problem has no tests, or they have an unknown form.
    """
    given = problem.record.get(field)
    if given is None:
        there = ", ".join(problem.record)
        raise InputError(f"{problem.address}: has no field {field!r} with tests; it has {there}")
    given = _decoded(given)
    if isinstance(given, str):
        entry = problem.record.get("entry_point")
        call = f"\ncheck({entry})" if entry and re.search(r"^def check\(", given, re.M) else ""
        return [given + call]
    if isinstance(given, list) and given and all(isinstance(each, str) for each in given):
        setup = problem.record.get("test_setup_code") or ""
        return [f"{setup}\n{each}" for each in given]
    pairs = given if isinstance(given, list) and given else [None]
    if all(isinstance(pair, dict) and {"input", "output"} <= set(pair) for pair in pairs):
        return [{key: str(pair[key]) for key in ("input", "output")} for pair in pairs if pair]
    raise InputError(
        f'{problem.address}: {field} is a text, a list of texts, or of {{"input": …, "output": …}}'
    )


def _decoded(given: Any) -> Any:
    """Tests parsed from JSON if they are a JSON text, with APPS's two lists converted to pairs."""
    if isinstance(given, str) and given.lstrip()[:1] in ("[", "{"):
        with suppress(ValueError):
            given = json.loads(given)
    if isinstance(given, dict) and {"inputs", "outputs"} == set(given):
        inputs, outputs = given["inputs"], given["outputs"]
        if len(inputs) == len(outputs):
            pairs = zip(inputs, outputs, strict=True)
            return [{"input": _text(one), "output": _text(other)} for one, other in pairs]
    return given


def _text(lines: Any) -> str:
    return "\n".join(map(str, lines)) if isinstance(lines, list) else str(lines)


def _failure(program: str, test: str | Mapping[str, str], limits: Limits) -> str:
    """The reason why a program fails a test; empty if it passes."""
    if isinstance(test, str):
        return sandbox.run(program, test, limits=limits).reason
    outcome = sandbox.run(program, stdin=test["input"], limits=limits)
    if outcome.passed and _lines(outcome.output) != _lines(test["output"]):
        return "printed something else"
    return outcome.reason


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]
