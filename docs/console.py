"""Run the console blocks of ``README.md`` in order and write below each command what it prints.

    python docs/console.py            write
    python docs/console.py --check    only compare; times and speeds may differ

A recipe that begins with a comment such as ``# recipe.yml`` is saved under that name first.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RECIPE = re.compile(r"^```yaml\n# (\S+\.yml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
VARIES = re.compile(r" in [\d.,]+ m?s \([^)]*/s\)")
"""What differs from run to run: ``in 0.4 s (971 kB/s)``."""


def rewrite(text: str, folder: Path) -> str:
    """The page with the output of its commands, which run in ``folder``."""
    (folder / "examples").symlink_to(ROOT / "examples")
    for name, recipe in RECIPE.findall(text):
        (folder / name).write_text(recipe, encoding="utf-8")

    def block(match: re.Match[str]) -> str:
        commands = [line[2:] for line in match[1].splitlines() if line.startswith("$ ")]
        return "```console\n" + "".join(transcript(c, folder) for c in commands) + "```"

    return CONSOLE.sub(block, text)


def transcript(command: str, folder: Path) -> str:
    """A command and what it prints, as a terminal shows it."""
    program, *arguments = shlex.split(command)
    start = {"python": [], "merganser": ["-m", "merganser"]}[program]
    done = subprocess.run(
        [sys.executable, *start, *arguments],
        cwd=folder,
        env={**os.environ, "COLUMNS": "100", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        sys.exit(f"{command}: exit code {done.returncode}\n{done.stdout}")
    return f"$ {command}\n{done.stdout}"


def main() -> None:
    """Write, or check."""
    text = README.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        new = rewrite(text, Path(folder).resolve())
    if "--check" not in sys.argv:
        README.write_text(new, encoding="utf-8")
    elif VARIES.sub("", new) != VARIES.sub("", text):
        sys.exit(f"README.md shows other output than its commands print; run: make docs\n{new}")


if __name__ == "__main__":
    main()
