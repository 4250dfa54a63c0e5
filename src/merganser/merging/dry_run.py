"""Run a merge into a sink instead of a folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Unpack

from merganser import engine
from merganser.checkpoints import Checkpoint
from merganser.engine.events import Listener, ignore
from merganser.merging.result import MergeResult, all_warnings, timings_of
from merganser.planning import Config, Plan, PlanKeywords, PlanOptions, make_plan
from merganser.release import manifest
from merganser.sinks import NullSink, Sink
from merganser.version import VERSION


def run_dry(
    config: Config | Plan,
    sink: Sink | None = None,
    *,
    threads: int | None = None,
    memory: int | None = None,
    digest_inputs: bool = False,
    checkpoints: Mapping[str, Checkpoint] | None = None,
    on_event: Listener = ignore,
    **options: Unpack[PlanKeywords],
) -> MergeResult:
    """Run a merge into a sink, without a folder; the default sink discards the output, to time the engine.

    Args:
        config: as in :func:`merganser.merge`.
        sink: receives the output; None for the null sink.
        threads, memory, digest_inputs, checkpoints, on_event: as in :func:`merganser.merge`.
        options: of :func:`merganser.plan`.

    Returns:
        The result, whose ``folder`` is None.
    """
    began = time.perf_counter()
    plan = (
        config
        if isinstance(config, Plan)
        else make_plan(config, PlanOptions(**options), checkpoints=checkpoints)
    )
    planned = time.perf_counter()
    [outcome] = engine.run(
        [plan],
        [sink or NullSink()],
        threads=threads,
        memory=memory,
        digest_inputs=digest_inputs,
        checkpoints=checkpoints,
        on_event=on_event,
    )
    done = time.perf_counter()
    facts = manifest.build(plan, outcome, VERSION)
    timings = timings_of(began, planned, done, done)
    return MergeResult(None, plan, outcome, facts, all_warnings(plan, facts), timings)
