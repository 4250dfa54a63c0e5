"""The steps of a training run, and the selection that a recipe makes.

Steps are recognised by the names of folders and of the files in them; only indexes of shards are opened
here.
"""

from __future__ import annotations

import bisect
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from merganser import weight_formats
from merganser.recipe.document import Document, KeyPath, key_name
from merganser.recipe.references import exists

MOST_STEPS = 1000

TRACKER = "latest_checkpointed_iteration.txt"
"""A run's file that names its last finished step, as verl and Megatron write it."""

_CHOICES = (
    "all, one step, a list such as [30, 42], {last: 8}, {first: 75} or {from: 10, to: 54, every: 4}"
)


@dataclass(frozen=True, slots=True)
class RunStep:
    """A step of a run.

    Attributes:
        number: the step.
        name: its folder's, in the run's.
        problem: why it cannot be used; None if it can.
    """

    number: int
    name: str
    problem: str | None = None


# -- what is there ---------------------------------------------------------------------------------


def step_of(name: str) -> int | None:
    """Return the step in a folder's name."""
    match = re.fullmatch(r"(?:global_step_?|checkpoint-|iter_|step[_-]?)(\d{1,15})", name)
    return int(match[1]) if match else None


def list_steps(run: Path) -> list[RunStep]:
    """The steps of a run, in their order; of folders of the same step the first by name is taken.

    Raises:
        OSError: when the run's folder cannot be read.
    """
    last = _last_finished(run)
    steps: list[RunStep] = []
    for folder in sorted(run.iterdir()):
        number = step_of(folder.name)
        if number is None or not folder.is_dir():
            continue
        problem = _problem(folder)
        if last is not None and number > last:
            problem = f"{TRACKER} names {last} as the last finished one"
        steps.append(RunStep(number, folder.name, problem))
    steps.sort(key=lambda step: (step.number, step.problem is not None))
    for i in range(1, len(steps)):
        if steps[i].number == steps[i - 1].number and steps[i].problem is None:
            steps[i] = replace(steps[i], problem=f"is there as {steps[i - 1].name} too")
    return steps


def _last_finished(run: Path) -> int | None:
    try:
        text = (run / TRACKER).read_text(encoding="utf-8")[:20].strip()
    except (OSError, ValueError):
        return None
    return int(text) if text.isdecimal() else None


def _problem(step: Path) -> str | None:
    """What a step's folder lacks, by its files' names."""
    homes = [step / "actor", step]
    homes += [home / "huggingface" for home in homes]
    inside = [sorted(e.name for e in home.iterdir()) for home in homes if home.is_dir()]
    incomplete = None
    for home, names in zip((h for h in homes if h.is_dir()), inside, strict=True):
        missing = _missing_ranks(names) or _missing_shards(home, names)
        if missing is not None:
            incomplete = incomplete or missing
        elif any(_is_weights(name) for name in names):
            return None
    if incomplete is not None:
        return incomplete
    # Other trainers write deeper folders or other names; what they lack shows when they are read.
    home = homes[0] if homes[0].is_dir() else step
    deeper = any(entry.is_dir() and entry.name != "huggingface" for entry in home.iterdir())
    return None if deeper else "holds no weights"


def _is_weights(name: str) -> bool:
    return name == ".metadata" or (
        name.endswith(weight_formats.suffixes())
        and not name.startswith(("adapter", "optim", "extra_state", "training_args", "data"))
    )


def _missing_ranks(names: Sequence[str]) -> str | None:
    """The first shard that a set of ranks lacks."""
    ranks: dict[int, set[int]] = {}
    for name in names:
        if match := re.fullmatch(r"model_world_size_(\d{1,6})_rank_(\d{1,6})\.pt", name):
            ranks.setdefault(int(match[1]), set()).add(int(match[2]))
    for size, there in ranks.items():
        if lacking := sorted(set(range(size)) - there):
            return f"lacks model_world_size_{size}_rank_{lacking[0]}.pt"
    return None


def _missing_shards(home: Path, names: Sequence[str]) -> str | None:
    """The first file that an index of shards names and that is not there."""
    index = next((name for name in names if name.endswith(".safetensors.index.json")), None)
    if index is None:
        return None
    try:
        files = sorted(
            set(json.loads((home / index).read_text(encoding="utf-8"))["weight_map"].values())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{index} cannot be read"
    lacking = next((str(file) for file in files if file not in names), None)
    return f"lacks {lacking}" if lacking else None


# -- which are meant -------------------------------------------------------------------------------


def read_numbers(
    document: Document, value: Mapping[str, Any], path: KeyPath, folder: Path | None
) -> list[int]:
    """The steps that a sweep's key runs over: ``{run: runs/acc, every: 6}``.

    Raises:
        RecipeError: when there is no such run, or there are no such steps.
    """
    choice = {key: entry for key, entry in value.items() if key != "run"}
    steps = choice.get("steps", choice or "all") if len(choice) <= 1 else choice
    chosen, _ = select_steps(document, value["run"], steps, path, folder)
    return [step.number for step in chosen]


def select_steps(
    document: Document, run: Any, steps: Any, path: KeyPath, folder: Path | None
) -> tuple[list[RunStep], list[str]]:
    """Return the steps of a run that a recipe selects.

    Args:
        document: the recipe's.
        run: the run's folder, as the recipe names it.
        steps: what the recipe says of them.
        path: where it says so.
        folder: the recipe's folder, which is also searched for runs.

    Returns:
        The steps, in their order, and a line for each that is left out.

    Raises:
        RecipeError: when there is no such run, or there are no such steps.
    """
    here = (*path, "run")
    if not isinstance(run, str) or not run.strip():
        raise document.error(f"{key_name(here)}: give the folder of a run, such as runs/acc", here)
    home = next(
        (str(p) for p in (Path(run), *([folder / run] if folder else [])) if exists(str(p))), run
    )
    try:
        there = list_steps(Path(home).expanduser())
    except (OSError, ValueError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or error
        raise document.error(
            f"{key_name(here)}: {run}: is not a folder of a run ({why})", here
        ) from None
    if not there:
        raise document.error(
            f"{key_name(here)}: {run}: holds no steps (global_step_N, checkpoint-N, iter_N)", here
        )
    good = {step.number: step for step in there if step.problem is None}
    bad = {step.number: step for step in there if step.problem and step.number not in good}
    numbers, named = _wanted(document, steps, path, sorted(good), sorted(bad))
    for number in named:
        if number not in good:
            why = f"is broken: {bad[number].problem}" if number in bad else "is not there"
            raise document.error(
                f"{key_name(path)}: {run}: step {number} {why}; {_near(good, number)}", path
            )
    if not numbers:
        raise document.error(
            f"{key_name(path)}: {run}: the list matches no step; {_near(good, 0, 5)}", path
        )
    if len(numbers) > MOST_STEPS:
        raise document.error(f"{key_name(path)}: {run}: more than {MOST_STEPS:,} steps", path)
    lines = [
        f"{run}/{step.name}: left out: {step.problem}"
        for step in there
        if step.problem is not None and not named and _is_meant(steps, step.number, numbers[0])
    ]
    lines += [
        f"{run}: step {n} is not there; {_near(good, n)}"
        for n in _gaps(steps, numbers[0], numbers[-1], {*good, *bad})
    ]
    return [good[number] for number in numbers], lines


def _near(good: Mapping[int, RunStep], number: int, most: int = 2) -> str:
    """The steps nearest to one that is not there, as the end of a message."""
    numbers = sorted(good)
    if not numbers:
        return "no step of the run is complete"
    i = bisect.bisect(numbers, number)
    near = numbers[max(0, i - most // 2) : i + most - most // 2] or numbers[-1:]
    return (
        f"{'the nearest is' if len(near) == 1 else 'the nearest are'} {', '.join(map(str, near))}"
    )


def _is_meant(steps: Any, number: int, first: int) -> bool:
    """Whether a step that cannot be used is one of those that a choice includes."""
    if not isinstance(steps, dict):
        return True
    if "last" in steps:
        return number > first
    begin, end = steps.get("from", 0), steps.get("to", math.inf)
    return bool(begin <= number <= end and (number - begin) % steps.get("every", 1) == 0)


def _gaps(steps: Any, first: int, last: int, there: set[int]) -> list[int]:
    """Steps that ``every`` asks for between the first and the last, and that are not there."""
    every = steps.get("every") if isinstance(steps, dict) else None
    asked = range(first, last + 1, every) if every else range(0)
    return [number for number in asked if number not in there][:MOST_STEPS]


def _wanted(
    document: Document, steps: Any, path: KeyPath, good: Sequence[int], bad: Sequence[int]
) -> tuple[list[int], list[int]]:
    """The steps that are meant, and which of them are named one by one."""
    here = (*path, "steps") if (*path, "steps") in document.lines else path
    problem = document.error(f"{key_name(here)}: give {_CHOICES}", here)
    if steps in (None, "all"):
        return list(good), []
    listed = [steps] if _is_count(steps) else steps
    if isinstance(listed, list):
        if not listed or not all(map(_is_count, listed)):
            raise problem
        return sorted(set(listed)), sorted(set(listed))
    if not isinstance(steps, dict) or not steps or not all(map(_is_count, steps.values())):
        raise problem
    if set(steps) == {"last"} and steps["last"]:
        return list(good[-steps["last"] :]), []
    if set(steps) == {"first"} and steps["first"]:
        return list(good[: steps["first"]]), []
    every, begin, end = steps.get("every", 1), steps.get("from", 0), steps.get("to", math.inf)
    if not set(steps) <= {"from", "to", "every"} or every < 1 or begin > end:
        raise problem
    return [n for n in good if begin <= n <= end and (n - begin) % every == 0], []


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0
