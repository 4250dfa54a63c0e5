"""What rounding leaves of a merge: small experts, really trained, merged from and to several dtypes.

    python bench/precision.py [--docs DIR]

Trains a small model on sums (the one of ``examples/demo``), rounds it to bfloat16, as models are published,
and trains two experts of it in float32 by reinforcement learning at the rate of the reference study, 2e-6
for 54 and 30 steps; keeps of each its training shards in float32, as verl writes them, and its export to
bfloat16; and merges them at nine weights in each of the ways of ``WAYS``, all in one pass. Writes a table
into DIR/precision.md and a plot beside it. Takes about two minutes of one core, most of it for training.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples" / "demo"))

import torch
import train_experts as demo

import merganser
from merganser.sinks import StateDictSink

Tensors = Mapping[str, torch.Tensor]

WEIGHTS = [round(0.1 * i, 1) for i in range(1, 10)]
PRETRAINING = demo.Pretraining(steps=700)
RATE = 2e-6
EXPERTS = {
    "acc": demo.Expert("acc", steps=54, problems=8, rate=RATE),
    "accfmt": demo.Expert("accfmt", steps=30, problems=8, rate=RATE),
}
SEED = 0


@dataclass(frozen=True)
class Way:
    """Where a merge reads from, and what it is stored in."""

    name: str
    weights: str
    dtype: str
    rounding: str
    colour: str
    line: str = "-"


WAYS = [
    Way("bfloat16 exports to bfloat16", "huggingface", "bfloat16", "nearest", "#c0392b"),
    Way("… with stochastic rounding", "huggingface", "bfloat16", "stochastic", "#e67e22"),
    Way("bfloat16 exports to float16", "huggingface", "float16", "nearest", "#8e44ad"),
    Way("float32 shards to bfloat16", "shards", "bfloat16", "nearest", "#c0392b", "--"),
    Way("… with stochastic rounding", "shards", "bfloat16", "stochastic", "#e67e22", "--"),
    Way("float32 shards to float16", "shards", "float16", "nearest", "#2980b9", "--"),
    Way("float32 shards to float32", "shards", "float32", "nearest", "#27ae60", "--"),
]


@dataclass(frozen=True)
class Point:
    """What came of a merge.

    Attributes:
        effective: the share of the first expert in the output, by least squares on what was read.
        distance: root mean square of the output's distance to the exact merge of the float32 weights,
            as a share of that of the two experts' distance.
    """

    effective: float
    distance: float


def train(folder: Path) -> dict[str, Tensors]:
    """Train the experts and save each step as verl does; return their float32 weights."""
    demo.train_base(folder, PRETRAINING, SEED)
    found: dict[str, Tensors] = {}
    for name, expert in EXPERTS.items():
        model, tokenizer = demo.load_base(folder)
        demo.reinforce(model, tokenizer, expert, SEED)
        demo.save_step(model, tokenizer, folder / expert.run, expert.steps)
        found[name] = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
        export = folder / expert.run / f"global_step_{expert.steps}" / "actor" / "huggingface"
        model.to(torch.bfloat16).save_pretrained(export)
    return found


def merge(folder: Path, weight: float) -> list[Tensors]:
    """The merges at one weight in all ways: the shards and the exports are each read once."""
    plans = [
        merganser.plan(
            {
                "merge_method": "linear",
                "models": [
                    {"model": str(folder / expert.run), "parameters": {"weight": share}}
                    for expert, share in zip(EXPERTS.values(), (weight, 1 - weight), strict=True)
                ],
                "dtype": way.dtype,
            },
            weights=way.weights,  # type: ignore[arg-type]
            rounding=way.rounding,  # type: ignore[arg-type]
            seed=SEED,
        )
        for way in WAYS
    ]
    sinks = [StateDictSink({job.name: job.spec for job in plan.jobs}) for plan in plans]
    merganser.run(plans, sinks, report=False)
    return [sink.tensors for sink in sinks]


def flat(tensors: Tensors, names: Sequence[str]) -> torch.Tensor:
    """All entries of a model in float64."""
    return torch.cat([tensors[name].double().reshape(-1) for name in names])


def share(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> float:
    """The w for which w a + (1 - w) b is nearest to a model."""
    return float((out - b) @ (a - b) / ((a - b) @ (a - b)))


def measure(folder: Path, experts: Mapping[str, Tensors]) -> list[list[Point]]:
    """A list of points for each way, one a weight."""
    names = sorted(experts["acc"])
    a, b = (flat(experts[name], names) for name in EXPERTS)
    exported = [flat({n: t.bfloat16() for n, t in e.items()}, names) for e in experts.values()]
    found: list[list[Point]] = [[] for _ in WAYS]
    for weight in WEIGHTS:
        exact = weight * a + (1 - weight) * b
        for points, way, merged in zip(found, WAYS, merge(folder, weight), strict=True):
            out = flat(merged, names)
            read = exported if way.weights == "huggingface" else [a, b]
            far = float((out - exact).norm() / (a - b).norm())
            points.append(Point(share(out, *read), far))
    return found


def table(found: Sequence[Sequence[Point]]) -> str:
    """A Markdown table at the weights of the reference study."""
    shown = [0.9, 0.7, 0.5, 0.3, 0.1]
    heads = ["merged from and to", *(f"{w}" for w in shown), "distance, mean"]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    source = ""
    for way, points in zip(WAYS, found, strict=True):
        source = way.name if "…" not in way.name else source
        name = way.name.replace("…", f"{source},")
        cells = [f"{points[WEIGHTS.index(weight)].effective:.3f}" for weight in shown]
        mean = sum(point.distance for point in points) / len(points)
        lines.append(f"| {' | '.join([name, *cells, f'{mean:.2g}'])} |")
    return "\n".join(lines)


def facts(experts: Mapping[str, Tensors]) -> str:
    """What the experts are, in a sentence."""
    names = sorted(experts["acc"])
    a, b = (flat(experts[name], names) for name in EXPERTS)
    same = [flat({n: t.bfloat16() for n, t in e.items()}, names) for e in experts.values()]
    return (
        f"The experts have {len(a):,} weights of root mean square {a.square().mean().sqrt():.3f}, and are "
        f"{(a - b).square().mean().sqrt():.1e} apart; in bfloat16 {(same[0] == same[1]).double().mean():.1%} of "
        "their entries are equal."
    )


def plot(found: Sequence[Sequence[Point]], file: Path) -> None:
    """Draw how far effective weights are from the requested ones, and merges from the exact one."""
    try:
        import matplotlib
    except ImportError:
        sys.exit("the plot needs matplotlib; install it with: pip install 'merganser[plot]'")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for way, points in zip(WAYS, found, strict=True):
        source = "exports" if way.weights == "huggingface" else "float32 shards"
        stochastic = ", stochastic" if way.rounding == "stochastic" else ""
        style: dict[str, Any] = {
            "color": way.colour,
            "linestyle": way.line,
            "marker": "o" if way.line == "-" else "s",
            "markersize": 4,
            "label": f"{source} to {way.dtype}{stochastic}",
        }
        moved = [point.effective - weight for point, weight in zip(points, WEIGHTS, strict=True)]
        left.plot(WEIGHTS, moved, **style)
        right.plot(WEIGHTS, [point.distance for point in points], **style)
    left.set_ylabel("effective weight − requested weight")
    right.set_ylabel("distance to the exact merge\n(1 = the two experts' distance)")
    right.set_yscale("log")
    for axes in (left, right):
        axes.set_xlabel("requested weight of the first expert")
        axes.set_xticks(WEIGHTS)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(file, dpi=110)


def main() -> None:
    """Train, merge, measure, and write it down."""
    parser = argparse.ArgumentParser(description="Measure what rounding leaves of a merge.")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of precision.md")
    began = time.perf_counter()
    docs: Path = parser.parse_args().docs
    page = docs / "precision.md"
    if not page.is_file():
        parser.error(f"{page} is missing")
    with tempfile.TemporaryDirectory(prefix="precision-") as temporary:
        experts = train(Path(temporary))
        print(f"trained in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        found = measure(Path(temporary), experts)
    text = f"{facts(experts)}\n\n{table(found)}"
    print(text)
    whole = page.read_text(encoding="utf-8")
    begin, end = "<!-- measured by bench/precision.py -->", "<!-- until here -->"
    filled = re.sub(
        f"{begin}.*{end}", lambda _: f"{begin}\n\n{text}\n\n{end}", whole, flags=re.DOTALL
    )
    page.write_text(filled, encoding="utf-8")
    plot(found, docs / "precision.png")


if __name__ == "__main__":
    main()
