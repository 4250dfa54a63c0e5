"""Measure the floor: what moving a merge's bytes costs when nothing is computed.

    python bench/floor.py INPUT INPUT [...] [--write-like FILE ...] [--repeat 1] [--json]

The floor is the time to read every input byte once, plus the time to write as many bytes as the
output has, both by the best ordinary tool. Reading is ``dd`` to /dev/null, the files one after
another or all at once. Writing is ``cp`` or ``dd``, with and without direct I/O, each with the
bytes safely on the disk at the end. The writers read what they write, from the page cache if it is
there, so the floor is a little higher than a writer of ready bytes would need.

Inputs are read as the page cache has them; ``--cold`` asks the kernel to forget them first.
Needs Linux and GNU coreutils.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Floor:
    """Seconds of each variant; the floor is the best reading plus the best writing."""

    read_bytes: int
    write_bytes: int
    reads: dict[str, float]
    writes: dict[str, float]

    @property
    def read_s(self) -> float:
        """The best reading."""
        return min(self.reads.values())

    @property
    def write_s(self) -> float:
        """The best writing."""
        return min(self.writes.values())

    @property
    def total_s(self) -> float:
        """The floor."""
        return self.read_s + self.write_s


def forget(files: Sequence[Path]) -> None:
    """Ask the kernel to drop the files' clean pages."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def sync(files: Sequence[Path]) -> float:
    """Write the files' dirty pages to the disk; return the seconds it took."""
    started = time.perf_counter()
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return time.perf_counter() - started


def _start(*command: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE)


def _finish(process: subprocess.Popen[bytes]) -> None:
    _, stderr = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args, stderr=stderr)


def _read_in_turn(files: Sequence[Path]) -> None:
    for file in files:
        _finish(_start("dd", f"if={file}", "of=/dev/null", "bs=4M"))


def _read_at_once(files: Sequence[Path]) -> None:
    running = [_start("dd", f"if={file}", "of=/dev/null", "bs=4M") for file in files]
    for process in running:
        _finish(process)


def _cp(source: Path, target: Path) -> None:
    # A reflink or a hole would not be a write.
    _finish(_start("cp", "--reflink=never", "--sparse=never", source, target))
    sync([target])


def _dd(source: Path, target: Path) -> None:
    _finish(_start("dd", f"if={source}", f"of={target}", "bs=4M", "conv=fsync"))


def _dd_direct(source: Path, target: Path) -> None:
    _finish(_start("dd", f"if={source}", f"of={target}", "bs=4M", "oflag=direct", "conv=fsync"))


_WRITERS: dict[str, Callable[[Path, Path], None]] = {
    "cp": _cp,
    "dd": _dd,
    "dd direct": _dd_direct,
}


def reading(inputs: Sequence[Path], *, cold: bool) -> dict[str, float]:
    """Seconds to read files one after the other, and all at once; ``cold`` from the disk."""
    reads: dict[str, float] = {}
    for name, read in (("in turn", _read_in_turn), ("at once", _read_at_once)):
        if name == "at once" and len(inputs) == 1:
            continue
        if cold:
            forget(inputs)
        started = time.perf_counter()
        read(inputs)
        reads[name] = time.perf_counter() - started
    return reads


def measure(
    inputs: Sequence[Path],
    write_like: Sequence[Path],
    scratch: Path,
    *,
    copies: int = 1,
    cold: bool = False,
) -> Floor:
    """Time every variant once.

    ``write_like`` are files whose bytes stand for one output; a case that writes several outputs
    asks for ``copies``. ``scratch`` is a folder on the file system that merges write to.
    """
    reads = reading(inputs, cold=cold)

    writes: dict[str, float] = {}
    for name, write in _WRITERS.items():
        with tempfile.TemporaryDirectory(prefix="floor-", dir=scratch) as folder:
            started = time.perf_counter()
            try:
                for copy in range(copies):
                    for number, source in enumerate(write_like):
                        write(source, Path(folder) / f"{copy}-{number}")
            except subprocess.CalledProcessError as error:
                # Direct I/O is not everywhere (tmpfs, some network file systems).
                if name != "dd direct" or b"Invalid argument" not in (error.stderr or b""):
                    raise
            else:
                writes[name] = time.perf_counter() - started
    return Floor(
        read_bytes=sum(file.stat().st_size for file in inputs),
        write_bytes=copies * sum(file.stat().st_size for file in write_like),
        reads=reads,
        writes=writes,
    )


def describe(floor: Floor) -> str:
    """One line for each variant, with its speed."""
    lines = []
    for kind, times, size in (
        ("read ", floor.reads, floor.read_bytes),
        ("write", floor.writes, floor.write_bytes),
    ):
        for name, seconds in times.items():
            lines.append(f"{kind} {name:<10} {seconds:7.2f} s {size / seconds / 1e9:7.2f} GB/s")
    lines.append(f"floor: {floor.read_s:.2f} s + {floor.write_s:.2f} s = {floor.total_s:.2f} s")
    return "\n".join(lines)


def main() -> None:
    """Measure the floor of the files on the command line."""
    if shutil.which("dd") is None:
        sys.exit("floor.py needs dd and cp")
    parser = argparse.ArgumentParser(description="Measure what moving a merge's bytes costs.")
    parser.add_argument("inputs", nargs="+", type=Path, help="the files that a merge reads")
    parser.add_argument(
        "--write-like",
        nargs="+",
        type=Path,
        help="files with as many bytes as the merge writes (default: the first input)",
    )
    parser.add_argument("--scratch", type=Path, help="where to write (default: beside the input)")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--cold", action="store_true", help="drop the inputs from the page cache")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    floors = [
        measure(
            arguments.inputs,
            arguments.write_like or arguments.inputs[:1],
            arguments.scratch or arguments.inputs[0].parent,
            cold=arguments.cold,
        )
        for _ in range(arguments.repeat)
    ]
    if arguments.json:
        print(json.dumps([asdict(floor) | {"total_s": floor.total_s} for floor in floors]))
    else:
        print("\n\n".join(describe(floor) for floor in floors))


if __name__ == "__main__":
    main()
