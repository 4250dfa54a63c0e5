"""Score one model without writing it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

from merganser.evaluation import running
from merganser.evaluation import samples as kept_samples
from merganser.evaluation import tasks as languages
from merganser.evaluation.engines import EngineName
from merganser.evaluation.generation import Backend
from merganser.evaluation.judgement_file import judgements_beside
from merganser.planning import Plan
from merganser.planning.model_argument import find
from merganser.results.scores import Entry, Results
from merganser.study.evaluate_block import Study, choose_engine
from merganser.study.live import make_live
from merganser.study.live_model import Computing
from merganser.study.progress import Listener, Meter, Scored, Turn, ignore
from merganser.study.scoring import (
    describe,
    harness_scores,
    redone,
)
from merganser.study.served_model import ServedModel


def evaluate(
    model: str,
    tasks_file: str | Path,
    *,
    samples: str | Path | None = None,
    endpoint: str | None = None,
    concurrency: int = 16,
    engine: EngineName | None = None,
    engine_options: Mapping[str, Any] | None = None,
    device: str | None = None,
    dtype: Computing | None = None,
    batch_size: int | None = None,
    threads: int | None = None,
    allow_code: bool = False,
    on_progress: Listener = ignore,
    on_warning: Callable[[str], None] = lambda _: None,
) -> Results:
    """Score one model on the tasks of a file. Merges are scored in memory, and nothing is written.

    Args:
        model: a model as in recipes, a recipe, a point of a sweep (``SWEEP.yml#w=0.7``), or, with
            ``endpoint``, the name of a served model.
        tasks_file: a file of tasks, or one with an ``evaluate:`` block.
        samples: a JSON-lines file of completions: stored ones are reused, new ones appended. None
            stores none.
        endpoint: URL of a server with OpenAI's API, for the engine ``endpoint``.
        concurrency: number of requests to it at once.
        engine: overrides the file's engine, which runs the model.
        engine_options: override the file's options of that engine.
        device: overrides the file's device: ``auto``, ``cpu``, ``cuda`` …
        dtype: overrides the file's dtype, in which the model computes.
        batch_size: overrides the file's number of completions at once.
        threads: threads of the merge; None for the default.
        allow_code: allow scorers that run programs of models, whatever the file says.
        on_progress: called with the progress of the completions.
        on_warning: as in :func:`evaluate_sweep`.

    Returns:
        Results with one entry, the model's: each score has a mean, a standard error and a 95 % interval.

    Raises:
        MerganserError: one of its subclasses, by cause.
    """
    block, tasks, folder = languages.load(tasks_file, Study, allow_code=allow_code)
    if endpoint is not None:
        engine = "endpoint"
        engine_options = {"url": endpoint, "concurrency": concurrency, **(engine_options or {})}
    running_on = choose_engine(block, engine, engine_options)
    with ExitStack() as stack:
        live = make_live(
            running_on,
            device=device or block.device,
            dtype=dtype or block.dtype,
            batch_size=batch_size or block.batch_size,
            threads=threads,
        )
        stack.enter_context(closing(live))
        plan: Plan | None = None
        if isinstance(live, ServedModel):
            served = live.choose(model)
            name, key = model, {"the model at the endpoint": f"{live.options.url} {served.model}"}
            meter = Meter(Turn(name), on_progress)
            backend: Backend = partial(served, on_tokens=meter.generated)
        else:
            name, plan = find(model)
            meter = Meter(Turn(name), on_progress)
            key = live.key(plan) if samples is not None else {}
            backend = live.backend_of(plan, on_tokens=meter.generated)
        file = Path(samples) if samples is not None and tasks else None
        if file is not None:
            for why, count in running.to_redo(tasks, key=key, samples=file).items():
                on_warning(redone(count, why, [str(file)]))
        result = running.evaluate(
            backend,
            tasks,
            key=key,
            samples=file,
            on_progress=meter.completed,
            on_judged=meter.judged,
        )
        scores = dict(result.scores)
        if plan is not None:
            quiet = on_progress is ignore
            scores |= harness_scores(plan, block, live, folder or Path(), quiet=quiet)
        on_progress(Scored(meter.turn, scores, len(result.samples), result.generated))
    settings = describe(tasks, live, block.lm_eval)
    entry = Entry(name, "expert", model=model, scores=scores)
    return Results(name, "", block.directions(tasks), settings, (entry,))


def judge_again(samples: Path, tasks_file: str | Path, *, allow_code: bool = False) -> Results:
    """Score stored completions again, by the scorers of a file of tasks, without running a model.

    Args:
        samples: the file of completions; judgements that are stored next to it are reused.
        tasks_file: a file of tasks, or one with an ``evaluate:`` block.
        allow_code: allow scorers that run programs of models, whatever the file says.

    Returns:
        Results with one entry, the model's.

    Raises:
        MerganserError: one of its subclasses, by cause, for example if a problem has no completion.
    """
    _, tasks, _ = languages.load(tasks_file, Study, allow_code=allow_code)
    completions = kept_samples.read(samples)
    with judgements_beside(samples) as file:
        judged = running.judge(tasks, completions, file)
    entry = Entry(samples.stem, "expert", scores=running.scores(tasks, judged))
    settings = {"tasks": languages.describe(tasks)}
    return Results(samples.stem, "", languages.score_names(tasks), settings, (entry,))
