"""Are the tests of docs/statistics.md worth their 5 %? Simulated studies of models that are equally good.

    python bench/calibration.py [--studies 2000] [--write]

Each study has nine merges and a reference, on problems of all difficulties, with verdicts of 0 and 1. In half
of the studies models are alike on each problem; in the others each is better at some problems and worse at
as many. No model is better than another in either, so every claim is a false alarm, and intervals are to hold 0.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from merganser.evaluation import significance

DOCS = Path(__file__).parents[1] / "docs" / "statistics.md"
BEGIN, END = "<!-- calibration -->", "<!-- end of calibration -->"
PROBLEMS, SAMPLES = (30, 200), (1, 4, 16)
MODELS = 9
APART = 0.8
"""Standard deviation, in logits, of what models are better or worse at."""


@dataclass
class Counts:
    """Of how many studies and comparisons something was true."""

    studies: int = 0
    single: int = 0
    middle: int = 0
    together: int = 0
    holm: int = 0
    covered: int = 0

    def add(self, other: Counts) -> None:
        """Count another's too."""
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))


def draw(random: np.random.Generator, problems: int, samples: int, apart: float) -> np.ndarray:
    """Differences of nine models from a tenth, [models, problems]."""
    hard = random.normal(0.0, 1.5, problems)
    own = random.normal(0.0, apart, (MODELS + 1, problems)) if apart else 0.0
    chances = 1 / (1 + np.exp(-(hard + own)))
    means = random.binomial(samples, np.broadcast_to(chances, (MODELS + 1, problems))) / samples
    return means[1:] - means[:1]


def examine(differences: np.ndarray, samples: int, seed: int) -> Counts:
    """What the tests of one study say."""
    found = significance.differences([differences], [1.0], rates=True)
    tested = significance.family([differences], [1.0], seed=seed)
    single = [significance.exact_p(row, samples) for row in differences]
    middle = [significance.mid_p(row, samples) for row in differences]
    level = significance.LEVEL
    intervals = [each.interval() for each in found]
    return Counts(
        1,
        sum(p is not None and p <= level for p in single),
        sum(p is not None and p <= level for p in middle),
        int(min(tested.adjusted) <= level),
        int(min(significance.holm([p or 0.0 for p in middle])) <= level),
        sum(low <= 0 <= high for low, high in intervals),
    )


def percent(count: int, of: int) -> str:
    """A share with one decimal."""
    return f"{100 * count / of:.1f}"


def main() -> None:
    """Simulate, print the table, and write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument(
        "--write", action="store_true", help="write the table into docs/statistics.md"
    )
    arguments = parser.parse_args()
    lines = [
        "| problems | samples | p (mid-p) | exact p | max-T, any of nine | Holm, any of nine | 95 % intervals hold |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for problems in PROBLEMS:
        for samples in SAMPLES:
            random = np.random.default_rng([problems, samples])
            total = Counts()
            for study in range(arguments.studies):
                apart = APART if study % 2 else 0.0
                total.add(examine(draw(random, problems, samples, apart), samples, study))
            tests = total.studies * MODELS
            lines.append(
                f"| {problems} | {samples} | {percent(total.middle, tests)} | "
                f"{percent(total.single, tests)} | {percent(total.together, total.studies)} | "
                f"{percent(total.holm, total.studies)} | {percent(total.covered, tests)} |"
            )
            print(lines[-1], flush=True)
    error = 100 * math.sqrt(0.05 * 0.95 / arguments.studies)
    table = "\n".join(lines)
    print(f"\n{table}\n\none standard error of a share of studies near 5 %: {error:.1f}")
    if arguments.write:
        text = DOCS.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        DOCS.write_text(before + f"{BEGIN}\n{table}\n{END}" + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
