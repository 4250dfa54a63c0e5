"""The main job, offline, on models that were really trained: train, merge, compare.

    python demo.py OUT_DIR

Trains a small base model and two experts of it on sums (once; they are cached), merges the experts
with the recipes of the reference study at weights 0.9 and 0.7, and scores base, experts and merges on
sums that none of them has seen.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console

HERE = Path(__file__).resolve().parent
RECIPES = HERE.parent / "baselines_openrs"
EXPERTS = (
    "baselines_openrs/acc_MRL4096_ROLLOUT4_LR2e-6/global_step_54/actor/huggingface",
    "baselines_openrs/accfmt_MRL4096_ROLLOUT4_LR2e-6/global_step_30/actor/huggingface",
)


def run(*command: str, folder: Path) -> None:
    """Show a command, and run it in a folder."""
    shown = " ".join(
        os.path.relpath(word, folder) if word.startswith("/") else word for word in command
    )
    Console().print(f"\n[bold]$ {shown}[/]", highlight=False)
    program = [sys.executable, "-m"] if command[0] == "merganser" else [sys.executable]
    subprocess.run([*program, *command], cwd=folder, check=True)


def main() -> None:
    """Do the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    run(str(HERE / "train_experts.py"), ".", folder=out)
    merges = []
    for recipe in sorted(RECIPES.glob("*_linear.yml")):
        merge = f"merges/{recipe.stem}"
        run("merganser", "plan", str(recipe), folder=out)
        run("merganser", "merge", str(recipe), merge, "--force", folder=out)
        merges.append(merge)
    run("merganser", "verify", merges[-1], folder=out)
    run(str(HERE / "score.py"), "base", *EXPERTS, *merges, folder=out)


if __name__ == "__main__":
    main()
