"""Merge all points of a sweep in one pass over their inputs, each into a separate folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

from merganser import notebook
from merganser.engine import OVERHEAD, TILE, buffer_bytes, default_threads
from merganser.errors import MerganserError, OutputExistsError, RecipeError
from merganser.merging.folders import check_output, write_folders
from merganser.merging.multistage import up_to_date
from merganser.merging.options import MergeKeywords, WriteOptions, split_options
from merganser.merging.output_folder import check_space, clear_finished
from merganser.merging.result import MergeResult
from merganser.planning import Config, Plan, PlanOptions, make_plan
from merganser.recipe import has_block
from merganser.recipe.sweep_file import Point, load_points, select
from merganser.release import manifest
from merganser.sinks import WINDOW

MOST_TOGETHER = 32
"""Points per pass without a memory limit: every point takes buffers and an open file."""


Begun = Callable[[int, int], object]
"""Called with the number of points to merge, and the number of passes over the inputs."""


def _silent(_points: int, _passes: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class PointResult:
    """The result of one point.

    Attributes:
        point: its name, values and recipe.
        folder: its folder.
        plan: the point's plan.
        merged: the result of the merge; None if the folder existed already.
    """

    point: Point
    folder: Path
    plan: Plan
    merged: MergeResult | None


@dataclass(frozen=True, slots=True)
class SweepResult:
    """The results of a sweep.

    Attributes:
        points: the points, in the sweep's order.
        passes: number of passes over the inputs.
        seconds: wall time.
    """

    points: tuple[PointResult, ...]
    passes: int
    seconds: float

    def __repr__(self) -> str:
        written = sum(point.merged is not None for point in self.points)
        return (
            f"SweepResult({len(self.points)} points, {written} of them written, "
            f"{self.passes} passes, {self.seconds:.1f} s)"
        )

    def _repr_html_(self) -> str:
        keys = list(dict.fromkeys(key for result in self.points for key in result.point.values))
        rows = [
            (
                result.point.name,
                *(result.point.values.get(key, "") for key in keys),
                result.folder,
                "was there already" if result.merged is None else "written",
            )
            for result in self.points
        ]
        return notebook.table(("point", *keys, "folder", ""), rows)


def plan_points(
    config: Config,
    only: Sequence[str] = (),
    options: PlanOptions = PlanOptions(),  # noqa: B008  # frozen
) -> list[tuple[Point, Plan]]:
    """Return every point of a sweep with its plan, without reading weights.

    Args:
        config: a file with a ``sweep:`` block, or a mapping.
        only: conditions on the points, such as ``w=0.7,0.9``.
        options: of :func:`merganser.plan`.

    Raises:
        MerganserError: one of its subclasses, by cause; the message names the invalid points.
    """
    return plan_all(select(load_points(config, options.strictness), only), options)


def plan_all(points: Sequence[Point], options: PlanOptions) -> list[tuple[Point, Plan]]:
    """Return points with their plans, without reading weights.

    Args:
        points: points of a sweep or candidates of a search.
        options: of :func:`merganser.plan`.

    Raises:
        MerganserError: one of its subclasses, by cause; the message names the invalid points.
    """
    planned: list[tuple[Point, Plan]] = []
    wrong: list[tuple[Point, MerganserError]] = []
    for point in points:
        try:
            planned.append((point, make_plan(point.recipe, options)))
        except MerganserError as error:
            wrong.append((point, error))
    if wrong:
        (first, problem), *others = wrong
        address = f"point {first.name}: "
        more = ", ".join(point.name for point, _ in others)
        raise type(problem)(
            f"{'' if address in str(problem) else address}{problem}"
            + (f"; wrong too: {more}" if more else "")
        )
    return planned


def input_bytes(plans: Sequence[Plan]) -> int:
    """Return the bytes of weights that plans read; bytes that several plans read count once."""
    read = {
        (
            source.reference.text,
            source.checkpoint.header_digest,
            read_.name,
        ): source.checkpoint.specs[read_.name].nbytes
        for plan in plans
        for job in plan.jobs
        for read_ in job.reads
        for source in [plan.sources[read_.source]]
    }
    return sum(read.values())


def sweep(
    config: Config,
    out: str | Path,
    *,
    only: Sequence[str] = (),
    on_begin: Begun = _silent,
    **options: Unpack[MergeKeywords],
) -> SweepResult:
    """Merge all points of a sweep, each into ``out/NAME``.

    Points share one pass over the inputs, or as few as memory allows. All points are planned
    before any is merged. A point's folder appears only when it is complete; an existing folder
    with the same merge is kept, so that an interrupted sweep resumes.

    Args:
        config: a file with a ``sweep:`` block, or a mapping.
        out: the folder of all points.
        only: conditions on the points, such as ``w=0.7,0.9``; all must hold.
        on_begin: called with the numbers of points and of passes, before the first byte is read.
        options: those of :func:`merganser.merge`; ``force`` replaces folders that hold something else.

    Returns:
        The points in the sweep's order, each with its folder, plan and merge.

    Raises:
        RecipeError: when the file has an ``evaluate:`` block; use :func:`merganser.evaluate_sweep`.
        MerganserError: one of its subclasses, by cause; finished points stay on disk.
    """
    if has_block(config, "evaluate"):
        name = "" if isinstance(config, Mapping) else f"{config}: "
        raise RecipeError(
            f"{name}its evaluate: block asks for scores, but merganser.sweep() only writes the points; "
            "call merganser.evaluate_sweep(), or remove the block"
        )
    planning, writing = split_options(options)
    return merge_points(plan_points(config, only, planning), out, writing, on_begin)


def merge_points(
    planned: Sequence[tuple[Point, Plan]],
    out: str | Path,
    writing: WriteOptions,
    on_begin: Begun = _silent,
) -> SweepResult:
    """Merge planned points, each into ``out/NAME``.

    Args:
        planned: the result of :func:`plan_all`.
        out: the folder of all points.
        writing: options of the writer.
        on_begin: as in :func:`sweep`.

    Raises:
        MerganserError: one of its subclasses, by cause; finished points stay on disk.
    """
    began = time.perf_counter()
    home = Path(os.path.abspath(out))  # noqa: PTH100
    results = {
        home / point.name: PointResult(point, home / point.name, plan, None)
        for point, plan in planned
    }
    to_do = _to_do(planned, home, writing)
    for folder in results.keys() - to_do.keys():
        clear_finished(folder)
    if to_do:
        check_space(to_do)
    batches = _batches(to_do, writing.threads, writing.memory)
    on_begin(len(to_do), len(batches))
    for batch, crew in batches:
        merges = write_folders(batch, replace(writing, threads=crew), leftover="either")
        for folder, merged in zip(batch, merges, strict=True):
            point = results[folder].point
            results[folder] = PointResult(point, folder, merged.plan, merged)
    return SweepResult(tuple(results.values()), len(batches), time.perf_counter() - began)


def check_ready(
    planned: Sequence[tuple[Point, Plan]], home: Path, writing: WriteOptions, *, all_points: bool
) -> None:
    """Check, before points are scored, that they can be written.

    Args:
        planned: the points, some or all of which will be written.
        home: the folder that contains all points.
        writing: options of the writer.
        all_points: whether all will be written; otherwise the disk needs room for the largest.

    Raises:
        OutputExistsError: a folder holds something else.
        ResourceError: the disk is too small.
    """
    to_do = _to_do(planned, home, writing)
    if to_do and not all_points:
        to_do = dict([max(to_do.items(), key=lambda entry: entry[1].output_bytes)])
    if to_do:
        check_space(to_do)


def _to_do(
    planned: Sequence[tuple[Point, Plan]], home: Path, writing: WriteOptions
) -> dict[Path, Plan]:
    """Return the plans of points that are not written yet, by folder, after checking the folders."""
    missing = {
        home / point.name: plan
        for point, plan in planned
        if not _kept(home / point.name, plan, writing.public)
    }
    for folder, plan in missing.items():
        _check(folder, plan, writing.force)
    return missing


def _kept(folder: Path, plan: Plan, public: bool) -> bool:
    """Whether a folder holds the point's merge, judged by its manifest without reading weights."""
    if not up_to_date(folder, plan):
        return False
    return not (public and manifest.read(folder)["log"].get("recipe_folder"))


def _check(folder: Path, plan: Plan, force: bool) -> None:
    try:
        check_output(plan, folder, force)
    except OutputExistsError as error:
        if not (folder / manifest.NAME).is_file() or force:
            raise
        raise OutputExistsError(
            f"{folder}: exists already, from another recipe, other inputs or another version; "
            "give force=True to replace it, or choose another OUT"
        ) from error


def count_passes(plans: Sequence[Plan], memory: int | None = None) -> int:
    """Return the number of passes over the inputs if plans are merged together."""
    return len(_batches({Path(str(i)): plan for i, plan in enumerate(plans)}, None, memory))


def _batches(
    plans: dict[Path, Plan], threads: int | None, memory: int | None
) -> list[tuple[dict[Path, Plan], int | None]]:
    """Return batches of plans to merge together, as many as memory allows, with their numbers of threads."""
    entries = list(plans.items())
    for passes in range(1, len(entries) + 1):
        size = -(-len(entries) // passes)
        parts = [dict(entries[i : i + size]) for i in range(0, len(entries), size)]
        if memory is None:
            if size <= MOST_TOGETHER:
                return [(part, threads) for part in parts]
        elif size == 1 or all(_needed(list(part.values()), 1) <= memory for part in parts):
            return [(part, _crew(list(part.values()), threads, memory)) for part in parts]
    return []


def _crew(plans: Sequence[Plan], threads: int | None, memory: int) -> int:
    """Return the number of threads that fit in memory; at least one, whose tiles the engine shrinks."""
    most = threads or default_threads(plans)
    return next((n for n in range(most, 1, -1) if _needed(plans, n) <= memory), 1)


def _needed(plans: Sequence[Plan], threads: int) -> int:
    """Return the bytes that plans take together: the threads' buffers, and one write window per plan."""
    windows = len(plans) * (threads + 1) * WINDOW
    return OVERHEAD + windows + threads * buffer_bytes(plans, TILE)
