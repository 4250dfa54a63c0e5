"""What a study does at full size: nine points in one pass, and what sets the pair apart.

    python bench/studies.py [--data DIR] [--json]

Whole processes on the pair of 1.777 B experts, inputs in the page cache where nothing else is said, each
beside its floor in the same run: the sweep beside reading both inputs once and writing nine outputs with
the best of ``cp``, ``dd`` and ``dd oflag=direct``, and beside nine times MergeKit's time for one point
(``PEER_BIN`` names the folder of its commands); ``diff`` beside reading both inputs, also where these come
from the disk. The sweep's reads are counted by the kernel.
The live model is in ``bench/in_memory.py``. Needs 36 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import floor
import run as harness
from cases import MERGES

FAMILY = "qwen2-1.5b"
WEIGHTS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]

SWEEP = """name: w{{{{ w }}}}
sweep: {{w: {weights}}}
merge_method: linear
models:
  - {{model: {a}, parameters: {{weight: "{{{{ w }}}}"}}}}
  - {{model: {b}, parameters: {{weight: "{{{{ 1 - w }}}}"}}}}
parameters: {{normalize: true}}
dtype: bfloat16
"""

COUNTED = """
import sys, merganser
merganser.sweep(sys.argv[1], sys.argv[2])
print(open('/proc/self/io').read())
"""
"""The sweep, and what the kernel says that its process read."""


def seconds(command: list[str]) -> tuple[float, str]:
    """How long a command takes, and what it prints."""
    began = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - began, done.stdout


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Studies at full size.")
    parser.add_argument("--data", type=Path, default=harness.BENCH / "data")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    maker = [sys.executable, str(harness.BENCH / "checkpoints.py"), "--data", str(arguments.data)]
    subprocess.run([*maker, FAMILY], check=True, stdout=sys.stderr)
    a, b = (arguments.data.resolve() / FAMILY / name for name in "ab")
    files = [folder / "model.safetensors" for folder in (a, b)]
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="studies-", dir=arguments.data) as temporary:
        root = Path(temporary)
        best = floor.measure(files, files[:1], root, copies=len(WEIGHTS))
        found["reading both, s"] = best.read_s
        found["writing one, s"] = best.write_s / len(WEIGHTS)
        found["floor of the sweep, s"] = best.total_s

        study = root / "study.yml"
        study.write_text(SWEEP.format(weights=WEIGHTS, a=a, b=b))
        seconds([sys.executable, "-c", "import merganser.engine"])  # compiled code is loaded warm
        time_taken, told = seconds([sys.executable, "-c", COUNTED, str(study), str(root / "out")])
        read = int(re.search(r"rchar: (\d+)", told)[1])  # type: ignore[index]
        found["sweep of nine points, s"] = time_taken
        found["bytes read, of the inputs'"] = read / sum(f.stat().st_size for f in files)
        found["times the floor"] = time_taken / best.total_s
        found["a point, of writing it"] = time_taken / best.write_s
        shutil.rmtree(root / "out")

        if (harness.PEER_SCRIPTS / "mergekit-yaml").is_file():
            [case] = [case for case in MERGES if case.name == "linear"]
            recipe = harness._write_recipe(case, {"a": a, "b": b}, root / "recipe.yml")
            os.environ["HF_HUB_OFFLINE"] = "1"
            command = [str(harness.PEER_SCRIPTS / "mergekit-yaml"), str(recipe), str(root / "peer")]
            peer = seconds(command)[0] + floor.sync(list((root / "peer").glob("*.safetensors")))
            found["MergeKit, one point, s"] = peer
            found["faster than nine of them"] = len(WEIGHTS) * peer / time_taken
            shutil.rmtree(root / "peer")

        merganser = str(harness.SCRIPTS / "merganser")
        time_taken, _ = seconds([merganser, "diff", str(a), str(b), "--json"])
        found["diff, s"] = time_taken
        found["diff, of reading both"] = time_taken / best.read_s
        cold = min(floor.reading(files, cold=True).values())
        floor.forget(files)
        time_taken, _ = seconds([merganser, "diff", str(a), str(b), "--json"])
        found["reading both from the disk, s"] = cold
        found["diff from the disk, s"] = time_taken
        found["diff from the disk, of reading"] = time_taken / cold
    if arguments.json:
        print(json.dumps(found))
        return
    for name, number in found.items():
        print(f"{name:30} {number:8.2f}")


if __name__ == "__main__":
    main()
