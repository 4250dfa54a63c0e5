"""Reward models: scores against single passes, with padding, templates, classifiers; on tiny random models."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import peers
from hubs import stand_in, use
from merganser.errors import InputError, RecipeError
from merganser.evaluation import reward_model, scorers, tasks
from merganser.evaluation.judging import Item, judge_all
from merganser.evaluation.problems import Problem
from merganser.evaluation.samples import Sample
from messages import assert_one_line
from pages import page

PROBLEM = Problem("0", "what is 1", (), None, {"problem": "what is 1"}, "p.jsonl:1")
TALK = [{"role": "user", "content": "what is 1 + 1"}]
ANSWERS = ["2", "1 + 1 = 2", "is 3 + 4 = 7 + 0", "0 0 0 0"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = peers.make_model(tmp_path_factory.mktemp("model") / "m", layers=1)
    return transformers.AutoTokenizer.from_pretrained(folder)


def make(folder: Path, tokenizer: Any, **config: Any) -> Path:
    torch.manual_seed(3)
    shape = {
        "vocab_size": peers.VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_hidden_layers": 1,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "num_labels": 1,
        "initializer_range": 0.5,
    }
    model = transformers.LlamaForSequenceClassification(
        transformers.LlamaConfig(**(shape | config))
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    return make(tmp_path_factory.mktemp("reward") / "rm", tokenizer)


def items(prompt: Any = TALK, answers: list[str] = ANSWERS) -> list[Item]:
    return [
        Item(PROBLEM, 0, Sample("task", "0", n, prompt, text, 3, "stop"))
        for n, text in enumerate(answers)
    ]


def alone(folder: Path, text: str, tokenizer: Any) -> torch.Tensor:
    """The outputs for one text, without a batch."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        return model(input_ids=ids).logits[0]


def test_scores_are_those_of_single_passes(folder: Path, tokenizer: Any) -> None:
    found = judge_all(scorers.get("reward", {"model": str(folder), "batch_size": 3}), items())
    expected = []
    for text in ANSWERS:
        talk = [*TALK, {"role": "assistant", "content": text}]
        asked = tokenizer.apply_chat_template(talk, tokenize=False)
        expected.append(alone(folder, asked, tokenizer)[0].item())
    assert [each.score for each in found] == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 4) for score in expected}) == 4


def test_a_plain_prompt_is_a_pair(folder: Path, tokenizer: Any) -> None:
    [found] = judge_all(scorers.get("reward", {"model": str(folder)}), items("what is 1", ["2"]))
    ids = tokenizer("what is 1", "2")["input_ids"]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([ids])).logits[0, 0].item()
    assert found.score == pytest.approx(expected, abs=1e-5)


def test_classifiers_models_without_padding_and_long_texts(tmp_path: Path, tokenizer: Any) -> None:
    labels = {"id2label": {0: "bad", 1: "good", 2: "ugly"}, "num_labels": 3, "pad_token_id": None}
    own = make(tmp_path / "rm", tokenizer, **labels)
    found = judge_all(
        scorers.get("reward", {"model": str(own), "label": "good"}), items(answers=["2", "3 " * 70])
    )
    asked = tokenizer.apply_chat_template(
        [*TALK, {"role": "assistant", "content": "2"}], tokenize=False
    )
    share = torch.softmax(alone(own, asked, tokenizer), -1)[1].item()
    assert found[0].score == pytest.approx(share, abs=1e-5)
    assert (found[1].score, found[1].note) == (None, "longer than 64 tokens")
    for parameters, told in [
        ({}, "is a classifier; give label, one of bad, good, ugly"),
        ({"label": "best"}, "has no label 'best'; it has bad, good, ugly"),
    ]:
        with pytest.raises(RecipeError) as refused:
            scorers.get("reward", {"model": str(own), **parameters})
        assert_one_line(str(refused.value), told)


def test_what_is_no_reward_model(tmp_path: Path) -> None:
    policy = peers.make_model(tmp_path / "policy", layers=1)
    with pytest.raises(
        RecipeError, match="is no reward model: a model for sequence classification"
    ):
        scorers.get("reward", {"model": str(policy)})
    with pytest.raises(InputError, match=r"\./none: no such folder"):
        scorers.get("reward", {"model": "./none"}, tmp_path)
    with pytest.raises(RecipeError, match="has no timeout"):
        scorers.get("reward", {"model": str(policy)}, timeout=3)


def test_the_identity_is_the_content_or_the_commit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = scorers.get("reward", {"model": "rm"}, folder.parent).identity
    copied = shutil.copytree(folder, tmp_path / "rm")
    assert scorers.get("reward", {"model": "rm"}, tmp_path).identity == identity
    weights = bytearray((copied / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copied / "model.safetensors").write_bytes(weights)
    assert scorers.get("reward", {"model": "rm"}, tmp_path).identity != identity
    with stand_in() as hub:
        use(hub, monkeypatch, tmp_path / "cache")
        files = {f.name: f.read_bytes() for f in folder.iterdir()}
        commit = hub.put("org/rm", files)
        found = scorers.get("reward", {"model": "org/rm"})
        assert found.identity["revision"] == commit
        assert not any(
            "model.safetensors" in request for request in hub.requests if "HEAD" in request
        )
        [judged] = judge_all(found, items(answers=["2"]))
    [expected] = judge_all(scorers.get("reward", {"model": str(folder)}), items(answers=["2"]))
    assert judged == expected
    reward_model._load.cache_clear()


def test_the_model_of_the_page_on_scorers(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "reward")
    (tmp_path / "problems.jsonl").write_text('{"problem": "what is 1"}\n')
    (tmp_path / "tasks.yml").write_text(page("scorers.md", "yaml")[1])
    [task] = tasks.load(tmp_path / "tasks.yml", tasks.Evaluate)[1]
    assert judge_all(task.metrics[0].scorer, items())[0].score is not None
