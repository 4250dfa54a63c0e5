"""Requests to a serving engine, and the parts of its answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from merganser import engine
from merganser.evaluation.codec import Codec
from merganser.evaluation.generation import Completion, Sampling
from merganser.serving.names import Served


@dataclass(frozen=True, slots=True)
class Wanted:
    """One completion that a client wants.

    Attributes:
        prompt: the ids of the prompt's tokens.
        sampling: the sampling settings.
        seed: the seed of its random draws; see :func:`merganser.evaluation.drawing.seed_of`.
        top: number of likeliest tokens to report at each position, besides the chosen one; None for no
            log-probabilities.
        stream: whether text is reported while it is generated.
    """

    prompt: Sequence[int]
    sampling: Sampling
    seed: int = 0
    top: int | None = None
    stream: bool = False


@dataclass(frozen=True, slots=True)
class TokenScore:
    """The log-probabilities at one position of a completion.

    Attributes:
        token: the chosen token.
        logprob: its natural log-probability under the model's logits, before temperature and top-p.
        top: the likeliest tokens with their log-probabilities, likeliest first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Increment:
    """A part of a completion.

    Attributes:
        text: the text that it adds.
        scores: log-probabilities of the tokens that it adds, if the client asked for them.
        completion: the full completion, in the last part only.
    """

    text: str
    scores: Sequence[TokenScore] = ()
    completion: Completion | None = None


@dataclass(frozen=True, slots=True)
class EngineState:
    """The work of an engine at this moment.

    Attributes:
        running: completions that are being generated.
        waiting: completions that wait for memory.
        held: paused completions, which wait for their model's next turn.
        tokens: number of tokens generated since the start.
        prompt_tokens: number of prompts' tokens read since the start.
    """

    running: int = 0
    waiting: int = 0
    held: int = 0
    tokens: int = 0
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """Properties of a model that are known once its weights have been loaded.

    Attributes:
        codec: its tokenizer.
        weights: the weight of each merged model that the recipe asks for.
        effective: the same weights, measured after rounding.
        context: the most tokens of a prompt and its completion; None if the model does not say.
        vocabulary: the number of its tokens.
    """

    codec: Codec
    context: int | None
    vocabulary: int
    weights: Mapping[str, float] = field(default_factory=dict)
    effective: Mapping[str, float] = field(default_factory=dict)


def facts_of(codec: Codec, outcome: engine.Outcome, name: str) -> Facts:
    """Return the facts of a model; messages about its prompts have its name, whichever was loaded first."""
    models = outcome.report.models if outcome.report is not None else ()
    return Facts(
        Codec(codec.tokenizer, codec.end_tokens, codec.config, name),
        codec.context,
        codec.config.get_text_config().vocab_size,
        {m.model: m.requested for m in models if m.requested is not None},
        {m.model: m.effective for m in models if m.effective is not None},
    )


class Generating(Protocol):
    """What generates: one engine, or several.

    Attributes:
        name: the engine with its version.
    """

    name: str

    @property
    def is_alive(self) -> bool:
        """Whether it can generate."""

    @property
    def state(self) -> EngineState:
        """Its work at this moment."""

    async def close(self) -> None:
        """Cancel everything that runs, and release the memory."""


class Engine(Generating, Protocol):
    """Generates for one model at a time; the weights can be swapped between two decoding steps."""

    async def become(self, model: Served) -> Facts:
        """Pause what runs, load a model's weights, and resume the model's paused completions.

        Raises:
            MerganserError: the model cannot be run; its paused completions fail too.
        """

    def generate(
        self, model: Served, wanted: Sequence[Wanted]
    ) -> AsyncGenerator[tuple[int, Increment]]:
        """Generate completions; yield the index of a completion with each part of it.

        Closing the iterator cancels its completions.

        Raises:
            EngineFailure: the engine failed.
            ResourceError: memory is insufficient.
        """
