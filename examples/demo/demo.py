"""The reference study in miniature, offline, on models that were really trained.

    python demo.py OUT_DIR

Trains a small base model and three experts of it and a reference by reinforcement learning (cached),
sweeps the weights of two pairs of experts straight from the trainer's shards, scores every merge in
memory on held-out problems, and writes for each pair the front, a report, and the best merge with its
card.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import sums
from rich.console import Console

HERE = Path(__file__).resolve().parent
PROBLEMS = 200
SWEEPS = {"acc_accfmt": "think_answer", "acc_len": "tokens", "simplex": "tokens"}
"""Two pairs of experts, and all three: what each trades for accuracy."""

MERGES = {"simplex": "21 merges of three experts"}


def tell(text: str) -> None:
    """Say what comes next."""
    Console().print(f"\n[bold cyan]{text}[/]", highlight=False, soft_wrap=True)


def run(*command: str, folder: Path, shared: bool = False) -> None:
    """Show a command, and run it in a folder.

    Args:
        command: a program of this environment, and its arguments.
        folder: where it runs.
        shared: whether a second process takes half of the models to score: a study may be shared.
    """
    shown = " ".join(
        os.path.relpath(word, folder) if word.startswith("/") else word for word in command
    )
    Console().print(f"[bold]$ {shown}[/]", highlight=False, soft_wrap=True)
    name, *words = command
    program = [sys.executable, *(["-m", name] if name == "merganser" else []), *words]
    # Models as small as these are quicker on one thread, and much so where anything else runs.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if not shared:
        subprocess.run(program, cwd=folder, env=environment, check=True)
        return
    quiet = [*program, "-q", "--no-write"]
    with subprocess.Popen(quiet, cwd=folder, env=environment, stderr=subprocess.DEVNULL) as other:
        try:
            subprocess.run(program, cwd=folder, env=environment, check=True)
        except BaseException:
            other.terminate()
            raise


def main() -> None:
    """Do the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    tell("1. One base model, and three experts rewarded for right answers, for format, for brevity")
    run("python", str(HERE / "train_experts.py"), ".", folder=out)
    sums.write_problems(out / "held_out.jsonl", PROBLEMS)
    for number, (sweep, score) in enumerate(SWEEPS.items(), 2):
        shutil.copyfile(HERE / f"{sweep}.yml", out / f"{sweep}.yml")
        merges = MERGES.get(sweep, "nine merges")
        tell(f"{number}. Which weight? Accuracy against {score}: {merges}, scored in memory")
        run("merganser", "sweep", f"{sweep}.yml", sweep, "--no-report", folder=out, shared=True)
        run("merganser", "report", sweep, "--x", "accuracy", "--y", score, folder=out)
    tell("Done. The front, every score and sample completions side by side:")
    for sweep in SWEEPS:
        Console().print(f"  {out / sweep / 'report.html'}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
