"""Tokenizers and the rows of embeddings: against MergeKit, transformers and a plain reference."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import merganser
from checkpoints_on_disk import change_config, make_model, tree, write_json
from families import FAMILIES
from merganser import planning
from merganser.checkpoints.readers import Readers
from merganser.checkpoints.state_dict import MemoryCheckpoint
from merganser.errors import InputError, RecipeError
from merganser.sinks import StateDictSink
from messages import assert_one_line
from peers import Tensors, mergekit, ulps

WORDS = ["<unk>", "<s>", "</s>", "<|endoftext|>", *(f"w{i}" for i in range(60))]
"""transformers adds ``<|endoftext|>`` to the tokenizer of any Qwen2 model that lacks it."""

CHATML = ["<|im_start|>", "<|im_end|>"]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def write_tokenizer(
    folder: Path,
    words: Sequence[str] | Mapping[str, int],
    added: Sequence[str] = (),
    *,
    special: bool = True,
    **settings: Any,
) -> Path:
    """A tokenizer of whole words; ``added`` follow the words."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab = dict(words) if isinstance(words, Mapping) else {w: i for i, w in enumerate(words)}
    entries = [
        {
            "id": vocab.get(token, len(vocab) + i),
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": not special,
            "special": special,
        }
        for i, token in enumerate(added)
    ]
    contents = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": entries,
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    }
    write_json(folder / "tokenizer.json", contents)
    known = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    named = {role: token for role, token in known.items() if token in vocab}
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", **named, **settings},
    )
    return folder


def model(
    folder: Path,
    words: Sequence[str] | Mapping[str, int] = WORDS,
    added: Sequence[str] = (),
    *,
    rows: int | None = None,
    special: bool = True,
    **options: Any,
) -> Path:
    """A tiny model with as many rows as tokens, unless told otherwise."""
    make_model(folder, vocab=rows or len(words) + len(added), hidden=8, layers=1, **options)
    (folder / "chat_template.jinja").unlink()
    return write_tokenizer(folder, words, added, special=special)


def recipe(*models: Path, **keys: Any) -> dict[str, Any]:
    """A linear merge, the weights a bit apart."""
    weights = [0.25, 0.75] if len(models) == 2 else [1 / len(models)] * len(models)
    listed = [
        {"model": str(model), "parameters": {"weight": weight}}
        for model, weight in zip(models, weights, strict=True)
    ]
    return {"merge_method": "linear", "models": listed, "dtype": "float32", **keys}


def vocabulary(folder: Path) -> dict[str, int]:
    found: dict[str, int] = transformers.AutoTokenizer.from_pretrained(folder).get_vocab()
    return found


def fast(folder: Path) -> Any:
    """The tokenizer as its file says, without what transformers knows of the model's family."""
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


def weights(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return model(tmp_path / "base", seed=1)


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    """Other ids than the base's, and the tokens of ChatML."""
    return model(tmp_path / "chat", WORDS[:4] + WORDS[:3:-1], CHATML, seed=2)


@pytest.fixture
def padded(tmp_path: Path) -> Path:
    """Its tokenizer has more tokens than its embedding rows."""
    return model(tmp_path / "padded", WORDS, ["<extra0>", "<extra1>"], rows=64, seed=3)


# -- MergeKit ----------------------------------------------------------------------------------------


def both(config: dict[str, Any], tmp_path: Path, **keys: Any) -> tuple[Path, Path]:
    """The same merge by Merganser and by MergeKit."""
    merganser.merge(config, tmp_path / "ours", arithmetic="mergekit")
    mergekit(config, tmp_path / "theirs", copy_tokenizer=True)
    return tmp_path / "ours", tmp_path / "theirs"


def assert_rows_by_token(ours: Path, theirs: Path, within: int = 0) -> None:
    """Every token has the same row in both, whatever its id; all other tensors are the same."""
    here, there = vocabulary(ours), vocabulary(theirs)
    assert here.keys() == there.keys()
    mine, other = weights(ours), weights(theirs)
    assert mine.keys() == other.keys()
    places = [here[token] for token in here], [there[token] for token in here]
    for name, tensor in mine.items():
        expected = other[name]
        assert tensor.shape == expected.shape
        if len(here) <= len(tensor) and name in (EMBEDDING, HEAD, "lm_head.bias"):
            assert ulps(tensor[len(here) :], expected[len(here) :]) <= max(within, 2), name
            tensor, expected = tensor[places[0]], expected[places[1]]
        assert ulps(tensor, expected) <= within, name
    assert config_of(ours)["vocab_size"] == config_of(theirs)["vocab_size"] == len(mine[EMBEDDING])


CASES: dict[str, dict[str, Any]] = {
    "base": {"tokenizer_source": "base"},
    "union": {"tokenizer_source": "union"},
    "tokenizer": {"tokenizer": {"source": "union"}},
    "default is union": {"tokenizer": {"pad_to_multiple_of": 1}},
    "model": {"tokenizer_source": "CHAT"},
    "padding": {"tokenizer": {"source": "union", "pad_to_multiple_of": 16}},
    "a forced model": {
        "tokenizer": {
            "tokens": {"w5": {"source": "CHAT", "force": True}, "<s>": {"source": "CHAT"}}
        }
    },
    "a new token": {
        "tokenizer": {
            "source": "union",
            "tokens": {
                "<by id>": {"source": {"kind": "model_token", "model": "CHAT", "token_id": 7}},
                "<by token>": {"source": {"kind": "model_token", "model": "BASE", "token": "w9"}},
                "<zero>": {"source": {"kind": "zero"}},
                "w7": {"source": {"kind": "zero"}, "force": True},
                "<|im_end|>": {
                    "source": {"kind": "model_token", "model": "BASE", "token": "</s>"},
                    "force": True,
                },
            },
        }
    },
}


def filled(data: Any, names: Mapping[str, Path]) -> Any:
    """A case with paths for the names of models."""
    if isinstance(data, dict):
        return {key: filled(value, names) for key, value in data.items()}
    return str(names[data]) if isinstance(data, str) and data in names else data


@pytest.mark.peer
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", list(CASES))
def test_like_mergekit(base: Path, chat: Path, tmp_path: Path, case: str, dtype: str) -> None:
    keys = filled(CASES[case], {"BASE": base, "CHAT": chat})
    config = recipe(base, chat, base_model=str(base), **keys) | {"dtype": dtype}
    assert_rows_by_token(*both(config, tmp_path))


@pytest.mark.peer
@pytest.mark.parametrize("source", ["union", "base"])
def test_tied_and_untied_like_mergekit(tmp_path: Path, source: str) -> None:
    tied = model(tmp_path / "tied", seed=1, tied=True)
    untied = model(tmp_path / "untied", WORDS[::-1], CHATML, seed=2)
    for i, pair in enumerate([(tied, untied), (untied, tied)]):
        config = recipe(*pair, tokenizer_source=source, base_model=str(pair[0]))
        (tmp_path / str(i)).mkdir()
        assert_rows_by_token(*both(config, tmp_path / str(i)))
    alone = model(tmp_path / "too", WORDS[::-1], CHATML, seed=3, tied=True)
    config = recipe(tied, alone, tokenizer_source=source, base_model=str(tied))
    ours, theirs = both(config, tmp_path)
    assert HEAD not in weights(ours)
    assert_rows_by_token(ours, theirs)


@pytest.mark.peer
def test_means_of_three_like_mergekit(tmp_path: Path) -> None:
    """Tokens that two of three have, and none is the base: the third takes their mean."""
    models = [
        model(tmp_path / "a", WORDS[:40], seed=1),
        model(tmp_path / "b", WORDS[:4] + WORDS[:3:-1], seed=2),
        model(tmp_path / "c", WORDS, seed=3),
    ]
    config = recipe(*models, tokenizer_source=str(models[2]), parameters={"normalize": False})
    config["models"][0]["parameters"]["weight"] = 1.0
    assert_rows_by_token(*both(config, tmp_path), within=2)


@pytest.mark.peer
def test_a_union_without_the_padding_of_a_model(base: Path, padded: Path, tmp_path: Path) -> None:
    config = recipe(base, padded, tokenizer_source="union", base_model=str(base))
    ours, theirs = both(config, tmp_path)
    assert len(vocabulary(ours)) == 64
    assert_rows_by_token(ours, theirs)


def test_the_rows_of_a_union(base: Path, chat: Path, padded: Path, tmp_path: Path) -> None:
    """MergeKit's own test: 66 tokens, and those of ChatML are the donor's."""
    out = tmp_path / "out"
    merganser.merge(recipe(base, chat, padded, base_model=str(base), tokenizer_source="union"), out)
    made, tokens = weights(out), vocabulary(out)
    assert len(tokens) == 66
    assert made[EMBEDDING].shape == (66, 8)
    assert config_of(out)["vocab_size"] == 66
    for name in (EMBEDDING, HEAD):
        of_chat = weights(chat)[name].float()
        for token in CHATML:
            assert torch.equal(made[name][tokens[token]], of_chat[vocabulary(chat)[token]])
    added = fast(out).added_tokens_decoder
    assert all(added[tokens[token]].special for token in CHATML)


# -- what MergeKit trips over ------------------------------------------------------------------------


def test_a_source_with_tokens_beyond_its_vocabulary(
    base: Path, padded: Path, tmp_path: Path
) -> None:
    """MergeKit: KeyError."""
    out = tmp_path / "out"
    result = merganser.merge(recipe(base, padded, tokenizer_source=str(padded)), out)
    assert set(vocabulary(out)) == set(WORDS)
    assert weights(out)[EMBEDDING].shape == (64, 8)
    assert any("<extra0>" in warning for warning in result.warnings)


def test_base_with_a_new_token(base: Path, chat: Path, tmp_path: Path) -> None:
    """MergeKit: KeyError, for the base seems to have the token itself."""
    rule = {"source": {"kind": "model_token", "model": str(chat), "token": "<|im_end|>"}}
    out = tmp_path / "out"
    tokenizer = {"source": "base", "tokens": {"<end>": rule}}
    merganser.merge(recipe(base, chat, base_model=str(base), tokenizer=tokenizer), out)
    tokens = vocabulary(out)
    assert tokens == vocabulary(base) | {"<end>": 64}
    donor = weights(chat)[EMBEDDING][vocabulary(chat)["<|im_end|>"]].float()
    assert torch.equal(weights(out)[EMBEDDING][64], donor)


def test_ids_with_gaps(chat: Path, tmp_path: Path) -> None:
    """MergeKit: IndexError. The tokenizers library would give new tokens ids that are taken."""
    gaps = {word: i + (i > 5) + 2 * (i > 60) for i, word in enumerate(WORDS)}
    holey = model(tmp_path / "holey", gaps, rows=70, seed=4)
    for source, count in (("base", 64), ("union", 66)):
        out = tmp_path / source
        merganser.merge(recipe(holey, chat, tokenizer_source=source, base_model=str(holey)), out)
        tokens = vocabulary(out)
        assert len(tokens) == len(set(tokens.values())) == count
        assert {word: tokens[word] for word in WORDS} == gaps
        assert weights(out)[EMBEDDING].shape == (70 if source == "base" else 69, 8)
        a, b = weights(holey)[EMBEDDING].float(), weights(chat)[EMBEDDING].float()
        for word in WORDS:
            expected = 0.25 * a[gaps[word]] + 0.75 * b[vocabulary(chat)[word]]
            torch.testing.assert_close(weights(out)[EMBEDDING][tokens[word]], expected)


def test_a_rule_without_a_source(base: Path, chat: Path, tmp_path: Path) -> None:
    """MergeKit: NotImplementedError. Here the token is one like any other, or the base's if forced."""
    out = tmp_path / "out"
    tokens = {"w3": {"force": True}, "<|im_end|>": {}, "<nobody's>": {}}
    result = merganser.merge(
        recipe(base, chat, base_model=str(base), tokenizer={"tokens": tokens}), out
    )
    made, ids = weights(out)[EMBEDDING], vocabulary(out)
    assert torch.equal(made[ids["w3"]], weights(base)[EMBEDDING][ids["w3"]].float())
    assert not made[ids["<nobody's>"]].any()
    assert any("<nobody's>" in warning for warning in result.warnings)


@pytest.mark.parametrize("with_base", [True, False])
def test_only_tokens_that_no_model_has_are_called_zero(
    base: Path, chat: Path, tmp_path: Path, with_base: bool
) -> None:
    keys: dict[str, Any] = {"base_model": str(base)} if with_base else {}
    twin = model(tmp_path / "twin", seed=5)
    for models in ((base, chat), (base, twin)):
        for source in ("union", "base", str(models[1])):
            plan = planning.plan(recipe(*models, **keys, tokenizer_source=source))
            assert not any("zero" in warning for warning in plan.warnings), source
    rules = {"w3": {"force": True}, "w4": {"source": {"kind": "zero"}, "force": True}, "<new>": {}}
    plan = planning.plan(recipe(base, twin, **keys, tokenizer={"tokens": rules}))
    [warning] = plan.warnings
    assert_one_line(warning, "no model has token '<new>': the embedding has zeros")


def test_a_forced_token_without_a_base_is_the_mean(base: Path, chat: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merganser.merge(recipe(base, chat, tokenizer={"tokens": {"w3": {"force": True}}}), out)
    a, b = weights(base)[EMBEDDING].float(), weights(chat)[EMBEDDING].float()
    expected = (a[vocabulary(base)["w3"]] + b[vocabulary(chat)["w3"]]) / 2
    torch.testing.assert_close(weights(out)[EMBEDDING][vocabulary(out)["w3"]], expected)


def test_the_padding_of_an_embedding_stays(tmp_path: Path, chat: Path) -> None:
    """Qwen's embedding has more rows than its tokenizer tokens; MergeKit cuts them off."""
    wide = model(tmp_path / "wide", rows=80, seed=1)
    twin = model(tmp_path / "twin", rows=80, seed=2)
    out = tmp_path / "out"
    merganser.merge(recipe(wide, twin, tokenizer_source="base", base_model=str(wide)), out)
    merganser.merge(recipe(wide, twin), tmp_path / "plain")
    assert weights(out)[EMBEDDING].equal(weights(tmp_path / "plain")[EMBEDDING])
    assert config_of(out) == config_of(tmp_path / "plain")
    merganser.merge(
        recipe(wide, chat, tokenizer_source="base", base_model=str(wide)), out, force=True
    )
    made = weights(out)[EMBEDDING]
    assert made.shape == (80, 8)
    assert torch.equal(made[64:], weights(wide)[EMBEDDING][64:].float())
    padded = {"source": "base", "pad_to_multiple_of": 32}
    merganser.merge(recipe(wide, chat, tokenizer=padded, base_model=str(wide)), out, force=True)
    assert config_of(out)["vocab_size"] == len(weights(out)[EMBEDDING]) == 64


def test_padding_rows_are_the_mean(base: Path, chat: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tokenizer = {"source": "union", "pad_to_multiple_of": 32}
    merganser.merge(recipe(base, chat, tokenizer=tokenizer, base_model=str(base)), out)
    made = weights(out)
    assert made[EMBEDDING].shape == (96, 8)
    for name in (EMBEDDING, HEAD):
        expected = made[name][:66].double().mean(0).float()
        for row in made[name][66:]:
            torch.testing.assert_close(row, expected, rtol=0, atol=1e-7)


def test_token_ids_in_configs_follow_their_tokens(base: Path, tmp_path: Path) -> None:
    turned = model(tmp_path / "turned", WORDS[::-1], seed=2)
    change_config(base, pad_token_id=None, text_config={"vocab_size": 64, "pad_token_id": 5})
    write_json(base / "generation_config.json", {"eos_token_id": [2, 1, 500], "temperature": 0.7})
    out = tmp_path / "out"
    merganser.merge(recipe(base, turned, base_model=str(base), tokenizer_source=str(turned)), out)
    assert tree(out)["tokenizer.json"] == tree(turned)["tokenizer.json"]
    found = config_of(out)
    assert (found["bos_token_id"], found["eos_token_id"]) == (62, 61)
    assert found["text_config"]["pad_token_id"] == 58
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [61, 62, 500], "temperature": 0.7}


def test_a_special_token_that_is_gone_gives_way_to_the_one_in_its_role(
    base: Path, tmp_path: Path
) -> None:
    words = [word if word != "</s>" else "<end>" for word in WORDS[::-1]]
    other = model(tmp_path / "other", words, seed=2)
    write_tokenizer(other, words, eos_token="<end>")
    out = tmp_path / "out"
    result = merganser.merge(
        recipe(base, other, base_model=str(base), tokenizer_source=str(other)), out
    )
    assert config_of(out)["eos_token_id"] == words.index("<end>")
    assert any("</s>" in warning and "<end>" in warning for warning in result.warnings)


def test_a_nested_vocabulary_size(chat: Path, base: Path, tmp_path: Path) -> None:
    change_config(base, text_config={"vocab_size": 64}, vocab_size=None)
    out = tmp_path / "out"
    merganser.merge(recipe(base, chat, base_model=str(base), tokenizer_source="union"), out)
    assert config_of(out)["text_config"]["vocab_size"] == 66
    assert "vocab_size" not in config_of(out)


# -- files -------------------------------------------------------------------------------------------


FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


@pytest.mark.parametrize("keys", [{}, {"tokenizer_source": "base"}, {"tokenizer_source": "union"}])
def test_an_unchanged_tokenizer_is_copied(base: Path, tmp_path: Path, keys: dict[str, Any]) -> None:
    twin = model(tmp_path / "twin", seed=5)
    out = tmp_path / "out"
    merganser.merge(recipe(base, twin, **keys), out)
    for name in FILES:
        assert (out / name).read_bytes() == (base / name).read_bytes()
    merganser.merge(recipe(base, twin, **keys), out, copy_tokenizer=False, force=True)
    assert "tokenizer.json" not in tree(out)
    assert (out / FILES[2]).read_bytes() == (base / FILES[2]).read_bytes()


def test_old_texts_keep_their_ids(base: Path, chat: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merganser.merge(recipe(base, chat, base_model=str(base), tokenizer_source="union"), out)
    made, old = fast(out), fast(base)
    text = "w1 w59 nonsense <s> w7 </s>"
    assert made(text)["input_ids"] == old(text)["input_ids"]
    assert made("<|im_start|>w1<|im_end|>")["input_ids"] == [64, old("w1")["input_ids"][0], 65]


def test_first_settings_of_a_token_win(base: Path, tmp_path: Path) -> None:
    """And a word of the base that another model adds is an added token then."""
    first = model(tmp_path / "first", WORDS, ["<x>", "<y>"], seed=2)
    second = model(tmp_path / "second", WORDS, ["<y>", "w3"], rows=66, special=False, seed=3)
    out = tmp_path / "out"
    result = merganser.merge(
        recipe(base, first, second, base_model=str(base), tokenizer_source="union"), out
    )
    assert any("'<y>'" in warning for warning in result.warnings)
    made = transformers.AutoTokenizer.from_pretrained(out)
    added = {str(token): token for token in made.added_tokens_decoder.values()}
    assert added["<x>"].special
    assert added["<y>"].special
    assert not added["w3"].special
    assert made.get_vocab() == vocabulary(base) | {"<x>": 64, "<y>": 65}


def test_tokens_that_only_the_settings_name(base: Path, tmp_path: Path) -> None:
    """transformers adds them when it loads the tokenizer; they have rows."""
    other = model(tmp_path / "other", rows=68, seed=2)
    decoder = {"65": {"content": "<b>", "special": True}, "64": {"content": "<a>"}}
    write_tokenizer(other, WORDS, added_tokens_decoder=decoder, pad_token="<pad>")
    tokens = vocabulary(other)
    assert (tokens["<a>"], tokens["<b>"], tokens["<pad>"]) == (64, 65, 66)
    for order in ((base, other), (other, base)):
        out = tmp_path / f"from {order[0].name}"
        merged = recipe(*order, base_model=str(order[0]), tokenizer={"tokens": {"<z>": {}}})
        merganser.merge(merged, out)
        found = vocabulary(out)
        assert found.keys() == tokens.keys() | {"<z>"}
        a = weights(other)[EMBEDDING].float()
        for token in ("<a>", "<b>", "<pad>"):
            assert torch.equal(weights(out)[EMBEDDING][found[token]], a[tokens[token]])


def test_a_tokenizer_of_a_model_that_is_not_merged(base: Path, chat: Path, tmp_path: Path) -> None:
    """It needs no weights, and a donor of tokens need not be merged either."""
    alone = write_tokenizer(tmp_path / "alone", WORDS[:10], ["<new>"])
    rule = {"source": {"kind": "model_token", "model": str(chat), "token": "<|im_end|>"}}
    out = tmp_path / "out"
    merganser.merge(recipe(base, tokenizer={"source": str(alone), "tokens": {"<new>": rule}}), out)
    assert tree(out)["tokenizer.json"] == tree(alone)["tokenizer.json"]
    made, old = weights(out), weights(base)
    for name in (EMBEDDING, HEAD):
        assert made[name].shape == (11, 8)
        assert torch.equal(made[name][:10], old[name][:10].float())
        donor = weights(chat)[name][vocabulary(chat)["<|im_end|>"]].float()
        assert torch.equal(made[name][10], donor)
    with pytest.raises(merganser.MerganserError, match="is inside the input"):
        merganser.merge(recipe(base, tokenizer={"source": str(alone)}), alone / "inside")


def write_bpe(folder: Path, added: Sequence[str] = ()) -> None:
    """Pieces of a, b and c, two of them merged twice."""
    contents = json.loads((write_tokenizer(folder, [], added) / "tokenizer.json").read_text())
    pieces = ["<unk>", "a", "b", "c", "ab", "bc", "abc"]
    contents["model"] = {
        "type": "BPE",
        "vocab": {piece: i for i, piece in enumerate(pieces)},
        "merges": [["a", "b"], ["b", "c"], ["ab", "c"]],
        "unk_token": "<unk>",
    }
    write_json(folder / "tokenizer.json", contents)


def test_a_bpe_tokenizer_without_tokens_that_have_no_row(tmp_path: Path) -> None:
    """Pieces go with the merges that make them; MergeKit keeps those, and fails."""
    folder, out = model(tmp_path / "bpe", rows=6, seed=6), tmp_path / "out"
    write_bpe(folder)
    merganser.merge(recipe(folder, tokenizer_source="base"), out)
    made = fast(out)
    assert made.get_vocab() == {t: i for t, i in fast(folder).get_vocab().items() if i < 6}
    assert made.tokenize("abc") == ["ab", "c"]


@pytest.mark.peer
def test_added_tokens_that_have_no_row_like_mergekit(tmp_path: Path) -> None:
    folder = model(tmp_path / "bpe", rows=8, seed=6)
    write_bpe(folder, ["<|endoftext|>", "<more>", "<most>"])
    config = recipe(folder, tokenizer_source="base", base_model=str(folder))
    ours, theirs = both(config, tmp_path)
    assert len(vocabulary(ours)) == 8
    assert_rows_by_token(ours, theirs)


def test_older_files_are_converted_by_transformers(tmp_path: Path, chat: Path) -> None:
    """GPT-2's two files; what is written is one that needs no converting."""
    folder = FAMILIES["gpt2"].make(tmp_path / "old")
    other = write_tokenizer(FAMILIES["gpt2"].make(tmp_path / "other"), WORDS)
    pieces = {c: i for i, c in enumerate(["<|endoftext|>", *"abcdefghij", "ab", "abc"])}
    write_json(folder / "vocab.json", pieces)
    (folder / "merges.txt").write_text("#version: 0.2\na b\nab c\n")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})
    out = tmp_path / "out"
    merganser.merge(recipe(folder, other, base_model=str(folder), tokenizer_source="union"), out)
    made = fast(out)
    assert made.get_vocab().items() >= pieces.items()
    assert made.tokenize("abcab") == ["abc", "ab"]
    assert set(WORDS) <= set(made.get_vocab())
    merganser.merge(recipe(folder, other, tokenizer_source="base"), tmp_path / "same")
    before, after = tree(folder), tree(tmp_path / "same")
    assert all(after[name] == before[name] for name in ("vocab.json", "merges.txt"))
    assert "tokenizer.json" not in after


def test_the_plan_tells_of_the_tokenizer(base: Path, chat: Path) -> None:
    config = recipe(base, chat, base_model=str(base), tokenizer_source="union")
    told = planning.describe(planning.plan(config))["tokenizer"]
    assert told == {
        "from": str(base),
        "tokens": 66,
        "rows": 66,
        "added": {"<|im_start|>": 64, "<|im_end|>": 65},
        "left_out": [],
    }
    json.dumps(planning.describe(planning.plan(config)))


def test_a_unigram_tokenizer_grows(tmp_path: Path, chat: Path) -> None:
    folder = model(tmp_path / "unigram", rows=4, seed=6)
    contents = json.loads((folder / "tokenizer.json").read_text())
    scores = [["<unk>", 0.0], ["w1", -1.0], ["w2", -2.0], ["w3", -3.0]]
    contents["model"] = {"type": "Unigram", "vocab": scores, "unk_id": 0}
    write_json(folder / "tokenizer.json", contents)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    out = tmp_path / "out"
    merganser.merge(recipe(folder, chat, base_model=str(folder), tokenizer_source="union"), out)
    tokens = vocabulary(out)
    assert set(tokens) == {*WORDS, *CHATML}
    assert [tokens[token] for token, _ in scores] == [0, 1, 2, 3]


# -- architectures -----------------------------------------------------------------------------------


def grown(options: Mapping[str, Any]) -> dict[str, Any]:
    """A family's options with room for two more tokens."""
    found = {k: grown(v) if isinstance(v, dict) else v for k, v in options.items()}
    return found | ({"vocab_size": 66} if found.get("vocab_size") == 64 else {})


@pytest.mark.parametrize(
    ("family", "tensors"),
    [
        ("phi", 3),  # a head with a bias
        ("gpt2", 1),  # as many positions as tokens
        ("gptj", 3),
        ("t5", 1),
        ("bart", 2),  # a bias of [1, tokens]
        ("whisper", 1),
        ("bert_masked", 2),
        ("roberta", 2),
        ("mamba2", 2),
        ("llava", 2),
        ("gemma3", 1),
        ("internvl", 1),
    ],
)
def test_a_union_of_any_architecture_loads(tmp_path: Path, family: str, tensors: int) -> None:
    made = FAMILIES[family]
    a = write_tokenizer(made.make(tmp_path / "a"), WORDS)
    b = made.make(tmp_path / "b", **grown(made.options))
    write_tokenizer(b, WORDS[:4] + WORDS[:3:-1], CHATML)
    out = tmp_path / "out"
    merganser.merge(recipe(a, b, base_model=str(a), tokenizer_source="union"), out)
    loaded, report = made.model_class.from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    assert loaded.get_input_embeddings().weight.shape[0] == 66
    ids = {name: fast(folder).get_vocab() for name, folder in (("a", a), ("b", b), ("out", out))}
    merged, one, two = weights(out), weights(a), weights(b)
    named = [n for n, tensor in merged.items() if 66 in tensor.shape and "position" not in n]
    assert len(named) == tensors
    for name in named:
        x, y, z = (each[name].float() for each in (one, two, merged))
        if len(x) == 1:
            x, y, z = x[0], y[0], z[0]
        for token, number in ids["out"].items():
            theirs = y[ids["b"][token]]
            ours = x[ids["a"][token]] if token in ids["a"] else theirs
            torch.testing.assert_close(z[number], 0.25 * ours + 0.75 * theirs)


@pytest.mark.peer
@pytest.mark.parametrize("method", ["slerp", "task_arithmetic"])
def test_other_methods_like_mergekit(base: Path, chat: Path, tmp_path: Path, method: str) -> None:
    config: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": str(chat)}],
        "base_model": str(base),
        "parameters": {"t": 0.35} if method == "slerp" else {"weight": 0.7},
        "dtype": "float32",
        "tokenizer_source": "union",
    }
    ours, theirs = both(config, tmp_path)
    assert vocabulary(ours) == vocabulary(theirs)
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-5, atol=1e-7)


def test_a_stack_of_layers(base: Path, chat: Path, tmp_path: Path) -> None:
    """The embedding is the first slice's model's; MergeKit would give it zeros for the tokens of
    the other."""
    slices = [{"sources": [{"model": str(m), "layer_range": [0, 1]}]} for m in (base, chat)]
    config = {"merge_method": "passthrough", "slices": slices, "tokenizer_source": "union"}
    out = tmp_path / "out"
    merganser.merge(config, out)
    made, tokens = weights(out), vocabulary(out)
    for name, owner in ((EMBEDDING, base), (HEAD, chat)):
        own, other = weights(owner)[name], weights(chat)[name]
        for token, number in tokens.items():
            matrix, source = (other, chat) if token in CHATML else (own, owner)
            assert torch.equal(made[name][number], matrix[fast(source).get_vocab()[token]])


# -- truncation --------------------------------------------------------------------------------------


def test_vocabularies_of_different_sizes(base: Path, chat: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        planning.plan(recipe(base, chat))
    assert_one_line(str(error.value), "vocabularies differ", "tokenizer_source: union")
    out = tmp_path / "out"
    merganser.merge(recipe(chat, base), out, truncate_embeddings=True)
    assert config_of(out)["vocab_size"] == 64
    expected = 0.25 * weights(chat)[HEAD][:64].float() + 0.75 * weights(base)[HEAD].float()
    torch.testing.assert_close(weights(out)[HEAD], expected)


# -- bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "parts"),
    [
        ({"source": "CHAT"}, ["no token '<new>'"]),
        (
            {"source": {"kind": "model_token", "model": "CHAT", "token": "nope"}},
            ["no token 'nope'"],
        ),
        ({"source": {"kind": "model_token", "model": "CHAT", "token_id": 66}}, ["no row 66"]),
        ({"source": {"kind": "model_token", "model": "CHAT", "token_id": -1}}, ["token_id"]),
        ({"source": {"kind": "model_token", "model": "CHAT"}}, ["either token or token_id"]),
    ],
)
def test_a_rule_that_cannot_be_kept(
    base: Path, chat: Path, rule: dict[str, Any], parts: list[str]
) -> None:
    tokenizer = filled({"tokens": {"<new>": rule}}, {"CHAT": chat})
    with pytest.raises(RecipeError) as error:
        planning.plan(recipe(base, chat, tokenizer=tokenizer))
    assert_one_line(str(error.value), "<new>", *parts)


@pytest.mark.parametrize(
    ("contents", "part"),
    [
        ("{}", "no vocabulary"),
        ("{", "not readable as JSON"),
        ('{"model": {"vocab": 3}}', "no vocabulary"),
        ('{"model": {"vocab": {"a": "x"}}}', "malformed"),
        ('{"model": {"vocab": [3]}}', "malformed"),
        ('{"model": {"vocab": {}}, "added_tokens": [3]}', "no vocabulary"),
        ('{"model": {"vocab": {"a": 7}}}', "is not a tokenizer"),
    ],
)
def test_a_broken_tokenizer(base: Path, chat: Path, contents: str, part: str) -> None:
    (chat / "tokenizer.json").write_text(contents)
    with pytest.raises(InputError) as error:
        planning.plan(recipe(base, chat, tokenizer_source="union"))
    assert_one_line(str(error.value), str(chat), part)


def test_a_model_without_a_tokenizer(base: Path, chat: Path, tmp_path: Path) -> None:
    """If it has the base's rows, it is taken to have its tokenizer, as in MergeKit."""
    bare = model(tmp_path / "bare", seed=7)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    plan = planning.plan(recipe(base, bare, tokenizer_source="base"))
    assert any("bare" in warning for warning in plan.warnings)
    for models in ((chat, bare), (bare, chat)):
        with pytest.raises(InputError) as error:
            planning.plan(recipe(*models, tokenizer_source="base"))
        assert_one_line(str(error.value), str(bare), "has no tokenizer")


# -- a plain reference -------------------------------------------------------------------------------

TOKENS = [f"t{i}" for i in range(9)]
tokens_of_models = st.lists(st.permutations(TOKENS), min_size=1, max_size=3).flatmap(
    lambda orders: st.tuples(
        *(
            st.tuples(
                st.just(order),
                st.integers(1, len(TOKENS)),  # how many of them it has
                st.integers(-2, 3),  # rows more or fewer than those
                st.sampled_from(["bfloat16", "float32", "float16"]),
            )
            for order in orders
        )
    )
)
rules = st.dictionaries(
    st.sampled_from([*TOKENS, "<new>"]),
    st.fixed_dictionaries({"from": st.integers(-1, 3), "force": st.booleans()}),
    max_size=3,
)


def plain_rows(
    models: list[tuple[dict[str, int], np.ndarray]],
    tokens: dict[str, int],
    base: int | None,
    rules: dict[str, dict[str, Any]],
    rows: int,
    kept: int | None,
) -> list[np.ndarray]:
    """The rows of all models by the rules, one by one."""
    width = models[0][1].shape[1]
    names = {number: token for token, number in tokens.items()}
    result = []
    for i in range(len(models)):
        table, filled_rows = np.zeros((rows, width)), []
        for number in range(rows):
            token = names.get(number)
            owned = {}
            for j, (known, matrix) in enumerate(models):
                if token is not None:
                    place = known.get(token, -1)
                else:
                    same = kept is not None and known == models[kept][0]
                    place = number if same else -1
                if 0 <= place < len(matrix):
                    owned[j] = matrix[place].astype(np.float64)
            rule = rules.get(token, {}) if token is not None else {}
            source = rule.get("source")
            if i in owned and not rule.get("force"):
                table[number] = owned[i]
            elif source is not None and source["kind"] == "zero":
                pass
            elif source is not None:
                table[number] = models[int(source["model"][1:])][1][source["token_id"]]
            elif len(owned) == 1:
                table[number] = next(iter(owned.values()))
            elif base is not None and base in owned:
                table[number] = owned[base]
            elif owned:
                table[number] = sum(owned.values()) / len(owned)
            elif token is None:
                filled_rows.append(number)
        others = [number for number in range(rows) if number not in filled_rows]
        table[filled_rows] = table[others].mean(axis=0) if others else 0
        result.append(table)
    return result


@given(data=st.data(), given_models=tokens_of_models, drawn=rules)
@settings(max_examples=60, phases=[Phase.generate])
def test_rows_are_those_of_a_plain_reference(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, given_models: Any, drawn: Any
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    models, checkpoints = [], {}
    for i, (order, count, extra, dtype) in enumerate(given_models):
        known = {token: number for number, token in enumerate(order[:count])}
        write_tokenizer(folder / f"m{i}", known)
        matrix = torch.randn(max(1, count + extra), 3).contiguous().to(getattr(torch, dtype))
        tensors = {"embed_tokens.weight": matrix, "lm_head.bias": matrix[:, 0].clone()}
        checkpoint = MemoryCheckpoint(tensors, f"m{i}")
        checkpoint.path = folder / f"m{i}"
        checkpoint.config = {"vocab_size": len(matrix)}
        checkpoints[f"m{i}"] = checkpoint
        models.append((known, matrix.double().numpy()))
    base = data.draw(st.sampled_from([None, *range(len(models))]))
    source = data.draw(st.sampled_from(["union", "base", *range(len(models))]))
    multiple = data.draw(st.sampled_from([None, 4, 7]))
    found: dict[str, Any] = {}
    for token, rule in drawn.items():
        entry: dict[str, Any] = {"force": rule["force"]}
        if rule["from"] == 3:
            entry["source"] = {"kind": "zero"}
        elif 0 <= rule["from"] < len(models):
            donor = rule["from"]
            number = data.draw(st.integers(0, len(models[donor][1]) - 1))
            entry["source"] = {"kind": "model_token", "model": f"m{donor}", "token_id": number}
        found[token] = entry
    config = {
        "merge_method": "linear",
        "parameters": {"weight": 1},
        "models": [{"model": f"m{i}"} for i in range(len(models))],
        "base_model": None if base is None else f"m{base}",
        "tokenizer": {
            "source": source if isinstance(source, str) else f"m{source}",
            "tokens": found,
            "pad_to_multiple_of": multiple,
        },
    }
    plan = planning.plan(config, checkpoints=checkpoints)
    assert plan.tokenizer is not None
    start = source if isinstance(source, int) else base or 0
    tokens = dict(plan.tokenizer.output.tokens)
    own = {t: n for t, n in models[start][0].items() if n < len(models[start][1])}
    assert {token: tokens[token] for token in own} == own
    wanted = set(own) | set(found)
    if source == "union":
        wanted |= {t for known, m in models for t, n in known.items() if n < len(m)}
    assert set(tokens) == wanted
    assert sorted(tokens.values()) == list(range(len(tokens)))
    rows = plan.vocabulary
    assert rows is not None
    unchanged = multiple is None and tokens == own == models[start][0]
    expected_rows = (
        len(models[start][1]) if unchanged else -(-len(tokens) // (multiple or 1)) * (multiple or 1)
    )
    assert rows == expected_rows
    readers = Readers(checkpoints)
    tables = plain_rows(models, tokens, base, found, rows, start if unchanged else None)
    for i, table in enumerate(tables):
        checkpoint = readers.open(plan.sources[i].checkpoint)
        for name, expected in (("embed_tokens.weight", table), ("lm_head.bias", table[:, 0])):
            spec = checkpoint.specs[name]
            assert spec.shape == expected.shape
            whole = np.empty(spec.nbytes, np.uint8)
            checkpoint.read(name, 0, whole.data)
            raw = torch.from_numpy(whole).view(getattr(torch, spec.dtype.name))
            numbers = raw.double().numpy().reshape(spec.shape)
            np.testing.assert_allclose(numbers, expected, rtol=2e-7, atol=1e-7)
            begin = data.draw(st.integers(0, spec.nbytes))
            end = data.draw(st.integers(begin, spec.nbytes))
            piece = np.empty(end - begin, np.uint8)
            checkpoint.read(name, begin, piece.data)
            assert (piece == whole[begin:end]).all()


def test_another_map_is_another_digest(base: Path, chat: Path) -> None:
    """Plans that read the same model in different ways do not share what they read."""
    configs = [
        recipe(base, chat, base_model=str(base), tokenizer_source=source)
        for source in ("union", "base")
    ]
    plans = [planning.plan(config) for config in configs]
    assert len({plan.sources[1].checkpoint.header_digest for plan in plans}) == 2
    sinks = [StateDictSink({job.name: job.spec for job in plan.jobs}) for plan in plans]
    merganser.run(plans, sinks)
    for plan, sink in zip(plans, sinks, strict=True):
        alone = StateDictSink({job.name: job.spec for job in plan.jobs})
        merganser.run([plan], [alone])
        assert all(torch.equal(alone.tensors[name], t) for name, t in sink.tensors.items())


def test_the_engine_cuts_rows_where_it_likes(base: Path, chat: Path, tmp_path: Path) -> None:
    config = recipe(base, chat, tokenizer={"pad_to_multiple_of": 8}, base_model=str(base))
    tables = []
    for threads in (1, 3):
        merganser.merge(config, tmp_path / f"out{threads}", threads=threads)
        tables.append(weights(tmp_path / f"out{threads}")[EMBEDDING])
    assert torch.equal(*tables)
