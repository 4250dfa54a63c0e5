"""Call a scorer's function: build its arguments, check its values, describe its exceptions."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merganser.errors import MerganserError, one_line
from merganser.evaluation.exit_guard import exit_raises
from merganser.evaluation.problems import Problem
from merganser.evaluation.samples import Sample
from merganser.evaluation.scorer_registry import Judgement, Scorer

Values = list[float | Judgement]

MOST_FRAMES = 5
"""Number of frames of a traceback that are shown, counted from its end."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception of a scorer's function.

    Attributes:
        reason: the exception's class and message.
        line: the line of the scorer that raised it: ``scores.py:12: return 1 / 0``; may be empty.
        frames: the last frames of the traceback, as Python prints them.
    """

    reason: str
    line: str
    frames: str


class ScorerError(MerganserError):
    """A scorer raised an exception; ``details`` is its traceback."""


def call(
    scorer: Scorer, samples: Sequence[Sample], problems: Sequence[Problem]
) -> Values | Failure:
    """Return the values of a scorer's function for samples, or a description of its exception.

    Args:
        scorer: the scorer; its function is not ``async`` and does not stream.
        samples: one sample; several for a group or batch scorer.
        problems: the problem of each sample.

    Raises:
        MerganserError: the function raised this.
    """
    try:
        given = arguments(scorer, samples, problems)
        with exit_raises():
            returned = scorer.function(*given, **scorer.keywords)
        return values_of(scorer, returned, len(samples))
    except MerganserError:
        raise
    except (Exception, SystemExit) as error:  # a user's function may raise anything
        return failure_of(error)


def judge_in_threads(
    judge: Callable[[int], Judgement], count: int, threads: int
) -> Iterator[tuple[int, Judgement]]:
    """Yield the index and judgement of each of ``count`` samples, in the order in which they end.

    No judgement begins after one has raised an exception.

    Args:
        judge: judges the sample of an index, in one of ``threads`` threads.
        count: number of samples.
        threads: number of simultaneous calls.
    """
    with ThreadPoolExecutor(threads) as crew:
        waiting = {crew.submit(judge, place): place for place in range(count)}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        except BaseException:
            crew.shutdown(cancel_futures=True)
            raise


def arguments(
    scorer: Scorer, samples: Sequence[Sample], problems: Sequence[Problem]
) -> tuple[Any, Any]:
    """The first two arguments of a scorer's function, in the form that it takes."""
    first: Sequence[Any] = samples
    second: Sequence[Any] = problems
    if scorer.plain:
        first = [sample.completion for sample in samples]
        second = [dict(problem.record) for problem in problems]
    if scorer.batch:
        return list(first), list(second)
    return (list(first) if scorer.group else first[0]), second[0]


def values_of(scorer: Scorer, returned: Any, count: int) -> Values:
    """Return the values that a scorer's function returned, checked.

    Raises:
        ValueError: the result is not one finite number per sample, ``count`` in all.
    """
    several = scorer.batch or scorer.group
    given = list(returned) if several else [returned]
    try:
        values: Values = [each if isinstance(each, Judgement) else float(each) for each in given]
    except (TypeError, ValueError):
        raise ValueError(f"gave {given!r:.60} in place of finite numbers") from None
    numbers = [each.score if isinstance(each, Judgement) else each for each in values]
    good = all(number is None or math.isfinite(number) for number in numbers)
    if len(values) != count or not good:
        raise ValueError(f"gave {given!r:.60} for {count} samples")
    return values


def failure_of(error: BaseException) -> Failure:
    """Describe an exception of a scorer."""
    reason = " ".join(str(error).split())[:160]
    home = str(Path(__file__).parent)
    every = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    frames = [frame for frame in every if not frame.filename.startswith(home)] or every
    last = frames[-1] if frames else None
    return Failure(
        f"{type(error).__name__}: {reason}",
        f"{Path(last.filename).name}:{last.lineno}: {last.line}" if last else "",
        "".join(traceback.format_list(frames[-MOST_FRAMES:])).rstrip(),
    )


def scorer_error(
    scorer: Scorer, failure: Failure, problem: Problem, index: int, samples: Sequence[Sample]
) -> ScorerError:
    """The error to raise for a scorer's exception.

    Args:
        scorer: the scorer.
        failure: its exception.
        problem: the first problem of the call.
        index: the problem's number in its task, from 0.
        samples: the samples of the call.
    """
    where = f"; {failure.line}" if failure.line else ""
    error = ScorerError(
        f"scorer {scorer.name}: failed on {problem.address} ({failure.reason}{where})"
    )
    numbers = ", ".join(str(sample.sample) for sample in samples[:5])
    more = f" and {len(samples) - 5} more" if len(samples) > 5 else ""
    details = (
        f"scorer {scorer.name}, problem {index} (id {problem.id}), sample {numbers}{more}; last frames:\n"
        f"{failure.frames}\n{failure.reason}"
    )
    error.details = "\n".join(map(one_line, details.split("\n")))  # exceptions quote completions
    return error
