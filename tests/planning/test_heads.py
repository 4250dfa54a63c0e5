"""A head is left out only where it is the embedding, bit for bit; no shape or name makes it one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

import merganser
from checkpoints_on_disk import change_config, make_model
from merganser.architecture import infer
from merganser.merging.chain_plans import plan_all
from merganser.planning import heads
from merganser.tensors import BY_NAME, TensorSpec
from peers import different_bits, load

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BERT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "max_position_embeddings": 32,
}


def make_pair(folder: Path, name: str, **options: Any) -> tuple[Path, Path]:
    """A random model of a class of transformers, and one a little away from it."""
    kind = getattr(transformers, name)
    a, b = folder / "a", folder / "b"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(kind.config_class(**options)).to(torch.bfloat16)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        model.save_pretrained(a)
    shutil.copytree(a, b)
    tensors = load_file(a / "model.safetensors")
    save_file(
        {n: t + t.abs() / 4 for n, t in tensors.items()}, b / "model.safetensors", {"format": "pt"}
    )
    return a, b


def average(*models: Path, **keys: Any) -> dict[str, Any]:
    listed = [{"model": str(model), "parameters": {"weight": 0.5}} for model in models]
    return {"merge_method": "linear", "models": listed, **keys}


def reads(recipe: dict[str, Any], name: str) -> list[tuple[int, str]] | None:
    """The inputs of an output tensor; None if the output lacks it."""
    jobs = {job.name: job for job in merganser.plan(recipe).jobs}
    return [(read.source, read.name) for read in jobs[name].reads] if name in jobs else None


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("BertForSequenceClassification", {"num_labels": 2}),  # the shape of two token types
        ("BertForQuestionAnswering", {}),
        ("BertForTokenClassification", {"num_labels": 2}),
        ("BertForNextSentencePrediction", {}),
        ("XLMRobertaForSequenceClassification", {"num_labels": 1, "type_vocab_size": 1}),
        ("BertForMaskedLM", {"max_position_embeddings": 16}),  # that of the positions
        ("BertForSequenceClassification", {"num_labels": 64}),  # that of the vocabulary
        ("GPT2ForSequenceClassification", {"n_embd": 16, "n_head": 2, "n_layer": 1, "num_labels": 64}),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_no_head_is_left_out_for_its_shape(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    a, b = make_pair(tmp_path, name, **{**BERT, **options})
    result = merganser.merge(average(a, b), tmp_path / "out")
    x, y = load(a), load(b)
    wanted = {n: ((x[n].double() + y[n].double()) / 2).bfloat16() for n in x}
    assert different_bits(load(tmp_path / "out"), wanted) == {}
    assert not any("left out" in warning for warning in result.warnings)
    kind = getattr(transformers, name)
    _, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {kind: keys for kind, keys in info.items() if keys} == {}


@pytest.mark.filterwarnings("ignore")
def test_a_head_that_the_base_lacks_is_not_mixed_with_its_embeddings(tmp_path: Path) -> None:
    """The classifier has the shape of the base's token types."""
    a, b = make_pair(tmp_path, "BertForSequenceClassification", **BERT, num_labels=2)
    base, _ = make_pair(tmp_path / "base", "BertModel", **BERT)
    recipe = average(a, b, base, base_model=str(base))
    assert reads(recipe, "classifier.weight") == [
        (0, "classifier.weight"),
        (1, "classifier.weight"),
    ]
    types = "embeddings.token_type_embeddings.weight"
    assert reads(recipe, types) == [(0, f"bert.{types}"), (1, f"bert.{types}"), (2, types)]


def test_a_stored_head_that_differs_from_the_embedding_is_merged(tmp_path: Path) -> None:
    """transformers loads and uses it, although the config ties the two; the config stays so."""
    models = []
    for seed, name in enumerate("ab"):
        own = torch.full((32, 16), 1.0 + seed, dtype=torch.bfloat16)
        models.append(make_model(tmp_path / name, tied=True, extra={HEAD: own}, seed=seed))
    result = merganser.merge(average(*models), tmp_path / "out")
    made = load(tmp_path / "out")
    assert torch.equal(made[HEAD], torch.full((32, 16), 1.5, dtype=torch.bfloat16))
    assert not any(HEAD in warning for warning in result.warnings)
    assert merganser.plan(average(*models)).tie_word_embeddings is None
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(model.lm_head.weight, made[HEAD])


@pytest.mark.parametrize(
    ("first", "second", "tie"),
    [
        ("separate", "copy", None),
        ("copy", "separate", False),
        ("none", "separate", False),
        ("separate", "none", None),
    ],
)
def test_heads_of_their_own_and_tied_ones_mix(
    tmp_path: Path, first: str, second: str, tie: bool | None
) -> None:
    """A tied model's head is its embedding. The config says that the output's is not."""
    own = torch.ones(32, 16, dtype=torch.bfloat16)
    extra = {"separate": {HEAD: own}, "copy": None, "none": None}
    models = [
        make_model(tmp_path / str(i), tied=True, head=kind != "none", extra=extra[kind], seed=i)
        for i, kind in enumerate((first, second))
    ]
    plan = merganser.plan(average(*models))
    head = next(job for job in plan.jobs if job.name == HEAD)
    names = [EMBEDDING if kind == "none" else HEAD for kind in (first, second)]
    assert [read.name for read in head.reads] == names
    assert (plan.tied, plan.tie_word_embeddings) == (False, tie)


def test_every_byte_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "BLOCK", 100)
    a = make_model(tmp_path / "a", tied=True, head=True)
    assert reads(average(a), HEAD) is None
    head = load(a)[EMBEDDING].clone()
    head[-1, -1] += 1
    b = make_model(tmp_path / "b", tied=True, extra={HEAD: head})
    assert reads(average(b), HEAD) == [(0, HEAD)]


def test_a_changed_file_is_compared_again(tmp_path: Path) -> None:
    a = make_model(tmp_path / "a", tied=True, head=True)
    assert reads(average(a), HEAD) is None
    save_file(load(a) | {HEAD: torch.ones(32, 16, dtype=torch.bfloat16)}, a / "model.safetensors")
    assert reads(average(a), HEAD) == [(0, HEAD)]


def test_a_model_that_has_no_head_lends_its_embedding_to_none(tmp_path: Path) -> None:
    """A backbone such as ``Qwen2Model`` is not tied, where its config does not say so."""
    a = make_model(tmp_path / "a")
    b = make_model(tmp_path / "b", head=False)
    change_config(b, tie_word_embeddings=None)
    assert reads(average(a, b), HEAD) == [(0, HEAD), (1, EMBEDDING)]
    change_config(b, architectures=["Qwen2Model"])
    assert reads(average(a, b), HEAD) == [(0, HEAD)]


def test_the_head_of_a_stack_may_be_its_own(tmp_path: Path) -> None:
    own = torch.ones(32, 16, dtype=torch.bfloat16)
    a = make_model(tmp_path / "a", tied=True)
    b = make_model(tmp_path / "b", tied=True, extra={HEAD: own})
    slices = [{"sources": [{"model": str(m), "layer_range": [0, 2]}]} for m in (a, b)]
    recipe = {"merge_method": "passthrough", "slices": slices}
    assert reads(recipe, HEAD) == [(1, HEAD)]
    assert merganser.plan(recipe).tie_word_embeddings is False


def test_a_chain_passes_on_a_head_of_its_own(tmp_path: Path) -> None:
    """The second step is planned while the first has no weights yet."""
    own = torch.ones(32, 16, dtype=torch.bfloat16)
    a = make_model(tmp_path / "a", tied=True, extra={HEAD: own})
    steps = [{"name": "first", **average(a)}, average(Path("first"), a)]
    file = tmp_path / "chain.yml"
    file.write_text(yaml.safe_dump_all(steps))
    _, second = plan_all(file)[-1]
    assert second is not None
    assert HEAD in [job.name for job in second.jobs]
    merganser.merge_all(file, tmp_path / "out")
    assert torch.equal(load(tmp_path / "out")[HEAD], own)


def test_what_has_a_row_for_every_token() -> None:
    """Evidence is the vocabulary's size on the first axis, outside the layers and classifiers."""
    shapes = {
        "model.embed_tokens.weight": (64, 16),
        "lm_head.weight": (64, 16),
        "model.position_embeddings.weight": (64, 16),
        "score.weight": (64, 16),
        "cls.predictions.transform.dense.bias": (64,),
        "vision_tower.embeddings.patch_embedding.bias": (64,),
        "token_type_embeddings.weight": (2, 16),
    }
    specs = {name: TensorSpec(BY_NAME["float32"], shape) for name, shape in shapes.items()}
    for config in ({"vocab_size": 64}, {"vocab_size": 60}, {"text_config": {"vocab_size": 64}}):
        places = infer(specs, config).places
        found = [name for name, place in places.items() if place.vocabulary]
        assert found == ["model.embed_tokens.weight", "lm_head.weight"]
