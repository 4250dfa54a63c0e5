"""Text that comes in parts is the text that comes at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from merganser.evaluation.codec import Codec
from merganser.evaluation.generation import Sampling
from merganser.serving.streamed_text import StreamedText

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
END = len(LETTERS)


def make_codec() -> Codec:
    """A tokenizer whose tokens are single bytes."""
    vocabulary = {letter: i for i, letter in enumerate(LETTERS)} | {"</s>": END}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>")
    return Codec(tokenizer, [END], SimpleNamespace())


CODEC = make_codec()


def streamed(tokens: list[int], stops: list[str]) -> tuple[list[str], bool]:
    """The parts of a text, and whether a stop text ended it."""
    text = StreamedText(CODEC, stops)
    parts = []
    for token in tokens:
        text.add(token)
        if text.stopped:
            return [*parts, text.finish(text.text)], True
        parts.append(text.take())
    return [*parts, text.finish(CODEC.completion(tokens, Sampling()).text)], False


@given(st.text(max_size=12), st.binary(max_size=6))
def test_parts_of_any_bytes_make_the_text(text: str, noise: bytes) -> None:
    tokens = CODEC.tokenizer(text)["input_ids"]
    tokens += [CODEC.tokenizer.convert_tokens_to_ids(LETTERS[byte % 256]) for byte in noise]
    parts, _ = streamed(tokens, [])
    assert "".join(parts) == CODEC.completion(tokens, Sampling()).text


@given(st.text("abc", max_size=20), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_stop_texts_end_a_stream_where_they_end_a_completion(text: str, stops: list[str]) -> None:
    tokens = CODEC.tokenizer(text)["input_ids"]
    parts, stopped = streamed(tokens, stops)
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    assert stopped == bool(places)
    if not stopped:
        assert "".join(parts) == text
    else:  # by the first stop text that is complete
        first = min(text.find(stop) + len(stop) for stop in stops if stop in text)
        kept = min(text[:first].find(stop) for stop in stops if stop in text[:first])
        assert "".join(parts) == text[:kept]


@pytest.mark.parametrize("letter", ["é", "語", "🦆"])
def test_half_of_a_letter_is_held_back(letter: str) -> None:
    tokens = CODEC.tokenizer(f"a{letter}b")["input_ids"]
    parts, _ = streamed(tokens, [])
    assert [part for part in parts if part] == ["a", letter, "b"]


def test_what_may_become_a_stop_text_is_held_back() -> None:
    tokens = CODEC.tokenizer("one##two###three")["input_ids"]
    parts, stopped = streamed(tokens, ["###"])
    assert stopped
    assert "".join(parts) == "one##two"
    assert not any(part == "#" for part in parts)
