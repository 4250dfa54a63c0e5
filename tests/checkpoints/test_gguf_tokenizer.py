"""Tokenizers made of a GGUF file's keys: the same ids as transformers makes of them, and as the
tokenizers gave from which the files were written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import AutoTokenizer

import ggufs
from checkpoints_on_disk import write_json
from merganser.checkpoints import open_checkpoint
from merganser.checkpoints.gguf import tokenizer as gguf_tokenizer
from merganser.cli import main
from merganser.merging.convert import convert
from merganser.merging.merge import merge
from merganser.recipe import load
from messages import assert_one_line

TEXTS = [
    "",
    " ",
    "Hello world",
    "  two spaces,  and\ttabs\n\n\nlines \r\n ",
    "It's 12345.678 o'clock; we'll see, they'RE here",
    "<|im_start|>user\nWhat is 7 + 5?<|im_end|>\n<|im_start|>assistant\n<think>so</think>",
    "Grüße, naïve café — 漢字かな交じり文 한국어 العربية 🦆🦆 e\u0301",
    "def f(x):\n    return x**2  # ok",
    "x<s>y</s> <s> z<unk>",
    "\x00\x7f\u200b\ufeff",
]

CORPUS = [
    "Hello world, the duck swims; it's what ducks do. They'll dive 1234 times and we've seen it.",
    "def duck(depth):\n    return depth * 2  # two dives\n\n",
    "Grüße und naïve Cafés, Wörter über Enten: 漢字 かな 한국어.",
] * 4

CHAT = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = gguf_tokenizer._WORDS


def byte_level(words: str) -> Tokenizer:
    """What a model's own tokenizer of this kind is, trained on little."""
    made = Tokenizer(BPE())
    split = WORDS[words]
    steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)]
    if split:
        steps.insert(0, pre_tokenizers.Split(Regex(split), "isolated"))
    if words == "smollm":
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if words == "qwen2":
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator(CORPUS, trainer)
    made.add_special_tokens([AddedToken(token, normalized=False) for token in CHAT])
    made.add_tokens([AddedToken("<think>", normalized=False)])
    return made


def byte_level_keys(made: Tokenizer, words: str, rows: int = 0) -> dict[str, Any]:
    """As llama.cpp's converter writes it, filled up to a number of rows."""
    data = json.loads(made.to_str())
    tokens = sorted(made.get_vocab(), key=made.get_vocab().__getitem__)
    kinds = [1] * len(tokens)
    for entry in data["added_tokens"]:
        kinds[entry["id"]] = 3 if entry["special"] else 4
    kinds += [5] * (rows - len(tokens))
    tokens += [f"[PAD{i}]" for i in range(len(tokens), rows)]
    merges = [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]
    ids = made.get_vocab()
    return {
        "general.name": "a duck",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": words,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": ids["<|endoftext|>"],
        "tokenizer.ggml.eos_token_id": ids["<|im_end|>"],
        "tokenizer.ggml.padding_token_id": ids["<|endoftext|>"],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    }


def sentencepiece_keys(**changes: Any) -> dict[str, Any]:
    """A vocabulary as SentencePiece has it: control tokens, bytes, pieces by score, characters."""
    learner = Tokenizer(BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=500, show_progress=False)
    learner.train_from_iterator(CORPUS, trainer)
    learnt = sorted(learner.get_vocab(), key=learner.get_vocab().__getitem__)
    pieces = [token for token in learnt if len(token) > 1] + [t for t in learnt if len(t) == 1]
    byte_tokens = [f"<0x{i:02X}>" for i in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *byte_tokens, *pieces, "<|im_start|>", "<|im_end|>"]
    return {
        "general.name": "a duck",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(pieces))] + [0.0] * 2,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(pieces) + [3, 4],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **changes,
    }


def saved(folder: Path, keys: dict[str, Any], kind: str = "llama") -> Path:
    folder.mkdir(exist_ok=True)
    config = ggufs.LLAMA | {"model_type": kind}
    return ggufs.save(folder / "m.gguf", ggufs.llama(), config, keys=keys)


def compare(ours: Any, theirs: Any, texts: list[str] = TEXTS) -> None:
    for text in texts:
        assert ours(text)["input_ids"] == theirs(text)["input_ids"], text
        plain = ours(text, add_special_tokens=False)["input_ids"]
        assert plain == theirs(text, add_special_tokens=False)["input_ids"], text
        assert ours.decode(plain) == theirs.decode(plain), text
    for role in ("bos", "eos", "pad", "unk"):
        mine = getattr(ours, f"{role}_token_id")
        assert mine is None or mine == getattr(theirs, f"{role}_token_id")


@pytest.mark.parametrize("words", ["gpt-2", "default", "qwen2", "llama-bpe", "tekken", "smollm"])
def test_byte_level(tmp_path: Path, words: str) -> None:
    own = byte_level(words)
    file = saved(tmp_path / "in", byte_level_keys(own, words))
    convert(file, tmp_path / "out")
    ours = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        assert ours(text, add_special_tokens=False)["input_ids"] == own.encode(text).ids, text
    # transformers does not know that Qwen2 composes characters, nor how SmolLM cuts digits
    composed = [text for text in TEXTS if words != "qwen2" or "\u0301" not in text]
    compare(ours, AutoTokenizer.from_pretrained(tmp_path / "in", gguf_file="m.gguf"), composed)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tokenizer.ggml.add_bos_token": False},
        {"tokenizer.ggml.add_eos_token": True},
    ],
    ids=["plain", "no bos", "eos"],
)
def test_sentencepiece(tmp_path: Path, changes: dict[str, Any]) -> None:
    file = saved(tmp_path / "in", sentencepiece_keys(**changes))
    convert(file, tmp_path / "out")
    ours = AutoTokenizer.from_pretrained(tmp_path / "out")
    compare(ours, AutoTokenizer.from_pretrained(tmp_path / "in", gguf_file="m.gguf"))


def made_of(keys: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(gguf_tokenizer.files(keys)["tokenizer.json"])


def test_a_prefix_space_that_is_not_wanted() -> None:
    keys = sentencepiece_keys(**{"tokenizer.ggml.add_space_prefix": False})
    keys["tokenizer.ggml.scores"] = np.array(keys["tokenizer.ggml.scores"], np.float32)
    made = made_of(keys)
    assert made.encode("the", add_special_tokens=False).tokens[0][0] == "t"
    assert made.decode(made.encode(" the").ids) == " the"


def test_merges_that_are_given_count() -> None:
    keys = sentencepiece_keys()
    piece = keys["tokenizer.ggml.tokens"][259]
    made = made_of(keys | {"tokenizer.ggml.merges": [" ".join(piece)]})
    assert made.encode(f"{piece[1:]}uck", add_special_tokens=False).tokens == [piece, *"uck"]


def test_rows_without_a_token_are_no_tokens() -> None:
    own = byte_level("qwen2")
    assert made_of(byte_level_keys(own, "qwen2", rows=700)).get_vocab() == own.get_vocab()


def test_tokens_of_any_letters_are_matched_whole() -> None:
    """DeepSeek's special tokens are not written in the alphabet of bytes."""
    keys = byte_level_keys(byte_level("deepseek-r1-qwen"), "deepseek-r1-qwen")
    number = keys["tokenizer.ggml.tokens"].index("<|im_start|>")
    keys["tokenizer.ggml.tokens"][number] = "<｜User｜>"
    assert made_of(keys).encode("<｜User｜>Hello").ids[0] == number


def test_what_begins_a_text_of_llama_3(tmp_path: Path) -> None:
    keys = byte_level_keys(byte_level("llama-bpe"), "llama-bpe")
    del keys["tokenizer.ggml.add_bos_token"]
    convert(saved(tmp_path / "in", keys), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("Hello")["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer("Hello", "world")["input_ids"].count(tokenizer.bos_token_id) == 2


def test_the_template_and_the_tokenizer_are_found_by_all(tmp_path: Path) -> None:
    keys = byte_level_keys(byte_level("qwen2"), "qwen2")
    keys["tokenizer.chat_template.tool_use"] = "{{ 'tools' }}"
    file = saved(tmp_path / "in", keys)
    told = CliRunner().invoke(main, ["inspect", str(file), "--json"])
    sheet = json.loads(told.stdout)
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= set(
        sheet["tokenizer"]
    )
    assert sheet["missing"] == []
    done = CliRunner().invoke(main, ["convert", str(file), str(tmp_path / "out")])
    assert done.exit_code == 0
    [warning] = [line for line in done.stderr.splitlines() if "warning" in line]
    assert "has 385 tokens, but the output's embedding 48 rows" in warning  # as made above
    template = tmp_path / "out" / "chat_template.jinja"
    assert template.read_text() == keys["tokenizer.chat_template"]
    assert (tmp_path / "out" / "additional_chat_templates" / "tool_use.jinja").is_file()


def test_vocabularies_are_united(tmp_path: Path) -> None:
    own = byte_level("qwen2")
    rows = own.get_vocab_size() + 4
    paths = []
    for i, token in enumerate(["<a>", "<b>"]):
        keys = byte_level_keys(own, "qwen2")
        keys["tokenizer.ggml.tokens"].append(token)
        keys["tokenizer.ggml.token_type"].append(4)
        tensors = ggufs.llama(i)
        tensors["model.embed_tokens.weight"] = torch.randn(rows, 64)
        config = ggufs.LLAMA | {"vocab_size": rows}
        paths.append(ggufs.save(tmp_path / f"{i}.gguf", tensors, config, keys=keys))
    models = [{"model": str(path), "parameters": {"weight": 0.5}} for path in paths]
    recipe = {"merge_method": "linear", "models": models, "tokenizer_source": "union"}
    merge(load(recipe), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = own.get_vocab()
    assert tokenizer.get_vocab() == ids | {"<a>": len(ids), "<b>": len(ids) + 1}


def test_what_lies_beside_counts(tmp_path: Path) -> None:
    file = saved(tmp_path / "in", sentencepiece_keys())
    own = byte_level("gpt-2")
    own.save(str(tmp_path / "in" / "tokenizer.json"))
    assert open_checkpoint(file).path != tmp_path / "in"  # the file alone was named
    assert open_checkpoint(tmp_path / "in").path == tmp_path / "in"
    (tmp_path / "in" / "tokenizer.json").unlink()
    write_json(tmp_path / "in" / "generation_config.json", {"temperature": 0.5})
    checkpoint = open_checkpoint(tmp_path / "in")
    assert checkpoint.path is not None
    found = {path.name for path in checkpoint.path.iterdir()}
    assert found == {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """The folder with the tokenizer lasts as long as the process that reads the file."""
    folder = saved(tmp_path / "in", sentencepiece_keys())
    code = (
        "import sys; from merganser import open_checkpoint; "
        "path = open_checkpoint(sys.argv[1]).path; assert path.is_dir(); print(path)"
    )
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip()
    assert not Path(done.stdout.strip()).exists()
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["m.gguf"]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"tokenizer.ggml.model": "rwkv"}, "rwkv"),
        ({"tokenizer.ggml.tokens": ["a", "b"]}, "2 tokens"),
        ({"tokenizer.ggml.tokens": 3}, "tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.scores": 3}, "scores"),
        ({"tokenizer.ggml.scores": [0.5, 1.0]}, "scores"),
        ({"tokenizer.ggml.token_type": "x"}, "types"),
        ({"tokenizer.ggml.merges": ["ab"]}, "'ab' is not a merge"),
        ({"tokenizer.ggml.merges": ["h nothing"]}, "do not fit its tokens"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "poro"}, "poro"),
        ({"tokenizer.ggml.model": "gpt2"}, "no tokenizer.ggml.merges"),
    ],
)
def test_a_tokenizer_that_cannot_be_made_is_told_of(
    tmp_path: Path, changes: dict[str, Any], part: str
) -> None:
    file = saved(tmp_path / "in", sentencepiece_keys() | changes)
    [note] = open_checkpoint(file).notes
    assert_one_line(note, str(file), "no tokenizer can be built", part)
    done = CliRunner().invoke(main, ["convert", str(file), str(tmp_path / "out")])
    assert done.exit_code == 0
    assert part in done.stderr
    assert "--base MODEL lends" in done.stderr
