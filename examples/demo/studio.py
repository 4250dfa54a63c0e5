"""The studio on the demo's experts.

    python studio.py OUT_DIR

Trains them where they are missing, writes problems, and opens the page.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import sums

from demo import HERE, PROBLEMS, SWEEPS, run


def main() -> None:
    """Start it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--port", default="8000")
    given = parser.parse_args()
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    run("python", str(HERE / "train_experts.py"), ".", folder=out)
    if not (out / "held_out.jsonl").exists():
        sums.write_problems(out / "held_out.jsonl", PROBLEMS)
    for sweep in SWEEPS:
        shutil.copyfile(HERE / f"{sweep}.yml", out / f"{sweep}.yml")
    try:
        run("merganser", "studio", ".", "--port", given.port, folder=out)
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
