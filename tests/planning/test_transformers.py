"""What we write is what transformers reads: every architecture, without a complaint."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import merganser
from peers import CAUSAL, CHAT_TEMPLATE, FAMILIES, Zoo, auto_class, different_bits, load

COPIED = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp("zoo"))


@contextmanager
def transformers_log() -> Iterator[list[str]]:
    """What transformers has to say meanwhile, from warnings on."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    transformers.utils.logging.disable_progress_bar()
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


def open_model(folder: str | Path, family: str) -> Any:
    """Load a folder as its users do; nothing may be missing, unexpected, or worth a warning."""
    with transformers_log() as said:
        model, info = auto_class(family).from_pretrained(folder, output_loading_info=True)
    assert {kind: keys for kind, keys in info.items() if keys} == {}
    assert said == []
    return model.eval()


def generate(model: Any, folder: str | Path) -> str:
    """One token in answer to a chat."""
    with transformers_log() as said:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": "what is 1 + 2"}],
            add_generation_prompt=True,
            tokenize=False,
        )
        inputs = tokenizer(asked, return_tensors="pt", add_special_tokens=False)
        made = model.generate(
            inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=1,
            min_new_tokens=1,
            do_sample=False,
        )
    assert said == []
    assert asked == "<|user|> what is 1 + 2 <|assistant|>"
    assert made.shape == (1, inputs["input_ids"].shape[1] + 1)
    return str(tokenizer.decode(made[0, -1]))


def linear(models: list[str], **keys: Any) -> dict[str, Any]:
    listed = [
        {"model": model, "parameters": {"weight": weight}}
        for model, weight in zip(models, [0.3, 0.7], strict=True)
    ]
    return {"merge_method": "linear", "models": listed, **keys}


def stack(models: list[str], *cuts: tuple[int, int]) -> dict[str, Any]:
    return {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": models[i % len(models)], "layer_range": list(cut)}]}
            for i, cut in enumerate(cuts)
        ],
    }


def config_of(folder: str | Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return data


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_merge_loads_and_generates(zoo: Zoo, tmp_path: Path, family: str, dtype: str) -> None:
    models, out = zoo(family, 2, dtype), tmp_path / "merge"
    merganser.merge(linear(models), out, shard_size="30KB")
    model = open_model(out, family)
    assert model.dtype == getattr(torch, dtype)
    merged = load(out)
    state = {name: tensor for name, tensor in model.state_dict().items() if name in merged}
    assert different_bits(state, merged) == {}
    if family in CAUSAL:
        generate(model, out)
    assert config_of(out) == config_of(models[0])
    for name in COPIED:
        assert (out / name).read_bytes() == (Path(models[0]) / name).read_bytes()
    generation = Path(models[0], "generation_config.json")
    assert (
        not generation.exists() or (out / generation.name).read_bytes() == generation.read_bytes()
    )


@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt2"])
def test_a_merge_computes_what_its_weights_say(zoo: Zoo, tmp_path: Path, family: str) -> None:
    """The logits are those of a model with the same weights set by hand."""
    models, out = zoo(family, 2, "float32"), tmp_path / "merge"
    merganser.merge(linear(models), out)
    a, b = (auto_class(family).from_pretrained(model).eval() for model in models)
    with torch.no_grad():
        for x, y in zip(a.parameters(), b.parameters(), strict=True):
            x.mul_(0.3).add_(y, alpha=0.7)
        ids = torch.arange(8).reshape(1, -1)
        wanted, found = (model(ids).logits for model in (a, open_model(out, family)))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_dtype_and_context_in_the_config(zoo: Zoo, tmp_path: Path) -> None:
    models, out = zoo("qwen2", 2, "float32"), tmp_path / "merge"
    merganser.merge(linear(models, dtype="bfloat16"), out)
    assert config_of(out) == config_of(models[0]) | {"dtype": "bfloat16"}
    config = transformers.AutoConfig.from_pretrained(out)
    assert config.max_position_embeddings == 131072
    assert open_model(out, "qwen2").dtype == torch.bfloat16
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == CHAT_TEMPLATE


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_layer_stack_loads_with_its_layers(zoo: Zoo, tmp_path: Path, family: str) -> None:
    models, out = zoo(family, 2), tmp_path / "stack"
    merganser.merge(stack(models, (0, 2), (0, 3)), out)
    model = open_model(out, family)
    assert model.config.num_hidden_layers == 5
    if family in CAUSAL:
        generate(model, out)
    merged, inputs = load(out), [load(folder) for folder in models]
    [sample] = [n for n in merged if ".4." in n][:1]
    prefix = sample[: sample.index("4.")]
    origins = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    wanted = {n: t for n, t in inputs[0].items() if not n.startswith(prefix)}
    after = ("lm_head", "model.norm", "transformer.ln_f", "pooler")
    wanted |= {n: inputs[1][n] for n in wanted if n.startswith(after)}
    for output, (source, layer) in enumerate(origins):
        wanted |= {
            n.replace(f"{prefix}{layer}.", f"{prefix}{output}."): t
            for n, t in inputs[source].items()
            if n.startswith(f"{prefix}{layer}.")
        }
    assert different_bits(merged, wanted) == {}


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma3"])
def test_layer_types_follow_their_layers(zoo: Zoo, tmp_path: Path, family: str) -> None:
    """Three layers, sliding and full in turn; the cuts would break the alternation."""
    models, out = zoo(family, 2), tmp_path / "stack"
    assert config_of(models[0])["layer_types"] == [
        "sliding_attention",
        "full_attention",
        "sliding_attention",
    ]
    merganser.merge(stack(models, (0, 3), (0, 1), (1, 3)), out)
    wanted = config_of(models[0])
    wanted["num_hidden_layers"] = 6
    wanted["layer_types"] = [wanted["layer_types"][i] for i in (0, 1, 2, 0, 1, 2)]
    if "max_window_layers" in wanted:
        wanted["max_window_layers"] = config_of(out)["max_window_layers"]
    assert config_of(out) == wanted
    model = open_model(out, family)
    assert model.config.layer_types == wanted["layer_types"]
    generate(model, out)


@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_a_model_cut_short_loads(zoo: Zoo, tmp_path: Path, family: str) -> None:
    out = tmp_path / "short"
    merganser.merge(stack(zoo(family, 1), (1, 2)), out)
    model = open_model(out, family)
    assert model.config.num_hidden_layers == 1
    assert model.config.layer_types == ["full_attention"]
    generate(model, out)


def test_a_tied_and_an_untied_model_make_an_untied_one(zoo: Zoo, tmp_path: Path) -> None:
    [tied], [untied] = zoo("llama", 1), zoo("llama", 1, tie_word_embeddings=False)
    out = tmp_path / "merge"
    merganser.merge(linear([tied, untied]), out)
    model = open_model(out, "llama")
    assert not model.config.tie_word_embeddings
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    generate(model, out)
