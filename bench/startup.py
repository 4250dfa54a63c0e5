"""Measure what starting costs: whole processes that merge, plan or help, on a pair of tiny models.

    python bench/startup.py [--repeat 10] [--modules]

Prints the least processor time and wall time of each command, and how many modules it imports;
``--modules`` lists those that take longest, as ``python -X importtime`` measures them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from meter import measure

RECIPE = """
merge_method: linear
models:
  - {model: ./a, parameters: {weight: 0.3}}
  - {model: ./b, parameters: {weight: 0.7}}
dtype: float32
"""
COMMANDS = {
    "merge": ["merge", "recipe.yml", "out", "--force", "-q"],
    "plan": ["plan", "recipe.yml"],
    "plan --json": ["plan", "recipe.yml", "--json"],
    "--help": ["--help"],
}


def make_pair(folder: Path) -> None:
    """Two models of two layers, and a recipe."""
    config = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 16, "vocab_size": 64}
    names = [f"model.layers.{n}.self_attn.{m}_proj.weight" for n in range(2) for m in "qkvo"]
    for seed, name in enumerate("ab"):
        random = np.random.default_rng(seed)
        tensors = {each: random.normal(size=(16, 16)).astype(np.float32) for each in names}
        tensors["model.embed_tokens.weight"] = random.normal(size=(64, 16)).astype(np.float32)
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "recipe.yml").write_text(RECIPE)


def imports(command: list[str]) -> dict[str, float]:
    """The modules that a command imports, and the milliseconds that each takes by itself."""
    run = [sys.executable, "-X", "importtime", *command]
    told = subprocess.run(run, capture_output=True, text=True, check=True).stderr
    lines = [line[12:].split("|") for line in told.splitlines() if line.startswith("import time:")]
    return {name.strip(): int(own) / 1000 for own, _, name in lines[1:]}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="What starting costs.")
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--modules", action="store_true", help="list the slowest modules too")
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # as for users, whose modules are compiled
    with tempfile.TemporaryDirectory() as place:
        os.environ["PYTHONPYCACHEPREFIX"] = f"{place}/cache"
        make_pair(Path(place))
        os.chdir(place)
        print("| command | processor s | wall s | modules |\n|---|---:|---:|---:|")
        for name, arguments in COMMANDS.items():
            command = ["-m", "merganser", *arguments]
            found = imports(command)
            runs = [
                measure(
                    [sys.executable, *command],
                    stdout=Path("stdout"),
                    stderr=Path("stderr"),
                    timeout_s=60,
                )
                for _ in range(options.repeat)
            ]
            cpu, wall = min(run.cpu_s for run in runs), min(run.wall_s for run in runs)
            print(f"| {name} | {cpu:.2f} | {wall:.2f} | {len(found)} |")
            if options.modules:
                slowest = sorted(found.items(), key=lambda entry: -entry[1])[:20]
                print("\n".join(f"    {own:6.1f} ms {module}" for module, own in slowest))


if __name__ == "__main__":
    main()
