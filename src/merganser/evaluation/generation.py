"""What a backend is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from merganser.errors import MerganserError

Message = Mapping[str, Any]
"""``{"role": "user", "content": "…"}``, and what else a chat template reads of a message."""

Prompt = str | Sequence[Message]
"""A text that is continued as it is, or a conversation that the model's chat template makes one of."""

Finish = Literal["stop", "length"]
"""Whether the model came to an end, or was cut off at its number of tokens."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        temperature: 0 for the most likely token always.
        top_p: tokens are drawn from the fewest that have this share of the probability.
        max_tokens: length at which a completion is cut off.
        stop: texts that end a completion, and are left out of it.
        seed: of all that is drawn.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One completion that is wanted.

    Attributes:
        prompt: what is completed.
        sample: which sample of the prompt it is, from 0; with the seed and the prompt it decides what
            is drawn.
    """

    prompt: Prompt
    sample: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """A model's completion.

    Attributes:
        text: without special tokens.
        tokens: number of tokens, including the end token.
        finish: the reason for its end.
    """

    text: str
    tokens: int
    finish: Finish


OnTokens = Callable[[int], None]
"""Called with the number of tokens that were generated since its last call."""


def ignore_tokens(_count: int) -> None:
    """Count nothing."""


Backend = Callable[[Sequence[Request], Sampling], Iterator[tuple[int, Completion]]]
"""Completes requests, in any order: yields each one's index and completion as soon as it is finished."""


class StreamingBackend(Protocol):
    """A backend that counts tokens as they come, and streams single completions."""

    def __call__(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        on_tokens: OnTokens = ignore_tokens,
    ) -> Iterator[tuple[int, Completion]]:
        """See :data:`Backend`; ``on_tokens`` is called at each step."""

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Completion]:
        """Stream one completion's text: that of the prompt's first sample."""


class EngineFailure(MerganserError):
    """An engine failed; a new one may succeed."""
