"""Conversion between texts and tokens of a model, shared by all engines that run in this process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from merganser.errors import InputError
from merganser.evaluation.generation import Completion, Message, Prompt, Sampling


class PromptTooLong(InputError):
    """A prompt has more tokens than the model's context."""


class Codec:
    """Encodes prompts to token ids, and decodes generated token ids to completions.

    Args:
        tokenizer: a tokenizer of transformers.
        end_tokens: ids of the tokens that end a completion.
        config: the model's config, a transformers object.
        label: the model's name in messages.
    """

    def __init__(
        self, tokenizer: Any, end_tokens: Sequence[int], config: Any, label: str = "the model"
    ) -> None:
        self.tokenizer = tokenizer
        self.end_tokens = list(end_tokens)
        self.config = config
        self.label = label
        self._single: dict[int, str] = {}

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids, without special tokens; texts of single tokens are remembered."""
        if len(tokens) != 1:
            return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))
        [token] = tokens
        if token not in self._single:
            text = self.tokenizer.decode([token], skip_special_tokens=True)
            self._single[token] = str(text)
        return self._single[token]

    def encode(self, prompt: Prompt, tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """The token ids of a prompt; a conversation is formatted with the chat template.

        Args:
            prompt: a text, or a conversation.
            tools: descriptions of functions, for the chat template.

        Raises:
            PromptTooLong: the prompt has as many tokens as the model's context, or more.
            InputError: the prompt has no tokens, or there is no chat template, or it raises an error.
        """
        ids = self._plain(prompt) if isinstance(prompt, str) else self._conversation(prompt, tools)
        if not ids:
            raise InputError(f"{self.label}: a prompt has no tokens")
        context = self.context
        if context is not None and len(ids) >= context:
            text = " ".join(text_of(prompt).split())
            raise PromptTooLong(
                f"{self.label}: a prompt has {len(ids):,} tokens, and the model's context is "
                f"{context:,}: {text[:60]}{'…' if len(text) > 60 else ''}"
            )
        return [int(i) for i in ids]

    def encode_all(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """The token ids of several prompts; equal prompts are encoded once.

        Raises:
            InputError: when :meth:`encode` raises it for a prompt.
        """
        unique = {text_of(prompt): prompt for prompt in prompts}
        ids = {text: self.encode(prompt) for text, prompt in unique.items()}
        return [ids[text_of(prompt)] for prompt in prompts]

    def _plain(self, text: str) -> Any:
        return self.tokenizer(text)["input_ids"]

    def _conversation(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Any:
        if not getattr(self.tokenizer, "chat_template", None):
            raise InputError(
                f"{self.label}: its tokenizer has no chat template; set chat: false to give "
                "problems as plain text"
            )
        try:
            encoded = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=[dict(tool) for tool in tools] or None,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
            )
        except Exception as error:  # a template may raise any exception
            reason = " ".join(str(error).split())[:120]
            raise InputError(
                f"{self.label}: its chat template refuses a prompt ({reason})"
            ) from None
        return encoded["input_ids"]

    @property
    def context(self) -> int | None:
        """The model's context length in tokens, from its config; None if the config does not state it."""
        config = self.config.get_text_config()
        length = getattr(config, "max_position_embeddings", None)
        if not isinstance(length, int) or length <= 0:
            return None
        rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
        factor = rope.get("factor", 1) if isinstance(rope, Mapping) else 1
        return int(length * max(1, factor)) if isinstance(factor, int | float) else length

    @property
    def padding(self) -> int:
        """The id of the token that pads prompts and completions in a batch."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.end_tokens[0] if self.end_tokens else 0)

    def completion(self, tokens: Sequence[int], sampling: Sampling) -> Completion:
        """The completion in generated token ids, cut off at the first end token or stop text."""
        ended = next((i for i, token in enumerate(tokens) if token in self.end_tokens), None)
        before_end = list(tokens if ended is None else tokens[:ended])
        text = self.decode(before_end)
        cuts = [place for stop in sampling.stop if (place := text.find(stop)) >= 0]
        count = len(before_end) + (ended is not None)
        if cuts:
            # In a batch, padding follows a stop text if other completions are longer.
            count = self._shortest(before_end, text[: min(cuts)], sampling.stop)
            return Completion(text[: min(cuts)], count, "stop")
        return Completion(text, count, "length" if ended is None else "stop")

    def _shortest(self, tokens: Sequence[int], shown: str, stops: Sequence[str]) -> int:
        """The number of tokens up to and including the one that completes a stop text."""
        for count in range(1, len(tokens) + 1):
            text = self.decode(tokens[:count])
            if len(text) > len(shown) and any(stop in text for stop in stops):
                return count
        return len(tokens)

    def key_value_bytes(self, element_size: int) -> int:
        """Bytes of the cached keys and values of one token; 0 for a model without attention."""
        config = self.config.get_text_config()
        queries = getattr(config, "num_attention_heads", None)
        if not queries:
            return 0
        heads = getattr(config, "num_key_value_heads", None) or queries
        width = getattr(config, "head_dim", None) or config.hidden_size // queries
        return int(2 * config.num_hidden_layers * heads * width * element_size)


class TextStream:
    """Decodes tokens to text as they are generated.

    Args:
        codec: the model's codec.
        sampling: the sampling settings, whose stop texts end the text.
    """

    def __init__(self, codec: Codec, sampling: Sampling) -> None:
        self.codec = codec
        self.sampling = sampling
        self._tokens: list[int] = []
        self._shown = ""

    def add(self, tokens: Sequence[int]) -> str:
        """The text that new tokens add; empty while the last character is incomplete."""
        self._tokens += tokens
        text = self.completion.text
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        return self._rest(text)

    def finish(self) -> str:
        """The rest of the text, after the last token."""
        return self._rest(self.completion.text)

    @property
    def completion(self) -> Completion:
        """The completion in the tokens so far."""
        return self.codec.completion(self._tokens, self.sampling)

    def _rest(self, text: str) -> str:
        part, self._shown = text[len(self._shown) :], text
        return part


def text_of(prompt: Prompt) -> str:
    """A prompt as one text; conversations are formatted as JSON."""
    return prompt if isinstance(prompt, str) else json.dumps(list(map(dict, prompt)))
