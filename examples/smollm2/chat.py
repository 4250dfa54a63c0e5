"""Ask several models the same questions and show their answers side by side.

Usage: ``python chat.py MODEL_DIR [MODEL_DIR ...] [--prompt "..."]`` (needs torch, transformers
and rich).
"""

import argparse
import os
from pathlib import Path

# Threads that wait should sleep, not spin: see prepare.py. OpenMP reads this when torch comes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import transformers
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = ["What is 7 + 5?", "What is the capital of France?"]
MAX_NEW_TOKENS = 40


def answers(folder: Path, prompts: list[str]) -> list[str]:
    """Return the model's most likely answer to each prompt, cut at `MAX_NEW_TOKENS`."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # Float32 whatever the folder holds: few CPUs are quick in bfloat16, and the model is small.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    said = []
    for prompt in prompts:
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        output = model.generate(**asked, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        reply = output[0, asked["input_ids"].shape[1] :]
        said.append(tokenizer.decode(reply, skip_special_tokens=True).strip())
    return said


def main() -> None:
    """Ask every model every question and print the table."""
    parser = argparse.ArgumentParser(description="Show the answers of models side by side.")
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL_DIR")
    parser.add_argument("--prompt", action="append", help="may be given several times")
    arguments = parser.parse_args()
    models: list[Path] = arguments.models
    prompts: list[str] = arguments.prompt or PROMPTS
    transformers.utils.logging.disable_progress_bar()

    console = Console()
    columns = []
    for folder in models:
        with console.status(f"asking {folder}"):
            columns.append(answers(folder, prompts))

    # Text, because in a plain string rich would read square brackets as a style.
    table = Table("prompt", show_lines=True)
    for folder in models:
        table.add_column(Text(folder.name), overflow="fold")
    for prompt, *replies in zip(prompts, *columns, strict=True):
        table.add_row(Text(prompt), *(Text(reply) for reply in replies))
    console.print(table)


if __name__ == "__main__":
    main()
