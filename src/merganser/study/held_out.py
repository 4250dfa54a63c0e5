"""Held-out problems, which select no model, so that scores on them have no selection bias."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from merganser.errors import RecipeError
from merganser.evaluation.tasks import Task


def split(
    tasks: Sequence[Task],
    apart: float | Sequence[str] | None,
    seed: int,
    error: Callable[[str], RecipeError],
) -> tuple[list[Task], list[Task]]:
    """Split tasks into those that select models and those that only the selected models are scored on.

    A share takes the same fraction of every task's problems, by the digests of their names, so
    that it does not depend on the order of the file.

    Args:
        tasks: all tasks.
        apart: a share of the problems to hold out, or names of tasks; None to hold out nothing.
        seed: seed of the draw of a share.
        error: converts a message about ``apart`` into an exception.

    Raises:
        RecipeError: one side is empty, or a task does not exist.
    """
    if apart is None:
        return list(tasks), []
    if not isinstance(apart, float):
        names = [task.name for task in tasks]
        if unknown := [name for name in apart if name not in names]:
            raise error(f"there is no task {unknown[0]!r}; there are {', '.join(names)}")
        if len(set(apart)) == len(names):
            raise error("names all tasks; leave one to select with")
        parts = [[t for t in tasks if (t.name in apart) is held] for held in (False, True)]
        return parts[0], parts[1]
    seen: list[Task] = []
    unseen: list[Task] = []
    for task in tasks:
        ranked = sorted(
            task.problems,
            key=lambda p: hashlib.sha256(f"{seed} {task.name} {p.id}".encode()).digest(),
        )
        count = round(apart * len(ranked))
        if not 0 < count < len(ranked):
            raise error(
                f"a share of {apart:g} of the {len(ranked)} problems of {task.name!r} leaves one part without problems"
            )
        held = {problem.id for problem in ranked[:count]}
        for part, inside in ((seen, False), (unseen, True)):
            chosen = tuple(problem for problem in task.problems if (problem.id in held) is inside)
            part.append(replace(task, problems=chosen))
    return seen, unseen
