"""Answers in the forms of OpenAI's API: complete ones, and events of a stream."""

from __future__ import annotations

import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from merganser.evaluation.codec import Codec
from merganser.evaluation.generation import Completion
from merganser.serving.generation import Increment, TokenScore

LEAST = -9999.0
"""The log-probability of what cannot come: JSON has no infinity."""

DONE = b"data: [DONE]\n\n"


class Form(ABC):
    """How an answer is written.

    Args:
        model: the model's name, as the client wrote it.
        fingerprint: says which weights answered.
        codec: writes tokens.
        scored: whether log-probabilities were wanted.
    """

    prefix: str
    whole: str
    part: str

    def __init__(self, model: str, fingerprint: str, codec: Codec, *, scored: bool) -> None:
        self.codec = codec
        self.scored = scored
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def complete(
        self, parts: Sequence[Sequence[Increment]], usage: Mapping[str, int]
    ) -> dict[str, Any]:
        """An answer at once.

        Args:
            parts: of each completion.
            usage: see :func:`usage_of`.
        """
        choices = [self._choice(i, each) for i, each in enumerate(parts)]
        return {"object": self.whole, **self._head, "choices": choices, "usage": dict(usage)}

    def event(
        self, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, int] | None, *, counts: bool
    ) -> bytes:
        """An event of a stream.

        Args:
            choices: what is new.
            usage: the number of tokens, in the last event.
            counts: whether the stream has a last event with that.
        """
        data = {"object": self.part, **self._head, "choices": list(choices)}
        return as_event(data | ({"usage": usage and dict(usage)} if counts else {}))

    def opening(self, index: int) -> list[dict[str, Any]]:
        """The choices of the event that begins a completion; none if there is none."""
        return []

    @abstractmethod
    def added(self, index: int, part: Increment) -> dict[str, Any]:
        """The choice that a part of a completion adds."""

    @abstractmethod
    def _choice(self, index: int, parts: Sequence[Increment]) -> dict[str, Any]:
        """A complete choice."""

    def _token(self, token: int) -> str:
        return str(self.codec.tokenizer.decode([token]))


class ChatForm(Form):
    """Answers of ``/v1/chat/completions``."""

    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self, index: int) -> list[dict[str, Any]]:
        """See :class:`Form`."""
        delta = {"role": "assistant", "content": ""}
        return [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}]

    def added(self, index: int, part: Increment) -> dict[str, Any]:
        """See :class:`Form`."""
        return {
            "index": index,
            "delta": {"content": part.text} if part.text else {},
            "logprobs": self._scores(part.scores),
            "finish_reason": part.completion.finish if part.completion else None,
        }

    def _choice(self, index: int, parts: Sequence[Increment]) -> dict[str, Any]:
        completion = completion_of(parts)
        return {
            "index": index,
            "message": {"role": "assistant", "content": completion.text, "refusal": None},
            "logprobs": self._scores([score for part in parts for score in part.scores]),
            "finish_reason": completion.finish,
        }

    def _scores(self, scores: Sequence[TokenScore]) -> dict[str, Any] | None:
        if not self.scored:
            return None
        content = [
            self._entry(score.token, score.logprob)
            | {"top_logprobs": [self._entry(*each) for each in score.top]}
            for score in scores
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._token(token)
        known = "\N{REPLACEMENT CHARACTER}" not in text
        return {
            "token": text,
            "logprob": max(logprob, LEAST),
            "bytes": list(text.encode("utf-8", "surrogatepass")) if known else None,
        }


class TextForm(Form):
    """Answers of ``/v1/completions``."""

    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str, fingerprint: str, codec: Codec, *, scored: bool) -> None:
        super().__init__(model, fingerprint, codec, scored=scored)
        self._offsets: dict[int, int] = {}

    def added(self, index: int, part: Increment) -> dict[str, Any]:
        """See :class:`Form`."""
        return {
            "index": index,
            "text": part.text,
            "logprobs": self._scores(index, part.scores),
            "finish_reason": part.completion.finish if part.completion else None,
        }

    def _choice(self, index: int, parts: Sequence[Increment]) -> dict[str, Any]:
        completion = completion_of(parts)
        scores = [score for part in parts for score in part.scores]
        return {
            "index": index,
            "text": completion.text,
            "logprobs": self._scores(index, scores),
            "finish_reason": completion.finish,
        }

    def _scores(self, index: int, scores: Sequence[TokenScore]) -> dict[str, Any] | None:
        if not self.scored:
            return None
        tokens = [self._token(score.token) for score in scores]
        offsets = []
        for text in tokens:
            offsets.append(self._offsets.setdefault(index, 0))
            self._offsets[index] += len(text)
        return {
            "tokens": tokens,
            "token_logprobs": [max(score.logprob, LEAST) for score in scores],
            "top_logprobs": [
                {self._token(token): max(logprob, LEAST) for token, logprob in score.top}
                for score in scores
            ],
            "text_offset": offsets,
        }


def completion_of(parts: Sequence[Increment]) -> Completion:
    """The completion that ends a list of parts."""
    completion = parts[-1].completion
    assert completion is not None
    return completion


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """The number of tokens of a request."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def as_json(data: Any) -> bytes:
    """Data as the bytes of a body."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def as_event(data: Any) -> bytes:
    """Data as a server-sent event."""
    return b"data: " + as_json(data) + b"\n\n"
