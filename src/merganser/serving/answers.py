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
from merganser.serving.tool_calls import ToolCalls

LEAST = -9999.0
"""The log-probability of an impossible token: JSON has no infinity."""

DONE = b"data: [DONE]\n\n"


class Form(ABC):
    """Writes an answer as JSON or as events of a stream.

    Args:
        model: the model's name, as the client wrote it.
        fingerprint: identifies the weights that answered.
        codec: decodes tokens to text.
        scored: whether the client asked for log-probabilities.
        calls: whether calls of tools in the text are parsed.
    """

    prefix: str
    whole: str
    part: str

    def __init__(
        self, model: str, fingerprint: str, codec: Codec, *, scored: bool, calls: bool = False
    ) -> None:
        self.codec = codec
        self.scored = scored
        self.calls = calls
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        # Streams repeat this with every token.
        self._begin = b"data: " + as_json({"object": self.part, **self._head})[:-1] + b',"choices":'

    def complete(
        self, parts: Sequence[Sequence[Increment]], usage: Mapping[str, int]
    ) -> dict[str, Any]:
        """Return a complete answer, which is not streamed.

        Args:
            parts: the parts of each completion.
            usage: see :func:`usage_of`.
        """
        choices = [self._choice(i, each) for i, each in enumerate(parts)]
        return {"object": self.whole, **self._head, "choices": choices, "usage": dict(usage)}

    def event(
        self, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, int] | None, *, counts: bool
    ) -> bytes:
        """Return one event of a stream.

        Args:
            choices: the new parts of completions.
            usage: the numbers of tokens, in the last event; else None.
            counts: whether the stream ends with an event that has ``usage``.
        """
        end = b',"usage":' + as_json(usage and dict(usage)) if counts else b""
        return self._begin + as_json(choices) + end + b"}\n\n"

    def opening(self, index: int) -> list[dict[str, Any]]:
        """Return the choices of the event that begins a completion; empty if the API has no such event."""
        return []

    @abstractmethod
    def added(self, index: int, part: Increment) -> dict[str, Any]:
        """Return a part of a completion as a choice of an event."""

    @abstractmethod
    def _choice(self, index: int, parts: Sequence[Increment]) -> dict[str, Any]:
        """Return a completion as a choice of a complete answer."""

    def _token(self, token: int) -> str:
        return str(self.codec.tokenizer.decode([token]))


class ChatForm(Form):
    """Answers of ``/v1/chat/completions``."""

    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(
        self, model: str, fingerprint: str, codec: Codec, *, scored: bool, calls: bool = False
    ) -> None:
        super().__init__(model, fingerprint, codec, scored=scored, calls=calls)
        self._parsers: dict[int, ToolCalls] = {}

    def opening(self, index: int) -> list[dict[str, Any]]:
        """See :class:`Form`."""
        delta = {"role": "assistant", "content": ""}
        return [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}]

    def added(self, index: int, part: Increment) -> dict[str, Any]:
        """See :class:`Form`."""
        text = part.text
        finish: str | None = part.completion.finish if part.completion else None
        delta: dict[str, Any] = {}
        if self.calls:
            parser = self._parsers.setdefault(index, ToolCalls())
            before = len(parser.calls)
            text = parser.add(text) + (parser.finish() if finish else "")
            if new := parser.calls[before:]:
                delta["tool_calls"] = [{"index": before + i, **call} for i, call in enumerate(new)]
            finish = "tool_calls" if finish == "stop" and parser.calls else finish
        if text:
            delta["content"] = text
        return {
            "index": index,
            "delta": delta,
            "logprobs": self._scores(part.scores),
            "finish_reason": finish,
        }

    def _choice(self, index: int, parts: Sequence[Increment]) -> dict[str, Any]:
        completion = completion_of(parts)
        message: dict[str, Any] = {"role": "assistant", "content": completion.text, "refusal": None}
        finish: str = completion.finish
        if self.calls:
            parser = ToolCalls()
            text = parser.add(completion.text) + parser.finish()
            if parser.calls:
                message |= {"content": text or None, "tool_calls": parser.calls}
                finish = "tool_calls" if finish == "stop" else finish
        return {
            "index": index,
            "message": message,
            "logprobs": self._scores([score for part in parts for score in part.scores]),
            "finish_reason": finish,
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

    def __init__(
        self, model: str, fingerprint: str, codec: Codec, *, scored: bool, calls: bool = False
    ) -> None:
        super().__init__(model, fingerprint, codec, scored=scored, calls=calls)
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
    """Return the completion, which the last part has."""
    completion = parts[-1].completion
    assert completion is not None
    return completion


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Return the numbers of tokens of a request, in OpenAI's form."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def as_json(data: Any) -> bytes:
    """Return data as the JSON bytes of a response body."""
    return _encode(data).encode("utf-8")


def as_event(data: Any) -> bytes:
    """Return data as the bytes of a server-sent event."""
    return b"data: " + as_json(data) + b"\n\n"
