"""How busy a search keeps several workers, and what it finds, with imaginary workers.

    python bench/search_workers.py

A candidate takes a random time (log-normal, sigma 0.4, mean 1.08). Nothing is merged: the goal is a
shifted sphere, so only the methods' order of proposals and results counts. Times are imaginary, so
the machine does not matter.
"""

from __future__ import annotations

import heapq
import random
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

from merganser.study import history
from merganser.study.exploration import Candidate, Exploration, Trial, checked
from merganser.study.search_loop import best, open_history
from merganser.study.search_space import Method, Search, load_search

BUDGET, NUMBERS, SEEDS = 40, 3, 20
METHODS: Sequence[tuple[Method, int | None]] = (
    ("random", None), ("tpe", None), ("cma-es", None), ("cma-es", 8)
)  # fmt: skip


def make_search(method: Method, population: int | None, seed: int) -> Search:
    """A search over three numbers."""
    over = {f"x{i}": {"from": 0, "to": 1} for i in range(NUMBERS)}
    block: dict[str, Any] = {"over": over, "method": method, "budget": BUDGET, "seed": seed}
    block |= {"objectives": {"loss": "min"}} | ({"population": population} if population else {})
    models = [{"model": "a"}] + [
        {"model": key, "parameters": {"weight": f"{{{{ {key} }}}}"}} for key in over
    ]
    return load_search({"merge_method": "linear", "models": models, "search": block})


def loss(candidate: Candidate) -> float:
    """The goal: 0 where all numbers are 0.3."""
    return sum((value - 0.3) ** 2 for value in candidate.values.values())


def run(search: Search, workers: int) -> tuple[float, float, float]:
    """The time of a search, the share of it in which workers are busy, and the best loss."""
    draw = random.Random(search.seed)
    now = busy = 0.0
    running: list[tuple[float, int, Candidate]] = []
    begun: set[int] = set()
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(open_history(search, Path(folder), None)) as log,
    ):
        state = Exploration(search, log, lambda _: {})
        while state.open or state.ask():
            while len(state.to_score) < workers and state.ask_early():
                pass
            waiting = [c for c in state.to_score if c.number not in begun]
            for candidate in waiting[: workers - len(running)]:
                seconds = draw.lognormvariate(0, 0.4)
                busy += seconds
                begun.add(candidate.number)
                heapq.heappush(running, (now + seconds, candidate.number, candidate))
            first = next(iter(state.open.values()))
            if trial := state.settled(first):
                state.record(trial)
                continue
            now, _, done = heapq.heappop(running)
            state.record(Trial(done, checked(search, done, {"loss": loss(done)})))
        [winner] = best(search, state.trials)
    return now, busy / now / workers, winner.scores["loss"].mean


def main() -> None:
    """Print a line for each method and number of workers."""
    print("| method | population | workers | time | busy | best loss, median |")
    print("|---|---:|---:|---:|---:|---:|")
    for method, population in METHODS:
        for workers in (1, 4, 8):
            searches = [make_search(method, population, seed) for seed in range(SEEDS)]
            times, shares, losses = zip(*(run(each, workers) for each in searches), strict=True)
            print(
                f"| {method} | {population or 'default'} | {workers} | {statistics.mean(times):.1f} | "
                f"{statistics.mean(shares):.0%} | {statistics.median(losses):.4f} |"
            )


if __name__ == "__main__":
    with mock.patch.object(history.os, "fsync"):
        main()
