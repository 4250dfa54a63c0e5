"""The interface of backends: prompts, sampling settings, requests and completions."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from merganser.errors import MerganserError

Message = Mapping[str, Any]
"""One message, ``{"role": "user", "content": "…"}``, with any other keys that chat templates read."""

Prompt = str | Sequence[Message]
"""A text to continue as it is, or a conversation to format with the model's chat template."""

Finish = Literal["stop", "length"]
"""The reason for a completion's end: an end token or stop text, or the maximum number of tokens."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling settings of completions.

    Attributes:
        temperature: divisor of the logits; 0 for greedy decoding.
        top_p: tokens are drawn from the smallest set with at least this total probability.
        max_tokens: maximum number of tokens of a completion.
        stop: texts that end a completion; the completion excludes them.
        seed: seed of all random draws.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """A request for one completion.

    Attributes:
        prompt: the prompt.
        sample: the sample's number among those of the prompt, from 0. Seed, prompt and this number
            determine the random draws.
    """

    prompt: Prompt
    sample: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """A model's completion.

    Attributes:
        text: the decoded text, without special tokens.
        tokens: number of tokens, including the end token.
        finish: the reason for its end: ``stop`` or ``length``.
    """

    text: str
    tokens: int
    finish: Finish


OnTokens = Callable[[int], None]
"""Called with the number of tokens generated since the previous call."""


def ignore_tokens(_count: int) -> None:
    """Ignore the number of tokens."""


Backend = Callable[[Sequence[Request], Sampling], Iterator[tuple[int, Completion]]]
"""Completes requests in any order; yields a request's index and completion as soon as it is finished."""


class StreamingBackend(Protocol):
    """A backend that reports tokens as they are generated, and can stream a single completion."""

    def __call__(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        on_tokens: OnTokens = ignore_tokens,
    ) -> Iterator[tuple[int, Completion]]:
        """See :data:`Backend`; calls ``on_tokens`` after each step of generation."""

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Completion]:
        """Yield the text of the prompt's first sample in parts; return the full completion."""


class EngineFailure(MerganserError):
    """An engine failed; a new one may succeed."""
