"""Call scorers of all kinds (plain, group, batch, streaming, async) on samples, and store costly scores."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from merganser.errors import InputError, MerganserError
from merganser.evaluation import problems as problem_files
from merganser.evaluation import scorer_calls
from merganser.evaluation.judgement_file import JudgementFile, StoredJudgement
from merganser.evaluation.problems import Problem
from merganser.evaluation.samples import Sample
from merganser.evaluation.scorer_calls import Failure
from merganser.evaluation.scorer_process import ScorerProcess
from merganser.evaluation.scorer_registry import Judgement, Scorer

BATCH = 256
"""Maximum number of samples in one call of a batch scorer."""


@dataclass(frozen=True, slots=True)
class Item:
    """A sample to score.

    Attributes:
        problem: its problem.
        index: the problem's number in its task, from 0.
        sample: the sample.
    """

    problem: Problem
    index: int
    sample: Sample


Count = Callable[[str, int, int], None]
"""Called with a costly scorer's name in its task, the number of scored samples, and the total number."""

Done = Callable[[int, Judgement], None]
"""Called with an item's position and its judgement."""


def judge(scorer: Scorer, problem: Problem, samples: Sequence[Sample]) -> list[float]:
    """Return the scores of all samples of one problem.

    Raises:
        MerganserError: when the scorer fails.
    """
    items = [Item(problem, 0, sample) for sample in samples]
    judged = judge_all(scorer, items)
    if failed := next((each for each in judged if each.score is None), None):
        raise InputError(f"scorer {scorer.name}: failed on {problem.address} ({failed.note})")
    return [each.score for each in judged if each.score is not None]


def judge_all(
    scorer: Scorer,
    items: Sequence[Item],
    file: JudgementFile | None = None,
    name: str = "",
    on_judged: Count = lambda _name, _done, _all: None,
) -> list[Judgement]:
    """Return the judgement of every item, in order; its score is None if the scorer failed on the sample.

    Args:
        scorer: the scorer.
        items: the samples to score; those of one problem must be consecutive.
        file: stores judgements of costly scorers, and those with a note of all scorers; None to store none.
        name: the scorer's name in the task.
        on_judged: called with the progress of costly scorers.

    Raises:
        ScorerError: the scorer's function raised an exception.
        MerganserError: the scorer raised this, or gave no judgement for a sample.
    """
    judgements: dict[int, Judgement] = {}
    keys = [_key(scorer, item) if scorer.identity else "" for item in items]
    if file is not None and scorer.identity:
        judgements = {
            i: known for i, key in enumerate(keys) if (known := file.known(key)) is not None
        }
        for i, known in judgements.items():
            file.keep(_record(items[i], name, keys[i], known))
    missing = [i for i in range(len(items)) if i not in judgements]

    def done(place: int, judgement: Judgement) -> None:
        judgements[missing[place]] = judgement
        if file is not None and (scorer.identity or judgement.note):
            key = "" if judgement.transient else keys[missing[place]]
            file.add(_record(items[missing[place]], name, key, judgement))
        if scorer.identity:
            on_judged(name, len(judgements), len(items))

    if missing:
        _run(scorer, [items[i] for i in missing], done)
    if len(judgements) != len(items):
        raise MerganserError(f"scorer {scorer.name}: gave no score for some samples")
    return [judgements[i] for i in range(len(items))]


def _record(item: Item, name: str, key: str, judgement: Judgement) -> StoredJudgement:
    sample = item.sample
    return StoredJudgement(sample.task, sample.problem, sample.sample, name, key, judgement)


def _key(scorer: Scorer, item: Item) -> str:
    """A digest of everything that a costly scorer's judgement depends on."""
    content = [
        scorer.reference,
        dict(scorer.identity),
        problem_files.digest(item.problem),
        item.sample.prompt,
        item.sample.completion,
    ]
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


# -- kinds of scorers ------------------------------------------------------------------------------


def _run(scorer: Scorer, items: Sequence[Item], done: Done) -> None:
    if scorer.streams:
        _stream(scorer, items, done)
    elif scorer.is_async:
        _in_a_thread(_run_async(scorer, items, done))
    elif scorer.timeout is not None:
        _run_with_timeout(scorer, items, done, scorer.timeout)
    else:
        for unit in _units(scorer, items):
            chosen = [items[i] for i in unit]
            _settle(scorer, unit, chosen, scorer_calls.call(scorer, *_split(chosen)), done)


def _units(scorer: Scorer, items: Sequence[Item]) -> Iterator[list[int]]:
    """Yield the positions of the items of each call."""
    if scorer.batch:
        for start in range(0, len(items), BATCH):
            yield list(range(start, min(start + BATCH, len(items))))
        return
    start = 0
    for end in range(1, len(items) + 1):
        same = end < len(items) and items[end].problem is items[start].problem
        if not (scorer.group and same):
            yield list(range(start, end))
            start = end


def _split(items: Sequence[Item]) -> tuple[list[Sample], list[Problem]]:
    return [item.sample for item in items], [item.problem for item in items]


def _settle(
    scorer: Scorer,
    unit: Sequence[int],
    items: Sequence[Item],
    outcome: scorer_calls.Values | Failure | None,
    done: Done,
) -> None:
    """Pass the judgements of one call to ``done``; ``outcome`` is None if the call exceeded its time limit."""
    if isinstance(outcome, Failure):
        first = items[0]
        raise scorer_calls.scorer_error(
            scorer, outcome, first.problem, first.index, [item.sample for item in items]
        )
    late = Judgement(None, f"took longer than {scorer.timeout:g} s" if scorer.timeout else "")
    values = [late] * len(unit) if outcome is None else outcome
    for place, value in zip(unit, values, strict=True):
        done(place, value if isinstance(value, Judgement) else Judgement(value))


def _run_with_timeout(scorer: Scorer, items: Sequence[Item], done: Done, timeout: float) -> None:
    with closing(ScorerProcess(scorer)) as process:
        for unit in _units(scorer, items):
            chosen = [items[i] for i in unit]
            outcome = process.call(*_split(chosen), timeout * len(chosen))
            _settle(scorer, unit, chosen, outcome, done)


def _stream(scorer: Scorer, items: Sequence[Item], done: Done) -> None:
    for place, judgement in scorer.function(*_split(items), **scorer.keywords):
        if judgement.score is not None and not math.isfinite(judgement.score):
            judgement = Judgement(None, "the score is not a finite number", judgement.reply)
        done(place, judgement)


async def _run_async(scorer: Scorer, items: Sequence[Item], done: Done) -> None:
    gate = asyncio.Semaphore(scorer.concurrency)

    async def score(unit: list[int]) -> None:
        chosen = [items[i] for i in unit]
        limit = None if scorer.timeout is None else scorer.timeout * len(unit)
        outcome: scorer_calls.Values | Failure | None
        async with gate:
            clock = asyncio.timeout(limit)
            try:
                async with clock:
                    returned = await scorer.function(
                        *scorer_calls.arguments(scorer, *_split(chosen)), **scorer.keywords
                    )
                outcome = scorer_calls.values_of(scorer, returned, len(unit))
            except MerganserError:
                raise
            except Exception as error:
                outcome = None if clock.expired() else scorer_calls.failure_of(error)
        _settle(scorer, unit, chosen, outcome, done)

    async with asyncio.TaskGroup() as group:
        for unit in _units(scorer, items):
            group.create_task(score(unit))


def _in_a_thread(work: Any) -> None:
    """Run a coroutine in a new thread, because a notebook's main thread already runs an event loop."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(work)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="scorer", daemon=True)
    thread.start()
    thread.join()
    if errors:
        error = errors[0]
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error
