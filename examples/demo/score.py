"""Score models on held-out sums: how often the answer is right, how often the format is.

python score.py MODEL_DIR [MODEL_DIR ...] [--problems 200] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

# Set before torch loads: its threads then sleep while they wait for work. Spinning ones hinder each
# other as soon as anything else runs.
os.environ["OMP_WAIT_POLICY"] = "passive"

import sums
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

EXAMPLES = 3
MAX_NEW_TOKENS = 32
"""A complete reply in tags takes 18."""


@dataclass(frozen=True)
class Score:
    """Shares of right answers and of strictly formatted replies, with their standard errors."""

    model: str
    path: str
    problems: int
    right: float
    right_error: float
    strict: float
    strict_error: float


@torch.inference_mode()
def replies(folder: Path, problems: list[sums.Problem]) -> list[str]:
    """Let the model in a folder answer all problems greedily, in one batch."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompts = tokenizer.apply_chat_template(
        [[{"role": "user", "content": problem.question}] for problem in problems],
        add_generation_prompt=True,
        padding=True,
        return_dict=True,
        return_tensors="pt",
    )
    output = model.generate(**prompts, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
    new = output[:, prompts["input_ids"].shape[1] :]
    texts: list[str] = tokenizer.batch_decode(new, skip_special_tokens=True)
    return texts


def score(name: str, folder: Path, problems: list[sums.Problem], texts: list[str]) -> Score:
    """Grade one model's replies."""
    count = len(problems)
    right = sum(map(sums.is_right, problems, texts)) / count
    strict = sum(map(sums.is_strict, texts)) / count
    return Score(
        name, str(folder), count, right, _error(right, count), strict, _error(strict, count)
    )


def names(folders: list[Path]) -> list[str]:
    """Name each model by the last part of its path that is not the same in every checkpoint."""
    layout = ("huggingface", "actor", "global_step_")
    found = [
        next((part for part in reversed(folder.parts) if not part.startswith(layout)), str(folder))
        for folder in (folder.resolve() for folder in folders)
    ]
    return [
        name if found.count(name) == 1 else str(folder)
        for name, folder in zip(found, folders, strict=True)
    ]


def score_table(scores: list[Score]) -> Table:
    """Show the scores in percent."""
    table = Table(title=f"{scores[0].problems} held-out sums, ± one standard error")
    table.add_column("model", overflow="fold")
    table.add_column("right answer", justify="right", no_wrap=True)
    table.add_column("right format", justify="right", no_wrap=True)
    for item in scores:
        table.add_row(
            Text(item.model),
            _percent(item.right, item.right_error),
            _percent(item.strict, item.strict_error),
        )
    return table


def example_table(labels: list[str], problems: list[sums.Problem], texts: list[list[str]]) -> Table:
    """Show the first problems with every model's reply, right ones in green."""
    table = Table(title="Examples", show_lines=True)
    table.add_column("question", overflow="fold")
    for label in labels:
        table.add_column(Text(label), overflow="fold")
    for row, problem in enumerate(problems[:EXAMPLES]):
        cells = [
            Text(column[row], style="green" if sums.is_right(problem, column[row]) else "red")
            for column in texts
        ]
        table.add_row(problem.question, *cells)
    return table


def main() -> None:
    """Score the models named on the command line."""
    parser = argparse.ArgumentParser(description="Score models on held-out sums.")
    parser.add_argument("model_dir", type=Path, nargs="+")
    parser.add_argument("--problems", type=int, default=200, help="up to 300 (default: 200)")
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")
    arguments = parser.parse_args()
    folders: list[Path] = arguments.model_dir
    for folder in folders:
        if not (folder / "config.json").is_file():
            parser.error(f"{folder} is no model: it has no config.json")
    try:
        problems = sums.held_out_problems(arguments.problems)
    except ValueError as error:
        parser.error(str(error))
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    labels = names(folders)
    texts = [replies(folder, problems) for folder in folders]
    scores = [
        score(label, folder, problems, column)
        for label, folder, column in zip(labels, folders, texts, strict=True)
    ]
    if arguments.json:
        json.dump([asdict(item) for item in scores], sys.stdout, indent=2)
        print()
        return
    console = Console()
    console.print(score_table(scores))
    console.print(example_table(labels, problems, texts))


def _error(share: float, count: int) -> float:
    """Return the standard error of a share of `count` independent trials."""
    return math.sqrt(share * (1 - share) / count)


def _percent(share: float, error: float) -> str:
    return f"{100 * share:5.1f} ± {100 * error:3.1f} %"


if __name__ == "__main__":
    main()
