"""A worker as a Ray actor."""

from __future__ import annotations

from contextlib import closing, suppress
from typing import Any

from merganser.errors import MerganserError
from merganser.workers.working import begin_work, leave


class Member:
    """An actor that scores models of one study in its own engine, until none is left."""

    def place(self) -> tuple[str, int]:
        """Return the id of the actor's node, and the process id."""
        import os

        import ray

        return ray.get_runtime_context().get_node_id(), os.getpid()

    def work(self, home: str, threads: int) -> dict[str, Any]:
        """Score models.

        Args:
            home: the study's folder.
            threads: threads of the merges.

        Returns:
            The names of the ``scored`` models; or the ``error`` for which this actor cannot go on, and whether
            another one should ``replace`` it. Errors of single models are in the study's folder.
        """
        scored: list[str] = []
        try:
            worker = begin_work(home, threads)
            worker.on_hang = leave
            scored = worker.scored
            with closing(worker.live), suppress(SystemExit, KeyboardInterrupt):  # the driver stops
                worker.run()
        except MerganserError as error:
            return {"error": str(error)}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}", "replace": True}
        return {"scored": scored}
