"""Tiny random models of real architectures, and MergeKit to merge them with: for tests only."""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

import merganser
from merganser.sinks import StateDictSink

Tensors = dict[str, torch.Tensor]

STEP = 3e-5
"""About what reinforcement learning at a rate of 2e-6 moves a weight by."""

CONTEXT = 131072
VOCABULARY = 96
WORDS = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<|user|>",
    "<|assistant|>",
    *"0123456789+=?",
    "is",
    "what",
]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|> {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_shape = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    **_ids,
}
_decoder = _shape | {
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
    "sliding_window": 64,
}


def _alternating(layers: int) -> list[str]:
    return ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(layers)]


FAMILIES: dict[str, Callable[[int], PreTrainedConfig]] = {
    "qwen2": lambda n: transformers.Qwen2Config(
        **_shape,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        num_hidden_layers=n,
        tie_word_embeddings=False,
        use_sliding_window=True,
        sliding_window=64,
        layer_types=_alternating(n),
    ),
    "llama": lambda n: transformers.LlamaConfig(
        **_shape, max_position_embeddings=CONTEXT, num_hidden_layers=n, tie_word_embeddings=True
    ),
    "gpt2": lambda n: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=n, n_head=4, n_positions=256, **_ids
    ),
    "gemma3": lambda n: transformers.Gemma3TextConfig(
        **_decoder, num_hidden_layers=n, layer_types=_alternating(n)
    ),
    "mistral": lambda n: transformers.MistralConfig(**_decoder, num_hidden_layers=n),
    "qwen3": lambda n: transformers.Qwen3Config(
        **_decoder, num_hidden_layers=n, use_sliding_window=True, layer_types=_alternating(n)
    ),
    "bert": lambda n: transformers.BertConfig(
        **_shape, num_hidden_layers=n, max_position_embeddings=128
    ),
}
"""Configs by the number of layers. llama, gpt2 and gemma3 tie their heads; bert has none."""

CAUSAL = [family for family in FAMILIES if family != "bert"]


def auto_class(family: str) -> Any:
    """The transformers class that loads a family."""
    return transformers.AutoModel if family == "bert" else transformers.AutoModelForCausalLM


def make_model(
    folder: Path,
    family: str = "qwen2",
    *,
    seed: int = 0,
    steps: int | None = None,
    dtype: str = "bfloat16",
    layers: int = 3,
    prune: float = 0.0,
    step: float = STEP,
    **overrides: Any,
) -> Path:
    """Save a random model with its tokenizer, as ``save_pretrained`` writes them.

    Args:
        folder: where to.
        family: one of :data:`FAMILIES`.
        seed: of the weights.
        steps: seed of small steps away from them, like those of reinforcement learning.
        dtype: torch's name.
        layers: how many.
        step: size of the steps.
        prune: share of the entries that are set to minus zero, as masks leave them.
        overrides: of the family's config.
    """
    with _quiet(), torch.no_grad():
        model = _skeleton(family, layers, dtype, tuple(overrides.items()))
        generator = torch.Generator().manual_seed(seed)
        stepper = torch.Generator().manual_seed(1000 + (steps or 0))
        for name, parameter in model.named_parameters():
            number = 0.02 * torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1 and name.endswith("weight"):
                number = 1 + 5 * number
            if steps is not None:
                number += step * torch.randn(parameter.shape, generator=stepper)
            if prune:
                number[torch.rand(parameter.shape, generator=generator) < prune] = -0.0
            parameter.copy_(number)
        model.save_pretrained(folder)
        make_tokenizer(folder)
    return folder


@functools.cache
def _skeleton(family: str, layers: int, dtype: str, overrides: tuple[tuple[str, Any], ...]) -> Any:
    """A model to be given numbers."""
    config = FAMILIES[family](layers)
    config.update(dict(overrides))
    with torch.random.fork_rng():
        return auto_class(family).from_config(config, dtype=getattr(torch, dtype))


def make_tokenizer(folder: Path) -> None:
    """Save a tokenizer of a few words with a chat template."""
    _tokenizer().save_pretrained(folder)


@functools.cache
def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
    )


class Zoo:
    """Models that are made when first asked for, and kept: ``zoo("llama", 2, dtype="float16")``."""

    def __init__(self, root: Path) -> None:
        self._make = functools.cache(self._make_one)
        self._root = root

    def __call__(self, family: str, count: int, *dtypes: str, **options: Any) -> list[str]:
        """Folders of ``count`` variants, in turn in one of ``dtypes`` (bfloat16 if none is given)."""
        given = dtypes or ("bfloat16",)
        return [
            self._make(family, i, given[i % len(given)], tuple(sorted(options.items())))
            for i in range(count)
        ]

    def _make_one(
        self, family: str, i: int, dtype: str, options: tuple[tuple[str, Any], ...]
    ) -> str:
        name = "-".join([family, str(i), dtype, *(f"{k}{v}" for k, v in options)])
        chosen: dict[str, Any] = {"seed": i} | dict(options)
        if chosen.pop("near", False):  # the first is the base, the others lie close to it
            chosen |= {"seed": 0, "steps": i or None}
        return str(make_model(self._root / name, family, dtype=dtype, **chosen))


def mergekit(config: Mapping[str, Any], out: Path, **options: Any) -> Tensors:
    """Merge with MergeKit in this process and return what it wrote.

    Not for bert: MergeKit 0.1.5 fails on its aliases.

    Args:
        config: a recipe.
        out: the output folder.
        options: of MergeKit's ``MergeOptions``.
    """
    with _quiet():
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.options import MergeOptions

        given = {"quiet": True, "copy_tokenizer": False, "write_model_card": False} | options
        merge_config = MergeConfiguration.model_validate(dict(config))
        run_merge(merge_config, str(out), MergeOptions(**given))
    return load(out)


def mergekit_pytorch(config: Mapping[str, Any], out: Path, names: str = "same") -> Tensors:
    """Merge single files of tensors with MergeKit's ``mergekit-pytorch``, and return what it wrote.

    Args:
        config: a recipe of files.
        out: the output folder.
        names: what becomes of tensors that some files lack, as in ``merganser.plan``.
    """
    with _quiet():
        from mergekit.graph import Executor
        from mergekit.options import MergeOptions
        from mergekit.scripts.merge_raw_pytorch import RawPyTorchMergeConfig, plan_flat_merge

        parsed = RawPyTorchMergeConfig.model_validate(dict(config))
        union, intersection = names == "union", names == "intersection"
        tasks = plan_flat_merge(parsed, str(out), union, intersection, MergeOptions(quiet=True))
        Executor(tasks).execute()
    return load(out)


def ours(config: Mapping[str, Any], **options: Any) -> Tensors:
    """Merge with Merganser into memory; the options are those of ``plan``."""
    plan = merganser.plan(config, **options)
    sink = StateDictSink({job.name: job.spec for job in plan.jobs})
    merganser.run([plan], [sink])
    return sink.tensors


def load(folder: str | Path) -> Tensors:
    """All tensors of a folder, by name."""
    tensors: Tensors = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def ulps(a: torch.Tensor, b: torch.Tensor) -> int:
    """The greatest distance between two tensors, in units in the last place."""
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    if not a.numel():
        return 0
    return int((_ordered(a) - _ordered(b)).abs().max())


def _ordered(tensor: torch.Tensor) -> torch.Tensor:
    """Integers in the order of the floats; neighbouring floats are neighbouring integers."""
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.contiguous().view(kinds[tensor.element_size()])
    lowest = torch.iinfo(bits.dtype).min
    wide = bits.to(torch.int64)
    return torch.where(wide < 0, lowest - wide, wide)


def unit(numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The unit in the last place of a dtype at float64 numbers."""
    info = torch.finfo(dtype)
    digits = 1 - int(math.log2(info.eps))
    least = int(math.log2(info.smallest_normal))
    exponent = (torch.frexp(numbers).exponent - 1).clamp(min=least)
    return torch.ldexp(torch.ones_like(numbers), exponent - digits + 1)


def different_bits(a: Tensors, b: Tensors) -> dict[str, str]:
    """What differs between two state dicts, in words; empty if every bit is the same."""
    found = {name: "only in one" for name in a.keys() ^ b.keys()}
    for name in a.keys() & b.keys():
        x, y = a[name], b[name]
        if (x.dtype, x.shape) != (y.dtype, y.shape):
            found[name] = f"{x.dtype}{list(x.shape)} and {y.dtype}{list(y.shape)}"
        elif x.reshape(-1).view(torch.uint8).ne(y.reshape(-1).view(torch.uint8)).any():
            entries = int((_ordered(x) != _ordered(y)).sum())
            found[name] = f"{entries} of {x.numel()} entries, at most {ulps(x, y)} ulp" + (
                "" if entries else " (signs of zeros)"
            )
    return dict(sorted(found.items()))


@contextmanager
def _quiet() -> Iterator[None]:
    """Other people's deprecation warnings and progress bars are not what is tested."""
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
