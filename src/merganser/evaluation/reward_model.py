"""The scorer ``reward``: a reward model, run with transformers."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from merganser import extras, hub
from merganser.errors import InputError, RecipeError
from merganser.evaluation.problems import Problem
from merganser.evaluation.samples import Sample
from merganser.evaluation.scorer_registry import Judgement, scorer

CODE = 1
"""Version of the computation and of the model's input; scores stored under another version are not reused."""

_PARTS = (".json", ".jinja", ".safetensors", ".model", ".txt", ".bin")
"""Suffixes of files that a model's scores depend on."""


def _identify(parameters: Mapping[str, Any], beside: Path | None) -> Mapping[str, Any]:
    extras.check("transformers", "eval")
    model, revision = parameters["model"], parameters["revision"]
    folder = hub.resolve(model, revision, beside, weights=False)
    config = _config(folder, model)
    label = _label(config, parameters["label"], model)
    return {
        "model": model,
        "revision": hub.commit(folder) or f"sha256:{_digest(folder)}",
        "label": label,
        "max_tokens": parameters["max_tokens"],
        "device": parameters["device"],
        "dtype": parameters["dtype"],
        "code": CODE,
    }


@scorer("reward", batch=True, streams=True, identify=_identify)
def reward(
    samples: Sequence[Sample],
    problems: Sequence[Problem],
    *,
    model: str,
    revision: str | None = None,
    label: str | int | None = None,
    batch_size: int = 8,
    max_tokens: int | None = None,
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    beside: Path | None = None,
) -> Iterator[tuple[int, Judgement]]:
    """A reward model's score of the conversation that ends with the completion.

    The model is a transformers model for sequence classification. Its input is the conversation,
    formatted with the model's chat template. If the model has no chat template, or the prompt is a plain
    text, the input is the pair of prompt and completion. With one output, the score is that output; with
    several, it is the probability of ``label``. A model without a padding token scores one sample at a
    time. A sample that is longer than the model's context has no score.

    Args:
        samples: completions.
        problems: not used.
        model: a folder, or an id on the Hub.
        revision: branch, tag or commit on the Hub.
        label: the label whose probability is the score, by name or number; required for a classifier.
        batch_size: number of samples per batch.
        max_tokens: maximum number of tokens of an input; None for the model's context length.
        device: torch's name of a device; ``auto`` for a GPU if there is one, else the CPU.
        dtype: compute dtype; ``auto`` for float32 on the CPU, and for the stored dtype elsewhere.
        beside: the folder that a relative path of a model starts at.

    Yields:
        The index of a sample and its judgement, in any order.

    Raises:
        InputError: the model does not exist or cannot be loaded.
        RecipeError: it is not a reward model, or the label is missing or unknown.
    """
    folder = hub.resolve(model, revision, beside, weights=False)
    path = hub.resolve(model, hub.commit(folder) or revision, beside)
    judge = _load(path, str(path.stat().st_mtime_ns), device, dtype)
    number = _label(_config(path, model), label, model)
    yield from judge.score(samples, number, batch_size, max_tokens)


def _config(folder: Path, model: str) -> Mapping[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{model}: has no readable config.json ({str(error)[:120]})") from None
    kinds = config.get("architectures") or []
    if not any("SequenceClassification" in str(kind) for kind in kinds):
        raise RecipeError(
            f"{model}: is no reward model: a model for sequence classification is wanted, and it is "
            f"{', '.join(map(str, kinds)) or 'of no known architecture'}"
        )
    return dict(config)


def _label(config: Mapping[str, Any], label: str | int | None, model: str) -> int | None:
    """The number of a classifier's label; None if the model has one output."""
    names = {int(number): str(name) for number, name in (config.get("id2label") or {}).items()}
    names = names or {0: "LABEL_0", 1: "LABEL_1"}  # what transformers assumes
    if len(names) == 1:
        return None
    listed = ", ".join(names.values())
    if label is None:
        raise RecipeError(f"{model}: is a classifier; give label, one of {listed}")
    number = next((n for n, name in names.items() if label in (n, name)), None)
    if number is None:
        raise RecipeError(f"{model}: has no label {label!r}; it has {listed}")
    return number


def _digest(folder: Path) -> str:
    files = sorted(f for f in folder.iterdir() if f.suffix in _PARTS and f.is_file())
    stamps = tuple((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files)
    return _digest_of(folder, stamps)


@functools.lru_cache(maxsize=8)
def _digest_of(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    total = hashlib.sha256()
    for name, size, _ in stamps:
        total.update(f"{name}\0{size}\0".encode())
        with (folder / name).open("rb") as stream:
            while block := stream.read(1 << 20):
                total.update(block)
    return total.hexdigest()[:32]


@functools.lru_cache(maxsize=1)
def _load(folder: Path, _stamp: str, device: str, dtype: str) -> _RewardModel:
    """The model, cached for the next merge of a study."""
    return _RewardModel(folder, device, dtype)


class _RewardModel:
    def __init__(self, folder: Path, device: str, dtype: str) -> None:
        import torch

        transformers = extras.load("transformers", "eval")
        gpu = torch.cuda.is_available()
        self.device = ("cuda" if gpu else "cpu") if device == "auto" else device
        default = "float32" if self.device == "cpu" else "auto"
        computing = default if dtype == "auto" else dtype
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            self.model = transformers.AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=computing if computing == "auto" else getattr(torch, computing)
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise InputError(f"{folder}: the reward model cannot be loaded ({reason})") from None
        self.model.to(self.device).eval()
        self.tokenizer.padding_side = "right"
        config = self.model.config.get_text_config()
        self.pads = config.pad_token_id is not None and self.tokenizer.pad_token_id is not None
        limits = (getattr(config, "max_position_embeddings", None), self.tokenizer.model_max_length)
        self.limit = min(int(limit) for limit in limits if limit)

    def score(
        self, samples: Sequence[Sample], label: int | None, batch_size: int, most: int | None
    ) -> Iterator[tuple[int, Judgement]]:
        """Yield the index and judgement of each sample: too long samples first, then by descending length."""
        import torch

        limit = min(self.limit, most or self.limit)
        rows = [self._encode(sample) for sample in samples]
        sizes = [len(row["input_ids"]) for row in rows]
        fitting = []
        for place in sorted(range(len(rows)), key=lambda i: (-sizes[i], i)):
            if sizes[place] <= limit:
                fitting.append(place)
            else:
                yield place, Judgement(None, f"longer than {limit} tokens")
        step = max(1, batch_size) if self.pads else 1
        for start in range(0, len(fitting), step):
            chosen = fitting[start : start + step]
            with torch.inference_mode():
                logits = self.model(**self._batch([rows[i] for i in chosen])).logits.float()
            column = logits[:, 0] if label is None else torch.softmax(logits, dim=-1)[:, label]
            for place, value in zip(chosen, column.tolist(), strict=True):
                yield place, Judgement(value)

    def _batch(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> Mapping[str, Any]:
        import torch

        if len(rows) == 1:
            return {
                name: torch.tensor([list(values)]).to(self.device)
                for name, values in rows[0].items()
            }
        padded = self.tokenizer.pad([dict(row) for row in rows], return_tensors="pt")
        return {name: values.to(self.device) for name, values in padded.items()}

    def _encode(self, sample: Sample) -> Mapping[str, Sequence[int]]:
        prompt = sample.prompt
        if not isinstance(prompt, str) and self.tokenizer.chat_template:
            answer = {"role": "assistant", "content": sample.completion}
            text = self.tokenizer.apply_chat_template([*prompt, answer], tokenize=False)
            return dict(self.tokenizer(text, add_special_tokens=False))
        if not isinstance(prompt, str):
            prompt = "\n\n".join(message["content"] for message in prompt)
        return dict(self.tokenizer(prompt, sample.completion))
