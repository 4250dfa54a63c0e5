"""The table of all methods: time, ratio to the floor and to MergeKit, memory, error against float64.

    python bench/methods.py [--data DIR] [--repeat 1] [--methods ties,sce] [--skip-mergekit]

Times are of whole processes on the pair of 1.777 B models (and their base, where a method has one), as
``bench/run.py`` measures them. Errors are of whole merges of the 0.1 B models, in units in the last
place of bfloat16, against the same merge computed and stored in float64: the largest, and the share
of elements that are more than half a unit off; elements below a thousandth of their tensor's root mean
square are left out. Random methods have no reference.
Writes ``bench/METHODS.md``; the lines of methods that are not measured stay.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import run as harness
from cases import METHODS, Case

RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")
PAGE = Path(__file__).parent / "METHODS.md"


def errors(bench: harness.Bench, case: Case, contestant: str, scratch: Path) -> str:
    """How far a contestant's bfloat16 merge of the small models is from the merge in float64."""
    name = case.name.removeprefix("method-")
    if name in RANDOM:
        return "random"
    folders = bench.folders(case, harness.WARM_UP_FAMILY)
    with tempfile.TemporaryDirectory(prefix="error-", dir=scratch) as temporary:
        root = Path(temporary)
        recipe = harness._write_recipe(case, folders, root / "recipe.yml")
        exact = root / "exact.yml"
        exact.write_text(recipe.read_text().replace("dtype: bfloat16", "dtype: float64"))
        merganser = str(harness.SCRIPTS / "merganser")
        _call([merganser, "merge", str(exact), str(root / "exact"), "-q"])
        if contestant == "merganser":
            _call([merganser, "merge", str(recipe), str(root / "out"), "-q"])
        else:
            _call([str(harness.PEER_SCRIPTS / "mergekit-yaml"), str(recipe), str(root / "out")])
        worst, off, total = 0.0, 0, 0
        for result, reference in _pairs(root / "out", root / "exact"):
            # Near zero a unit is less than the error of any sum of larger numbers.
            large = np.abs(reference) >= 1e-3 * np.sqrt(np.mean(reference**2))
            _, exponent = np.frexp(reference[large])
            apart = np.abs(result[large] - reference[large]) / np.ldexp(1.0, exponent - 8)
            worst = max(worst, float(apart.max(initial=0.0)))
            off += int((apart > 0.5 + 1e-3).sum())
            total += apart.size
    return f"{worst:.2f} ({off / max(total, 1):.1%})"


def _call(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, env=None)


def _pairs(out: Path, exact: Path) -> Iterator[tuple[Any, Any]]:
    """Every tensor of a merge as float64, and of the reference."""
    import torch
    from safetensors import safe_open

    found = {
        name: file
        for file in sorted(out.glob("*.safetensors"))
        for name in safe_open(file, "pt").keys()  # noqa: SIM118
    }
    for file in sorted(exact.glob("*.safetensors")):
        with safe_open(file, "pt") as reference:
            for name in reference.keys():  # noqa: SIM118
                with safe_open(found[name], "pt") as result:
                    yield (
                        result.get_tensor(name).to(torch.float64).numpy(),
                        reference.get_tensor(name).numpy(),
                    )


def line(case: Case, runs: Sequence[harness.Run], error: dict[str, str], when: str) -> str:
    """A method's row of the table."""
    good = {r.contestant: r for r in sorted(runs, key=lambda r: -r.durable_s) if not r.problem}
    problems = {r.contestant: r.problem for r in runs if r.problem}
    ours, floor, peer = good.get("merganser"), good.get("floor"), good.get("mergekit")

    def seconds(run: harness.Run | None, who: str) -> str:
        return f"{run.durable_s:.1f}" if run else problems.get(who, "–")

    def memory(run: harness.Run | None) -> str:
        return f"{run.usage.resident_mb:,.0f}" if run and run.usage else "–"

    cells = [
        f"`{case.name.removeprefix('method-')}`",
        seconds(ours, "merganser"),
        f"{ours.durable_s / floor.durable_s:.2f}" if ours and floor else "–",
        seconds(peer, "mergekit"),
        f"{peer.durable_s / ours.durable_s:.1f}" if ours and peer else "–",
        memory(ours),
        memory(peer),
        error.get("merganser", "–"),
        error.get("mergekit", "–"),
        when,
    ]
    return f"| {' | '.join(cells)} |"


def kept() -> dict[str, str]:
    """The lines of the page as it is, by method."""
    lines = PAGE.read_text().splitlines() if PAGE.exists() else []
    return {line.split("`")[1]: line for line in lines if line.startswith("| `")}


HEADER = (
    "| method | Merganser s | × floor | MergeKit s | faster | MB | MergeKit MB | error, ulp | "
    "MergeKit's error | measured, commit |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---|"
)


def main() -> None:
    """Measure, and write the page after every method."""
    parser = argparse.ArgumentParser(description="The table of all methods.")
    parser.add_argument("--data", type=Path, default=harness.BENCH / "data")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--methods", help="some of them; all if not given")
    parser.add_argument("--skip-mergekit", action="store_true")
    parser.add_argument("--skip-errors", action="store_true")
    arguments = parser.parse_args()
    wanted = arguments.methods.split(",") if arguments.methods else None
    cases = [c for c in METHODS if wanted is None or c.name.removeprefix("method-") in wanted]
    maker = [sys.executable, str(harness.BENCH / "checkpoints.py"), "--data", str(arguments.data)]
    subprocess.run([*maker, harness.WARM_UP_FAMILY, "qwen2-1.5b"], check=True)
    bench = harness.Bench(arguments.data, cold=False)
    where = harness.machine()
    when = f"{where['date'][:10]}, {where['commit']}"
    for case in cases:
        contestants = harness.contestants_of(case, skip_mergekit=arguments.skip_mergekit)
        runs = harness.run_case(bench, case, contestants, arguments.repeat)
        found: dict[str, str] = {}
        if not arguments.skip_errors:
            with tempfile.TemporaryDirectory(dir=bench.data) as scratch:
                for contestant in contestants:
                    found[contestant] = errors(bench, case, contestant, Path(scratch))
        name = case.name.removeprefix("method-")
        lines = kept() | {name: line(case, runs, found, when)}
        print(lines[name], flush=True)
        order = [c.name.removeprefix("method-") for c in METHODS]
        rows = [lines[method] for method in order if method in lines]
        PAGE.write_text(
            "# All methods\n\n`bench/methods.py` measures the methods that you name and leaves the other "
            "lines as they are. It merges two experts of 1.777 billion parameters (and their base) in "
            f"bfloat16. Machine: {where['cpu']}, {where['cores']} cores, {where['memory']} memory; "
            "inputs in the page cache.\n\nErrors are against float64, in units in the last place of "
            "bfloat16: the largest, and the share of elements more than half a unit off. Elements "
            "below a thousandth of their tensor's root mean square are left out. Where a method elects "
            "signs or counts agreement, float64 decides single elements on the border differently."
            f"\n\n{HEADER}\n" + "\n".join(rows) + "\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
