"""The demo's first study through vLLM, and how many of its greedy answers transformers gives otherwise.

    python through_vllm.py OUT_DIR

Takes the experts of ``demo.py`` in OUT_DIR, and trains them if they are not there. One vLLM engine becomes
base, experts and nine merges, one after the other, without a folder for any. Then both engines answer
the held-out problems greedily, and their answers are compared.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import sums
from rich.console import Console

from demo import HERE, PROBLEMS, run, tell

STUDY = "acc_accfmt"
ENGINES = ("vllm", "transformers")


def answers(folder: Path) -> dict[tuple[str, str], str]:
    """The kept completions of a study, by model and problem."""
    found = {}
    for file in sorted((folder / "samples").glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            sample = json.loads(line)
            found[file.stem, sample["problem"]] = sample["completion"]
    return found


def main() -> None:
    """Do the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    tell("1. The experts of make demo")
    run("python", str(HERE / "train_experts.py"), ".", folder=out)
    sums.write_problems(out / "held_out.jsonl", PROBLEMS)
    shutil.copyfile(HERE / f"{STUDY}.yml", out / f"{STUDY}.yml")
    tell("2. The study through vLLM: one engine becomes base, experts and nine merges")
    through = f"{STUDY}_vllm"
    run("merganser", "sweep", f"{STUDY}.yml", through, "--engine", "vllm", folder=out)
    tell("3. The same models, greedily, in both engines")
    text = (HERE / f"{STUDY}.yml").read_text(encoding="utf-8")
    drawn = "      samples: 4\n      temperature: 1.0\n"
    assert drawn in text
    (out / "greedy.yml").write_text(text.replace(drawn, ""), encoding="utf-8")
    told = []
    for engine in ENGINES:
        words = ("sweep", "greedy.yml", f"greedy_{engine}", "--engine", engine)
        run("merganser", *words, "--no-write", "--no-report", folder=out)
        told.append(answers(out / f"greedy_{engine}"))
    ours, theirs = told
    assert ours.keys() == theirs.keys()
    differing = sum(ours[key] != theirs[key] for key in ours)
    tell(f"{differing} of {len(ours):,} greedy answers differ between vLLM and transformers")
    Console().print(f"  {out / through / 'report.html'}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
