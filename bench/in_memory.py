"""What needs no disk: many weights in one pass, and a live model that is blended anew.

    python bench/in_memory.py [--data bench/data] [--repeat 3]

Times the engine alone, in one process, the contestants in turn: one weight into the null sink, nine
weights in one pass into null sinks, and a new weight written into a live 1.8 B model, as it is and as
``evaluate:`` has it on the CPU. Prints a table, and with ``--json`` the numbers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

import merganser
from merganser.planning import Plan
from merganser.sinks import NullSink
from merganser.study.live_model import LiveModel

WEIGHTS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def linear(data: Path, weight: float) -> Plan:
    """The study's merge at one weight."""
    return merganser.plan(
        {
            "merge_method": "linear",
            "models": [
                {"model": str(data / "qwen2-1.5b/a"), "parameters": {"weight": weight}},
                {"model": str(data / "qwen2-1.5b/b"), "parameters": {"weight": 1 - weight}},
            ],
            "dtype": "bfloat16",
        }
    )


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    plans = [linear(arguments.data, weight) for weight in WEIGHTS]
    model = AutoModelForCausalLM.from_pretrained(arguments.data / "qwen2-1.5b/a", dtype="bfloat16")
    wide = LiveModel(device="cpu", dtype="float32")
    wide.become(plans[0])
    contestants: dict[str, Callable[[], object]] = {
        "one weight, null sink": lambda: merganser.run(plans[:1], [NullSink()]),
        "nine weights in one pass, null sinks": lambda: merganser.run(
            plans, [NullSink() for _ in plans]
        ),
        "live 1.8 B model, new weight": lambda: merganser.blend(model, plans[4]),
        "the same, computing in float32": lambda: wide.become(plans[4]),
    }
    for work in contestants.values():  # load compiled code, and the inputs into the page cache
        work()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(arguments.repeat):
        for name, work in contestants.items():
            times[name].append(seconds(work))
    if arguments.json:
        print(json.dumps(times))
        return
    one = statistics.median(next(iter(times.values())))
    table = Table("", "median s", "min s", "× one weight", box=None)
    for name, found in times.items():
        median = statistics.median(found)
        table.add_row(name, f"{median:.2f}", f"{min(found):.2f}", f"{median / one:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
