"""A merge of a real published language model: SmolLM2-135M-Instruct and a short fine-tune of it.

    python demo.py OUT_DIR

Makes the two models (once; they are cached), merges them half and half, and lets all three chat.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Do the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out.resolve()
    models = ["SmolLM2-135M-Instruct", "SmolLM2-135M-tagged"]
    out.mkdir(parents=True, exist_ok=True)
    for command in (
        [str(HERE / "prepare.py"), "."],
        ["-m", "merganser", "merge", str(HERE / "merge.yml"), "merge", "--force"],
        [str(HERE / "chat.py"), *models, "merge"],
    ):
        subprocess.run([sys.executable, *command], cwd=out, check=True)


if __name__ == "__main__":
    main()
