"""Run the laws and the tests of the rooms that a change touches, in under a minute: ``make quick``.

A file of ``src/merganser/ROOM`` means ``tests/ROOM``; a changed test file means itself. The quickest
tests run first, by the times of the last run, and those left when the time is up are skipped and counted.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]

LAWS = (
    "tests/laws/test_golden.py",
    "tests/laws/test_laws.py",
    "tests/project/test_architecture.py",
)

EVERYWHERE = ("tests/cli", "tests/engine", "tests/merging", "tests/recipe")
"""The tests of files that belong to no room, such as ``errors.py``, which all rooms use."""


def git(*words: str) -> list[str]:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def changed(base: str) -> list[str]:
    """Files that differ from the common ancestor with ``base``, and new ones."""
    ancestor = git("merge-base", base, "HEAD")[0]
    return git("diff", "--name-only", ancestor) + git("ls-files", "--others", "--exclude-standard")


def select(files: Iterable[str], root: Path) -> list[str]:
    """The folders and files of tests to run, each once: the laws first."""
    chosen = dict.fromkeys(LAWS)
    for file in map(Path, files):
        match file.parts:
            case ["src", "merganser", room, _, *_]:
                chosen |= dict.fromkeys([f"tests/{room}"])
            case ["src", "merganser", _]:
                chosen |= dict.fromkeys(EVERYWHERE)
            case ["tests", *_, name] if name.startswith("test_") and name.endswith(".py"):
                chosen |= dict.fromkeys([file.as_posix()])
    present = [path for path in chosen if (root / path).exists()]
    folders = {path for path in present if not path.endswith(".py")}
    return [path for path in present if not folders & {p.as_posix() for p in Path(path).parents}]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", default="main", help="compare with this revision")
    parser.add_argument("--seconds", type=float, default=40, help="time in which tests start")
    options = parser.parse_args()
    chosen = select(changed(options.base), ROOT)
    print("tests:", " ".join(chosen), flush=True)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MERGANSER_QUICK_SECONDS": str(options.seconds),
        "PYTHONPATH": os.pathsep.join(
            [str(ROOT / "tests/support"), os.environ.get("PYTHONPATH", "")]
        ),
    }
    words = ["-q", "-n", "2", "-m", "not slow", "-p", "quick_budget"]
    command = [sys.executable, "-m", "pytest", *words, "--hypothesis-profile", "quick", *chosen]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
