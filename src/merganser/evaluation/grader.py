"""Compare mathematical answers with math-verify, in a separate process.

math-verify limits its time with signals, which work in the main thread only and do not interrupt all of
its code. A separate process can be killed. Run as a program, this module reads
requests from stdin, one JSON line each, and answers each on stdout.
"""

from __future__ import annotations

import atexit
import functools
import json
import sys
import threading
from typing import Any, Literal

from merganser.evaluation.answering_process import AnsweringProcess

Rule = Literal["sound", "open-rs"]

PATIENCE = 20.0
"""Time limit in seconds for one comparison; math-verify's shorter limits end most, with a score of 0."""

START = 120.0
"""Time limit in seconds for the process to import its libraries."""


@functools.lru_cache(maxsize=100_000)
def grade(gold: str, completion: str | None, rule: Rule = "sound") -> float | None:
    """Return 1 if a completion's answer equals the gold answer, else 0; None if the gold cannot be parsed.

    Args:
        gold: the right answer.
        completion: the completion; None to check only whether the gold can be parsed (1, else None).
        rule: ``open-rs`` parses the gold as it is; ``sound`` does too, and if that fails parses it as
            the content of a ``\\boxed{}``.

    Raises:
        MerganserError: when math-verify is not installed.
    """
    return _grader().ask([gold, completion, rule])


@functools.cache
def _grader() -> _Grader:
    """The grader's process, started on first use; it ends with this process."""
    grader = _Grader()
    atexit.register(grader.close)
    return grader


class _Grader:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = AnsweringProcess("merganser.evaluation.grader", start=START)

    def ask(self, request: list[Any]) -> float | None:
        with self._lock:
            reply = self._process.ask(request, PATIENCE)
        if reply is None:  # the process hung or crashed; the answer counts as wrong
            return 0.0
        score: float | None = reply["score"]
        return score

    def close(self) -> None:
        self._process.close()


def _serve() -> None:
    """Answer requests until stdin ends."""
    out = sys.stdout
    sys.stdout = sys.stderr  # libraries may print
    try:
        import math_verify  # noqa: F401
    except ImportError:
        missing = "comparing answers needs math-verify: pip install 'merganser[eval]'"
        out.write(json.dumps({"error": missing}) + "\n")
        return
    out.write("{}\n")
    out.flush()
    for text in sys.stdin:
        gold, completion, rule = json.loads(text)
        out.write(json.dumps({"score": _judge(gold, completion, rule)}) + "\n")
        out.flush()


def _judge(gold: str, completion: str | None, rule: Rule) -> float | None:
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    boxed_first = LatexExtractionConfig(
        normalization_config=NormalizationConfig(
            basic_latex=True, units=True, malformed_operators=False, nits=False, boxed="all"
        ),
        boxed_match_priority=0,
        try_extract_without_anchor=False,
    )
    known = _parsed(parse, gold, LatexExtractionConfig())
    if not known and rule == "sound":
        known = _parsed(parse, rf"\boxed{{{gold}}}", LatexExtractionConfig())
    if not known:
        return None
    if completion is None:
        return 1.0
    try:
        return float(verify(_parsed(parse, completion, boxed_first), known))
    except Exception:  # as in open-rs, answers that cannot be compared are wrong
        return 0.0


def _parsed(parse: Any, text: str, config: Any) -> list[Any]:
    try:
        answers: list[Any] = parse(text, extraction_config=[config], extraction_mode="first_match")
    except Exception:
        return []
    return answers


if __name__ == "__main__":
    _serve()
