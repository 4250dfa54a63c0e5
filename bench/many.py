"""Many points and many steps: time a point, how often inputs are read, and memory.

    python bench/many.py simplex [--data DIR] [--repeat 3]
    python bench/many.py steps [--data DIR] [--count 75]

``simplex`` merges 66 points of three 1.8 B-shape experts into null sinks, in the passes that a sweep
makes, beside nine points of two of them, in turn. ``steps`` makes a run of 0.1 B-shape steps, eight
different ones that take turns as hard links, and merges their moving average and RELEX, each in a
process of its own, which counts the bytes that it takes from each file, by reading or by mapping. One
line of JSON for each result. Where the machine is busy, compare processor times.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints
import meter

SHAPE = "qwen2-1.5b"
EXPERTS = ("base", "a", "b")
PARTS = 10
"""A simplex of three in steps of a tenth has 66 points."""

DIFFERENT = 8
"""Steps of a run that differ from each other."""

WEIGHTS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Bytes that are taken from each file, while it is open."""
    from merganser.checkpoints.stored_files import Files

    taken: Counter[str] = Counter()
    read, view = Files.read, Files.view

    def reading(self: Files, file: Path, position: int, into: memoryview, what: str) -> None:
        taken[str(file)] += len(into)
        read(self, file, position, into, what)

    def viewing(self: Files, file: Path, position: int, length: int) -> memoryview | None:
        found = view(self, file, position, length)
        if found is not None:
            taken[str(file)] += length
        return found

    Files.read, Files.view = reading, viewing  # type: ignore[method-assign]
    try:
        yield taken
    finally:
        Files.read, Files.view = read, view  # type: ignore[method-assign]


def linear(weights: dict[Path, float]) -> dict[str, Any]:
    """A mean of models."""
    models = [{"model": str(m), "parameters": {"weight": w}} for m, w in weights.items()]
    return {"merge_method": "linear", "models": models, "dtype": "bfloat16"}


def simplex(data: Path, repeat: int) -> dict[str, Any]:
    """Seconds a point of 66 points of three models, and of nine points of two."""
    import merganser
    from merganser.sinks import NullSink
    from merganser.study.sweep import count_passes

    folders = [checkpoints.ensure(SHAPE, data)[name] for name in EXPERTS]
    shares = [
        (i / PARTS, j / PARTS, (PARTS - i - j) / PARTS)
        for i in range(PARTS + 1)
        for j in range(PARTS + 1 - i)
    ]
    points = [merganser.plan(linear(dict(zip(folders, own, strict=True)))) for own in shares]
    pair = [
        merganser.plan(linear(dict(zip(folders[1:], (w, 1 - w), strict=True)))) for w in WEIGHTS
    ]
    passes = count_passes(points)
    size = -(-len(points) // passes)

    def of_three() -> None:
        for start in range(0, len(points), size):
            some = points[start : start + size]
            merganser.run(some, [NullSink() for _ in some])

    def of_two() -> None:
        merganser.run(pair, [NullSink() for _ in pair])

    work = {"two": of_two, "three": of_three}
    of_two()
    with counted() as taken:  # which brings the inputs into the page cache, too
        of_three()
    read = sum(taken.values()) / sum((f / "model.safetensors").stat().st_size for f in folders)
    wall: dict[str, list[float]] = {"two": [], "three": []}
    cpu: dict[str, list[float]] = {"two": [], "three": []}
    count = {"two": len(pair), "three": len(points)}
    for _ in range(repeat):
        for name, each in work.items():
            began, used = time.perf_counter(), time.process_time()
            each()
            wall[name].append((time.perf_counter() - began) / count[name])
            cpu[name].append((time.process_time() - used) / count[name])
    wall_s, cpu_s = (
        {name: round(statistics.median(of[name]), 3) for name in work} for of in (wall, cpu)
    )
    return {
        "points": len(points),
        "passes_in_the_plan": passes,
        "times_inputs_read": round(read, 3),
        "a_point_s": wall_s,
        "a_point_cpu_s": cpu_s,
        "ratio": round(wall_s["three"] / wall_s["two"], 2),
        "ratio_cpu": round(cpu_s["three"] / cpu_s["two"], 2),
    }


def steps(data: Path, count: int) -> Iterator[dict[str, Any]]:
    """Bytes read and memory of merges of a run's steps."""
    members = ("base", *(f"step_{n}" for n in range(DIFFERENT)))
    tiny = checkpoints.FAMILIES["tiny-0.1b"]
    checkpoints.FAMILIES["steps"] = replace(tiny, name="steps", members=members)
    base, *different = checkpoints.ensure("steps", data).values()
    home = data / "run"
    shutil.rmtree(home, ignore_errors=True)
    for n in range(count):
        folder = home / f"global_step_{n + 1}"
        folder.mkdir(parents=True)
        for file in different[n % DIFFERENT].iterdir():
            os.link(file, folder / file.name)
    run = {"run": str(home), "steps": {"first": count}}
    average = [run | {"schedule": {"ema": 0.9}}]
    recipes: dict[str, dict[str, Any]] = {
        "ema": {"merge_method": "linear", "models": average},
        "relex": {
            "merge_method": "relex",
            "base_model": str(base),
            "models": [run],
            "parameters": {"target": 2 * count},
        },
    }
    for name, recipe in recipes.items():
        with tempfile.TemporaryDirectory(dir=data) as home:
            file, told = Path(home) / "recipe.json", Path(home) / "told"
            file.write_text(json.dumps(recipe | {"dtype": "bfloat16"}))
            used = meter.measure(
                [sys.executable, __file__, "merge", str(file), str(Path(home) / "out")],
                stdout=told,
                stderr=Path(home) / "log",
                timeout_s=600,
            )
            if used.returncode:
                raise SystemExit((Path(home) / "log").read_text())
            found = json.loads(told.read_text())
        yield {
            "method": name,
            "steps": count,
            "times_inputs_read": found["times"],
            "s": round(used.wall_s, 1),
            "cpu_s": round(used.cpu_s, 1),
            "resident_mb": round(used.resident_mb),
            "anonymous_mb": round(used.anonymous_mb),
        }


def merge(recipe: Path, out: Path) -> dict[str, Any]:
    """Merge, and how often each input was read: the least and the most."""
    import merganser

    with counted() as taken:
        merganser.merge(recipe, out)
    times = [count / Path(file).stat().st_size for file, count in taken.items()]
    return {"times": [round(min(times), 3), round(max(times), 3)]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Many points and many steps.")
    parser.add_argument("what", choices=["simplex", "steps", "merge"])
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, default=checkpoints.DEFAULT_DATA)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--count", type=int, default=75)
    given = parser.parse_args()
    data = given.data.resolve()
    if given.what == "simplex":
        print(json.dumps(simplex(data, given.repeat)))
    elif given.what == "steps":
        for found in steps(data, given.count):
            print(json.dumps(found), flush=True)
    else:
        print(json.dumps(merge(*map(Path, given.words))))


if __name__ == "__main__":
    main()
