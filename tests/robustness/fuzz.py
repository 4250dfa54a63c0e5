"""Spoil inputs of every format by the ten thousand, and see that each is merged or refused in one line.

A worker process takes one spoiled folder after the other; it may take no more than 1 GB beyond what it
begins with, and 5 seconds for each. Everything that it opens for writing, imports, compiles or runs is
seen by an audit hook. What fails is saved, made as small as it still fails, and counted.

    python tests/robustness/fuzz.py --inputs 50000 --seed 1 --write
    python tests/robustness/fuzz.py --replay fuzz-out/config/1a2b3c4d-1

With ``--write`` the figures go into ``docs/hostile.md``. With ``--replay`` one saved input is tried again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
TESTS = Path(__file__).parents[1]
sys.path[:1] = [str(TESTS), str(TESTS / "support")]

import mutations
from merganser.errors import MerganserError

SECONDS = 5.0
"""Longest that one input may take of the processor; one that takes longer is tried again, since other
programs take the caches away, and the shorter time counts."""

PATIENCE = 12 * SECONDS, 120 * SECONDS
"""After so much of the processor's time, or by the clock on the wall, a worker is killed."""

SLOW = 1.0
"""Seconds above which the slowest input of each kind is saved, to be looked at."""

MEMORY = 2**30
"""Most bytes that one input may add to the process."""

TOLD = "told.txt"
"""What became of an input, beside its saved files."""

PAGE = Path(__file__).parents[2] / "docs" / "hostile.md"

BEGIN, END = "<!-- figures: written by tests/robustness/fuzz.py -->\n", "<!-- end of figures -->\n"

LONGEST = 600
"""Most characters of a message, folders left out."""


# -- what is seen of an input ------------------------------------------------------------------------


class Watch:
    """An audit hook, which lives as long as the process: what is done outside a folder, or run."""

    WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    CHANGES = (
        "os.mkdir",
        "os.remove",
        "os.rmdir",
        "os.rename",
        "os.link",
        "os.symlink",
        "os.truncate",
    )
    RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen")
    NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.gethostbyname")

    def __init__(self, home: Path) -> None:
        self.home = str(home)
        self.active = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = any(c in str(mode) for c in "wax+") if mode else flags & self.WRITES
            if writes and not isinstance(path, int) and not self._may_change([path]):
                self._tell(f"writes {path!r}")
        elif event in self.CHANGES:
            relative = arguments[-1] not in (-1, None) and isinstance(arguments[-1], int)
            paths = [a for a in arguments if isinstance(a, str | bytes | os.PathLike)]
            if not relative and not self._may_change(paths):
                self._tell(f"{event} {paths!r}")
        elif (
            event in self.RUNS
            or event in self.NETWORK
            or (event in ("exec", "compile") and not self._is_harmless())
        ):
            self._tell(f"{event} {str(arguments)[:80]}")

    def _may_change(self, paths: list[Any]) -> bool:
        if all(map(self._inside, paths)):
            return True
        cached = all("__pycache__" in os.fsdecode(path) for path in paths)
        return cached and self._is_harmless()  # modules that are imported for the first time

    def _inside(self, path: Any) -> bool:
        name = os.path.abspath(os.fsdecode(path))  # noqa: PTH100
        return name.startswith(self.home) or name == "/dev/null"

    def _is_harmless(self) -> bool:
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            file = frame.f_code.co_filename
            if file.startswith("<frozen importlib"):
                return True
            if (
                frame.f_code.co_name == "literal_eval"
            ):  # which makes a tree of a number, and runs nothing
                return True
            frame = frame.f_back
        return False

    def _tell(self, what: str) -> None:
        if len(self.seen) < 10:
            self.seen.append(what)


def peak_memory() -> int:
    """The greatest resident size since it was reset, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def reset_peak() -> None:
    """Count the greatest resident size from now on."""
    Path("/proc/self/clear_refs").write_text("5")


@dataclass
class Seen:
    """What became of one input: ``merged``, ``refused``, or how it failed; and where, or the message."""

    what: str
    told: str
    seconds: float
    memory: int


def attempt(kind: mutations.Kind, home: Path, watch: Watch) -> Seen:
    """Do with a folder what a user would."""
    out = home / "out"
    reset_peak()
    before, began = peak_memory(), time.process_time()
    watch.seen.clear()
    watch.active = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            kind.run(home / "in", out)
        what, told = "merged", ""
    except MerganserError as error:
        what, told = "refused", str(error)
    except MemoryError:
        what, told = "memory", _where()
    except Exception as error:
        what, told = "crash", f"{type(error).__name__} {_where()}: {str(error)[:200]}"
    finally:
        watch.active = False
    seconds, memory = time.process_time() - began, peak_memory() - before
    for folder in home.iterdir():
        if folder.name != "in":
            shutil.rmtree(folder, ignore_errors=True)
    if watch.seen:
        what, told = "escape", "; ".join(watch.seen)
    if what == "refused" and (fault := _fault_of(told, home)):
        what, told = "message", f"{fault}: {told[:2000]!r}"
    if memory > MEMORY:
        what, told = "memory", f"{memory >> 20} MB, {told[:200]}"
    if seconds > SECONDS:
        what, told = "hang", f"{seconds:.1f} s, {told[:200]}"
    return Seen(what, told, seconds, memory)


def _where() -> str:
    """The innermost line of ours that an exception came through."""
    frames = traceback.extract_tb(sys.exc_info()[2])
    ours = [f for f in frames if "/merganser/" in f.filename] or list(frames)
    return f"{Path(ours[-1].filename).name}:{ours[-1].name}:{ours[-1].lineno}"


def _fault_of(message: str, home: Path) -> str | None:
    """What is wrong with a message."""
    if not message.strip():
        return "empty"
    if not message.isprintable():
        return "not one printable line"
    if len(message.replace(str(home), "")) > LONGEST:
        return "too long"
    return "names a Python type" if re.search(r"Traceback|<class '|object at 0x", message) else None


# -- the worker --------------------------------------------------------------------------------------


def work(
    kind: mutations.Kind, seed: int, first: int, count: int, home: Path, pipe: Connection
) -> None:
    """Take inputs until told to stop, and tell of each before and after it."""
    watch = Watch(home)
    inside = home / "in"
    write(kind.files, inside)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY + 2**28, resource.RLIM_INFINITY))
    known: set[str] = set()
    for number in range(first, first + count):
        rng = random.Random(f"{kind.name} {seed} {number}")
        files = kind.spoiled(rng)
        write(files, home / "now")
        pipe.send(("begin", number))
        write(files, inside)
        seen = attempt(kind, home, watch)
        if seen.what == "hang":
            again = attempt(kind, home, watch)
            seen = again if again.seconds < seen.seconds else seen
        write({name: kind.files[name] for name in files}, inside)
        mark = seen.what + re.sub(r"'[^']*'|\d+", "", seen.told.replace(str(home), ""))[:200]
        if mark not in known:  # something new came of it: go on from there
            known.add(mark)
            kind.keep(files)
        if seen.what not in ("merged", "refused"):
            files = minimised(kind, files, seen, home, watch)
        told = seen.what not in ("merged", "refused") or seen.seconds > SLOW
        pipe.send(("end", number, seen, files if told else None))
    pipe.send(("done",))


def warm_up(kind: mutations.Kind) -> None:
    """Merge what is right, so that all that merging imports and compiles is there before workers are."""
    import huggingface_hub  # noqa: F401

    with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inside = Path(folder) / "in"
        write(kind.files, inside)
        for name, seeds in {"recipe.yml": [kind.files["recipe.yml"]], **kind.seeds}.items():
            for number, data in enumerate(seeds):
                write({name: data}, inside)
                kind.run(inside, Path(folder) / f"out{number}")


def write(files: Mapping[str, bytes], folder: Path) -> None:
    """Write files below a folder."""
    for name, data in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def minimised(
    kind: mutations.Kind, files: dict[str, bytes], seen: Seen, home: Path, watch: Watch
) -> dict[str, bytes]:
    """Files that fail in the same way with as little in them as a few tries find."""
    mark = seen.what, seen.told.split(":")[0]
    left = 60 if seen.seconds < 0.5 else 0
    for name in files:
        data = files[name]
        step = max(1, len(data) // 4)
        while step and left:
            at = 0
            while at < len(data) and left:
                left -= 1
                fewer = data[:at] + data[at + step :]
                write(files | {name: fewer}, home / "in")
                again = attempt(kind, home, watch)
                if (again.what, again.told.split(":")[0]) == mark:
                    data = fewer
                    files = files | {name: data}
                else:
                    at += step
            step //= 4
    write({name: kind.files[name] for name in files}, home / "in")
    return files


# -- the run -----------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What came of one kind's inputs."""

    kind: str
    counts: Counter[str] = field(default_factory=Counter)
    memory: int = 0
    longest: float = 0.0
    seconds: float = 0.0
    failures: dict[str, int] = field(default_factory=dict)


def run_kind(kind: mutations.Kind, count: int, seed: int, saved: Path) -> Tally:
    """Try a kind's inputs, in a worker that is started anew when it dies or hangs."""
    tally = Tally(kind.name)
    warm_up(kind)
    context = multiprocessing.get_context("fork")
    began, number = time.perf_counter(), 0
    while number < count:
        home = Path(tempfile.mkdtemp(prefix="merganser-fuzz-", dir=_fast_folder()))
        ours, theirs = context.Pipe()
        arguments = (kind, seed, number, count - number, home, theirs)
        worker = context.Process(target=work, args=arguments, daemon=True)
        worker.start()
        theirs.close()
        current = None
        try:
            while True:
                if (spent := _spent_until_heard(worker.pid, ours)) is not None:
                    worker.kill()
                    _count(tally, Seen("hang", "killed", spent, 0), _files(home / "now"), saved)
                    break
                event = ours.recv()
                if event[0] == "done":
                    break
                current = event[1]
                if event[0] == "end":
                    _count(tally, event[2], event[3], saved)
                    number = current + 1
                    if number % 500 == 0:
                        print(f"  {number} of {kind.name}: {dict(tally.counts)}", file=sys.stderr)
        except EOFError:
            worker.join()
            told = f"the process died with {worker.exitcode}"
            _count(tally, Seen("crash", told, 0.0, 0), _files(home / "now"), saved)
        if sum(tally.counts.values()) > number:
            number = (current if current is not None else number) + 1
        worker.join()
        shutil.rmtree(home, ignore_errors=True)
    tally.seconds = time.perf_counter() - began
    return tally


def _spent_until_heard(worker: int | None, pipe: Connection) -> float | None:
    """Wait for a worker to say something; the seconds that it took if it runs out of time before."""
    began, before = time.monotonic(), _processor_time(worker)
    while not pipe.poll(1.0):
        spent, waited = _processor_time(worker) - before, time.monotonic() - began
        if spent > PATIENCE[0] or waited > PATIENCE[1]:
            return max(spent, waited)
    return None


def _processor_time(process: int | None) -> float:
    """What a process has had of the processor, in seconds."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it died: its pipe says so
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _fast_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _files(folder: Path) -> dict[str, bytes]:
    return mutations.read_tree(folder)


def _count(tally: Tally, seen: Seen, files: Mapping[str, bytes] | None, saved: Path) -> None:
    slowest = seen.seconds > tally.longest
    tally.counts[seen.what] += 1
    tally.memory = max(tally.memory, seen.memory)
    tally.longest = max(tally.longest, seen.seconds)
    if files is None:
        return
    if seen.what in ("merged", "refused"):
        if slowest:
            shutil.rmtree(saved / tally.kind / "slowest", ignore_errors=True)
            _save(saved / tally.kind / "slowest", files, f"{seen.seconds:.1f} s: {seen.told}")
        return
    mark = f"{seen.what}: {seen.told.split(': ')[0]}"[:200]
    tally.failures[mark] = tally.failures.get(mark, 0) + 1
    if tally.failures[mark] <= 3:
        name = hashlib.sha256(mark.encode()).hexdigest()[:8] + f"-{tally.failures[mark]}"
        _save(saved / tally.kind / name, files, f"{seen.what}: {seen.told}")


def _save(folder: Path, files: Mapping[str, bytes], told: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write(files, folder)
    (folder / TOLD).write_text(f"{told}\n")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=50_000, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", default="", help="only these, with commas between")
    parser.add_argument("--saved", type=Path, default=Path("fuzz-out"), help="where failures go")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--write", action="store_true", help="write them into docs/hostile.md")
    parser.add_argument("--replay", type=Path, help="try one saved input again")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kinds = mutations.kinds(Path(folder))
    if given.replay:
        print(replayed(kinds[given.replay.absolute().parent.name], given.replay))
        return
    chosen = [kinds[name] for name in given.kinds.split(",")] if given.kinds else [*kinds.values()]
    tallies = []
    for kind in chosen:
        tally = run_kind(kind, -(-given.inputs // len(chosen)), given.seed, given.saved)
        tallies.append(tally)
        if given.json:  # a part of the figures is better than none
            given.json.write_text(json.dumps([vars(each) for each in tallies], indent=1))
        print(row(tally), flush=True)
        for mark, times in tally.failures.items():
            print(f"    {times:5} {mark}", flush=True)
    print(row(total(tallies)))
    if given.write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        figures = page(tallies, given.inputs, given.seed)
        PAGE.write_text(before + BEGIN + figures + END + rest.partition(END)[2], encoding="utf-8")
    sys.exit(any(tally.failures for tally in tallies))


def replayed(kind: mutations.Kind, saved: Path) -> Seen:
    """Try a saved input again, by itself."""
    warm_up(kind)
    home = Path(tempfile.mkdtemp(prefix="merganser-fuzz-", dir=_fast_folder()))
    files = {name: data for name, data in _files(saved).items() if name != TOLD}
    write({**kind.files, **files}, home / "in")
    seen = attempt(kind, home, Watch(home))
    shutil.rmtree(home)
    return seen


def page(tallies: list[Tally], inputs: int, seed: int) -> str:
    """The figures as a part of ``docs/hostile.md``."""
    whole = total(tallies)
    minutes = sum(tally.seconds for tally in tallies) / 60
    header = "| kind | inputs | merged | refused | crashes | messages | hangs | memory | escapes "
    header += "| most memory | longest |\n|---|" + "---:|" * 10
    rows = "\n".join(map(row, [*tallies, whole]))
    command = f"python tests/robustness/fuzz.py --inputs {inputs} --seed {seed} --write"
    return f"""
`{command}`, {date.today():%-d %B %Y}, {minutes:.0f} minutes on one core.
A *crash* is any exception but Merganser's own, a *message* one that is not a printable line of bounded length, a *hang*
more than {SECONDS:.0f} s of the processor, *memory* more than 1 GiB; *escapes* are writes elsewhere, and all that is
run, compiled or sent.

{header}
{rows}

"""


def row(tally: Tally) -> str:
    """A line of the table."""
    counts = tally.counts
    shown = [sum(counts.values())]
    shown += [
        counts[w] for w in ("merged", "refused", "crash", "message", "hang", "memory", "escape")
    ]
    cells = [tally.kind, *map(str, shown), f"{tally.memory >> 20} MB", f"{tally.longest:.2f} s"]
    return f"| {' | '.join(cells)} |"


def total(tallies: list[Tally]) -> Tally:
    """All kinds together."""
    made = Tally("all")
    for tally in tallies:
        made.counts += tally.counts
        made.memory = max(made.memory, tally.memory)
        made.longest = max(made.longest, tally.longest)
    return made


if __name__ == "__main__":
    main()
