"""Benchmark whole merges: the floor, Merganser and MergeKit in turn, as whole processes.

    python bench/run.py [--data DIR] [--repeat 3] [--cases linear,slerp] [--skip-mergekit]

Every run writes into a fresh folder, which is removed after it. Prints a table, appends it to
``RESULTS.md`` and keeps every single run in ``results.json``, both in this folder.

How to read the numbers:

- Wall time is from the start of the process to its end, imports included. What a tool has written
  but not yet put on the disk by then is put there by the harness, and timed apart ("sync").
  The ratios are of wall and sync together: the floor's writers sync, so everybody must, or
  leaving bytes in memory would look like speed and burden the next run.
- Anonymous memory is what a machine must really have. Total resident memory also counts the pages
  of mapped inputs, which the system can drop at any time.
- Before a case is measured, each contestant runs once, unmeasured and small, so that neither
  pays for compiling or for a first import from the disk.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

import floor
from cases import CASES, Case
from meter import Usage, measure

BENCH = Path(__file__).parent
RESULTS_MD = BENCH / "RESULTS.md"
RESULTS_JSON = BENCH / "results.json"
# The commands of this Python's environment, and not whatever comes first on the path.
SCRIPTS = Path(sys.executable).parent

PEER_SCRIPTS = Path(os.environ.get("PEER_BIN", SCRIPTS))
"""Where MergeKit is installed: in an environment of its own, so that neither pays for the other's
dependencies."""
WARM_UP_FAMILY = "tiny-0.1b"
TIMEOUT_S = 1800.0

console = Console(stderr=True)


# --- One run -------------------------------------------------------------------------------------


@dataclass
class Run:
    """One measured run of one contestant."""

    case: str
    contestant: str
    wall_s: float
    sync_s: float = 0.0
    usage: Usage | None = None
    floor: floor.Floor | None = None
    timings: dict[str, float] = field(default_factory=dict)
    """What Merganser says of itself."""
    problem: str = ""
    """Why the run does not count; empty for a good one."""

    @property
    def durable_s(self) -> float:
        """Time until the result is on the disk: what ratios compare."""
        return self.wall_s + self.sync_s


@dataclass(frozen=True)
class Bench:
    """Where things lie, and how they are measured."""

    data: Path
    cold: bool

    def folders(self, case: Case, family: str | None = None) -> dict[str, Path]:
        """The members' folders of the case's family, or of another with the same members."""
        root = self.data / (family or case.family)
        return {path.name: path for path in root.iterdir() if path.is_dir()}

    def weights(self, case: Case, members: Sequence[str]) -> list[Path]:
        """The weight files of some members."""
        folders = self.folders(case)
        return [
            file
            for member in members
            for kind in ("*.safetensors", "model_world_size_*.pt")
            for file in sorted(folders[member].glob(kind))
        ]

    def like_output(self, case: Case) -> list[Path]:
        """Weight files that are as large as those of the case's output."""
        if not case.written:
            return self.weights(case, case.inputs[-1:])
        member = next(iter(sorted(self.folders(case, case.written).values())))
        return sorted(member.glob("*.safetensors"))


def _fill(value: Any, names: dict[str, Path]) -> Any:
    """Replace ``"{name}"`` by a path in every string of a recipe."""
    if isinstance(value, dict):
        return {key: _fill(item, names) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_fill(item, names) for item in value]
    if isinstance(value, str):
        return value.format_map({name: str(path.resolve()) for name, path in names.items()})
    return value


def _write_recipe(case: Case, folders: dict[str, Path], target: Path) -> Path:
    target.write_text(yaml.safe_dump(_fill(case.recipe, folders), sort_keys=False), "utf-8")
    return target


def _script_command(script: Sequence[str], folders: dict[str, Path], out: Path) -> list[str]:
    arguments = _fill(list(script[1:]), {**folders, "out": out})
    if not any("{out}" in argument for argument in script):
        arguments.append(str(out))
    return [sys.executable, str(BENCH / script[0]), *arguments]


def _merganser_command(case: Case, recipe: Path, folders: dict[str, Path], out: Path) -> list[str]:
    if case.script:
        return _script_command(case.script, folders, out)
    command = [str(SCRIPTS / "merganser"), "merge", str(recipe)]
    return (
        [*command, "--sink", "null", "--json"]
        if case.sink == "null"
        else [
            *command,
            str(out),
            "--json",
        ]
    )


def _timings(stdout: Path) -> dict[str, float]:
    """What a contestant reports of itself, if its output is one JSON object with timings."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return {
            key: float(value) for key, value in json.loads(stdout.read_text())["timings"].items()
        }
    return {}


def _problem(usage: Usage, stderr: Path, written: int, expected: int) -> str:
    """Why a run does not count, if it does not."""
    if usage.timed_out:
        return f"stopped after {usage.wall_s:.0f} s"
    if usage.returncode:
        lines = stderr.read_text(errors="replace").strip().splitlines()
        return f"exit {usage.returncode}: {lines[-1].strip() if lines else 'no message'}"
    # Headers may differ, and nothing else may: a merge that leaves tensors out is not faster.
    if expected and abs(written - expected) > max(0.01 * expected, 65536):
        return f"wrote {written / 1e6:.0f} MB of {expected / 1e6:.0f} MB"
    return ""


def run_floor(bench: Bench, case: Case, scratch: Path) -> Run:
    """Measure the floor of a case once."""
    result = floor.measure(
        bench.weights(case, case.inputs),
        bench.like_output(case),
        scratch,
        copies=case.outputs,
        cold=bench.cold,
    )
    return Run(case.name, "floor", result.total_s, floor=result)


def run_tool(bench: Bench, case: Case, contestant: str, scratch: Path) -> Run:
    """Let Merganser or MergeKit do a case once."""
    folders = bench.folders(case)
    inputs = bench.weights(case, case.inputs)
    expected = 0
    if case.sink == "folder" and not case.script:
        expected = sum(file.stat().st_size for file in bench.like_output(case))
    with tempfile.TemporaryDirectory(prefix="run-", dir=scratch) as temporary:
        out = Path(temporary) / "out"
        stdout, stderr = Path(temporary) / "stdout", Path(temporary) / "stderr"
        recipe = Path(temporary) / "recipe.yml"
        if case.recipe is not None:
            _write_recipe(case, folders, recipe)
        if contestant == "merganser":
            command = _merganser_command(case, recipe, folders, out)
            timeout_s = TIMEOUT_S
        elif contestant == "baseline":
            command = _script_command(case.baseline, folders, out)
            timeout_s = TIMEOUT_S
        else:
            command = [str(PEER_SCRIPTS / "mergekit-yaml"), str(recipe), str(out)]
            timeout_s = case.mergekit_timeout_s
        if bench.cold:
            floor.forget(inputs)
        usage = measure(
            command,
            stdout=stdout,
            stderr=stderr,
            timeout_s=timeout_s,
            # Local folders need no network, and a failing look-up would cost time.
            environment={"HF_HUB_OFFLINE": "1"},
        )
        files = [file for file in out.rglob("*") if file.is_file()]
        sync_s = floor.sync(files)
        written = sum(file.stat().st_size for file in files if file.suffix == ".safetensors")
        return Run(
            case.name,
            contestant,
            usage.wall_s,
            sync_s,
            usage,
            timings=_timings(stdout),
            problem=_problem(usage, stderr, written, expected),
        )


def warm_up(bench: Bench, case: Case, contestants: Sequence[str], scratch: Path) -> None:
    """Run each contestant once, so that imports are cached."""
    with tempfile.TemporaryDirectory(prefix="warm-", dir=scratch) as temporary:
        commands: list[list[str]] = []
        if "mergekit" in contestants:
            commands.append([str(PEER_SCRIPTS / "mergekit-yaml"), "--help"])
        if "merganser" in contestants and case.recipe is not None:
            small = bench.folders(case, WARM_UP_FAMILY)
            folders = small | {name: small["a"] for name in case.inputs if name not in small}
            recipe = _write_recipe(case, folders, Path(temporary) / "recipe.yml")
            commands.append(
                [str(SCRIPTS / "merganser"), "merge", str(recipe), "--sink", "null", "--json"]
            )
        for command in commands:
            subprocess.run(command, capture_output=True, check=False, timeout=TIMEOUT_S)


# --- One case ------------------------------------------------------------------------------------


def contestants_of(case: Case, *, skip_mergekit: bool) -> list[str]:
    """Who runs a case: those that can, and are installed."""
    wanted = ["merganser"]
    if case.mergekit and case.sink == "folder" and not skip_mergekit:
        wanted.append("mergekit")
    if case.baseline:
        wanted.append("baseline")
    commands = {
        "baseline": BENCH,
        "merganser": SCRIPTS / "merganser",
        "mergekit": PEER_SCRIPTS / "mergekit-yaml",
    }
    found = []
    for name in wanted:
        if commands[name].exists():
            found.append(name)
        else:
            console.print(f"[yellow]{case.name}: {commands[name]} is missing; left out")
    return found


def run_case(bench: Bench, case: Case, contestants: Sequence[str], repeat: int) -> list[Run]:
    """Alternate the contestants, so that a slow minute of the machine hits all of them."""
    runs: list[Run] = []
    given_up: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=bench.data) as temporary:
        scratch = Path(temporary)
        warm_up(bench, case, contestants, scratch)
        for _ in range(repeat):
            for contestant in ["floor", *contestants]:
                if contestant in given_up or (contestant == "floor" and case.sink == "null"):
                    continue
                run = (
                    run_floor(bench, case, scratch)
                    if contestant == "floor"
                    else run_tool(bench, case, contestant, scratch)
                )
                runs.append(run)
                if run.problem:
                    # What failed once fails again, and a time-out is long.
                    given_up.add(contestant)
                peak = f", {run.usage.anonymous_mb:.0f} MB anonymous" if run.usage else ""
                console.print(
                    f"{case.name:<18} {contestant:<10} {run.wall_s:8.2f} s{peak}"
                    + (f"  [red]{run.problem}" if run.problem else "")
                )
    return runs


# --- The table -----------------------------------------------------------------------------------

HEADINGS = [
    "case",
    "who",
    "runs",
    "wall s, median",
    "min",
    "sync s",
    "CPU s",
    "x floor",
    "faster than MergeKit or baseline",
    "anonymous MB",
    "file MB",
    "resident MB",
    "VmHWM MB",
    "ru_maxrss MB",
]


def rows(runs: Sequence[Run]) -> list[list[str]]:
    """One row for each case and contestant: medians of time, peaks of memory."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.case, run.contestant), []).append(run)
    durable = {
        key: statistics.median(run.durable_s for run in group if not run.problem)
        for key, group in groups.items()
        if any(not run.problem for run in group)
    }
    table = []
    for (case, contestant), group in groups.items():
        good = [run for run in group if not run.problem]
        if not good:
            blanks = [""] * (len(HEADINGS) - 4)
            table.append([case, contestant, "0", group[-1].problem, *blanks])
            continue
        own = durable[case, contestant]
        lowest = durable.get((case, "floor"))
        peer = durable.get((case, "mergekit")) or durable.get((case, "baseline"))
        cells = [
            case,
            contestant,
            str(len(good)),
            f"{statistics.median(run.wall_s for run in good):.2f}",
            f"{min(run.wall_s for run in good):.2f}",
        ]
        usages = [run.usage for run in good if run.usage is not None]
        if not usages:
            # The floor's writers are several processes, and have synced.
            cells += ["", "", "1.00", "", "", "", "", "", ""]
            table.append(cells)
            continue
        cells += [
            f"{statistics.median(run.sync_s for run in good):.2f}",
            f"{statistics.median(usage.cpu_s for usage in usages):.2f}",
            f"{own / lowest:.2f}" if lowest else "",
            f"{peer / own:.1f}" if peer else "",
            f"{max(usage.anonymous_mb for usage in usages):.0f}",
            f"{max(usage.file_mb for usage in usages):.0f}",
            f"{max(usage.resident_mb for usage in usages):.0f}",
            f"{max(usage.hwm_mb for usage in usages):.0f}",
            f"{max(usage.maxrss_mb for usage in usages):.0f}",
        ]
        table.append(cells)
    return table


def print_table(table: Sequence[Sequence[str]]) -> None:
    """Show the table on stdout."""
    shown = Table(*HEADINGS)
    for column in shown.columns[2:]:
        column.justify = "right"
    previous = ""
    for row in table:
        if previous and row[0] != previous:
            shown.add_section()
        previous = row[0]
        shown.add_row(*row)
    # A pipe has no width, and a wrapped table cannot be read.
    Console(width=None if sys.stdout.isatty() else 180).print(shown)


def floor_lines(runs: Sequence[Run]) -> list[str]:
    """The best seconds of each variant of the floor, for each case."""
    lines = []
    for case in dict.fromkeys(run.case for run in runs if run.floor):
        floors = [run.floor for run in runs if run.case == case and run.floor]
        parts = []
        for kind, times in (
            ("read", [found.reads for found in floors]),
            ("write", [found.writes for found in floors]),
        ):
            parts += [f"{kind} {name} {min(t[name] for t in times):.2f} s" for name in times[0]]
        lines.append(f"- {case}: {', '.join(parts)}")
    return lines


# --- Results -------------------------------------------------------------------------------------


def machine() -> dict[str, str]:
    """What the numbers depend on."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(BENCH), *words], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    def line_of(file: str, key: str) -> str:
        with contextlib.suppress(OSError):
            for line in Path(file).read_text().splitlines():
                if line.startswith(key):
                    return line.partition(":")[2].strip()
        return "unknown"

    commit = git("rev-parse", "--short", "HEAD") or "none"
    if commit != "none" and git("status", "--porcelain", "--untracked-files=no"):
        commit += ", changed"
    total_kib = int(line_of("/proc/meminfo", "MemTotal").split()[0])
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "commit": commit,
        "cpu": line_of("/proc/cpuinfo", "model name"),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{total_kib * 1024 / 1e9:.1f} GB",
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def save_json(where: dict[str, str], runs: Sequence[Run]) -> None:
    """Replace or append this session's runs; the file is never half written."""
    sessions = json.loads(RESULTS_JSON.read_text()) if RESULTS_JSON.exists() else []
    sessions = [session for session in sessions if session["machine"]["date"] != where["date"]]
    sessions.append({"machine": where, "runs": [asdict(run) for run in runs]})
    partial = RESULTS_JSON.with_suffix(".partial")
    partial.write_text(json.dumps(sessions, indent=1) + "\n", encoding="utf-8")
    partial.replace(RESULTS_JSON)


def append_markdown(where: dict[str, str], cold: bool, runs: Sequence[Run]) -> None:
    """Append a dated section to the results page."""
    table = rows(runs)
    lines = [] if RESULTS_MD.exists() else ["# Results", "", "Made by `bench/run.py`.", ""]
    lines += [
        f"## {where['date']}, commit {where['commit']}",
        "",
        f"{where['cpu']}, {where['cores']} cores, {where['memory']} memory, "
        f"Linux {where['kernel']}, Python {where['python']}; "
        f"inputs {'dropped from' if cold else 'in'} the page cache.",
        "",
        f"| {' | '.join(HEADINGS)} |",
        f"|---|---|{'---:|' * (len(HEADINGS) - 2)}",
        *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in table),
        "",
    ]
    best = floor_lines(runs)
    if best:
        lines += ["Best of each variant of the floor:", "", *best, ""]
    with RESULTS_MD.open("a", encoding="utf-8") as page:
        page.write("\n".join(lines) + "\n")


def main() -> None:
    """Run the cases and keep the results."""
    parser = argparse.ArgumentParser(description="Benchmark whole merges.")
    parser.add_argument("--data", type=Path, default=BENCH / "data")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cases", help=f"some of: {','.join(CASES)}")
    parser.add_argument("--skip-mergekit", action="store_true")
    parser.add_argument("--cold", action="store_true", help="drop inputs from the page cache")
    parser.add_argument("--no-save", action="store_true", help="only print the table")
    arguments = parser.parse_args()
    names = arguments.cases.split(",") if arguments.cases else list(CASES)
    unknown = [name for name in names if name not in CASES]
    if unknown:
        parser.error(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}")

    # In a process of its own: the generator's memory would count in the measured ones' ru_maxrss.
    cases = [CASES[name] for name in names]
    needed = [family for case in cases for family in (case.family, case.written) if family]
    families = dict.fromkeys([WARM_UP_FAMILY, *needed])
    maker = [sys.executable, str(BENCH / "checkpoints.py"), "--data", str(arguments.data)]
    subprocess.run([*maker, *families], check=True)

    bench = Bench(arguments.data, arguments.cold)
    where = machine()
    runs: list[Run] = []
    try:
        for name in names:
            case = CASES[name]
            contestants = contestants_of(case, skip_mergekit=arguments.skip_mergekit)
            runs += run_case(bench, case, contestants, arguments.repeat)
            if not arguments.no_save:
                save_json(where, runs)
    finally:
        # An hour of measuring is not lost to one interrupt.
        if runs:
            print_table(rows(runs))
            if not arguments.no_save:
                append_markdown(where, arguments.cold, runs)


if __name__ == "__main__":
    if shutil.which("dd") is None:
        sys.exit("bench/run.py needs dd and cp")
    main()
