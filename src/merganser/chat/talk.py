"""Talking with models: folders, Hub ids, training runs, recipes and points of sweeps, none of them written."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

from merganser.errors import RecipeError
from merganser.evaluation.generation import Completion, Message, Prompt, Sampling
from merganser.planning import Plan
from merganser.planning.model_argument import find
from merganser.study.live_model import Live, LiveModel
from merganser.study.served_model import ServedModel


@dataclass
class Voice:
    """A model that can be talked with.

    Attributes:
        name: for people.
        live: the model.
        raw: whether it is given plain text, without its chat template.
        plan: what the model must be; None for what it is.
    """

    name: str
    live: Live
    raw: bool = False
    plan: Plan | None = None

    @property
    def chats(self) -> bool:
        """Whether messages are put into its chat template."""
        return not self.raw and self.live.has_chat_template

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """Messages as the model is given them: as they are, or one after the other as plain text."""
        if self.chats:
            return messages
        return "\n\n".join(message["content"] for message in messages)

    def stream(
        self, messages: Sequence[Message], sampling: Sampling
    ) -> Generator[str, None, Completion]:
        """Stream the model's answer."""
        if self.plan is not None:
            self.live.settle(self.plan)
        if isinstance(self.live, ServedModel):
            self.live.choose(self.name)
        return self.live.backend.stream(self.prompt(messages), sampling)


@dataclass
class Conversation:
    """A conversation with one model; each answer is appended, even if it was interrupted."""

    voice: Voice
    system: str | None = None
    messages: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all but the system prompt."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def answer(self, text: str, sampling: Sampling) -> Generator[str, None, Completion]:
        """Send a message; the answer is streamed in parts, and returned at the end."""
        self.messages.append({"role": "user", "content": text})
        parts: list[str] = []
        try:
            with closing(self.voice.stream(tuple(self.messages), sampling)) as answer:
                while True:
                    try:
                        part = next(answer)
                    except StopIteration as end:
                        completion: Completion = end.value
                        return completion
                    parts.append(part)
                    yield part
        finally:
            self.messages.append({"role": "assistant", "content": "".join(parts)})


@dataclass(frozen=True, slots=True)
class Answer:
    """One model's answer.

    Attributes:
        model: the reference as given.
        name: the short name.
        text: without special tokens.
        tokens: number of tokens.
        finish: why it ended: ``stop`` or ``length``.
    """

    model: str
    name: str
    text: str
    tokens: int
    finish: str


def generate(
    model: str,
    prompt: str,
    *,
    system: str | None = None,
    raw: bool = False,
    max_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    live: Live | None = None,
) -> Answer:
    """Let a model answer a prompt, without writing it.

    Args:
        model: a reference as recipes have it, a recipe, or a point of a sweep (``SWEEP.yml#w=0.7``).
        prompt: what it is asked.
        system: a system prompt.
        raw: give it the text as it is, without a chat template.
        max_tokens: length at which the answer is cut off.
        temperature: 0 takes the most likely token always.
        top_p: draw from the fewest tokens of that share of the probability.
        seed: of all that is drawn.
        live: the live model that becomes this one, so that several calls share its memory, device and
            dtype; a new one if None.

    Raises:
        MerganserError: of the kind that fits.
    """
    sampling = Sampling(temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)
    [answer] = ask([model], prompt, sampling, system=system, raw=raw, live=live)
    return answer


def ask(
    references: Sequence[str],
    text: str,
    sampling: Sampling,
    *,
    system: str | None = None,
    raw: bool = False,
    live: Live | None = None,
    on_text: Callable[[int, str], None] = lambda index, part: None,
    on_answer: Callable[[int, Answer], None] = lambda index, answer: None,
) -> list[Answer]:
    """Return the answers of several models, generated one after the other in one live model.

    Args:
        references: the models; see :func:`find`.
        text: the prompt.
        sampling: the sampling settings.
        system: a system prompt.
        raw: pass the text unchanged, without a chat template.
        live: the live model; a new one if None.
        on_text: called with the model's index in ``references`` and each part of an answer.
        on_answer: called with the same index and each complete answer.

    Raises:
        MerganserError: of the kind that fits; all references are resolved before the first model answers.
    """
    stage = live or LiveModel()
    answers = []
    voices = [_find(reference, stage, raw) for reference in references]
    for index, (reference, voice) in enumerate(zip(references, voices, strict=True)):
        name = voice.name
        if voice.plan is not None:
            stage.become(voice.plan, report=False)
        messages = Conversation(voice, system).messages
        if system and not voice.chats:
            raise RecipeError(f"{name}: takes no system prompt: it is given plain text")
        answer = voice.stream([*messages, {"role": "user", "content": text}], sampling)
        said = _heard(answer, partial(on_text, index))
        answers.append(Answer(reference, name, said.text, said.tokens, said.finish))
        on_answer(index, answers[-1])
    return answers


def _find(reference: str, live: Live, raw: bool) -> Voice:
    """The model that a reference names; of a server, the one that it calls so."""
    if isinstance(live, ServedModel):
        return Voice(reference, live, raw)
    name, plan = find(reference)
    return Voice(name, live, raw, plan)


def _heard(answer: Generator[str, None, Completion], tell: Callable[[str], None]) -> Completion:
    """Return the full answer, and report each part as it arrives."""
    while True:
        try:
            tell(next(answer))
        except StopIteration as end:
            said: Completion = end.value
            return said
        except BaseException:
            answer.close()
            raise


def conversations(
    references: Sequence[str],
    make: Callable[[], Live] = LiveModel,
    *,
    system: str | None = None,
    raw: bool = False,
) -> list[Conversation]:
    """Return one conversation per model.

    Transformers models all stay in memory; a vLLM engine loads each one when it answers.

    Args:
        references: the models; see :func:`find`.
        make: returns a live model.
        system, raw: as in :func:`ask`.

    Raises:
        MerganserError: of the kind that fits.
    """
    talks: list[Conversation] = []
    live: Live | None = None
    for reference in references:
        if live is None or isinstance(live, LiveModel):
            live = make()
        voice = _find(reference, live, raw)
        if voice.plan is not None:
            live.become(voice.plan, report=False)
        if system and not voice.chats:
            raise RecipeError(f"{voice.name}: takes no system prompt: it is given plain text")
        talks.append(Conversation(voice, system))
    return talks
