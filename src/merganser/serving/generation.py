"""What a serving engine is asked, and the parts of its answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from merganser.evaluation.codec import Codec
from merganser.evaluation.generation import Completion, Sampling
from merganser.serving.names import Served


@dataclass(frozen=True, slots=True)
class Wanted:
    """One completion that a client wants.

    Attributes:
        prompt: its tokens.
        sampling: how it is drawn.
        seed: of its draws; see :func:`merganser.evaluation.drawing.seed_of`.
        top: number of likeliest tokens to report at each place, next to the chosen one; None for no
            log-probabilities at all.
        stream: whether text is reported as it comes.
    """

    prompt: Sequence[int]
    sampling: Sampling
    seed: int = 0
    top: int | None = None
    stream: bool = False


@dataclass(frozen=True, slots=True)
class TokenScore:
    """The log-probabilities at one place of a completion.

    Attributes:
        token: the chosen token.
        logprob: its log-probability, by the model's unchanged scores.
        top: the likeliest tokens with theirs, in falling order.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Increment:
    """A part of a completion.

    Attributes:
        text: the text that it adds.
        scores: of the tokens that it adds, if they were wanted.
        completion: the full completion, in the last part only.
    """

    text: str
    scores: Sequence[TokenScore] = ()
    completion: Completion | None = None


@dataclass(frozen=True, slots=True)
class EngineState:
    """What an engine does at this moment.

    Attributes:
        running: completions that are being generated.
        waiting: completions that wait for memory.
        held: completions that wait for their model's next turn.
        tokens: generated since the start.
        prompt_tokens: read since the start.
    """

    running: int = 0
    waiting: int = 0
    held: int = 0
    tokens: int = 0
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a model once the engine has been it.

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


class Engine(Protocol):
    """Generates for one model at a time, and becomes another one between two steps.

    Attributes:
        name: the engine with its version.
    """

    name: str

    @property
    def is_alive(self) -> bool:
        """Whether it can generate."""

    @property
    def state(self) -> EngineState:
        """What it does at this moment."""

    async def become(self, model: Served) -> Facts:
        """Hold what runs, turn the weights into a model's, and go on with what was held for it.

        Raises:
            MerganserError: the model cannot be run; what was held for it fails too.
        """

    def generate(
        self, model: Served, wanted: Sequence[Wanted]
    ) -> AsyncGenerator[tuple[int, Increment]]:
        """Generate completions; yields each part with its completion's index.

        An iterator that is closed ends its completions.

        Raises:
            EngineFailure: the engine failed.
            ResourceError: memory does not suffice.
        """

    async def close(self) -> None:
        """End everything that runs, and give the memory back."""
