"""Compare mathematical answers with math-verify, in a separate process.

math-verify limits its time with signals, which work in the main thread only, and it may hang in code
that they do not interrupt. A separate process can be killed. Run as a program, this module reads
requests from stdin, one JSON line each, and answers each on stdout.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import selectors
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Literal

from merganser.errors import MerganserError

Rule = Literal["sound", "open-rs"]

PATIENCE = 20.0
"""Seconds for one comparison; math-verify's limits end most sooner, with a score of 0."""

START = 120.0
"""Seconds for the process to import its libraries."""


@functools.lru_cache(maxsize=100_000)
def grade(gold: str, completion: str | None, rule: Rule = "sound") -> float | None:
    """Return 1 if a completion's answer equals the gold answer, else 0; None if the gold is unreadable.

    Args:
        gold: the right answer.
        completion: the completion; None to check only whether the gold is readable: 1 or None.
        rule: ``open-rs`` reads the gold as it is; ``sound`` tries it as the content of a box next.

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
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: list[Any]) -> float | None:
        with self._lock:
            reply = self._exchange(request)
            if reply is None:  # it hangs or crashed: the answer counts as wrong
                self.close()
                return 0.0
        score: float | None = reply["score"]
        return score

    def _exchange(self, request: list[Any]) -> dict[str, Any] | None:
        if self._process is None or self._process.poll() is not None:
            self._process = self._start()
        process = self._process
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            return self._read(PATIENCE)
        except OSError:
            return None

    def _start(self) -> subprocess.Popen[str]:
        home = str(Path(__file__).parents[2])
        paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "merganser.evaluation.grader"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )
        ready = self._read(START)
        if ready is None or "missing" in ready:
            self.close()
            if ready is None:
                raise MerganserError("the process that compares answers could not be started")
            raise MerganserError(
                "comparing answers needs math-verify: pip install 'merganser[eval]'"
            )
        return self._process

    def _read(self, seconds: float) -> dict[str, Any] | None:
        assert self._process is not None
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                return None
        text = self._process.stdout.readline()
        reply: dict[str, Any] | None = json.loads(text) if text else None
        return reply

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _serve() -> None:
    """Answer requests until stdin ends."""
    out = sys.stdout
    sys.stdout = sys.stderr  # libraries may print
    try:
        import math_verify  # noqa: F401
    except ImportError:
        out.write('{"missing": true}\n')
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
