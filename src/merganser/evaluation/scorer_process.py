"""Run a scorer in a separate process, which can be killed when it exceeds its time limit."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from merganser.errors import MerganserError, RecipeError
from merganser.evaluation import scorer_calls
from merganser.evaluation.answering_process import AnsweringProcess
from merganser.evaluation.problems import Problem
from merganser.evaluation.samples import Sample
from merganser.evaluation.scorer_calls import Failure, Values
from merganser.evaluation.scorer_registry import Judgement, Scorer, get

START = 120.0
"""Time limit in seconds for the process to load the scorer."""


class ScorerProcess:
    """A scorer in a separate process.

    Raises:
        RecipeError: the scorer has no name by which another process could load it.
    """

    def __init__(self, scorer: Scorer) -> None:
        if not scorer.reference:
            raise RecipeError(f"scorer {scorer.name}: a timeout needs a scorer that a task names")
        which = {
            "reference": scorer.reference,
            "parameters": dict(scorer.parameters),
            "beside": None if scorer.beside is None else str(scorer.beside),
            "batch": scorer.batch if scorer.plain else None,
        }
        self.scorer = scorer
        self._process = AnsweringProcess(__name__, (json.dumps(which),), start=START, errors=None)

    def call(
        self, samples: Sequence[Sample], problems: Sequence[Problem], seconds: float
    ) -> Values | Failure | None:
        """See :func:`merganser.evaluation.scorer_calls.call`; None if the call exceeds ``seconds``."""
        request = [[asdict(each) for each in samples], [asdict(each) for each in problems]]
        reply = self._process.ask(request, seconds)
        if reply is None:
            return None
        if "failure" in reply:
            return Failure(**reply["failure"])
        return [Judgement(*each) if isinstance(each, list) else each for each in reply["values"]]

    def close(self) -> None:
        """End the process."""
        self._process.close()


def _serve(which: dict[str, Any]) -> None:
    """Answer requests until stdin ends."""
    out = sys.stdout
    sys.stdout = sys.stderr  # scorers may print
    beside = None if which["beside"] is None else Path(which["beside"])
    try:
        scorer = get(which["reference"], which["parameters"], beside, batch=which["batch"])
    except MerganserError as error:
        _say(out, {"error": str(error)})
        return
    _say(out, {})
    for text in sys.stdin:
        samples, problems = json.loads(text)
        outcome = scorer_calls.call(
            scorer,
            [Sample(**each) for each in samples],
            [Problem(**{**each, "messages": tuple(each["messages"])}) for each in problems],
        )
        if isinstance(outcome, Failure):
            _say(out, {"failure": asdict(outcome)})
        else:
            _say(out, {"values": [_plain(each) for each in outcome]})


def _plain(value: float | Judgement) -> Any:
    return [value.score, value.note, value.reply] if isinstance(value, Judgement) else value


def _say(out: Any, message: Any) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
