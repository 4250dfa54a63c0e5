"""A worker as a Ray actor."""

from __future__ import annotations

from contextlib import closing, suppress
from typing import Any

from merganser.errors import MerganserError
from merganser.workers.merge_worker import work_on_merge
from merganser.workers.working import begin_work, leave


class Member:
    """An actor that scores models of one study in its own engine, or writes parts of one merge, until none
    is left."""

    def place(self) -> tuple[str, int]:
        """Return the id of the actor's node, and the process id."""
        import os

        import ray

        return ray.get_runtime_context().get_node_id(), os.getpid()

    def work(self, home: str, threads: int) -> dict[str, Any]:
        """Score models of a study, or write parts of a merge.

        Args:
            home: the study's or the merge's folder.
            threads: threads of the merges.

        Returns:
            The names of the ``scored`` models, or of the ``written`` parts; or the ``error`` for which this
            actor cannot go on, and whether another one should ``replace`` it. Errors of single models are in
            the study's folder.
        """
        written: list[str] = []
        try:
            with suppress(SystemExit, KeyboardInterrupt):  # the driver stops
                units = work_on_merge(home, threads=threads, on_hang=leave)
                if units is None:
                    return {"scored": self._score(home, threads)}
                written = [unit.name for unit in units]
        except MerganserError as error:
            return {"error": str(error)}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}", "replace": True}
        return {"written": written}

    def _score(self, home: str, threads: int) -> list[str]:
        worker = begin_work(home, threads)
        worker.on_hang = leave
        with closing(worker.live), suppress(SystemExit, KeyboardInterrupt):
            worker.run()
        return worker.scored
