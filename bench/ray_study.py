"""A study by workers on Ray next to the same study in one process, on this machine.

    python bench/ray_study.py study DEMO     # two nodes of one core, and one process of one core, in turn
    python bench/ray_study.py overhead DEMO  # 40 points that take no time: what Ray adds to a point

DEMO is a folder that ``make demo`` has filled; the environment needs the extra ``ray``. Every process runs on
as many cores as the nodes have together, one thread each. Times are those of scoring: from the first model
begun to the last one scored; the processor time is that of the process, and of the busiest worker. One line
of JSON for each result.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STUDY = "acc_accfmt"
POINTS = 40
MEMORY = 80 * 2**20
TICKS = os.sysconf("SC_CLK_TCK")


@contextmanager
def ray_nodes(count: int) -> Iterator[None]:
    """Nodes of one core each on this machine; with ``RAY_ADDRESS``, those of that cluster."""
    if "RAY_ADDRESS" in os.environ:
        yield
        return
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 1, "object_store_memory": MEMORY}
    head = {**options, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(count - 1):
        cluster.add_node(**options)
    cluster.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        yield
    finally:
        cluster.shutdown()


class Watch:
    """Notes when models are begun and scored, and the processor time of the workers.

    Args:
        out: the study's folder.
    """

    def __init__(self, out: Path) -> None:
        self.folder = out / ".claims"
        self.first: float | None = None
        self.done: dict[str, float] = {}
        self.spent: dict[str, float] = {}
        self.before: dict[int, float] = {}
        self.cpu: dict[int, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.01):
            for file in list_of(self.folder):
                try:
                    when = file.stat().st_mtime
                    if file.suffix == ".claim" and not file.name.startswith(".results"):
                        self.first = self.first or when
                        process = json.loads(file.read_text())["process"]
                        self.before.setdefault(process, processor_time(process))
                        self.cpu.setdefault(process, 0.0)
                    elif file.suffix == ".done":
                        self.done.setdefault(file.stem, when)
                except (OSError, ValueError):
                    continue
            for process in self.cpu:
                spent = processor_time(process) - self.before[process]  # not for its imports
                self.cpu[process] = max(self.cpu[process], spent)
            for name in self.done:
                self.spent.setdefault(name, sum(self.cpu.values()))


def list_of(folder: Path) -> list[Path]:
    """The files of a folder; none if there is none."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def processor_time(process: int) -> float:
    """User and system time of a process in seconds; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def alone(study: Path, out: Path) -> dict[str, Any]:
    """The study in a process of one core."""
    code = (
        "import json, sys, time, merganser\n"
        "from merganser.study.progress import Scored\n"
        "begun, done = [], {}\n"
        "def listen(event):\n"
        "    begun or begun.append((time.time(), time.process_time()))\n"
        "    if isinstance(event, Scored):\n"
        "        done[event.turn.model] = (time.time(), time.process_time())\n"
        "merganser.evaluate_sweep(sys.argv[1], sys.argv[2], write=False, threads=1, on_progress=listen)\n"
        "print(json.dumps({'begun': begun[0], 'done': done}))\n"
    )
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, str(study), str(out)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wall = time.perf_counter() - began
    told = json.loads(done.stdout.strip().split("\n")[-1])
    last = max(told["done"].values())
    return {
        "command, s": wall,
        "scoring, s": last[0] - told["begun"][0],
        "processor, s": last[1] - told["begun"][1],
        "ends": sorted(when for when, _ in told["done"].values()),
        "spent": sorted(cpu for _, cpu in told["done"].values()),
    }


def on_ray(study: Path, out: Path, workers: str) -> dict[str, Any]:
    """The study by workers on the cluster."""
    command = [sys.executable, "-m", "merganser", "sweep", str(study), str(out), "--no-write"]
    command += ["--no-report", "-q", "-j", "1", "--workers", workers]
    began = time.perf_counter()
    with Watch(out) as watch:
        subprocess.run(
            command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    wall = time.perf_counter() - began
    assert watch.first is not None
    return {
        "command, s": wall,
        "scoring, s": max(watch.done.values()) - watch.first,
        "processor, s": max(watch.cpu.values()),
        "processors, s": sorted(watch.cpu.values()),
        "ends": sorted(watch.done.values()),
        "spent": sorted(watch.spent.values()),
    }


def in_turn(
    ways: dict[str, Callable[[Path], dict[str, Any]]], folder: Path, rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """Run each way in turn, each into a new folder; the results must not differ."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    scored: set[bytes] = set()
    for number in range(rounds):
        for name, way in ways.items():
            out = folder / f"bench_{name}_{number}"
            shutil.rmtree(out, ignore_errors=True)
            results[name].append(way(out))
            scored.add((out / "results.csv").read_bytes())
            shutil.rmtree(out)
    assert len(scored) == 1, "the scores differ"
    return results


def median(runs: list[dict[str, Any]], key: str) -> float:
    """The median of one figure."""
    return statistics.median(run[key] for run in runs)


def study(demo: Path, rounds: int) -> None:
    """Two nodes of one core against one process of one core."""
    file = demo / f"{STUDY}.yml"
    with ray_nodes(2):
        runs = in_turn(
            {
                "one": lambda out: alone(file, out),
                "ray": lambda out: on_ray(file, out, "ray"),
            },
            demo,
            rounds,
        )
    one, two = runs["one"], runs["ray"]
    for number, (a, b) in enumerate(zip(one, two, strict=True)):
        print(json.dumps({"round": number, "one": _figures(a), "ray": _figures(b)}))
    found = {key: median(one, key) / median(two, key) for key in ("scoring, s", "processor, s")}
    found["command, s"] = median(one, "command, s") / median(two, "command, s")
    print(json.dumps({f"times faster by {key[:-3]}": round(v, 3) for key, v in found.items()}))


def _figures(run: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in run.items() if key not in ("ends", "spent")}
    return {k: v if isinstance(v, list) else round(v, 2) for k, v in kept.items()}


def overhead(demo: Path, rounds: int) -> None:
    """What a worker on Ray adds to a point that takes next to no time."""
    file = demo / "overhead.yml"
    text = (demo / f"{STUDY}.yml").read_text(encoding="utf-8")
    step = "{from: 0.1, to: 0.9, step: 0.1}"
    assert step in text
    weights = [round(0.1 + 0.8 * n / (POINTS - 1), 4) for n in range(POINTS)]
    text = text.replace(step, str(weights)).replace("samples: 4", "limit: 1")
    text = text.replace("max_tokens: 40", "max_tokens: 1")
    file.write_text(text.replace("keep: max accuracy with think_answer >= 0.5", "keep: none"))
    with ray_nodes(1):
        runs = in_turn(
            {
                "one": lambda out: alone(file, out),
                "ray": lambda out: on_ray(file, out, "ray:1"),
            },
            demo,
            rounds,
        )
    file.unlink()
    for kind, key in (("wall", "ends"), ("processor", "spent")):
        found = {}
        for name, each in runs.items():
            # the first five models include loading, and the worker's search for free models
            means = [(run[key][-1] - run[key][5]) / (len(run[key]) - 6) for run in each]
            found[f"{name}: a point, ms"] = round(1000 * statistics.median(means), 2)
        found["Ray adds, ms"] = round(found["ray: a point, ms"] - found["one: a point, ms"], 2)
        print(json.dumps({"time": kind, **found}))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Workers on Ray.")
    parser.add_argument("what", choices=["study", "overhead"])
    parser.add_argument("demo", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    demo = arguments.demo.resolve()
    {"study": study, "overhead": overhead}[arguments.what](demo, arguments.rounds)


if __name__ == "__main__":
    main()
