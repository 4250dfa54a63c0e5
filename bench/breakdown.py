"""What the time of a method is made of: processor time of reading, of each kernel, and of the rest.

    python bench/breakdown.py [--data DIR] [--method ties] [--family tiny-0.1b]

One thread, into the null sink, on the base and two experts; times are of the thread, so that other work
on the machine counts less. Kernels compile in a first run that is not counted.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import run as harness
from cases import METHODS
from merganser.engine import consensus, kernels, measurements, tiles
from merganser.merging.dry_run import run_dry

PARTS = [
    (tiles.Group, "read", "reading"),
    (measurements, "_sample_keys", "samples (their reading included)"),
    (measurements.Selection, "settle", "thresholds"),
    (consensus, "tally", "selection"),
    (consensus, "norms", "norms"),
    (consensus, "draw_by_rank", "ranks"),
    (consensus, "merge", "merging"),
    (kernels, "measure", "inner products"),
    (kernels, "combine", "merging"),
    (kernels, "narrow", "rounding"),
    (kernels, "survey", "report"),
]


def main() -> None:
    """Run a merge twice, the second time with every part timed."""
    parser = argparse.ArgumentParser(description="What a method's time is made of.")
    parser.add_argument("--data", type=Path, default=harness.BENCH / "data")
    parser.add_argument("--method", default="ties")
    parser.add_argument("--family", default=harness.WARM_UP_FAMILY)
    arguments = parser.parse_args()
    maker = [sys.executable, str(harness.BENCH / "checkpoints.py"), "--data", str(arguments.data)]
    subprocess.run([*maker, arguments.family], check=True)
    [case] = [c for c in METHODS if c.name == f"method-{arguments.method}"]
    folders = harness.Bench(arguments.data, cold=False).folders(case, arguments.family)
    recipe = harness._fill(case.recipe, folders)
    run_dry(recipe, threads=1)

    seconds: Counter[str] = Counter()
    depth = 0

    def timed(room: Any, name: str, part: str) -> None:
        function = getattr(room, name)

        def timing(*args: Any, **options: Any) -> Any:
            nonlocal depth
            began, outer, depth = time.thread_time(), depth == 0, depth + 1
            try:
                return function(*args, **options)
            finally:
                depth -= 1
                if outer:  # what is called from another part belongs to that
                    seconds[part] += time.thread_time() - began

        setattr(room, name, timing)

    for room, name, part in PARTS:
        timed(room, name, part)
    began = time.process_time()
    result = run_dry(recipe, threads=1)
    total = time.process_time() - began - result.timings["plan_s"]
    seconds["the rest"] = total - sum(seconds.values())
    print(f"{arguments.method}: {result.plan.parameters / 1e6:.0f} M parameters, {total:.2f} s")
    for part, spent in seconds.most_common():
        print(f"{part:34} {spent:6.2f} s {spent / total:5.0%}")


if __name__ == "__main__":
    main()
