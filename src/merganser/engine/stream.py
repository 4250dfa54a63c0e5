"""A plan's output as a stream of tensors."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from merganser import engine
from merganser.engine.events import Listener, ignore
from merganser.planning import Plan
from merganser.sinks import StreamSink

if TYPE_CHECKING:
    import torch


class TensorStream:
    """Runs a plan while the caller iterates over its tensors, once.

    Args:
        plan: the plan.
        threads: as in :func:`merganser.engine.run`.
        report: as in :func:`merganser.engine.run`.
        on_event: as in :func:`merganser.engine.run`.

    Attributes:
        outcome: the engine's outcome; None until the last tensor is yielded.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        threads: int | None = None,
        report: bool = True,
        on_event: Listener = ignore,
    ) -> None:
        self.plan = plan
        self.outcome: engine.Outcome | None = None
        self._threads = threads
        self._report = report
        self._on_event = on_event

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, tensor) pairs, each as soon as the tensor is finished.

        Raises:
            MerganserError: as :func:`merganser.engine.run` does.
        """
        sink = StreamSink({job.name: job.spec for job in self.plan.jobs})
        failure: list[BaseException] = []

        def work() -> None:
            try:
                [self.outcome] = engine.run(
                    [self.plan],
                    [sink],
                    threads=self._threads,
                    report=self._report,
                    on_event=self._on_event,
                )
            except BaseException as error:
                failure.append(error)
                sink.stop()

        thread = threading.Thread(target=work, name="merge", daemon=True)
        thread.start()
        try:
            while (taken := sink.take()) is not None:
                yield taken
        finally:
            sink.stop()
            thread.join()
        if failure:
            raise failure[0]
